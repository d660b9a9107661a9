//! The commands that talk to the API: nodes, pools, volumes.

pub(crate) mod inventory;
pub(crate) mod volume;

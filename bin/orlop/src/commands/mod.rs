//! The commands that talk to the API: nodes, pools, volumes.

pub(crate) mod inventory;
pub(crate) mod node;
pub(crate) mod volume;

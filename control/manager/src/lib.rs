//! Decides where bytes live and touches none: pure functions from a view of the store and a time to actions.

mod placement;
#[cfg(test)]
mod testing;
mod view;

pub use placement::{NoPlace, OVERCOMMIT_DEFAULT, Promised, check_growth, place};
pub use view::{Objects, View};

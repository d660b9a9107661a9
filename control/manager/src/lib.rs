//! Decides where bytes live and touches none: pure functions from a view of the store and a time to actions, and the
//! loop that performs them.
//!
//! What is told of a change goes into the planner, which keeps the view and marks the volumes that it touches (`planner`,
//! `index`, `since`); a pass takes a step (`plan`, `intent`) for each that is marked. What has become of them is told to who
//! wants to hear it (`news`).
//!
//! There are no calls to nodes: the manager writes what is wished, engines make it so and report. A crash anywhere is
//! followed by the same loop.

#[cfg(test)]
mod convergence;
mod index;
mod intent;
mod news;
mod no_place;
mod observed;
mod placement;
mod plan;
mod planner;
mod recovery;
mod run;
mod since;
#[cfg(test)]
mod testing;
mod view;

pub use news::News;
pub use no_place::{NoPlace, Others};
pub use observed::Observed;
pub use placement::{Copies, OVERCOMMIT_DEFAULT, Promised, check_growth, largest, place};
pub use plan::{Action, Config, plan};
pub use planner::{Planner, Told};
pub use recovery::Recovery;
pub use run::{Manager, ensure_cluster, start};
pub use view::{Objects, View};

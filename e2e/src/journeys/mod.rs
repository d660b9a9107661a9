//! The journeys, in the order in which they run: first those that judge the harness itself.

mod harness;

use crate::journey::Journey;
pub(crate) use harness::plant;

/// All of them.
pub(crate) const ALL: &[Journey] = &[harness::BASELINE, harness::GUARD];

//! The journeys, in the order in which they run: first those that judge the harness itself.

mod database;
mod dev;
mod harness;
mod kernel;
mod volume;

use crate::journey::Journey;
pub(crate) use harness::plant;

/// All of them.
pub(crate) const ALL: &[Journey] = &[
    harness::BASELINE,
    harness::GUARD,
    database::BASELINE,
    kernel::BASELINE,
    kernel::INTEROP,
    kernel::INITIATOR,
    volume::DEMO,
    volume::UNPRIVILEGED,
    volume::TEN,
    dev::CONTROLLER,
    dev::ORPHANS,
    kernel::VOLUME,
    database::SQLITE,
    database::POSTGRES,
];

/// What the product still owes: run by name, not with the others, until they pass. Both need the second holder of the
/// FUSE descriptor in the engine, so that a device outlives the engine that serves it.
pub(crate) const OWED: &[Journey] = &[volume::KILLS, dev::MOUNTED];

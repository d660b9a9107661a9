//! The journeys, in the order in which they run: first those that judge the harness itself.

mod database;
mod demo;
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
    harness::FRONTEND,
    database::BASELINE,
    kernel::BASELINE,
    kernel::INTEROP,
    kernel::INITIATOR,
    demo::DEMO,
    demo::UNPRIVILEGED,
    demo::FLIPPED,
    demo::INTERRUPTED,
    demo::BESIDE,
    volume::KILLS,
    volume::TEN,
    dev::MOUNTED,
    dev::CONTROLLER,
    dev::ORPHANS,
    kernel::VOLUME,
    database::SQLITE,
    database::POSTGRES,
    database::SQLITE_MOVED,
    database::POSTGRES_MOVED,
];

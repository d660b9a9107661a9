//! The journeys, in the order in which they run: first those that judge the harness itself.

mod chart;
mod claims;
mod csi;
mod database;
mod demo;
mod dev;
mod etcd;
mod harness;
mod k8s;
mod kernel;
mod kubernetes;
mod upkeep;
mod volume;

use crate::journey::Journey;
pub(crate) use harness::plant;

/// Those on this machine.
pub(crate) const HERE: &[Journey] = &[
    harness::BASELINE,
    harness::GUARD,
    harness::FRONTEND,
    harness::DISKS,
    claims::CLAIMS,
    harness::ETCD,
    harness::KUBERNETES_STORE,
    chart::CHART,
    database::BASELINE,
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
    dev::RETURNED,
    upkeep::UPKEEP,
    etcd::CLUSTER,
    csi::SANITY,
    csi::VOLUME,
    csi::KILLED,
    kubernetes::LAB,
    k8s::K8S,
    database::SQLITE,
    database::POSTGRES,
    database::SQLITE_MOVED,
    database::POSTGRES_MOVED,
];

/// Those in the Linux guest: an emulator takes one core and is slow, so all of them run beside the others.
pub(crate) const IN_GUEST: &[Journey] =
    &[kernel::BASELINE, kernel::INTEROP, kernel::INITIATOR, kernel::VOLUME];

/// All of them.
pub(crate) fn all() -> impl Iterator<Item = &'static Journey> {
    HERE.iter().chain(IN_GUEST)
}

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
pub(crate) use csi::Calls;
pub(crate) use harness::plant;

/// Those that run one after the other.
pub(crate) const HERE: &[Journey] = &[
    harness::BASELINE,
    harness::GUARD,
    harness::FRONTEND,
    harness::DISKS,
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
    csi::SANITY,
    csi::VOLUME,
    csi::KILLED,
    kubernetes::LAB,
    k8s::K8S,
    k8s::UPGRADE,
    database::SQLITE,
    database::POSTGRES,
    database::SQLITE_MOVED,
    database::POSTGRES_MOVED,
];

/// Those that run beside the others: an emulator takes one core and is slow, and what comes after it mostly waits. None of
/// them is judged by how fast it is.
pub(crate) const BESIDE: &[Journey] = &[
    kernel::BASELINE,
    kernel::INTEROP,
    kernel::INITIATOR,
    kernel::VOLUME,
    kernel::DEVICE,
    kernel::CSI,
    harness::ETCD,
    harness::KUBERNETES_STORE,
    etcd::CLUSTER,
    claims::CLAIMS,
];

/// All of them.
pub(crate) fn all() -> impl Iterator<Item = &'static Journey> {
    HERE.iter().chain(BESIDE)
}

//! Kubernetes is the store: each noun of `model` is a custom resource of the group `orlop.io`, reached through the API
//! server. Beside `store` on the control plane; no byte of a volume comes here.
//!
//! | in the store | in Kubernetes |
//! |---|---|
//! | a kind | a custom resource of the same plural, for the whole cluster; `deploy/crds` has the definitions ([`crds`]) |
//! | key | `metadata.name` |
//! | value of a report | `status` |
//! | value of a node or pool | `spec` (what its operator wishes) and `status` (all the rest) |
//! | value of a volume | `spec` (what its user wants, and its UUID) and `status` (all the rest) |
//! | revision | `metadata.resourceVersion` |
//!
//! 1. The store has one definition of a noun: schemas come from the Rust types of `model`.
//! 2. An object that has no `status` is absent, and so is a volume without a UUID: what somebody has applied by hand, or
//!    the beginning of a creation that was interrupted. [`Kubernetes::adopt`] makes such volumes present; the creation of
//!    the same object goes on with it. Nothing else gives a UUID, and it is the last that is written: a volume that has
//!    one has been there.
//! 3. Every write is a compare-and-swap of the `resourceVersion`. We rely on it being the number that etcd gives, which
//!    grows and is never given twice; one that is no number is `Corrupt`.
//! 4. `status.conditions` of nodes, pools, disks, volumes and statuses of volumes is for those who know nothing of Orlop:
//!    it follows from the value when that is written, and is no part of it when it is read (`condition`).
//! 5. Nothing is dropped without a word: a field that the definitions in the cluster do not know refuses the write.
//!    So the definitions are updated before the programs.

mod adopt;
mod claim;
mod condition;
mod crd;
mod election;
mod event;
mod extender;
mod failover;
mod install;
mod kubernetes;
mod logs;
mod object;
mod server;
mod topology;
mod watch;

pub use crd::{GROUP, VERSION, crds};
pub use election::{Election, Term};
pub use event::Severity;
pub use extender::{Cidr, Extender};
pub use failover::{Config as FailoverConfig, Failover};
pub use kubernetes::Kubernetes;
pub use logs::{Log, own_namespace};

//! NVMe over TCP: the wire formats, the target and the initiator.
//!
//! On the path of a byte this crate is both ends of the connection between a host and a volume, and between a nexus and
//! a remote replica. It speaks NVMe/TCP by the specification, so that the Linux kernel and other targets can be at the
//! other end.
//!
//! - [`wire`]: the formats, as pure bytes.
//! - [`subsystem`]: the traits of what a target exports.
//! - [`target`]: serves it to hosts.
//! - [`initiator`]: a host.
//!
//! # Invariants
//! 1. Nothing that arrives from the network panics, allocates beyond the limits agreed upon, or reaches a namespace that
//!    the session does not list.
//! 2. An association has one life: when any of its connections is lost, all of it is over.
//! 3. Where there is a key, a host that has not proved that it has it is answered nothing but Connect and the messages of
//!    the proof, and reaches no session, device or record.

mod auth;
mod error;
pub mod initiator;
mod key;
mod limits;
mod link;
mod outbox;
pub mod subsystem;
pub mod target;
pub mod wire;

pub use error::{Error, ErrorKind, Unauthenticated};
pub use initiator::{Association, ConnectOptions, Namespace, Reconnecting, discover};
pub use key::{KEY_LEN, Key, KeyError};
pub use subsystem::{
    AssociationHandle, ConnectError, ConnectRequest, Direction, DiscoveryEntry, DiscoveryKind,
    NamespaceIdentity, Session, Subsystems, VendorCommand, VendorReply,
};
pub use target::{Target, TargetConfig};

//! The initiator: a host's side of NVMe over TCP.
//!
//! - [`Association`]: one life of a connection to one subsystem. When any of its connections breaks, a command takes too
//!   long or the keep-alive fails, all of it is dead and stays so.
//! - [`Namespace`]: a device of an association.
//! - [`Reconnecting`]: a device that outlives associations, for tools.
//! - [`discover()`]: what a target offers.
//!
//! # Invariants
//! 1. Every command ends exactly once: with its answer, or with `Gone` or `TimedOut` when its association dies.
//! 2. After the death of an association nothing more is sent on it.

mod association;
mod authenticate;
mod discover;
mod namespace;
mod queue;
mod reconnecting;

pub use association::Association;
pub use discover::discover;
pub use namespace::Namespace;
pub use reconnecting::Reconnecting;

use crate::key::Key;
use std::net::SocketAddr;
use std::time::Duration;
use uuid::Uuid;

/// How to connect to a subsystem.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Where the target listens.
    pub address: SocketAddr,
    /// The subsystem.
    pub subnqn: String,
    /// This host's name.
    pub hostnqn: String,
    /// This host's identifier.
    pub hostid: Uuid,
    /// I/O queues, each a connection of its own; the target may grant fewer.
    pub queues: u16,
    /// Commands in flight on one I/O queue; the target may allow fewer.
    pub queue_depth: u16,
    /// Keep-alive time-out in milliseconds; 0 for none. The target ends the association after that long a silence.
    pub keep_alive_ms: u32,
    /// CRC32C on every PDU header.
    pub header_digest: bool,
    /// CRC32C on all data.
    pub data_digest: bool,
    /// Send at most this much data in a capsule, in bytes, even if the target allows more. Linux's target (seen with
    /// 6.12) never asks for data that would fit its capsules: leave it at what the target allows there.
    pub in_capsule_bytes_max: u32,
    /// The association dies when a command takes longer than this.
    pub command_limit: Duration,
    /// How long connecting may take as a whole.
    pub connect_limit: Duration,
    /// What this host proves to the target, and the target has to prove to it; none connects only where none is asked for.
    pub key: Option<Key>,
}

impl ConnectOptions {
    /// The usual settings.
    pub fn new(
        address: SocketAddr,
        subnqn: impl Into<String>,
        hostnqn: impl Into<String>,
        hostid: Uuid,
    ) -> Self {
        Self {
            address,
            subnqn: subnqn.into(),
            hostnqn: hostnqn.into(),
            hostid,
            queues: 1,
            queue_depth: 128,
            keep_alive_ms: 5000,
            header_digest: false,
            data_digest: false,
            in_capsule_bytes_max: 1 << 20,
            command_limit: Duration::from_secs(30),
            connect_limit: Duration::from_secs(10),
            key: None,
        }
    }
}

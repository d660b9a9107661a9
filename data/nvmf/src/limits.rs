//! The bounds of everything that the other end can make grow.

use std::time::Duration;

/// In-capsule data of admin commands and Connect, in bytes: fixed by the specification.
///
/// # Spec
/// NVMe/TCP Transport 1.0, section 3.2 (capsules): admin queues take 8192 bytes of in-capsule data.
pub(crate) const ADMIN_IN_CAPSULE_BYTES: u32 = 8192;
/// The unit of MDTS and of the memory budget of a connection, in bytes.
pub(crate) const PAGE_BYTES: usize = 4096;
/// Data that the commands of one connection may hold at a time without in-capsule data, in bytes. A command of the
/// greatest size always fits, so that no connection can stop for ever.
pub(crate) const CONNECTION_DATA_BYTES: usize = 8 << 20;
/// The most data of one command that either end supports, in bytes.
pub(crate) const DATA_BYTES_LIMIT: u32 = 4 << 20;
/// Asynchronous event requests that a host may leave waiting.
pub(crate) const ASYNC_EVENTS_MAX: usize = 4;
/// Events remembered while no request waits; each kind at most once.
pub(crate) const CHANGED_NAMESPACES_MAX: usize = 1024;
/// The longest wait for the rest of a termination request to leave before the connection closes anyway.
pub(crate) const LAST_WORDS_LIMIT: Duration = Duration::from_secs(1);
/// How long the admin connection answers after its association was ended by the host, so that it can read the status.
pub(crate) const FAREWELL_LIMIT: Duration = Duration::from_secs(5);
/// A host that asks a discovery service for no keep-alive is forgotten after this silence, in milliseconds.
///
/// # Spec
/// NVMe over Fabrics 1.1, section 4.1: a discovery controller ends an association after two minutes without activity.
pub(crate) const DISCOVERY_SILENCE_MS: u32 = 120_000;
/// Records of a discovery log that an initiator reads.
pub(crate) const DISCOVERY_RECORDS_MAX: u64 = 4096;
/// Namespaces that an initiator looks at.
pub(crate) const NAMESPACES_MAX: usize = 1024;

const _: () = assert!(DATA_BYTES_LIMIT as usize <= CONNECTION_DATA_BYTES);

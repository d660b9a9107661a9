//! A volume as a block device by the kernel's own NVMe/TCP initiator, connected to the target of this very node.
//!
//! ```text
//! program -> /dev/nvmeXnY -> nvme-tcp (kernel) -> loopback TCP -> target (data/nvmf) -> Device
//! ```
//!
//! [`attach()`] connects by a line of options to `/dev/nvme-fabrics` and waits for the device; [`Attached::detach`] undoes
//! it. When the engine dies the kernel connects again by itself, for so long as [`Patience`] says, and repeats what was
//! unanswered; I/O waits meanwhile. Why that is safe is in `docs/decisions/0030-nvme-tcp-devices.md`.
//!
//! # Invariants
//! 1. Each attachment has a [`Name`] of its own, drawn for it: the subsystem, the host and the namespace are called by it.
//!    So the kernel never joins two of them to one device, and what it remembers of one is never taken for another.
//! 2. A name carries the run that made it, and nothing without that is ever touched.
//! 3. What may do I/O on the device runs on threads that share no descriptor with the engine (`isolated.rs`): its
//!    death must not wait for its own I/O.
//! 4. Only with the kernel's native multipath: without it I/O that waits fails after a few time-outs. And only in the
//!    network of the machine itself, from where the kernel connects again.
//! 5. The keys that the kernel was given are root's to read, as soon as it has them.

mod attach;
mod name;
mod options;
mod sysfs;

pub use attach::{AttachConfig, Attached, attach, attached, cleanup, clear, has_device, keep, lost};
pub use name::Name;
pub use options::usable;
pub use sysfs::System;

use std::time::Duration;

/// How long the kernel tries to reach an engine before I/O fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience(pub Duration);

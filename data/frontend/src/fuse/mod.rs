//! A volume as a file over FUSE with a loop device over it.
//!
//! ```text
//! program -> /dev/loopN -> loop driver -> FUSE client -> /dev/fuse -> serve -> Device
//!                (direct I/O)      (no page cache)          |
//!                                                         holder: a second process with the same descriptor
//! ```
//!
//! [`attach()`] makes both and serves; [`Attached::detach`] undoes it. When the serving process dies the [`holder`] keeps
//! the descriptor: I/O waits until a restarted process attaches the same volume again, and the kernel then repeats
//! what was unanswered. The argument why that is safe is in `docs/protocols/fuse.md`.
//!
//! # Invariants
//! 1. No system call that does I/O on a served volume runs on the reactor's thread.
//! 2. The serving process keeps neither the file nor the loop device open, and its threads that touch them hold no other
//!    descriptor (`crate::isolated`): its death must not wait for its own I/O.
//! 3. Mounts and loop devices carry `orlop:RUN:VOLUME`, and nothing without this mark is ever touched.

mod abi;
mod attach;
mod cleanup;
pub mod holder;
pub(crate) mod loopdev;
mod mark;
mod mount;
mod overlap;
mod serve;

pub use attach::{AttachConfig, Attached, attach, clear};
pub use cleanup::{AttachedLoop, attached_loops, cleanup, has_device};
pub use holder::{Holder, HolderConfig};
pub use serve::{Counters, Ended};

//! The runtime under the path of a byte: tasks, time, files, sockets and DMA buffers, with two drivers behind one API.
//!
//! - [`os`]: one reactor per thread on `io_uring` (or, where that is forbidden, a slow thread pool).
//! - [`sim`]: many simulated machines in one thread: seeded scheduling, virtual time, disks and networks that fail.
//!
//! The crates above call the free functions and types of this crate and never know which driver is under them; that is
//! what lets the simulator run the very code that production runs. The driver is found in a thread-local set while a
//! reactor or a simulated world polls its tasks; calling in from anywhere else panics.
//!
//! # Invariants
//! 1. Memory that the kernel reads or writes belongs to the operation until its completion has been reaped; dropping the
//!    future of an operation cancels it and leaves the memory with the driver.
//! 2. A future polled on a reactor never moves to another thread.
//! 3. Under the simulated driver nothing depends on anything but the seed: not on addresses, wall clocks or hash order.
//! 4. An idle reactor sleeps in the kernel: no timer ticks, no polling.

mod buf;
mod context;
pub mod fd;
mod file;
pub mod net;
pub mod os;
pub mod preflight;
pub mod sim;
pub mod sync;
mod task;
mod time;

pub use buf::{BLOCK_ALIGN, DmaBuf, DmaBytes, Part};
pub use context::{random_bytes, random_u64, random_uuid};
pub use file::{Access, Durability, File, OpenOptions};
pub use rustix::io::Errno;
pub use task::{Task, blocking, race, spawn, yield_now};
pub use time::{Elapsed, Instant, now, sleep, sleep_until, timeout};

/// Bounded channels between threads (control and reactors), asynchronous on both ends.
pub use async_channel as mailbox;

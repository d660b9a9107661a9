//! Waiting between tasks of one reactor: no atomics, no locks, first come first served.
//!
//! Everything here is `!Send`: it connects tasks of one thread, in both drivers alike. Between threads there is
//! [`crate::mailbox`].
//!
//! # Invariants
//! 1. First come, first served: the order of service is the order in which the waiting futures were first polled.
//! 2. Nothing is lost by a dropped future: a permit, an item or a lock that was meant for it goes to the next in line.
//! 3. No waker is called and no user value is dropped while the state of a primitive is borrowed.

mod event;
mod mutex;
mod oneshot;
mod queue;
mod semaphore;

pub use event::Event;
pub use mutex::{Guard, Mutex};
pub use oneshot::{OnceReceiver, OnceSender, oneshot};
pub use queue::Queue;
pub use semaphore::{Permit, Semaphore};

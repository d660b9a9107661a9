//! The public API of `rt` on the simulated driver: what every stage above takes for granted.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod both;
mod disk;
mod faults;
mod net;
mod power;
mod replay;
mod soak;
mod sync;
mod tasks;

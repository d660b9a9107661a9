//! The public API of `rt` on the simulated driver: what every stage above takes for granted.

mod disk;
mod net;
mod tasks;

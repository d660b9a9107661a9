//! The driver of the simulator: many machines in one thread, whose every event follows from a seed.
//!
//! [`World`] is the entry. The code under test calls the free functions of this crate and does not know where it runs;
//! the test builds a world, starts programs on its nodes, breaks things, and checks what remains. What can break, and
//! how, is written at the top of each file: `node` (processes, clocks, power), `disk` and `disk/medium`, `net`.
//!
//! # Invariants
//! 1. Two runs of one program with one seed do exactly the same; [`World::trace_hash`] proves it.
//! 2. Dropping the tasks of a dead process changes nothing in the world: the kernel has cleaned up before.

mod disk;
mod executor;
mod net;
mod node;
mod random;
mod trace;
mod world;

pub(crate) use disk::SimFile;
pub use disk::{DiskFault, Latency, SimDisk};
pub use executor::Handle;
pub use net::NetworkBehaviour;
pub(crate) use net::{SimListener, SimReceive, SimSend, connect};
pub use node::NodeId;
pub use trace::Counters;
pub use world::World;

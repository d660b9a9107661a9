//! The pool: one disk, crash-safe, thin, with a memory of what changed. Stage `pool` of the path of a byte.
//!
//! A [`Pool`] lies on any [`device::Device`] and holds [`Replica`]s: thin copies of volumes. Reads and overwrites look
//! up a map in memory and go to the device; first writes take space and journal a record beside their data.
//!
//! # Invariants
//! 1. A write that completed survives the crash of every process; one that was flushed, a power cut too.
//! 2. No bytes of an earlier owner of a piece of the disk are ever readable.
//! 3. Space that was freed is used again only after the record that freed it is durable.
//! 4. `changed_since` never leaves an extent out that may hold a change.
//! 5. Whatever lies on the device, opening and checking end with a pool or with an error that names what is wrong.
//!
//! # Spec
//! `docs/formats/pool.md`

mod alloc;
mod check;
mod checkpoint;
mod commit;
mod error;
mod inner;
mod journal;
mod layer;
mod layout;
mod load;
mod map;
mod metrics;
mod page;
#[cfg(any(test, feature = "planted"))]
pub mod planted;
mod pool;
mod record;
mod replay;
mod replica;
mod ring;
pub mod signature;
mod space;
mod superblock;
mod write;

pub use check::{CheckReport, ReplicaReader, check};
pub use error::{Error, ErrorKind};
pub use layout::{EXTENT_SIZE, PIECE_SIZE, check_size};
pub use load::Problem;
pub use metrics::Metrics;
pub use pool::{FormatOptions, Opening, Pool, PoolInfo, PoolLabel};
pub use record::{Fence, Progress, RECORD_LEN_MAX, ReplicaConfig};
pub use replica::{Changed, Replica, ReplicaInfo, UNREADABLE};

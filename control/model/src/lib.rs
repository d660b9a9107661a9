//! Every noun once, as plain data: what the store keeps, what the API shows, what engines and the manager agree on.
//!
//! This crate depends on nothing of Orlop and does nothing: no clock, no I/O. `control/` and the data crates that share
//! nouns with it (`pool`, `nexus`, `engine`) use these definitions.

mod record;

pub use record::{Generation, MemberRecord, MemberState, Owner, VolumeRecord};

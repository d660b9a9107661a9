//! The nexus: the running mirror of one volume, on one node at a time. The only place that knows there are copies.
//!
//! On the path of a byte it stands between the front-ends and targets above, which see one device, and the pools below,
//! which it reaches by [`leg`]s: plain calls on its own node, NVMe over TCP elsewhere.
//!
//! | file | what it holds |
//! |---|---|
//! | `open` | opening: the next epoch, who is in sync, what they owe each other, when it may serve (I3, I4, I5, I6, I9, I10) |
//! | `write` | the path of a write, a flush, an unmap (I1, I2, I11) |
//! | `read` | the path of a read (I6, I9, I11) |
//! | `attend` | one task per member: heartbeats, reconnecting, retiring, rejoining (I2, I3, I4, I5) |
//! | `equal` | making extents equal by hash; rebuild with progress on the receiver (I6, I7) |
//! | `activity` | whether anybody uses the volume |
//! | `adopt` | the wished members: taken in, let go |
//! | `confirm` | whether the record is the latest there is (I12) |
//! | `copies` | the members' copies of the record (I12) |
//! | `record` | the volume's record: compare-and-swap, lost answers |
//! | `order` | turns: the order of overlapping operations |
//! | `leg` | the replica's side of fencing, and the way there |
//!
//! # Invariants
//! 1. A write is acknowledged only when every `InSync` member has acknowledged it.
//! 2. A member that missed or may have missed a write is `Stale` in the store before that write is acknowledged without
//!    it. A flush that failed on a member makes it `Stale` and is not retried there. A write that a member in sync
//!    refuses for `NoSpace` fails and makes nobody `Stale`; a resync that finds no space on a member does, since
//!    everything waits for the resync.
//! 3. Members accept the highest epoch only; opening takes the next one in the store first.
//! 4. The last `InSync` member is never made `Stale`: the volume waits for it.
//! 5. A member whose pool has another incarnation than the record says is `Stale`, unless nobody better is reachable.
//! 6. After an unclean end no read of an extent returns before that extent is equal on all `InSync` members.
//! 7. A rebuilt member joins the writes at a drained point, then is asked what it is owed; it becomes `InSync` by one
//!    swap after a flush; progress is kept on the receiver.
//! 9. Reads are served only while every `InSync` member has answered within the lease time; a new owner waits that out.
//! 10. No silent gap: where completed writes may be lost, older attachments fail their writes and flushes.
//! 11. Operations on a block are ordered by arrival.
//!
//! 12. Every member that is in sync keeps the latest record. A store that was set back, or has lost the record, is found
//!     out at the opening, which then waits until all members have answered.
//!
//! (The numbers are those of the design; 8 belongs to snapshots, which are not here yet.)

mod activity;
mod adopt;
mod attachment;
mod attend;
mod confirm;
mod copies;
mod equal;
pub mod leg;
mod member;
mod open;
mod order;
mod owed;
mod planted;
mod read;
mod reader;
mod record;
mod shield;
mod state;
mod status;
mod write;

pub use attachment::Attachment;
pub use open::{OpenError, open};
pub use planted::Planted;
pub use reader::Reader;
pub use record::{RecordError, RecordFuture, Records, Versioned};
pub use state::{Config, Dial, Nexus};
pub use status::{MemberStatus, NexusStatus};

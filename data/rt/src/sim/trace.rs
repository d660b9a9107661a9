//! What happened in a world: a running hash of every event, and counts of the faults that really took place.
//!
//! # Invariants
//! 1. Two runs of one seed and one program fold the same events in the same order, hence end with the same hash.

use super::random::Rng;

/// How often each kind of event really happened: the coverage of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Task polls.
    pub polls: u64,
    /// Processes killed.
    pub crashes: u64,
    /// Machines that lost power.
    pub power_cuts: u64,
    /// Reads that the disks completed.
    pub reads: u64,
    /// Writes that the disks completed.
    pub writes: u64,
    /// Flushes that the disks completed.
    pub syncs: u64,
    /// Completed but unflushed writes that a power cut took in whole.
    pub writes_lost: u64,
    /// Writes of which a power cut or a crash left some blocks and not others.
    pub writes_torn: u64,
    /// Power cuts that kept a later write while they took an earlier one.
    pub writes_reordered: u64,
    /// Writes that were in flight when their process or machine died.
    pub writes_interrupted: u64,
    /// Writes that claimed success and did nothing.
    pub writes_dropped: u64,
    /// Writes that went to another place of the disk.
    pub writes_misdirected: u64,
    /// Reads that failed by a fault.
    pub read_errors: u64,
    /// Writes that failed by a fault.
    pub write_errors: u64,
    /// Flushes that failed by a fault.
    pub sync_errors: u64,
    /// Flushes that claimed success and did nothing.
    pub sync_lies: u64,
    /// Bits that rotted.
    pub bits_flipped: u64,
    /// Disks that stopped answering.
    pub disk_hangs: u64,
    /// Disks that were pulled.
    pub disks_unplugged: u64,
    /// Pauses of a machine.
    pub pauses: u64,
    /// Connections that were established.
    pub connections: u64,
    /// Connections that were reset.
    pub connections_reset: u64,
    /// Attempts to connect that were refused or timed out.
    pub connects_failed: u64,
    /// Directions of links that were cut.
    pub partitions: u64,
    /// Chunks that arrived with a flipped bit.
    pub chunks_corrupted: u64,
    /// Deliveries that a partition held back.
    pub stalls: u64,
}

/// Kinds of events in the hash.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Poll = 1,
    Late,
    Spawn,
    Drop,
    Random,
    DiskSubmit,
    DiskApply,
    DiskDone,
    DiskFate,
    DiskFault,
    Send,
    Deliver,
    Connect,
    Close,
    Reset,
    Crash,
    PowerCut,
    Boot,
    Partition,
    Heal,
    Pause,
}

/// The dice of a world and the record of what they decided.
#[derive(Debug)]
pub(crate) struct Fate {
    pub(crate) rng: Rng,
    pub(crate) counters: Counters,
    hash: u64,
    /// Every event, once somebody asked for it.
    pub(crate) record: Option<Vec<(Kind, u64, u64)>>,
}

impl Fate {
    pub(crate) fn new(seed: u64) -> Self {
        Self { rng: Rng::new(seed), counters: Counters::default(), hash: seed, record: None }
    }

    /// Folds one event into the hash.
    pub(crate) fn note(&mut self, kind: Kind, a: u64, b: u64) {
        for word in [kind as u64, a, b] {
            self.fold(word);
        }
        if let Some(record) = &mut self.record {
            record.push((kind, a, b));
        }
    }

    /// Folds the contents of I/O into the hash: programs that differ in what they write differ.
    pub(crate) fn note_bytes(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.fold(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.fold(u64::from_le_bytes(last) ^ bytes.len() as u64);
    }

    fn fold(&mut self, word: u64) {
        self.hash = (self.hash.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    /// The hash of everything so far.
    pub(crate) fn hash(&self) -> u64 {
        let mixed = self.hash ^ (self.hash >> 32);
        mixed.wrapping_mul(0xD6E8_FEB8_6659_FD93) ^ (mixed >> 29)
    }
}

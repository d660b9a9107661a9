//! Counters of one pool, for the engine to read.

use std::cell::Cell;

/// Counters since the pool was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Read commands.
    pub reads: u64,
    /// Bytes read by them.
    pub read_bytes: u64,
    /// Write commands.
    pub writes: u64,
    /// Bytes written by them.
    pub written_bytes: u64,
    /// Writes that had to journal a record, since they made blocks present.
    pub recorded_writes: u64,
    /// Flushes of the device.
    pub flushes: u64,
    /// Batches written to the journal.
    pub journal_commits: u64,
    /// Bytes written to the journal.
    pub journal_bytes: u64,
    /// Checkpoints committed.
    pub checkpoints: u64,
    /// Commands refused because the pool was full.
    pub refused_no_space: u64,
}

impl Metrics {
    /// Changes the counters in `cell`.
    pub(crate) fn count(cell: &Cell<Self>, change: impl FnOnce(&mut Self)) {
        let mut metrics = cell.get();
        change(&mut metrics);
        cell.set(metrics);
    }
}

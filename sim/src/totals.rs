//! What happened over one or many seeds: a simulation that never saw a thing has proved nothing about it.

use std::fmt;
use std::ops::AddAssign;

/// Counts of what really happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Reads and writes that were answered with success.
    pub completed: u64,
    /// Reads and writes whose answer was lost.
    pub lost: u64,
    /// Reads and writes that were answered with an error.
    pub failed: u64,
    /// Flushes that were answered with success.
    pub flushes: u64,
    /// Times the owner moved to another node.
    pub owners_moved: u64,
    /// Members made stale because they missed a write.
    pub members_made_stale: u64,
    /// Rebuilds that ended with the member in sync.
    pub rebuilds_finished: u64,
    /// Rebuilds that went on where an earlier one had stopped.
    pub rebuilds_resumed: u64,
    /// Writes of which a power cut or crash left only a part.
    pub torn_writes: u64,
    /// Completed, unflushed writes that a power cut took.
    pub lost_cache: u64,
    /// Links that were cut.
    pub partitions: u64,
    /// Times the store went away.
    pub store_outages: u64,
    /// Writes refused because a pool was full.
    pub full_pools: u64,
    /// Operations that waited for an overlapping one.
    pub overlapping: u64,
    /// Processes killed.
    pub crashes: u64,
    /// Machines that lost power.
    pub power_cuts: u64,
    /// Reads, writes and flushes that a disk failed.
    pub disk_errors: u64,
    /// Times completed, unflushed data may have been lost and was said to be (I10).
    pub gaps: u64,
    /// Replicas compared block by block at the end.
    pub replicas_compared: u64,
}

impl Totals {
    /// Every count with its name.
    pub const fn named(&self) -> [(&'static str, u64); 19] {
        [
            ("completed I/Os", self.completed),
            ("lost answers", self.lost),
            ("failed I/Os", self.failed),
            ("flushes", self.flushes),
            ("owner moved", self.owners_moved),
            ("member stale", self.members_made_stale),
            ("rebuild finished", self.rebuilds_finished),
            ("rebuild resumed", self.rebuilds_resumed),
            ("torn write", self.torn_writes),
            ("lost cache", self.lost_cache),
            ("partition", self.partitions),
            ("store outage", self.store_outages),
            ("full pool", self.full_pools),
            ("overlapping", self.overlapping),
            ("process crash", self.crashes),
            ("power cut", self.power_cuts),
            ("disk error", self.disk_errors),
            ("gap", self.gaps),
            ("replicas compared", self.replicas_compared),
        ]
    }

    /// The names of what has to happen over many seeds and never did.
    pub fn missing(&self) -> Vec<&'static str> {
        const MUST: [&str; 10] = [
            "owner moved",
            "member stale",
            "rebuild finished",
            "rebuild resumed",
            "torn write",
            "lost cache",
            "partition",
            "store outage",
            "full pool",
            "overlapping",
        ];
        self.named()
            .into_iter()
            .filter(|(name, count)| *count == 0 && MUST.contains(name))
            .map(|(name, _)| name)
            .collect()
    }

    /// How many kinds of faults happened.
    pub fn fault_kinds(&self) -> usize {
        let faults = [self.crashes, self.power_cuts, self.partitions, self.store_outages, self.disk_errors];
        faults.iter().filter(|count| **count > 0).count()
    }
}

impl AddAssign<&Self> for Totals {
    fn add_assign(&mut self, other: &Self) {
        self.completed += other.completed;
        self.lost += other.lost;
        self.failed += other.failed;
        self.flushes += other.flushes;
        self.owners_moved += other.owners_moved;
        self.members_made_stale += other.members_made_stale;
        self.rebuilds_finished += other.rebuilds_finished;
        self.rebuilds_resumed += other.rebuilds_resumed;
        self.torn_writes += other.torn_writes;
        self.lost_cache += other.lost_cache;
        self.partitions += other.partitions;
        self.store_outages += other.store_outages;
        self.full_pools += other.full_pools;
        self.overlapping += other.overlapping;
        self.crashes += other.crashes;
        self.power_cuts += other.power_cuts;
        self.disk_errors += other.disk_errors;
        self.gaps += other.gaps;
        self.replicas_compared += other.replicas_compared;
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (name, count) in self.named() {
            write!(f, "{separator}{name} {count}")?;
            separator = ", ";
        }
        Ok(())
    }
}

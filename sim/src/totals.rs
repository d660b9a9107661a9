//! What happened over one or many seeds: a simulation that never saw a thing has proved nothing about it.

use rt::sim::Counters;
use std::fmt;
use std::ops::AddAssign;

/// The fewest I/Os of a seed that are completed.
pub const COMPLETED_MIN: u64 = 2_000;
/// The fewest kinds of faults in a seed.
pub const KINDS_MIN: usize = 3;

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
    /// Owners that fell silent, were replaced, and went on beside their successor without knowing.
    pub owners_outlived: u64,
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
    /// Machines that stopped running, and went on later.
    pub pauses: u64,
    /// Times the connections between two machines were reset.
    pub resets: u64,
    /// Reads, writes and flushes that a disk failed.
    pub disk_errors: u64,
    /// Times the volume grew.
    pub growths: u64,
    /// Times completed, unflushed data may have been lost and was said to be (I10).
    pub gaps: u64,
    /// Times the store was set back to an older record.
    pub store_set_back: u64,
    /// Times a later record was found on a member, and put into the store.
    pub records_recovered: u64,
    /// Replicas compared block by block at the end.
    pub replicas_compared: u64,
}

impl Totals {
    /// Every count with its name.
    pub const fn named(&self) -> [(&'static str, u64); 25] {
        [
            ("completed I/Os", self.completed),
            ("lost answers", self.lost),
            ("failed I/Os", self.failed),
            ("flushes", self.flushes),
            ("owner moved", self.owners_moved),
            ("old owner went on", self.owners_outlived),
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
            ("pause", self.pauses),
            ("connection reset", self.resets),
            ("disk error", self.disk_errors),
            ("volume grown", self.growths),
            ("gap", self.gaps),
            ("store set back", self.store_set_back),
            ("record recovered", self.records_recovered),
            ("replicas compared", self.replicas_compared),
        ]
    }

    /// The names of what has to happen over many seeds and never did.
    pub fn missing(&self) -> Vec<&'static str> {
        const MUST: [&str; 13] = [
            "owner moved",
            "old owner went on",
            "member stale",
            "rebuild finished",
            "rebuild resumed",
            "torn write",
            "lost cache",
            "partition",
            "store outage",
            "full pool",
            "overlapping",
            "volume grown",
            "record recovered",
        ];
        self.named()
            .into_iter()
            .filter(|(name, count)| *count == 0 && MUST.contains(name))
            .map(|(name, _)| name)
            .collect()
    }

    /// Notes what the world has counted.
    pub(crate) fn note(&mut self, counters: &Counters) {
        self.crashes = counters.crashes;
        self.power_cuts = counters.power_cuts;
        self.torn_writes = counters.writes_torn;
        self.lost_cache = counters.writes_lost;
        self.partitions = counters.partitions;
        self.disk_errors = counters.read_errors + counters.write_errors + counters.sync_errors;
        self.pauses = counters.pauses;
    }

    /// How many kinds of faults happened.
    pub fn fault_kinds(&self) -> usize {
        let faults = [
            self.crashes,
            self.power_cuts,
            self.partitions,
            self.store_outages,
            self.disk_errors,
            self.pauses,
            self.resets,
        ];
        faults.iter().filter(|count| **count > 0).count()
    }

    /// Why a seed in which no more than this happened has proved nothing.
    pub fn too_little(&self) -> Option<String> {
        let (completed, kinds) = (self.completed, self.fault_kinds());
        (completed < COMPLETED_MIN || kinds < KINDS_MIN).then(|| {
            format!(
                "only {completed} I/Os were completed and {kinds} kinds of faults happened, of {COMPLETED_MIN} and \
                 {KINDS_MIN}"
            )
        })
    }
}

impl AddAssign<&Self> for Totals {
    fn add_assign(&mut self, other: &Self) {
        self.completed += other.completed;
        self.lost += other.lost;
        self.failed += other.failed;
        self.flushes += other.flushes;
        self.owners_moved += other.owners_moved;
        self.owners_outlived += other.owners_outlived;
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
        self.pauses += other.pauses;
        self.resets += other.resets;
        self.disk_errors += other.disk_errors;
        self.growths += other.growths;
        self.store_set_back += other.store_set_back;
        self.records_recovered += other.records_recovered;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What a run must have seen, as its acceptance names it.
    const DEMANDED: [&str; 10] = [
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

    #[test]
    fn whatever_is_demanded_and_never_happened_is_named() {
        let missing = Totals::default().missing();
        assert!(DEMANDED.iter().all(|name| missing.contains(name)), "{missing:?}");
        let all = Totals {
            owners_moved: 1,
            owners_outlived: 1,
            members_made_stale: 1,
            rebuilds_finished: 1,
            rebuilds_resumed: 1,
            torn_writes: 1,
            lost_cache: 1,
            partitions: 1,
            store_outages: 1,
            full_pools: 1,
            overlapping: 1,
            growths: 1,
            records_recovered: 1,
            ..Totals::default()
        };
        assert!(all.missing().is_empty(), "{:?}", all.missing());
        assert_eq!(Totals { rebuilds_resumed: 0, ..all.clone() }.missing(), ["rebuild resumed"]);
        assert_eq!(Totals { full_pools: 0, torn_writes: 0, ..all }.missing(), ["torn write", "full pool"]);
    }

    #[test]
    fn a_seed_of_few_operations_or_kinds_of_faults_says_so() {
        let enough =
            Totals { completed: 2_000, crashes: 1, partitions: 4, store_outages: 1, ..Totals::default() };
        assert_eq!(enough.too_little(), None);
        let few = Totals { completed: 1_999, ..enough.clone() }.too_little().expect("too few");
        assert!(few.contains("1999 I/Os"), "{few}");
        let tame = Totals { crashes: 0, ..enough }.too_little().expect("too tame");
        assert!(tame.contains("2 kinds"), "{tame}");
    }

    #[test]
    fn sums_lose_nothing() {
        let one = Totals { completed: 1, owners_outlived: 2, pauses: 3, resets: 4, ..Totals::default() };
        let mut sum = one.clone();
        sum += &one;
        assert_eq!((sum.completed, sum.owners_outlived, sum.pauses, sum.resets), (2, 4, 6, 8));
    }
}

//! The simulator: a whole cluster in one thread, on simulated disks, network and time, running the engines' own code.
//!
//! One seed decides everything: who runs when, how long everything takes, which machines die and when. While clients read
//! and write stamped blocks, processes are killed, power is cut, links and the store go away, disks fail, the volume grows.
//! Then the faults end, and it is checked that
//!
//! 1. every block's history is linearizable ([`history`]); a process crash loses no completed write, a power cut no
//!    flushed one, and what it may have lost is said to be lost (I10);
//! 2. the volume heals: all members are in sync after a bounded time;
//! 3. the replicas, read offline from the disks, are equal block by block;
//! 4. no record was ever changed as none may be (the last member in sync given up, an epoch or a size taken back);
//! 5. enough happened: a seed of few operations, or of few kinds of faults, has proved nothing.

mod cluster;
mod faults;
#[cfg(test)]
mod forget;
pub mod history;
#[cfg(test)]
mod last_copy;
#[cfg(test)]
mod readers;
#[cfg(test)]
mod scenarios;
mod store;
mod totals;
mod verify;
mod workload;

pub use nexus::Planted;
pub use totals::{COMPLETED_MIN, KINDS_MIN, Totals};

use cluster::{Cluster, Sizes};
use device::Lba;
use rt::sim::World;
use std::fmt;
use std::time::Duration;
use workload::Workload;

/// Virtual time after which the faults end in any case.
const FAULTS_MAX: Duration = Duration::from_secs(120);
/// Virtual time within which a volume heals once nothing fails any more.
const HEALED_WITHIN: Duration = Duration::from_secs(120);
/// Clients of the volume.
const CLIENTS: usize = 8;

/// The name of [`Bug::JournalWithoutBarrier`].
const JOURNAL: &str = "journal";

/// A rule broken on purpose, to see it found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bug {
    /// Every rule holds.
    #[default]
    None,
    /// A rule of the nexus is broken.
    Nexus(Planted),
    /// The pool's journal has no barriers.
    JournalWithoutBarrier,
}

impl Bug {
    /// The bug of a name such as `I4`.
    pub fn named(name: &str) -> Option<Self> {
        if name == JOURNAL {
            return Some(Self::JournalWithoutBarrier);
        }
        Planted::ALL.iter().find(|(known, _)| *known == name).map(|(_, planted)| Self::Nexus(*planted))
    }

    /// Its name, if there is a bug.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::JournalWithoutBarrier => Some(JOURNAL),
            Self::Nexus(planted) => Planted::ALL.iter().find(|(_, p)| *p == planted).map(|(name, _)| *name),
        }
    }

    /// The names of all bugs.
    pub fn names() -> Vec<&'static str> {
        Planted::ALL.iter().map(|(name, _)| *name).chain([JOURNAL]).collect()
    }
}

/// What one seed showed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What was broken on purpose.
    pub bug: Bug,
    /// What happened.
    pub totals: Totals,
    /// The hash of everything that happened, in order.
    pub trace_hash: u64,
    /// Virtual time.
    pub elapsed: Duration,
    /// What was wrong, if anything.
    pub violation: Option<String>,
}

impl Outcome {
    /// The command that does the same again.
    pub fn replay(&self) -> String {
        let bug = self.bug.name().map(|name| format!(" --bug {name}")).unwrap_or_default();
        format!("orlop sim --seed {}{bug}", self.seed)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.violation {
            Some(cause) => write!(f, "seed {}: {cause}; replay: {}", self.seed, self.replay()),
            None => write!(f, "seed {}: ok, trace {:016x}, {}", self.seed, self.trace_hash, self.totals),
        }
    }
}

/// Runs one seed. A panic of the code under test is a violation like any other.
pub fn run_seed(seed: u64, bug: Bug) -> Outcome {
    let world = World::new(seed);
    pool::planted::set_no_barrier(bug == Bug::JournalWithoutBarrier);
    world.set_time_limit(FAULTS_MAX + 2 * HEALED_WITHIN + Duration::from_secs(600));
    let planted = if let Bug::Nexus(planted) = bug { planted } else { Planted::Nothing };
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let world_inside = world.clone();
        world.run(async move { tell(world_inside, planted).await })
    }));
    let (mut totals, violation) = match caught {
        Ok((totals, violation)) => (totals, violation),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            (Totals::default(), Some(format!("panic: {}", text.unwrap_or_default())))
        }
    };
    totals.note(&world.counters());
    // With a bug planted only what the checks find counts.
    let violation = violation.or_else(|| if bug == Bug::None { totals.too_little() } else { None });
    Outcome { seed, bug, totals, trace_hash: world.trace_hash(), elapsed: world.elapsed(), violation }
}

/// The story of one seed: a cluster, clients and faults; then peace, and the checks.
async fn tell(world: World, planted: Planted) -> (Totals, Option<String>) {
    let sizes = sizes();
    let cluster = Cluster::new(&world, sizes, planted);
    (0..3).for_each(|index| cluster.start(index));
    cluster.create_volume(sizes).await;
    let workload = Workload::new(&cluster, hot_blocks(sizes));
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| rt::spawn(workload.clone().client())).collect();
    if sizes.is_full() {
        clients.push(rt::spawn(workload.clone().filler(sizes.blocks())));
    }

    let began = world.elapsed();
    let lasting = Duration::from_secs(10 + rt::random_u64() % 50);
    let kinds = || {
        let mut totals = cluster.store.totals();
        totals += &cluster.past.borrow();
        totals.note(&world.counters());
        totals.fault_kinds()
    };
    let enough = || {
        let elapsed = world.elapsed().saturating_sub(began);
        let done = elapsed > lasting && workload.totals().completed >= COMPLETED_MIN && kinds() >= KINDS_MIN;
        done || elapsed > FAULTS_MAX
    };
    faults::rage(&cluster, || enough() || workload.violation().is_some()).await;
    if rt::random_u64().is_multiple_of(2) {
        faults::restore_store(&cluster).await;
    }

    if sizes.is_full() {
        rt::timeout(HEALED_WITHIN, workload.trim()).await.ok();
    }
    let healed = verify::healed(&cluster, HEALED_WITHIN).await;
    // Clients that were held up for long do their share in peace.
    let give_up = world.elapsed() + HEALED_WITHIN;
    while healed.is_ok() && workload.totals().completed < COMPLETED_MIN && world.elapsed() < give_up {
        rt::sleep(Duration::from_millis(50)).await;
    }
    workload.stop();
    for client in clients {
        client.await;
    }
    if healed.is_ok() {
        workload.read_all().await;
    }
    workload.check();
    let equal = match &healed {
        Ok(()) => verify::replicas_equal(&cluster).await,
        Err(cause) => Err(cause.clone()),
    };
    let mut totals = workload.totals();
    totals += &cluster.store.totals();
    totals += &cluster.past.borrow();
    totals.replicas_compared = *equal.as_ref().unwrap_or(&0);
    let violation = workload.violation().or_else(|| cluster.store.violation()).or_else(|| equal.err());
    (totals, violation)
}

/// A small volume; in one seed of four one disk is too small for all of it.
fn sizes() -> Sizes {
    let full = rt::random_u64().is_multiple_of(4);
    let large = 128 << 20;
    let small = if full { 24 << 20 } else { large };
    Sizes { volume_bytes: 32 << 20, grown_bytes: 48 << 20, disk_bytes: [large, large, small] }
}

/// Runs of neighbouring blocks in several extents, so that long operations overlap, and space is taken all over; some of
/// them where there is nothing before the volume grows.
fn hot_blocks(sizes: Sizes) -> Vec<Lba> {
    let (at_first, at_last) = (sizes.blocks(), sizes.blocks_grown());
    let runs = |count: usize, blocks: std::ops::Range<u64>| {
        (0..count).flat_map(move |_| {
            let first = blocks.start + rt::random_u64() % (blocks.end - blocks.start - 16);
            (first..first + 4).map(Lba)
        })
    };
    runs(20, 0..at_first).chain(runs(6, at_first..at_last)).collect()
}

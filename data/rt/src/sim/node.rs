//! The machines of a world, the processes on them, and their clocks.
//!
//! # Fault model
//! - A node runs at most one process (the engine) at a time; a crash ends it, the next `spawn_on` starts the next one.
//! - Each node has its own boot clock: it starts at a random reading at each boot and runs a little fast or slow.
//! - A power cut takes the node down until the next `spawn_on`; the boot id changes.
//! - A paused node (a hypervisor's pause) runs nothing; its clock, disks and network go on.

use super::executor::Ready;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::task::Waker;
use uuid::Uuid;

/// A machine of a simulated world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(super) usize);

/// One life of a node's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ProcessId(pub(super) usize);

#[derive(Debug)]
pub(super) struct Process {
    pub(super) node: usize,
    pub(super) alive: bool,
    /// Unfinished tasks, in order of spawning.
    pub(super) tasks: BTreeMap<u64, Waker>,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) address: Ipv4Addr,
    pub(super) process: Option<ProcessId>,
    /// Has power.
    pub(super) up: bool,
    pub(super) boot_id: Uuid,
    pub(super) clock: NodeClock,
    pub(super) paused: bool,
    /// Tasks that were drawn while the node was paused.
    pub(super) parked: Vec<Ready>,
}

/// A node's boot clock as a function of the world's time.
#[derive(Clone, Copy, Debug)]
pub(super) struct NodeClock {
    /// Moment of the world, in nanoseconds, at which this clock showed `reading`.
    since: u64,
    reading: u64,
    /// Nanoseconds of this clock per million of the world's.
    rate: u64,
}

/// Nanoseconds of the world in which a clock's `rate` is counted.
const MILLION: u64 = 1_000_000;

impl NodeClock {
    pub(super) const fn new(now: u64, reading: u64, rate_ppm: i32) -> Self {
        Self { since: now, reading, rate: MILLION.saturating_add_signed(rate_ppm as i64) }
    }

    /// Goes on from here at another rate.
    pub(super) fn set_rate(&mut self, now: u64, rate_ppm: i32) {
        *self = Self::new(now, self.read(now), rate_ppm);
    }

    /// What the clock shows at the moment `now` of the world.
    pub(super) fn read(&self, now: u64) -> u64 {
        let elapsed = u128::from(now - self.since) * u128::from(self.rate) / u128::from(MILLION);
        self.reading + u64::try_from(elapsed).expect("a world ends before its clocks overflow")
    }

    /// The first moment of the world at which the clock shows at least `reading`.
    pub(super) fn moment_of(&self, reading: u64) -> u64 {
        let ahead = u128::from(reading.saturating_sub(self.reading));
        let elapsed = (ahead * u128::from(MILLION)).div_ceil(u128::from(self.rate));
        self.since.saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::NodeClock;

    #[test]
    fn a_deadline_is_reached_when_the_clock_shows_it_and_not_before() {
        for rate_ppm in [-100_000, -50, 0, 50, 100_000] {
            let clock = NodeClock::new(1_000, 77_000, rate_ppm);
            for reading in [77_000, 77_001, 80_123, 1_000_000_007] {
                let moment = clock.moment_of(reading);
                assert!(clock.read(moment) >= reading);
                assert!(moment == 1_000 || clock.read(moment - 1) < reading);
            }
        }
    }

    #[test]
    fn a_clock_never_jumps_when_its_rate_changes() {
        let mut clock = NodeClock::new(0, 5, 0);
        clock.set_rate(1_000_000, 100_000);
        assert_eq!(clock.read(1_000_000), 1_000_005);
        assert_eq!(clock.read(2_000_000), 2_100_005);
    }
}

//! Whether polling for a moment before sleeping pays: found out by trying.
//!
//! A wake-up costs more than most I/Os: a reactor that waits tens of microseconds for each answer could poll for it. Whether
//! that makes anything faster depends on who else wants the cores, on the disk and on the peer. So the reactor tries it:
//! it compares the time per completion while it sleeps with that while it polls, and goes on polling only where that is
//! clearly better and nobody else wanted the core meanwhile. Now and then it compares anew.
//!
//! # Invariants
//! 1. Long waits switch polling off: after a few polls in vain an idle reactor sleeps at once (invariant 4 of the crate).
//! 2. Trials that fail become rare: each makes the time to the next one twice as long, up to a bound.

use std::time::Duration;

/// Waits of one comparison.
const COMPARED: u32 = 64;
/// After so many comparisons of polling it is tried again whether sleeping is as good.
const POLLED_MAX: u32 = 64;
/// Waits that are longer on average are slept through: polling for them would use up a core for little.
const WORTH: Duration = Duration::from_micros(100);
/// One long gap counts for no more than this.
const GAP_MAX: Duration = Duration::from_micros(400);
/// So much of the time per completion must polling save, in percent.
const GAIN_PERCENT: u32 = 8;
/// Polls in vain, one after the other, that end polling at once.
const VAIN_MAX: u32 = 4;
/// Failed trials double the time to the next one so many times.
const BACKOFF_MAX: u32 = 7;

/// What the reactor does before it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It sleeps at once, for so many more waits.
    Asleep { left: u32 },
    /// It polls first, for so many more waits until the next comparison, and so many more comparisons.
    Polling { left: u32, more: u32 },
}

/// Sums over the waits of one comparison.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    waits: u32,
    waited: Duration,
    elapsed: Duration,
    completions: u32,
}

impl Sums {
    fn mean_wait(&self) -> Duration {
        self.waited / self.waits.max(1)
    }

    fn per_completion(&self) -> Duration {
        self.elapsed / self.completions.max(1)
    }
}

/// One wait of a reactor, from running out of work to going on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waited {
    /// How long it waited.
    pub(super) pause: Duration,
    /// Since the last wait ended: that much and the work before it.
    pub(super) elapsed: Duration,
    /// What had completed by its end.
    pub(super) completions: u32,
}

/// The recent waits of one reactor.
#[derive(Debug)]
pub(super) struct Spin {
    phase: Phase,
    sums: Sums,
    /// The last comparison while it slept.
    asleep: Sums,
    /// Polls in vain, one after the other.
    vain: u32,
    /// Trials that failed, one after the other.
    failed: u32,
    /// How often somebody else had taken the core, when last asked.
    stolen: u64,
}

impl Spin {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Asleep { left: COMPARED },
            sums: Sums::default(),
            asleep: Sums::default(),
            vain: 0,
            failed: 0,
            stolen: 0,
        }
    }

    /// How long to poll before the next sleep, if at all.
    pub(super) fn window(&self) -> Option<Duration> {
        matches!(self.phase, Phase::Polling { .. }).then(|| (2 * self.asleep.mean_wait()).min(WORTH))
    }

    /// Notes a wait; `stolen` counts how often somebody else took the core from this thread, ever.
    pub(super) fn note(&mut self, wait: Waited, stolen: impl Fn() -> u64) {
        let vain = self.window().is_some_and(|window| wait.pause >= window);
        self.vain = if vain { self.vain + 1 } else { 0 };
        self.sums.waits += 1;
        self.sums.waited += wait.pause.min(GAP_MAX);
        self.sums.elapsed += wait.elapsed.min(GAP_MAX);
        self.sums.completions += wait.completions;
        match &mut self.phase {
            Phase::Polling { .. } if self.vain >= VAIN_MAX => self.give_up(),
            Phase::Asleep { left: 1 } => self.consider(stolen()),
            Phase::Polling { left: 1, more } => {
                let more = *more;
                self.judge(more, stolen());
            }
            Phase::Asleep { left } | Phase::Polling { left, .. } => *left -= 1,
        }
    }

    /// Tries polling where the waits were short enough for it.
    fn consider(&mut self, stolen: u64) {
        self.asleep = std::mem::take(&mut self.sums);
        self.stolen = stolen;
        self.phase = if self.asleep.mean_wait() < WORTH {
            Phase::Polling { left: COMPARED, more: POLLED_MAX }
        } else {
            self.failed = 0;
            Phase::Asleep { left: COMPARED }
        };
    }

    /// Goes on polling if that is better than sleeping was.
    fn judge(&mut self, more: u32, stolen: u64) {
        let polled = std::mem::take(&mut self.sums);
        let contended = stolen.saturating_sub(self.stolen) > u64::from(COMPARED / 16);
        self.stolen = stolen;
        let better = polled.per_completion() * 100 < self.asleep.per_completion() * (100 - GAIN_PERCENT);
        if contended || !better {
            return self.give_up();
        }
        self.failed = 0;
        self.phase = match more {
            0 => Phase::Asleep { left: COMPARED },
            more => Phase::Polling { left: COMPARED, more: more - 1 },
        };
    }

    /// Invariant 2.
    fn give_up(&mut self) {
        self.sums = Sums::default();
        self.vain = 0;
        self.failed = (self.failed + 1).min(BACKOFF_MAX);
        self.phase = Phase::Asleep { left: COMPARED << self.failed };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine on which a wait takes so many microseconds asleep and so many polling.
    struct Machine {
        asleep_us: u64,
        polled_us: u64,
        stolen: u64,
        steals: bool,
    }

    const CALM: Machine = Machine { asleep_us: 50, polled_us: 12, stolen: 0, steals: false };

    /// How many of `count` waits are polled for.
    fn polls(spin: &mut Spin, machine: &mut Machine, count: u32) -> u32 {
        (0..count)
            .map(|_| {
                let polled = spin.window().is_some();
                let us = if polled { machine.polled_us } else { machine.asleep_us };
                machine.stolen += u64::from(polled && machine.steals);
                let pause = Duration::from_micros(us);
                spin.note(Waited { pause, elapsed: pause, completions: 1 }, || machine.stolen);
                u32::from(polled)
            })
            .sum()
    }

    #[test]
    fn where_polling_is_faster_it_goes_on() {
        let mut spin = Spin::new();
        assert!(polls(&mut spin, &mut Machine { ..CALM }, 10_000) > 9_500);
    }

    #[test]
    fn an_idle_reactor_stops_polling_after_a_few_waits() {
        let mut spin = Spin::new();
        polls(&mut spin, &mut Machine { ..CALM }, 1000);
        assert!(spin.window().is_some());
        let mut idle = Machine { asleep_us: 1_000_000, polled_us: 1_000_000, ..CALM };
        assert!(polls(&mut spin, &mut idle, 10_000) <= VAIN_MAX);
    }

    #[test]
    fn where_polling_saves_nothing_trials_become_rare() {
        let mut spin = Spin::new();
        let mut slow = Machine { polled_us: 48, ..CALM };
        polls(&mut spin, &mut slow, 20_000);
        assert!(polls(&mut spin, &mut slow, 100_000) < 1_000);
    }

    #[test]
    fn where_others_want_the_core_trials_become_rare() {
        let mut spin = Spin::new();
        let mut busy = Machine { steals: true, ..CALM };
        polls(&mut spin, &mut busy, 20_000);
        assert!(polls(&mut spin, &mut busy, 100_000) < 1_000);
    }

    #[test]
    fn long_waits_are_slept_through() {
        let mut spin = Spin::new();
        let mut slow = Machine { asleep_us: 150, polled_us: 20, ..CALM };
        assert_eq!(polls(&mut spin, &mut slow, 10_000), 0);
    }

    #[test]
    fn one_long_wait_among_short_ones_changes_nothing() {
        let mut spin = Spin::new();
        polls(&mut spin, &mut Machine { ..CALM }, 1000);
        polls(&mut spin, &mut Machine { asleep_us: 5000, polled_us: 5000, ..CALM }, 1);
        assert!(polls(&mut spin, &mut Machine { ..CALM }, 1000) > 900);
    }
}

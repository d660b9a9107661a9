//! Time: the boot clock (it goes on while the machine sleeps, as leases need), virtual in the simulator.

use crate::context::{Context, with};
use std::fmt;
use std::future::Future;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A moment: nanoseconds on `CLOCK_BOOTTIME`, or on the simulator's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The moment `nanos` after the clock's start.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time since this moment; zero if it lies ahead.
    pub fn elapsed(self) -> Duration {
        now() - self
    }
}

impl Add<Duration> for Instant {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub for Instant {
    type Output = Duration;
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The time limit of [`timeout`] passed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("time limit passed")
    }
}

impl std::error::Error for Elapsed {}

/// The current moment.
pub fn now() -> Instant {
    with(|context| match context {
        Context::Os(os) => os.now(),
        Context::Sim(sim) => sim.now(),
    })
}

/// Waits until `deadline`.
pub async fn sleep_until(deadline: Instant) {
    match with(Clone::clone) {
        Context::Os(os) => os.sleep_until(deadline).await,
        Context::Sim(sim) => sim.sleep_until(deadline).await,
    }
}

/// Waits for `duration`.
pub async fn sleep(duration: Duration) {
    sleep_until(now() + duration).await;
}

/// Runs `future` for at most `duration`; then drops, and with it cancels, it.
pub async fn timeout<T>(duration: Duration, future: impl Future<Output = T>) -> Result<T, Elapsed> {
    crate::race(async { Ok(future.await) }, async {
        sleep(duration).await;
        Err(Elapsed)
    })
    .await
}

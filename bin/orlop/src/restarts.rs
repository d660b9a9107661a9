//! When processes that ended are started again.

use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// A process that ends is started again after this time; it doubles while it keeps ending. The devices of a node wait
/// for 20 s, of which opening their volumes takes some.
const RESTART_DELAY: Duration = Duration::from_secs(1);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(8);

/// Processes that ended and when they start again.
#[derive(Default)]
pub(crate) struct Restarts {
    due: Vec<(Instant, String)>,
    delays: BTreeMap<String, (Instant, Duration)>,
}

impl Restarts {
    /// Plans the next start of a process that just ended, and returns in how long.
    pub(crate) fn plan(&mut self, name: &str) -> Duration {
        let now = Instant::now();
        let delay = match self.delays.get(name) {
            Some((last, delay)) if now < *last + 4 * RESTART_DELAY_MAX => (*delay * 2).min(RESTART_DELAY_MAX),
            _ => RESTART_DELAY,
        };
        self.delays.insert(name.to_owned(), (now, delay));
        self.due.push((now + delay, name.to_owned()));
        delay
    }

    /// Waits until a start is due; for ever if none is planned.
    pub(crate) async fn next(&mut self) -> String {
        let Some((index, (when, _))) = self.due.iter().enumerate().min_by_key(|(_, (when, _))| *when) else {
            return std::future::pending().await;
        };
        sleep_until(*when).await;
        self.due.swap_remove(index).1
    }
}

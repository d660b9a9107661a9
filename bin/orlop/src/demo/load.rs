//! Programs that write without pause, and what is known of them while they do.

use super::ledger::Ledger;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How many pieces are written at once: at a kill at least a hundred are under way.
pub(super) const WRITERS: usize = 160;
/// Lengths of the pieces.
const LENGTHS: [usize; 7] = [4096, 5000, 12_288, 65_536, 700, 20_000, 32_768];

/// Writers at work; dropping it waits for them.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) shared: Arc<Shared>,
    pub(super) threads: Vec<JoinHandle<Result<(), String>>>,
}

/// What the writers share with who watches them.
#[derive(Debug)]
pub(super) struct Shared {
    /// How the names of pieces begin.
    pub(super) prefix: String,
    pub(super) ledger: Arc<Ledger>,
    stop: AtomicBool,
    /// Writers that have had an acknowledgement.
    under_way: AtomicUsize,
    in_flight: AtomicU64,
    /// The longest that one piece took since the last question, in microseconds.
    longest_micros: AtomicU64,
}

impl Shared {
    /// A load whose pieces are entered in `ledger` below `prefix`.
    pub(super) fn new(prefix: &str, ledger: &Arc<Ledger>) -> Arc<Self> {
        Arc::new(Self {
            prefix: prefix.to_owned(),
            ledger: Arc::clone(ledger),
            stop: AtomicBool::new(false),
            under_way: AtomicUsize::new(0),
            in_flight: AtomicU64::new(0),
            longest_micros: AtomicU64::new(0),
        })
    }

    /// Whether the writers shall go on.
    pub(super) fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// A piece is on its way.
    pub(super) fn begin(&self) -> Instant {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Instant::now()
    }

    /// A piece that began then is done, well or not.
    pub(super) fn end(&self, began: Instant) {
        let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.longest_micros.fetch_max(micros, Ordering::Relaxed);
    }

    /// The first piece of one more writer was acknowledged.
    pub(super) fn first_acknowledged(&self) {
        self.under_way.fetch_add(1, Ordering::Relaxed);
    }

    /// The longest that a piece took since this was last asked.
    pub(super) fn take_longest(&self) -> Duration {
        Duration::from_micros(self.longest_micros.swap(0, Ordering::Relaxed))
    }
}

impl Load {
    /// Pieces that were begun and are not acknowledged.
    pub(super) fn in_flight(&self) -> u64 {
        self.shared.in_flight.load(Ordering::Relaxed)
    }

    /// Whether each writer has had an acknowledgement.
    pub(super) fn all_under_way(&self) -> bool {
        self.shared.under_way.load(Ordering::Relaxed) == WRITERS
    }

    /// Whether a writer has met an error or has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Waits for the writers to end after the piece in hand; the first error that one of them met, if any.
    pub(super) fn join(mut self) -> Option<String> {
        self.end()
    }

    fn end(&mut self) -> Option<String> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let results: Vec<_> = self.threads.drain(..).map(JoinHandle::join).collect();
        results.into_iter().find_map(|result| match result {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => Some("a writer panicked".into()),
        })
    }
}

impl Drop for Load {
    /// What they write to is there until they have ended.
    fn drop(&mut self) {
        drop(self.end());
    }
}

/// The contents of piece `number` of writer `writer`.
pub(super) fn contents(writer: usize, number: usize) -> Vec<u8> {
    super::tree::generate((writer as u64) << 32 | number as u64, LENGTHS[(writer + number) % LENGTHS.len()])
}

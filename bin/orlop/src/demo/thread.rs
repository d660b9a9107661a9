//! Steps of the story that block, on threads of their own, and how they are told to stop.
//!
//! Invariants:
//! 1. No thread outlives its [`Threads`]: what it writes to is there until it has ended. It is told to stop, and looks at
//!    that before each piece of its work.

use crate::failure::{Failure, Outcome};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use tokio::sync::oneshot;

/// Whether the story is over for whoever works on it.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// From now on nobody begins anything.
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it is set.
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Fails once it is set.
    pub(super) fn check(&self) -> Outcome {
        if self.is_set() { Err(Failure::new("the demo was told to stop")) } else { Ok(()) }
    }
}

/// Runs one blocking step at a time; the last one is told to stop and waited for when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Threads {
    stop: Stop,
    running: Option<JoinHandle<()>>,
}

impl Threads {
    /// What its steps look at.
    pub(super) fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Runs `work` to its end on a thread.
    pub(super) async fn run<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&Stop) -> Outcome<T> + Send + 'static,
    ) -> Outcome<T> {
        let (sender, result) = oneshot::channel();
        let stop = self.stop.clone();
        self.running = Some(std::thread::spawn(move || {
            // Whoever waited may have been interrupted.
            drop(sender.send(work(&stop)));
        }));
        let result = result.await;
        self.join();
        result.map_err(|_| Failure::new("a step of the demo panicked"))?
    }

    fn join(&mut self) {
        if let Some(thread) = self.running.take() {
            // A panic was said on standard error, and nobody gets a result.
            drop(thread.join());
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.set();
        self.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_step_that_is_no_longer_waited_for_ends_before_its_threads_are_gone() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        runtime.block_on(async {
            let mut threads = Threads::default();
            let seen = Arc::clone(&ended);
            let step = threads.run(move |stop| {
                while !stop.is_set() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                std::thread::sleep(Duration::from_millis(50));
                seen.store(true, Ordering::Relaxed);
                stop.check()
            });
            assert!(tokio::time::timeout(Duration::from_millis(20), step).await.is_err());
            assert!(!ended.load(Ordering::Relaxed));
            drop(threads);
            assert!(ended.load(Ordering::Relaxed));
        });
    }

    #[test]
    fn a_step_gives_its_result_and_a_panic_is_a_failure() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut threads = Threads::default();
            assert_eq!(threads.run(|_| Ok(7)).await, Ok(7));
            let panicked: Outcome = threads.run(|_| panic!("as planned")).await;
            assert_eq!(panicked, Err(Failure::new("a step of the demo panicked")));
        });
    }
}

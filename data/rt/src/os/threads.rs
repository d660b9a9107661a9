//! The driver for places where `io_uring` is forbidden: `poll(2)` for sockets, a few threads for disks. Slow but whole.
//!
//! # Invariants
//! 1. A job that a thread has begun completes, cancelled or not; its memory stays until then.
//! 2. No thread outlives the driver.

use super::Wait;
use super::call::Raw;
use super::executor::Shared;
use super::ops::{Completion, Key};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Disk operations that may block at a time.
const WORKERS: usize = 16;

pub(super) struct Threads {
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    workers: Vec<JoinHandle<()>>,
    /// Operations that wait until their descriptor is ready.
    waiting: BTreeMap<Key, Raw>,
    /// Completed at once.
    done: Vec<(Key, i32)>,
}

#[derive(Default)]
struct Pool {
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<(Key, Raw)>,
    idle: usize,
    done: Vec<(Key, i32)>,
    closing: bool,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, shared: &Shared) {
        let mut state = self.lock();
        while !state.closing {
            let Some((key, raw)) = state.jobs.pop_front() else {
                state.idle += 1;
                state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
                continue;
            };
            drop(state);
            let result = raw.perform();
            state = self.lock();
            state.done.push((key, result));
            shared.nudge();
        }
    }
}

impl Threads {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, pool: Arc::default(), workers: Vec::new(), waiting: BTreeMap::new(), done: Vec::new() }
    }

    pub(super) fn start(&mut self, key: Key, raw: Raw) {
        if raw.blocks() {
            let mut state = self.pool.lock();
            state.jobs.push_back((key, raw));
            let starved = state.jobs.len() > state.idle && self.workers.len() < WORKERS;
            drop(state);
            self.pool.more.notify_one();
            if starved {
                self.add_worker();
            }
        } else if raw.waits_first() {
            self.waiting.insert(key, raw);
        } else {
            self.attempt(key, raw);
        }
    }

    fn add_worker(&mut self) {
        let (pool, shared) = (Arc::clone(&self.pool), Arc::clone(&self.shared));
        let worker = std::thread::Builder::new().name("orlop-disk".into()).spawn(move || pool.work(&shared));
        self.workers.push(worker.expect("the system can start a thread"));
    }

    fn attempt(&mut self, key: Key, raw: Raw) {
        let result = raw.perform();
        if result == -libc::EAGAIN {
            self.waiting.insert(key, raw);
        } else {
            self.done.push((key, result));
        }
    }

    pub(super) fn cancel(&mut self, key: Key) {
        let mut state = self.pool.lock();
        let queued = state.jobs.iter().position(|(queued, _)| *queued == key);
        if let Some(at) = queued {
            state.jobs.remove(at);
        }
        drop(state);
        if queued.is_some() || self.waiting.remove(&key).is_some() {
            self.done.push((key, -libc::ECANCELED));
        }
    }

    pub(super) fn turn(&mut self, wait: Wait, done: &mut Vec<Completion>) {
        let completion = |(key, result)| Completion::single(key, result);
        done.extend(self.pool.lock().done.drain(..).map(completion));
        done.extend(self.done.drain(..).map(completion));
        let sleeps = wait != Wait::Not && done.is_empty() && self.shared.fall_asleep();
        let timeout = match wait {
            Wait::Forever if sleeps => None,
            Wait::For(duration) if sleeps => Some(Timespec::try_from(duration).expect("a sane deadline")),
            _ => Some(Timespec { tv_sec: 0, tv_nsec: 0 }),
        };
        self.poll(timeout.as_ref());
        self.shared.wake_up();
        done.extend(self.done.drain(..).map(completion));
    }

    /// Waits until a descriptor is ready, and attempts what waits for it.
    fn poll(&mut self, timeout: Option<&Timespec>) {
        let event = PollFd::new(self.shared.event(), PollFlags::IN);
        let waiting = self.waiting.values().map(|raw| PollFd::from_borrowed_fd(raw.fd(), raw.awaited()));
        let mut fds: Vec<PollFd<'_>> = std::iter::once(event).chain(waiting).collect();
        // After an error (a signal) nothing is ready.
        if poll(&mut fds, timeout).unwrap_or(0) == 0 {
            return;
        }
        if !fds[0].revents().is_empty() {
            self.shared.take_event();
        }
        let ready: Vec<bool> = fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut ready = ready.into_iter();
        let waiting = mem::take(&mut self.waiting);
        for (key, raw) in waiting {
            if ready.next() == Some(true) {
                self.attempt(key, raw);
            } else {
                self.waiting.insert(key, raw);
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.pool.lock().closing = true;
        self.pool.more.notify_all();
        for worker in self.workers.drain(..) {
            worker.join().expect("a worker does not panic");
        }
    }
}

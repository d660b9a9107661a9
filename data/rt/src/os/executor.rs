//! Tasks of one reactor: a local queue that needs no atomics, and an injector for wakes from other threads.
//!
//! # Invariants
//! 1. A wake is never lost: a waker on another thread first queues, then looks whether the reactor sleeps; the reactor
//!    first says that it sleeps, then looks into the queue (both sequentially consistent).
//! 2. Every task that was spawned and has not ended is in `alive`, so that shutting down reaches it.

use async_task::{Runnable, Task};
use rustix::event::EventfdFlags;
use slab::Slab;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

/// Polls between two looks at the kernel.
const POLLS_PER_TURN: usize = 256;

thread_local! {
    /// The queue of the reactor that now runs on this thread.
    static ACTIVE: RefCell<Option<Rc<Queue>>> = const { RefCell::new(None) };
}

/// What other threads may touch: the way to wake a reactor.
#[derive(Debug)]
pub(super) struct Shared {
    injected: Mutex<Vec<Runnable>>,
    pending: AtomicBool,
    sleeping: AtomicBool,
    main_woken: AtomicBool,
    /// Readable once a sleeping reactor was woken.
    event: OwnedFd,
}

impl Shared {
    fn inject(&self, runnable: Runnable) {
        self.injected.lock().unwrap_or_else(PoisonError::into_inner).push(runnable);
        self.nudge();
    }

    /// Ends the reactor's sleep, if it sleeps.
    pub(super) fn signal(&self) {
        if self.sleeping.swap(false, SeqCst) {
            rustix::io::write(&self.event, &1_u64.to_ne_bytes()).expect("an event counter takes 2^64 wakes");
        }
    }

    /// Tells the reactor to take a turn: its driver has something.
    pub(super) fn nudge(&self) {
        self.pending.store(true, SeqCst);
        self.signal();
    }

    /// Resets the event descriptor, which must be readable.
    pub(super) fn take_event(&self) {
        rustix::io::read(&self.event, &mut [0; 8]).expect("the event counter is readable");
    }

    pub(super) fn event(&self) -> &OwnedFd {
        &self.event
    }

    /// Announces sleep; false when something arrived meanwhile and the reactor must stay awake.
    pub(super) fn fall_asleep(&self) -> bool {
        self.sleeping.store(true, SeqCst);
        if self.has_news() {
            self.sleeping.store(false, SeqCst);
            return false;
        }
        true
    }

    pub(super) fn wake_up(&self) {
        self.sleeping.store(false, SeqCst);
    }

    pub(super) fn has_news(&self) -> bool {
        self.pending.load(SeqCst) || self.main_woken.load(SeqCst)
    }
}

/// The waker of the future given to `run`.
impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.main_woken.store(true, SeqCst);
        self.signal();
    }
}

struct Queue {
    shared: Arc<Shared>,
    ready: RefCell<VecDeque<Runnable>>,
}

fn schedule(shared: &Arc<Shared>, runnable: Runnable) {
    let rest = ACTIVE.try_with(|active| match &*active.borrow() {
        Some(queue) if Arc::ptr_eq(&queue.shared, shared) => {
            queue.ready.borrow_mut().push_back(runnable);
            None
        }
        _ => Some(runnable),
    });
    if let Ok(Some(runnable)) = rest {
        shared.inject(runnable);
    }
}

/// The tasks of one reactor.
pub(super) struct Tasks {
    queue: Rc<Queue>,
    alive: Rc<RefCell<Slab<Waker>>>,
}

impl Tasks {
    pub(super) fn new() -> io::Result<Self> {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
        let shared = Arc::new(Shared {
            injected: Mutex::default(),
            pending: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
            main_woken: AtomicBool::new(false),
            event,
        });
        let queue = Rc::new(Queue { shared, ready: RefCell::default() });
        Ok(Self { queue, alive: Rc::default() })
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.queue.shared
    }

    pub(super) fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        let mut alive = self.alive.borrow_mut();
        let entry = alive.vacant_entry();
        let leave = Leave { alive: Rc::clone(&self.alive), index: entry.key() };
        let future = async move {
            let _leave = leave;
            future.await
        };
        let shared = Arc::clone(&self.queue.shared);
        let (runnable, task) = async_task::spawn_local(future, move |runnable| schedule(&shared, runnable));
        entry.insert(runnable.waker());
        drop(alive);
        runnable.schedule();
        task
    }

    /// Makes this reactor's queue the one that wakes on this thread go to.
    pub(super) fn activate(&self) -> Active {
        Active(ACTIVE.replace(Some(Rc::clone(&self.queue))))
    }

    /// Runs what is ready, within a bound; newly woken tasks too.
    pub(super) fn run_ready(&self) {
        for _ in 0..POLLS_PER_TURN {
            let Some(runnable) = self.pop() else { return };
            runnable.run();
        }
    }

    fn pop(&self) -> Option<Runnable> {
        self.queue.ready.borrow_mut().pop_front()
    }

    /// Takes over what other threads woke.
    pub(super) fn collect_injected(&self) {
        let shared = &self.queue.shared;
        if shared.pending.load(SeqCst) {
            shared.pending.store(false, SeqCst);
            let arrived = mem::take(&mut *shared.injected.lock().unwrap_or_else(PoisonError::into_inner));
            self.queue.ready.borrow_mut().extend(arrived);
        }
    }

    pub(super) fn take_main_woken(&self) -> bool {
        self.queue.shared.main_woken.swap(false, SeqCst)
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.queue.ready.borrow().is_empty() || self.queue.shared.has_news()
    }

    /// Cancels every task and drops its future.
    pub(super) fn cancel_all(&self) {
        loop {
            // A woken task lies in a queue, and dropping it there drops its future, which may wake others.
            let wakers: Vec<Waker> = self.alive.borrow().iter().map(|(_, waker)| waker.clone()).collect();
            if wakers.is_empty() {
                return;
            }
            wakers.into_iter().for_each(Waker::wake);
            self.collect_injected();
            while let Some(runnable) = self.pop() {
                drop(runnable);
            }
        }
    }
}

/// Restores the queue that was active before.
pub(super) struct Active(Option<Rc<Queue>>);

impl Drop for Active {
    fn drop(&mut self) {
        ACTIVE.set(self.0.take());
    }
}

/// Takes a task out of `alive` when its future ends or is dropped.
struct Leave {
    alive: Rc<RefCell<Slab<Waker>>>,
    index: usize,
}

impl Drop for Leave {
    fn drop(&mut self) {
        // The waker is dropped after the borrow ends: it may be the last reference to the task.
        let waker = self.alive.borrow_mut().try_remove(self.index);
        drop(waker);
    }
}

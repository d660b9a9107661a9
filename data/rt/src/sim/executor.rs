//! Tasks and time of a simulated world: one thread, one queue of ready tasks, one virtual clock.
//!
//! The next task is drawn at random from all that are ready, on all nodes. Each poll takes a little virtual time, so
//! that a task that only yields does not stop the clock; when nothing is ready the clock jumps to the next event. Now and
//! then a ready task has to wait for some milliseconds, as a thread does on a busy machine; how often is drawn per seed.
//!
//! # Invariants
//! 1. A task belongs to one process, that of the task which spawned it, and is polled and dropped in its name.
//! 2. A task of a dead process is never polled again; its future is dropped in the order of spawning.
//! 3. No task is polled and no future dropped while the state of the world is borrowed.

use super::node::ProcessId;
use super::trace::Kind;
use super::world::{Shared, State};
use crate::context::{self, Context};
use crate::{Instant, Task};
use async_task::Runnable;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Wake, Waker};

/// The most that one poll takes, in nanoseconds of virtual time.
const POLL_NANOS_MAX: u64 = 1024;

/// How often, in a million polls, a task has to wait first: one of these per seed.
pub(super) const LATE_PER_MILLION: [u64; 3] = [0, 200, 2000];
/// The longest that it waits then.
const LATE_NANOS_MAX: u64 = 10_000_000;
/// The longest that blocking work takes.
const BLOCKING_NANOS_MAX: u64 = 1_000_000;

/// A task that wants to be polled.
#[derive(Debug)]
pub(super) struct Ready {
    /// `None` for the root future.
    runnable: Option<Runnable>,
    pub(super) process: ProcessId,
    task: u64,
}

/// Where wakers put tasks. Wakers must be `Send`, hence the lock; in a world it is never contended.
#[derive(Debug, Default)]
pub(super) struct Inbox(Mutex<InboxState>);

#[derive(Debug, Default)]
struct InboxState {
    closed: bool,
    ready: Vec<Ready>,
}

impl Inbox {
    fn push(&self, ready: Ready) {
        let mut inbox = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if inbox.closed {
            drop(inbox);
            drop(ready);
        } else {
            inbox.ready.push(ready);
        }
    }

    fn drain_into(&self, ready: &mut Vec<Ready>) {
        ready.append(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).ready);
    }

    pub(super) fn close(&self) {
        let left = {
            let mut inbox = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            inbox.closed = true;
            std::mem::take(&mut inbox.ready)
        };
        drop(left);
    }
}

/// What happens at a moment of virtual time.
#[derive(Debug)]
pub(super) enum Event {
    /// A timer of a task.
    Wake(Waker),
    /// A task that had to wait goes on.
    Late(Ready),
    /// A step of a disk operation.
    Disk { disk: usize, op: u64 },
    /// Something arrives over the network.
    Net(super::net::Arrival),
}

/// The virtual clock and what is due.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// Nanoseconds since the world began.
    pub(super) now: u64,
    next_event: u64,
    events: BTreeMap<(u64, u64), Event>,
}

impl Clock {
    /// Lets `event` happen `delay` nanoseconds from now.
    pub(super) fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    fn at(&mut self, moment: u64, event: Event) -> (u64, u64) {
        self.next_event += 1;
        let key = (moment, self.next_event);
        self.events.insert(key, event);
        key
    }

    /// Takes every task that has to wait.
    fn take_late(&mut self) -> Vec<Ready> {
        let is_late = |(key, event): (&(u64, u64), &Event)| matches!(event, Event::Late(_)).then_some(*key);
        let keys: Vec<(u64, u64)> = self.events.iter().filter_map(is_late).collect();
        let taken = keys.iter().filter_map(|key| match self.events.remove(key) {
            Some(Event::Late(ready)) => Some(ready),
            _ => None,
        });
        taken.collect()
    }

    fn take_due(&mut self) -> Option<Event> {
        let first = self.events.first_entry()?;
        (first.key().0 <= self.now).then(|| first.remove())
    }
}

/// A way into the world in the name of one process.
#[derive(Clone)]
pub struct Handle {
    pub(super) world: Rc<Shared>,
    pub(super) process: ProcessId,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} of the world of seed {}", self.process.0 as u64, self.world.seed)
    }
}

impl Handle {
    pub(crate) fn random_bytes(&self, bytes: &mut [u8]) {
        let state = &mut *self.world.state.borrow_mut();
        state.program_rng.fill(bytes);
        state.fate.note(Kind::Random, self.process.0 as u64, bytes.len() as u64);
    }

    pub(crate) fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        let task = {
            let state = &mut *self.world.state.borrow_mut();
            state.tasks_spawned += 1;
            state.fate.note(Kind::Spawn, self.process.0 as u64, state.tasks_spawned);
            state.tasks_spawned
        };
        let registration = Registration { handle: self.clone(), task };
        let future = async move {
            let _registration = registration;
            future.await
        };
        let (inbox, process) = (Arc::clone(&self.world.inbox), self.process);
        let schedule = move |runnable| inbox.push(Ready { runnable: Some(runnable), process, task });
        let (runnable, handle) = async_task::spawn_local(future, schedule);
        let old = {
            let process = &mut self.world.state.borrow_mut().processes[self.process.0];
            process.alive.then(|| process.tasks.insert(task, runnable.waker())).flatten()
        };
        assert!(old.is_none(), "task numbers are used once");
        // A destructor that spawns while its process dies gets a task that is dropped without having been polled.
        runnable.schedule();
        handle
    }

    pub(crate) fn now(&self) -> Instant {
        let state = &mut *self.world.state.borrow_mut();
        // Reading the clock takes time: a loop that only watches the clock ends.
        state.clock.now += 20;
        Instant::from_nanos(state.node_of(self.process).clock.read(state.clock.now))
    }

    pub(crate) async fn sleep_until(&self, deadline: Instant) {
        let moment = {
            let state = self.world.state.borrow();
            state.node_of(self.process).clock.moment_of(deadline.as_nanos()).max(state.clock.now)
        };
        Sleep { world: &self.world, moment, event: None, done: false }.await;
    }

    /// Waits for as long as a piece of blocking work may take.
    pub(crate) async fn take_time(&self) {
        let nanos = self.world.state.borrow_mut().fate.rng.below(BLOCKING_NANOS_MAX);
        self.pass(nanos).await;
    }

    /// Waits for `nanos` of the world's time, whatever the machine's clock says.
    pub(super) async fn pass(&self, nanos: u64) {
        let moment = self.world.state.borrow().clock.now + nanos;
        Sleep { world: &self.world, moment, event: None, done: false }.await;
    }
}

/// Keeps a task in its process's list while its future exists.
struct Registration {
    handle: Handle,
    task: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let waker = {
            let state = &mut *self.handle.world.state.borrow_mut();
            state.fate.note(Kind::Drop, self.handle.process.0 as u64, self.task);
            state.processes[self.handle.process.0].tasks.remove(&self.task)
        };
        drop(waker);
    }
}

struct Sleep<'a> {
    world: &'a Shared,
    moment: u64,
    event: Option<(u64, u64)>,
    done: bool,
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<()> {
        let mut state = self.world.state.borrow_mut();
        let due = self.event.is_some() && state.clock.now >= self.moment;
        let old = self.event.take().and_then(|key| state.clock.events.remove(&key));
        if !due {
            let event = Event::Wake(cx.waker().clone());
            self.event = Some(state.clock.at(self.moment, event));
        }
        drop(state);
        drop(old);
        self.done = due;
        if due { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.event.take() {
            let old = self.world.state.borrow_mut().clock.events.remove(&key);
            drop(old);
        }
    }
}

/// Wakes the root future.
struct RootWaker {
    inbox: Arc<Inbox>,
    process: ProcessId,
    queued: AtomicBool,
}

impl Wake for RootWaker {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.inbox.push(Ready { runnable: None, process: self.process, task: 0 });
        }
    }
}

impl Shared {
    /// Runs the world until `root`, a future of `process`, ends.
    pub(super) fn run<T>(self: &Rc<Self>, process: ProcessId, root: impl Future<Output = T>) -> T {
        // Entered before the root is pinned, hence left after it is dropped, also when a panic passes.
        let root_context = Context::Sim(Handle { world: Rc::clone(self), process });
        let _entered = context::enter(root_context.clone());
        let root_waker =
            Arc::new(RootWaker { inbox: Arc::clone(&self.inbox), process, queued: AtomicBool::new(false) });
        let waker = Waker::from(Arc::clone(&root_waker));
        waker.wake_by_ref();
        let mut root = pin!(root);
        loop {
            let Ready { runnable, process, task } = self.next();
            let handle = Handle { world: Rc::clone(self), process };
            let Some(runnable) = runnable else {
                root_waker.queued.store(false, Ordering::Relaxed);
                let _entered = context::enter(root_context.clone());
                if let Poll::Ready(output) = root.as_mut().poll(&mut std::task::Context::from_waker(&waker)) {
                    return output;
                }
                continue;
            };
            let _entered = context::enter(Context::Sim(handle));
            if self.state.borrow().processes[process.0].alive {
                runnable.run();
            } else {
                self.state.borrow_mut().fate.note(Kind::Drop, process.0 as u64, task);
                drop(runnable);
            }
        }
    }

    /// Draws the next task to poll; lets time pass until there is one.
    fn next(&self) -> Ready {
        loop {
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            while let Some(event) = state.clock.take_due() {
                state.happen(event);
            }
            self.inbox.drain_into(&mut state.ready);
            if state.ready.is_empty() {
                let Some((&(moment, _), _)) = state.clock.events.first_key_value() else {
                    panic!("seed {}: deadlock: no task is ready and nothing is due", self.seed)
                };
                state.clock.now = state.clock.now.max(moment);
                state.check_time_limit(self.seed);
                continue;
            }
            let index = state.fate.rng.index(state.ready.len());
            let ready = state.ready.swap_remove(index);
            let node = state.processes[ready.process.0].node;
            if state.nodes[node].paused {
                state.nodes[node].parked.push(ready);
                continue;
            }
            if state.late_per_million > 0 && state.fate.rng.below(1_000_000) < state.late_per_million {
                let delay = state.fate.rng.below(LATE_NANOS_MAX);
                state.fate.note(Kind::Late, ready.task, delay);
                state.clock.after(delay, Event::Late(ready));
                continue;
            }
            state.clock.now += state.fate.rng.below(POLL_NANOS_MAX);
            state.check_time_limit(self.seed);
            state.fate.counters.polls += 1;
            state.fate.note(Kind::Poll, ready.task, state.clock.now);
            return ready;
        }
    }

    /// Drops every task of `process`, which is dead already (invariant 2).
    pub(super) fn drop_tasks(self: &Rc<Self>, process: ProcessId) {
        let _entered = context::enter(Context::Sim(Handle { world: Rc::clone(self), process }));
        loop {
            let wakers: Vec<Waker> = {
                let state = self.state.borrow();
                assert!(!state.processes[process.0].alive, "tasks of living processes end by themselves");
                state.processes[process.0].tasks.values().cloned().collect()
            };
            // A task gives up its future only to whoever holds its runnable; waking it makes the runnable appear.
            for waker in wakers {
                waker.wake();
            }
            let mut doomed = self.state.borrow_mut().take_ready_of(process, &self.inbox);
            if doomed.is_empty() {
                return;
            }
            doomed.sort_by_key(|ready| ready.task);
            for ready in doomed {
                self.state.borrow_mut().fate.note(Kind::Drop, process.0 as u64, ready.task);
                drop(ready);
            }
        }
    }
}

impl State {
    fn happen(&mut self, event: Event) {
        match event {
            Event::Wake(waker) => waker.wake(),
            Event::Late(ready) => self.ready.push(ready),
            Event::Disk { disk, op } => self.disk_step(disk, op),
            Event::Net(arrival) => self.arrive(arrival),
        }
    }

    fn check_time_limit(&self, seed: u64) {
        assert!(
            self.clock.now <= self.time_limit,
            "seed {seed}: the root future has not ended after {} virtual seconds",
            self.time_limit / 1_000_000_000
        );
    }

    fn take_ready_of(&mut self, process: ProcessId, inbox: &Inbox) -> Vec<Ready> {
        inbox.drain_into(&mut self.ready);
        let node = self.processes[process.0].node;
        self.ready.append(&mut self.nodes[node].parked);
        self.ready.append(&mut self.clock.take_late());
        let (doomed, others) = self.ready.drain(..).partition(|ready| ready.process == process);
        self.ready = others;
        doomed
    }
}

//! The driver on a real kernel: one reactor per thread.
//!
//! A turn of the loop runs what is ready, fires timers, and enters the kernel once: that call submits all that the tasks
//! started and waits for the first completion. With nothing to do it sleeps there.
//!
//! - `executor`: tasks and wakes. `timers`: deadlines. `ops`: operations in flight and their memory.
//! - `call`: system calls as values. `ring`: the driver on `io_uring`; `threads`: the one for where that is forbidden.
//! - `arena`: memory registered with the ring. `many`: multishot operations; `provided`: the buffers that they receive
//!   into; `traffic`: which connection receives that way.
//! - `file`, `tcp`, `fd`: what the crate's types do under this driver. `partition`: what the kernel is told of.

mod arena;
mod call;
mod driver;
mod executor;
mod fd;
mod file;
mod many;
mod ops;
mod partition;
mod provided;
mod ring;
mod spin;
mod tcp;
mod threads;
mod timers;
mod traffic;

pub(crate) use arena::Arena;
pub use driver::DriverChoice;
pub(crate) use driver::is_forbidden;
pub(crate) use fd::OsFd;
pub(crate) use file::OsFile;
pub use partition::add_partition;
pub(crate) use ring::probe;
pub(crate) use tcp::{OsListener, OsReceive, OsSend, attach, connect, detach};

use crate::context::{self, Context};
use crate::{Errno, Instant, Task};
use call::{Call, Kind};
use driver::Driver;
use executor::Tasks;
use many::Multishot;
use ops::{Completion, Operation, Ops};
use provided::Provided;
use rustix::time::{ClockId, clock_gettime};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;
use timers::Timers;

/// How a reactor is set up.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Submissions that one turn of the loop can gather before it enters the kernel early.
    pub entries: u32,
    /// How to reach the kernel.
    pub driver: DriverChoice,
    /// Memory to register with the kernel for buffers, which saves it work per operation; shrinks to what the limit on
    /// locked memory allows. Buffers beyond it come from the heap. It stays resident.
    pub registered_bytes: usize,
    /// Buffers of 64 KiB that the connections share for multishot receive: a power of two, at most 32768. With 0 each
    /// connection receives one by one into a buffer of its own, as it does where the kernel lacks multishot operations.
    pub receive_buffers: u16,
}

impl Default for Config {
    fn default() -> Self {
        Self { entries: 1024, driver: DriverChoice::Auto, registered_bytes: 16 << 20, receive_buffers: 32 }
    }
}

/// How long a turn may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    Not,
    For(Duration),
    Forever,
}

/// One thread's event loop.
///
/// ```
/// let reactor = rt::os::Reactor::new(rt::os::Config::default())?;
/// let answer = reactor.run(async { rt::spawn(async { 42 }).await });
/// assert_eq!(answer, 42);
/// # std::io::Result::Ok(())
/// ```
#[derive(Debug)]
pub struct Reactor(Handle);

impl Reactor {
    /// Sets up a reactor; it belongs to the calling thread.
    ///
    /// # Errors
    /// Those of `io_uring_setup(2)`; with [`DriverChoice::Uring`], `PermissionDenied` where it is forbidden.
    pub fn new(config: Config) -> io::Result<Self> {
        let tasks = Tasks::new()?;
        let driver = Driver::new(&config, tasks.shared())?;
        let provided = driver.provided().cloned();
        Ok(Self(Handle(Rc::new(Core {
            tasks,
            timers: Timers::default(),
            ops: Ops::default(),
            driver: RefCell::new(driver),
            provided,
            done: RefCell::default(),
            turns: Cell::new(0),
            closed: Cell::new(false),
        }))))
    }

    /// Runs `future`, and the tasks that it spawns beside it, until it ends. Tasks that have not ended then go on in
    /// the next `run`; dropping the reactor cancels them.
    ///
    /// # Panics
    /// When a task panics, and when called from within a reactor of the same thread.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let core = &*self.0.0;
        let _context = context::enter(Context::Os(self.0.clone()));
        let _active = core.tasks.activate();
        let waker = Waker::from(Arc::clone(core.tasks.shared()));
        let mut cx = std::task::Context::from_waker(&waker);
        let mut future = pin!(future);
        waker.wake_by_ref();
        loop {
            if core.tasks.take_main_woken()
                && let std::task::Poll::Ready(output) = future.as_mut().poll(&mut cx)
            {
                return output;
            }
            core.tasks.run_ready();
            core.turn();
        }
    }

    /// Turns of the loop so far; the number stands still while there is nothing to do.
    pub fn turns(&self) -> u64 {
        self.0.0.turns.get()
    }

    /// Shared receive buffers ([`Config::receive_buffers`]) whose bytes nobody has consumed yet.
    pub fn receive_buffers_held(&self) -> u16 {
        self.0.0.provided.as_ref().map_or(0, |provided| provided.taken())
    }
}

impl Drop for Reactor {
    /// Cancels all tasks, then all operations, and waits until the kernel has let go of their memory.
    fn drop(&mut self) {
        let core = &*self.0.0;
        let _context = context::enter(Context::Os(self.0.clone()));
        let _active = core.tasks.activate();
        core.tasks.cancel_all();
        core.closed.set(true);
        let left = core.ops.in_flight();
        for key in left {
            core.driver.borrow_mut().cancel(key);
        }
        while !core.ops.in_flight().is_empty() {
            core.drive(Wait::Forever);
        }
    }
}

/// What the parts of one reactor share.
struct Core {
    tasks: Tasks,
    timers: Timers,
    ops: Ops,
    driver: RefCell<Driver>,
    /// The buffers of multishot receives; none where there are no multishot operations.
    provided: Option<Rc<Provided>>,
    /// Scratch space of `drive`.
    done: RefCell<Vec<Completion>>,
    turns: Cell<u64>,
    /// The reactor is gone: operations fail.
    closed: Cell<bool>,
}

impl Core {
    fn turn(&self) {
        self.turns.set(self.turns.get() + 1);
        self.tasks.collect_injected();
        let mut wait = if self.tasks.has_ready() { Wait::Not } else { Wait::Forever };
        if let Some(deadline) = self.timers.next_deadline() {
            let now = boot_time();
            if deadline <= now {
                self.timers.fire(now);
                wait = Wait::Not;
            } else if wait == Wait::Forever {
                wait = Wait::For(deadline - now);
            }
        }
        self.drive(wait);
    }

    fn drive(&self, wait: Wait) {
        let mut done = self.done.take();
        self.driver.borrow_mut().turn(wait, &mut done);
        for completion in done.drain(..) {
            if self.ops.complete(completion, self.provided.as_ref()) {
                self.driver.borrow_mut().cancel(completion.key);
            }
        }
        self.done.replace(done);
    }
}

/// The way from a task to its reactor.
#[derive(Clone)]
pub struct Handle(Rc<Core>);

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handle")
    }
}

impl Handle {
    #[expect(clippy::unused_self, reason = "the simulator's twin needs it")]
    pub(crate) fn random_bytes(&self, bytes: &mut [u8]) {
        let mut done = 0;
        while done < bytes.len() {
            match rustix::rand::getrandom(&mut bytes[done..], rustix::rand::GetRandomFlags::empty()) {
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(error) => panic!("the kernel gives no random bytes: {error}"),
            }
        }
    }

    pub(crate) fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        self.0.tasks.spawn(future)
    }

    #[expect(clippy::unused_self, reason = "the simulator's twin needs it")]
    pub(crate) fn now(&self) -> Instant {
        boot_time()
    }

    pub(crate) async fn sleep_until(&self, deadline: Instant) {
        timers::Sleep::new(Rc::clone(&self.0), deadline).await;
    }

    fn wants_nonblocking(&self) -> bool {
        self.0.driver.borrow().wants_nonblocking()
    }

    /// Whether multishot operations can be started.
    fn has_multishot(&self) -> bool {
        self.0.provided.is_some() && !self.0.closed.get()
    }

    /// Whether multishot receives would find buffers.
    fn has_receive_buffers(&self) -> bool {
        self.has_multishot() && self.0.provided.as_ref().is_some_and(|provided| provided.has_room())
    }

    fn start_many(&self, fd: &Rc<OwnedFd>, kind: Kind) -> Multishot {
        Multishot::start(Rc::clone(&self.0), Call { fd: Rc::clone(fd), kind })
    }

    fn start(&self, fd: &Rc<OwnedFd>, kind: Kind) -> Operation {
        Operation::new(Rc::clone(&self.0), Call { fd: Rc::clone(fd), kind })
    }
}

fn boot_time() -> Instant {
    let time = clock_gettime(ClockId::Boottime);
    let whole = u64::try_from(time.tv_sec).expect("the boot clock starts at zero");
    Instant::from_nanos(whole * 1_000_000_000 + u64::try_from(time.tv_nsec).expect("below a second"))
}

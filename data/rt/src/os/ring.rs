//! The `io_uring` driver: submissions gathered over a turn of the loop go to the kernel with the call that waits.
//!
//! # Invariants
//! 1. Submissions reach the kernel in the order in which they were started: a cancellation never overtakes its target,
//!    nor a later operation of the same slot the cancellation.
//! 2. A full submission queue or a kernel that refuses for the moment delays submissions and loses none (`backlog`).
#![expect(unsafe_code, reason = "submissions carry pointers")]

use super::arena::{Arena, CHUNK};
use super::call::Raw;
use super::executor::Shared;
use super::ops::{Completion, Key};
use super::provided::Provided;
use super::spin::{Spin, Waited};
use super::{Config, Wait, boot_time};
use crate::{Errno, Instant};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types};
use rustix::process::{Resource, Rlimit};
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Completions of cancellations, of no interest: the cancelled operation completes by itself.
const IGNORED: Key = u64::MAX;
/// The event descriptor by which other threads end the sleep.
const WOKEN: Key = u64::MAX - 1;

/// So many reads and writes of disks go to the kernel without waiting for the end of the turn. While a reactor works
/// through many completions the disk must not run dry: measured at depth 32, gathering whole turns costs 20 % of the
/// operations per second; a call for each one is as fast as one for two and costs more.
const DISK_BATCH: u32 = 2;

pub(super) struct Ring {
    kernel: IoUring,
    /// Tells this ring's registered memory from others'. Never zero.
    id: u64,
    backlog: VecDeque<squeue::Entry>,
    shared: Arc<Shared>,
    /// Whether the event descriptor is being watched.
    watching: bool,
    spin: Spin,
    /// When the last wait ended.
    last_wait: Instant,
    /// Reads and writes of disks started since the last submission.
    waiting_for_disk: u32,
    /// None where the kernel lacks multishot operations, or none are wanted.
    provided: Option<Rc<Provided>>,
}

impl Ring {
    pub(super) fn new(config: &Config, shared: Arc<Shared>) -> io::Result<Self> {
        let mut kernel = build(config.entries)?;
        let id = NEXT_ID.fetch_add(1, Relaxed);
        Arena::make_current(register(&kernel, id, config.registered_bytes));
        let provided = match config.receive_buffers {
            0 => None,
            count => Provided::register(&mut kernel, count)
                .inspect_err(|error| {
                    tracing::warn!(%error, "no multishot receive: connections receive one by one; see the preflight check");
                })
                .ok(),
        };
        Ok(Self {
            kernel,
            id,
            backlog: VecDeque::new(),
            shared,
            watching: false,
            spin: Spin::new(),
            last_wait: boot_time(),
            waiting_for_disk: 0,
            provided,
        })
    }

    pub(super) fn provided(&self) -> Option<&Rc<Provided>> {
        self.provided.as_ref()
    }

    pub(super) fn start(&mut self, key: Key, raw: Raw) {
        self.push(raw.entry(self.id).user_data(key));
        if raw.is_disk() {
            self.waiting_for_disk += 1;
            if self.waiting_for_disk == DISK_BATCH {
                self.enter(None);
            }
        }
    }

    pub(super) fn cancel(&mut self, key: Key) {
        self.push(opcode::AsyncCancel::new(key).build().user_data(IGNORED));
    }

    fn push(&mut self, entry: squeue::Entry) {
        if !self.backlog.is_empty() || !self.try_push(&entry) {
            self.backlog.push_back(entry);
        }
    }

    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: what the entry points at is kept by the operation's slot until its completion was reaped.
        unsafe { self.kernel.submission().push(entry) }.is_ok()
    }

    /// Moves the backlog into the submission queue as far as it goes; true when it is empty.
    fn refill(&mut self) -> bool {
        while let Some(entry) = self.backlog.pop_front() {
            if !self.try_push(&entry) {
                self.backlog.push_front(entry);
                return false;
            }
        }
        true
    }

    /// Submits, waits as told, and appends what completed to `done`.
    pub(super) fn turn(&mut self, wait: Wait, done: &mut Vec<Completion>) {
        if !self.watching {
            self.watching = true;
            let event = types::Fd(self.shared.event().as_raw_fd());
            self.push(
                opcode::PollAdd::new(event, libc::POLLIN.cast_unsigned().into())
                    .multi(true)
                    .build()
                    .user_data(WOKEN),
            );
        }
        while !self.refill() {
            self.enter(None);
            // The kernel took nothing: it wants completions reaped first.
            if self.kernel.submission().is_full() {
                break;
            }
        }
        if wait != Wait::Not && self.backlog.is_empty() && self.kernel.completion().is_empty() {
            self.sleep(wait);
        } else {
            self.enter(None);
        }
        self.reap(done);
    }

    /// Waits for a completion, a wake or the time: polling first while that pays.
    fn sleep(&mut self, wait: Wait) {
        let start = boot_time();
        let found = self.spin.window().is_some_and(|window| self.poll(start, window));
        if found || !self.shared.fall_asleep() {
            self.enter(None);
        } else {
            self.enter(Some(wait));
            self.shared.wake_up();
        }
        let end = boot_time();
        let completions = u32::try_from(self.kernel.completion().len()).unwrap_or(u32::MAX);
        let waited = Waited { pause: end - start, elapsed: end - self.last_wait, completions };
        self.last_wait = end;
        self.spin.note(waited, involuntary_switches);
    }

    /// Looks for news over and over for a time; whether there are any.
    fn poll(&mut self, start: Instant, window: Duration) -> bool {
        self.enter(None);
        while boot_time() - start < window {
            for _ in 0..8 {
                if self.has_news() {
                    return true;
                }
                std::hint::spin_loop();
            }
        }
        false
    }

    fn has_news(&mut self) -> bool {
        !self.kernel.completion().is_empty() || self.kernel.submission().taskrun() || self.shared.has_news()
    }

    /// One `io_uring_enter`, if there is a reason for it.
    fn enter(&mut self, wait: Option<Wait>) {
        self.waiting_for_disk = 0;
        let submission = self.kernel.submission();
        let needed = !submission.is_empty() || submission.taskrun() || submission.cq_overflow();
        drop(submission);
        let submitter = self.kernel.submitter();
        let result = match wait {
            None if needed => submitter.submit(),
            None | Some(Wait::Not) => return,
            Some(Wait::Forever) => submitter.submit_and_wait(1),
            Some(Wait::For(duration)) => {
                let time = types::Timespec::from(duration);
                submitter.submit_with_args(1, &types::SubmitArgs::new().timespec(&time))
            }
        };
        match result {
            Ok(_) => {}
            // The time passed, a signal came, or the kernel is short of something for the moment: the next turn tries again.
            Err(error) if TRANSIENT.contains(&Errno::from_io_error(&error)) => {}
            Err(error) => panic!("io_uring_enter failed: {error}"),
        }
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        for entry in self.kernel.completion() {
            match entry.user_data() {
                IGNORED => {}
                WOKEN => self.watching = cqueue::more(entry.flags()),
                key => done.push(Completion {
                    key,
                    result: entry.result(),
                    more: cqueue::more(entry.flags()),
                    buffer: cqueue::buffer_select(entry.flags()),
                }),
            }
        }
    }
}

/// How often this thread lost its core to somebody else while it had work.
fn involuntary_switches() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: the call writes one `rusage`, or fails; all fields are plain numbers.
    let usage = unsafe {
        if libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) != 0 {
            return 0;
        }
        usage.assume_init()
    };
    u64::try_from(usage.ru_nivcsw).unwrap_or(0)
}

impl Drop for Ring {
    fn drop(&mut self) {
        Arena::retire(self.id);
        if let Some(provided) = &self.provided {
            provided.unregister(&self.kernel);
        }
    }
}

fn build(entries: u32) -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_clamp()
        .setup_cqsize(entries * 4)
        .dontfork()
        .build(entries)
}

/// What `io_uring` can do here.
#[derive(Debug)]
pub(crate) struct Probed {
    /// Operations that the reactor uses and the kernel does not have.
    pub(crate) missing: Vec<&'static str>,
    /// Of the memory asked for, what can be registered.
    pub(crate) registered_bytes: usize,
    /// Whether connections can receive by multishot operations, or why not.
    pub(crate) multishot: io::Result<()>,
}

/// Tries what [`Ring`] does, and undoes it. The rings are as large as real ones, which count as locked memory too.
pub(crate) fn probe(entries: u32, registered_bytes: usize) -> io::Result<Probed> {
    let mut kernel = build(entries)?;
    let mut probe = Probe::new();
    kernel.submitter().register_probe(&mut probe)?;
    let missing =
        USED.into_iter().filter(|(_, code)| !probe.is_supported(*code)).map(|(name, _)| name).collect();
    // The ring's own number is never asked for: nothing is allocated from this memory.
    let registered_bytes = register(&kernel, 0, registered_bytes).map_or(0, |arena| arena.len());
    let multishot = Provided::register(&mut kernel, 8).map(|provided| provided.unregister(&kernel));
    Ok(Probed { missing, registered_bytes, multishot })
}

const USED: [(&str, u8); 12] = [
    ("READ", opcode::Read::CODE),
    ("WRITE", opcode::Write::CODE),
    ("READ_FIXED", opcode::ReadFixed::CODE),
    ("WRITE_FIXED", opcode::WriteFixed::CODE),
    ("FSYNC", opcode::Fsync::CODE),
    ("FALLOCATE", opcode::Fallocate::CODE),
    ("RECV", opcode::Recv::CODE),
    ("SENDMSG", opcode::SendMsg::CODE),
    ("ACCEPT", opcode::Accept::CODE),
    ("CONNECT", opcode::Connect::CODE),
    ("POLL_ADD", opcode::PollAdd::CODE),
    ("ASYNC_CANCEL", opcode::AsyncCancel::CODE),
];

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Registers as much memory up to `wanted` bytes as the kernel allows, which may be none: the limit on locked memory is
/// shared by all processes of a user.
fn register(kernel: &IoUring, id: u64, wanted: usize) -> Option<Rc<Arena>> {
    let limit = rustix::process::getrlimit(Resource::Memlock);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Where it cannot be raised, less is registered.
    rustix::process::setrlimit(Resource::Memlock, raised).ok();
    let mut len = wanted / CHUNK * CHUNK;
    while len > 0 {
        let arena = Arena::new(len, id)?;
        let iovec = libc::iovec { iov_base: arena.as_ptr().cast(), iov_len: arena.len() };
        // SAFETY: the memory is freed after the last region, each operation holds one, and a ring without operations
        // does not touch it.
        match unsafe { kernel.submitter().register_buffers(&[iovec]) } {
            Ok(()) => {
                tracing::debug!(bytes = len, wanted, "memory registered with io_uring");
                return Some(Rc::new(arena));
            }
            Err(_) => len = len / 2 / CHUNK * CHUNK,
        }
    }
    None
}

const TRANSIENT: [Option<Errno>; 5] =
    [Some(Errno::TIME), Some(Errno::INTR), Some(Errno::BUSY), Some(Errno::AGAIN), Some(Errno::NOMEM)];

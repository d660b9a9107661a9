//! The second process: holds descriptors of `/dev/fuse` while the engine is gone, and nothing else.
//!
//! # Invariants
//! 1. Its life does not depend on the engine's: it has its own session, and keeps no file, folder or terminal of it.
//! 2. When the last connection of the engine ends, every descriptor gets a deadline; it is lifted when an engine takes
//!    the descriptor. At the deadline the connection to the kernel is ended: waiting I/O fails at once with `EIO`.
//! 3. A process whose socket was replaced has been given up by the engine: it ends no connection, it only closes.
//! 4. It ends when an engine has been there, none is, and it holds nothing.
//! 5. It waits in `poll`, without a timer while the engine lives. The held descriptors are not polled: every request of
//!    every volume would wake it.
#![expect(unsafe_code, reason = "one call that closes inherited descriptors")]

use super::wire::{self, Answer, Request};
use crate::protect_process;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

/// Volumes that one holder takes.
const HELD_MAX: usize = 1024;
/// Connections at one time: an engine has two.
const CONNECTIONS_MAX: usize = 16;

/// How [`run`] holds.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Removed at the end; the listening socket itself is standard input.
    pub(crate) socket: PathBuf,
    /// How long a volume waits for an engine.
    pub(crate) limit: Duration,
    /// The process that starts engines: without it none will come, and no volume waits.
    pub(crate) supervisor: Option<u32>,
}

struct Held {
    descriptor: OwnedFd,
    connection: u32,
    state: Vec<u8>,
    deadline: Option<Duration>,
}

struct Process {
    options: Options,
    /// Device and inode of the socket's name.
    socket: Option<(u64, u64)>,
    /// Becomes readable when the supervisor ends.
    supervisor: Option<OwnedFd>,
    engines: Vec<OwnedFd>,
    had_engine: bool,
    held: BTreeMap<Uuid, Held>,
}

/// Time since the machine was started.
fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::try_from(time).expect("the boot clock is not negative")
}

/// Closes whatever the engine itself had inherited; its own descriptors close by themselves.
fn close_inherited() -> io::Result<()> {
    // SAFETY: called first in a process of its own, before anything in it owns a descriptor beyond the standard ones.
    let result = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn identity(socket: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(socket).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// A descriptor that becomes readable when the process ends.
fn watch(pid: u32) -> Option<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
}

/// Holds descriptors until nobody needs it any more; the listening socket is standard input.
pub(crate) fn run(options: Options) -> io::Result<()> {
    close_inherited()?;
    // Already the leader of a session if it was started by hand: then that is its own, too.
    match rustix::process::setsid() {
        Ok(_) | Err(Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    rustix::process::chdir("/")?;
    // As far as this process may: without the right it holds all the same.
    drop(protect_process());
    let listener = io::stdin().as_fd().try_clone_to_owned()?;
    let end_unused = now() + options.limit;
    let socket = identity(&options.socket);
    let supervisor = options.supervisor.and_then(watch);
    let mut process = Process {
        options,
        socket,
        supervisor,
        engines: Vec::new(),
        had_engine: false,
        held: BTreeMap::new(),
    };
    loop {
        process.expire(now());
        let unused = process.engines.is_empty() && process.held.is_empty();
        if unused && (process.had_engine || now() >= end_unused) {
            break;
        }
        let wake = if unused { Some(end_unused) } else { process.next_deadline() };
        process.wait(&listener, wake)?;
    }
    // While the socket still listens: a new engine either finds this process gone, or no socket at all.
    if process.is_superseded() {
        return Ok(());
    }
    std::fs::remove_file(&process.options.socket)
}

impl Process {
    fn is_superseded(&self) -> bool {
        self.socket.is_none() || identity(&self.options.socket) != self.socket
    }

    fn next_deadline(&self) -> Option<Duration> {
        self.held.values().filter_map(|held| held.deadline).min()
    }

    /// Waits for a message, a connection or `wake`, and handles what there is.
    fn wait(&mut self, listener: &OwnedFd, wake: Option<Duration>) -> io::Result<()> {
        let mut fds = vec![PollFd::new(listener, PollFlags::IN)];
        fds.extend(self.engines.iter().map(|engine| PollFd::new(engine, PollFlags::IN)));
        // While an engine lives its supervisor is nobody's business here.
        let watched = self.supervisor.as_ref().filter(|_| self.engines.is_empty() && !self.held.is_empty());
        fds.extend(watched.map(|supervisor| PollFd::new(supervisor, PollFlags::IN)));
        let timeout =
            wake.map(|wake| Timespec::try_from(wake.saturating_sub(now())).expect("limits are no ages"));
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let alone = watched.is_some() && ready.last() == Some(&true);
        for (engine, ready) in std::mem::take(&mut self.engines).into_iter().zip(&ready[1..]) {
            if !ready || self.serve(&engine) {
                self.engines.push(engine);
            }
        }
        if ready[0] {
            self.accept(listener);
        }
        if self.engines.is_empty() {
            let deadline = now() + self.options.limit;
            if alone {
                self.supervisor = None;
                self.held.values_mut().for_each(|held| held.deadline = Some(now()));
            }
            for held in self.held.values_mut() {
                // Only the first moment without an engine counts.
                held.deadline.get_or_insert(deadline);
            }
        }
        Ok(())
    }

    fn accept(&mut self, listener: &OwnedFd) {
        let Ok(engine) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC) else { return };
        let ours = rustix::net::sockopt::socket_peercred(&engine)
            .is_ok_and(|peer| peer.uid == rustix::process::geteuid());
        // Strangers and floods are turned away: their connection closes here.
        if ours && self.engines.len() < CONNECTIONS_MAX {
            self.engines.push(engine);
            self.had_engine = true;
        }
    }

    /// Answers one message; false when the engine is gone or does not listen.
    fn serve(&mut self, engine: &OwnedFd) -> bool {
        let Ok((bytes, descriptor)) = wire::receive(engine) else { return false };
        if bytes.is_empty() {
            return false;
        }
        let answer = self.answer(&bytes, descriptor);
        let volume = Request::decode(&bytes).map(|request| request.volume());
        let held = match answer {
            Answer::Found { .. } => volume.and_then(|volume| self.held.get(&volume)),
            _ => None,
        };
        wire::send(engine, &answer.encode(), held.map(|held| &held.descriptor)).is_ok()
    }

    fn answer(&mut self, bytes: &[u8], descriptor: Option<OwnedFd>) -> Answer {
        match (Request::decode(bytes), descriptor) {
            (Some(Request::Put { volume, connection, state }), Some(descriptor))
                if self.held.len() < HELD_MAX || self.held.contains_key(&volume) =>
            {
                self.held.insert(volume, Held { descriptor, connection, state, deadline: None });
                Answer::Done
            }
            (Some(Request::Take { volume }), None) => match self.held.get_mut(&volume) {
                Some(held) => {
                    held.deadline = None;
                    Answer::Found { state: held.state.clone() }
                }
                None => Answer::NotHeld,
            },
            (Some(Request::Release { volume }), None) => {
                self.held.remove(&volume);
                Answer::Done
            }
            _ => Answer::Refused,
        }
    }

    /// Ends what has waited too long for an engine.
    fn expire(&mut self, now: Duration) {
        if self.next_deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        let superseded = self.is_superseded();
        self.held.retain(|_, held| {
            let expired = held.deadline.is_some_and(|deadline| deadline <= now);
            if expired && !superseded {
                // Closing the last descriptor ends the connection as well; this also works while the dead engine's
                // copy is not closed yet, but needs the control file system to be mounted.
                let abort = format!("/sys/fs/fuse/connections/{}/abort", held.connection);
                drop(std::fs::write(abort, "1"));
            }
            !expired
        });
    }
}

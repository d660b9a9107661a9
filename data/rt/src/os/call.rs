//! System calls as values: what an operation asks of the kernel, in a form that both drivers can start.
//!
//! [`Call`] owns the memory and lives in the table of operations; [`Raw`] points into it and is what a driver gets.
#![expect(unsafe_code, reason = "pointers handed to the kernel")]

use super::provided::GROUP;
use crate::{DmaBuf, DmaBytes, Errno, Part};
use io_uring::{opcode, squeue, types};
use rustix::event::PollFlags;
use rustix::net::SocketAddrAny;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;

/// One operation and all that it needs until its completion, the descriptor included: a number that was closed and
/// given out again while a submission still waits in a queue would hit the wrong file.
pub(super) struct Call {
    pub(super) fd: Rc<OwnedFd>,
    pub(super) kind: Kind,
}

pub(super) enum Kind {
    /// Read into `buf[done..]`.
    Read {
        buf: DmaBuf,
        done: usize,
        offset_bytes: u64,
    },
    /// Write `data[done..]`.
    Write {
        data: DmaBytes,
        done: usize,
        offset_bytes: u64,
        durable: bool,
    },
    /// `fdatasync`.
    Sync,
    /// `fallocate`.
    Allocate {
        offset_bytes: u64,
        len_bytes: u64,
        mode: i32,
    },
    /// Receive into `buf[done..]`; until it is full, if `whole`.
    Receive {
        buf: DmaBuf,
        done: usize,
        whole: bool,
    },
    /// `sendmsg` of a whole message.
    Send(Box<Gather>),
    /// Wait until the descriptor is ready for these.
    Ready(PollFlags),
    /// The next connection of a listener: a descriptor that belongs to whoever takes the result.
    Accept,
    /// Whatever arrives, into shared buffers, until cancelled (multishot).
    ReceiveMany,
    /// All connections of a listener, until cancelled (multishot).
    AcceptMany,
    Connect(Box<SocketAddrAny>),
}

/// Parts and the vector of pointers to them.
pub(super) struct Gather {
    pub(super) parts: Vec<Part>,
    iovecs: Vec<libc::iovec>,
    header: libc::msghdr,
}

impl Gather {
    pub(super) fn new() -> Self {
        // SAFETY: msghdr is plain data: numbers and pointers, for which zero is a valid value.
        let header = unsafe { std::mem::zeroed() };
        Self { parts: Vec::new(), iovecs: Vec::new(), header }
    }

    /// Points at all bytes of the parts beyond the first `skip`, as far as one call takes (`IOV_MAX`).
    /// Returns the count of bytes pointed at.
    pub(super) fn point(&mut self, mut skip: usize) -> usize {
        self.iovecs.clear();
        let mut bytes = 0;
        for part in &self.parts {
            let rest = part.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(part.len());
            if !rest.is_empty() && self.iovecs.len() < IOV_MAX {
                self.iovecs
                    .push(libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() });
                bytes += rest.len();
            }
        }
        self.header.msg_iov = self.iovecs.as_mut_ptr();
        self.header.msg_iovlen = self.iovecs.len();
        bytes
    }
}

const IOV_MAX: usize = 1024;

impl Call {
    /// The call with pointers in place of owners. They stay valid as long as `self` lives, even when it is moved:
    /// everything pointed at is on the heap.
    pub(super) fn raw(&mut self) -> Raw {
        let fd = self.fd.as_raw_fd();
        match &mut self.kind {
            Kind::Read { buf, done, offset_bytes } => {
                let ring = buf.ring();
                let (pointer, len) = tail(buf, *done);
                Raw::Read { fd, pointer, len, offset_bytes: *offset_bytes + *done as u64, ring }
            }
            Kind::Write { data, done, offset_bytes, durable } => {
                let rest = &data[*done..];
                Raw::Write {
                    fd,
                    pointer: rest.as_ptr(),
                    len: length(rest.len()),
                    offset_bytes: *offset_bytes + *done as u64,
                    durable: *durable,
                    ring: data.ring(),
                }
            }
            Kind::Sync => Raw::Sync { fd },
            Kind::Allocate { offset_bytes, len_bytes, mode } => {
                Raw::Allocate { fd, offset_bytes: *offset_bytes, len_bytes: *len_bytes, mode: *mode }
            }
            Kind::Receive { buf, done, whole } => {
                let (pointer, len) = tail(buf, *done);
                Raw::Receive { fd, pointer, len, whole: *whole }
            }
            Kind::Send(gather) => Raw::Send { fd, header: &raw const gather.header },
            Kind::Ready(events) => Raw::Ready { fd, events: *events },
            Kind::Accept => Raw::Accept { fd },
            Kind::ReceiveMany => Raw::ReceiveMany { fd },
            Kind::AcceptMany => Raw::AcceptMany { fd },
            Kind::Connect(address) => {
                Raw::Connect { fd, address: address.as_ptr().cast(), len: address.addr_len() }
            }
        }
    }

    /// Frees what a completion brought when nobody waits for it any more.
    pub(super) fn dispose(&self, result: i32) {
        if matches!(self.kind, Kind::Accept) && result >= 0 {
            drop(take_descriptor(result));
        }
    }
}

/// Takes the descriptor that a completed `Accept` brought.
pub(super) fn take_descriptor(result: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for this operation; nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(result) }
}

fn tail(buf: &mut DmaBuf, done: usize) -> (*mut u8, u32) {
    let rest = &mut buf[done..];
    (rest.as_mut_ptr(), length(rest.len()))
}

/// A length as one call takes it; the rest of a longer buffer is another call.
fn length(len: usize) -> u32 {
    u32::try_from(len.min(1 << 30)).expect("bounded")
}

/// A call as plain data.
#[derive(Clone, Copy, Debug)]
pub(super) enum Raw {
    Read { fd: RawFd, pointer: *mut u8, len: u32, offset_bytes: u64, ring: u64 },
    Write { fd: RawFd, pointer: *const u8, len: u32, offset_bytes: u64, durable: bool, ring: u64 },
    Sync { fd: RawFd },
    Allocate { fd: RawFd, offset_bytes: u64, len_bytes: u64, mode: i32 },
    Receive { fd: RawFd, pointer: *mut u8, len: u32, whole: bool },
    Send { fd: RawFd, header: *const libc::msghdr },
    Ready { fd: RawFd, events: PollFlags },
    Accept { fd: RawFd },
    ReceiveMany { fd: RawFd },
    AcceptMany { fd: RawFd },
    Connect { fd: RawFd, address: *const libc::sockaddr, len: u32 },
}

// SAFETY: plain numbers and pointers; whoever dereferences them (`perform`, the kernel) does so while the operation's
// slot keeps the memory (invariant 1 of the crate), on whichever thread.
unsafe impl Send for Raw {}

impl Raw {
    /// Whether a disk does the work.
    pub(super) fn is_disk(self) -> bool {
        matches!(self, Self::Read { .. } | Self::Write { .. })
    }

    /// Whether it may block the thread that performs it.
    pub(super) fn blocks(self) -> bool {
        self.is_disk() || matches!(self, Self::Sync { .. } | Self::Allocate { .. })
    }

    /// Whether it must not be attempted before the descriptor is ready.
    pub(super) fn waits_first(self) -> bool {
        matches!(self, Self::Ready { .. })
    }

    /// What the descriptor must be ready for.
    pub(super) fn awaited(self) -> PollFlags {
        match self {
            Self::Ready { events, .. } => events,
            Self::Send { .. } | Self::Connect { .. } => PollFlags::OUT,
            _ => PollFlags::IN,
        }
    }

    pub(super) fn fd<'a>(self) -> BorrowedFd<'a> {
        let (Self::Read { fd, .. }
        | Self::Write { fd, .. }
        | Self::Sync { fd }
        | Self::Allocate { fd, .. }
        | Self::Receive { fd, .. }
        | Self::Send { fd, .. }
        | Self::Ready { fd, .. }
        | Self::Accept { fd }
        | Self::ReceiveMany { fd }
        | Self::AcceptMany { fd }
        | Self::Connect { fd, .. }) = self;
        // SAFETY: the operation's slot keeps the descriptor open until the completion.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    /// Makes the call on this thread. Returns its result or, below zero, its error, as a completion has them; on
    /// sockets `EAGAIN` where it would have to wait.
    pub(super) fn perform(self) -> i32 {
        let dont_wait = libc::MSG_DONTWAIT;
        // SAFETY: the pointers and the descriptor are kept by the operation's slot until its completion, which
        // comes after this call; nobody else touches the memory meanwhile (invariant 1 of the crate).
        let result = unsafe {
            match self {
                Self::Read { fd, pointer, len, offset_bytes, .. } => {
                    libc::pread(fd, pointer.cast(), len as usize, offset_bytes.cast_signed())
                }
                Self::Write { fd, pointer, len, offset_bytes, durable, .. } => {
                    let iovec = libc::iovec { iov_base: pointer.cast_mut().cast(), iov_len: len as usize };
                    let flags = if durable { libc::RWF_DSYNC } else { 0 };
                    libc::pwritev2(fd, &raw const iovec, 1, offset_bytes.cast_signed(), flags)
                }
                Self::Sync { fd } => libc::fdatasync(fd) as isize,
                Self::Allocate { fd, offset_bytes, len_bytes, mode } => {
                    libc::fallocate(fd, mode, offset_bytes.cast_signed(), len_bytes.cast_signed()) as isize
                }
                Self::Receive { fd, pointer, len, .. } => {
                    libc::recv(fd, pointer.cast(), len as usize, dont_wait)
                }
                Self::Send { fd, header } => libc::sendmsg(fd, header, dont_wait | libc::MSG_NOSIGNAL),
                Self::Ready { events, .. } => isize::try_from(events.bits()).expect("sixteen bits"),
                Self::Accept { fd } => {
                    let none = std::ptr::null_mut();
                    libc::accept4(fd, none, none.cast(), libc::SOCK_CLOEXEC) as isize
                }
                Self::Connect { fd, address, len } => libc::connect(fd, address, len) as isize,
                Self::ReceiveMany { .. } | Self::AcceptMany { .. } => {
                    panic!("a single call completes once")
                }
            }
        };
        if result >= 0 {
            return i32::try_from(result).expect("a call takes at most 1 GiB");
        }
        match std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) {
            libc::EISCONN if matches!(self, Self::Connect { .. }) => 0,
            libc::EINPROGRESS | libc::EALREADY => -libc::EAGAIN,
            error => -error,
        }
    }

    /// The submission for a ring; `own` names it, to tell memory that it has registered (as buffer 0).
    pub(super) fn entry(self, own: u64) -> squeue::Entry {
        match self {
            Self::Read { fd, pointer, len, offset_bytes, ring } if ring == own => {
                opcode::ReadFixed::new(types::Fd(fd), pointer, len, 0).offset(offset_bytes).build()
            }
            Self::Read { fd, pointer, len, offset_bytes, .. } => {
                opcode::Read::new(types::Fd(fd), pointer, len).offset(offset_bytes).build()
            }
            Self::Write { fd, pointer, len, offset_bytes, durable, ring } => {
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                if ring == own {
                    let write = opcode::WriteFixed::new(types::Fd(fd), pointer, len, 0);
                    write.offset(offset_bytes).rw_flags(flags).build()
                } else {
                    let write = opcode::Write::new(types::Fd(fd), pointer, len);
                    write.offset(offset_bytes).rw_flags(flags).build()
                }
            }
            Self::Sync { fd } => opcode::Fsync::new(types::Fd(fd)).flags(types::FsyncFlags::DATASYNC).build(),
            Self::Allocate { fd, offset_bytes, len_bytes, mode } => {
                opcode::Fallocate::new(types::Fd(fd), len_bytes).offset(offset_bytes).mode(mode).build()
            }
            Self::Receive { fd, pointer, len, whole } => {
                let flags = if whole { libc::MSG_WAITALL } else { 0 };
                opcode::Recv::new(types::Fd(fd), pointer, len).flags(flags).build()
            }
            Self::Send { fd, header } => {
                let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL).cast_unsigned();
                opcode::SendMsg::new(types::Fd(fd), header).flags(flags).build()
            }
            Self::Ready { fd, events } => opcode::PollAdd::new(types::Fd(fd), events.bits().into()).build(),
            Self::Accept { fd } => {
                let none = std::ptr::null_mut();
                opcode::Accept::new(types::Fd(fd), none, none.cast()).flags(libc::SOCK_CLOEXEC).build()
            }
            Self::ReceiveMany { fd } => opcode::RecvMulti::new(types::Fd(fd), GROUP).build(),
            Self::AcceptMany { fd } => {
                opcode::AcceptMulti::new(types::Fd(fd)).flags(libc::SOCK_CLOEXEC).build()
            }
            Self::Connect { fd, address, len } => opcode::Connect::new(types::Fd(fd), address, len).build(),
        }
    }
}

/// The result of a completion: a count (or a descriptor), or an error.
pub(super) fn count_of(result: i32) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| Errno::from_raw_os_error(-result))
}

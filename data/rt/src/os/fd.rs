//! Other descriptors: read and written on the reactor's own thread as soon as they are ready.
//!
//! A queue of the kernel such as `/dev/fuse` never makes its caller wait for a disk: what a call costs is a copy. A
//! submission would add a turn of the loop for each message.
//!
//! # Invariants
//! 1. While a reader waits nothing in the kernel holds the descriptor open but the process's table of descriptors: a ring
//!    lives as long as the memory of its process, so what it waits for would stay open while one thread of a killed
//!    process hangs. `/dev/fuse` must close then, or that thread hangs for ever.

use super::Handle;
use super::call::Kind;
use crate::{DmaBuf, Errno, Part};
use rustix::event::{PollFlags, epoll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{IoSlice, IoSliceMut};
use std::array;
use std::os::fd::OwnedFd;
use std::rc::Rc;

#[derive(Debug)]
pub(crate) struct OsFd {
    os: Handle,
    fd: Rc<OwnedFd>,
    /// Readable when `fd` is, without holding it (invariant 1).
    watch: Rc<OwnedFd>,
}

/// What one write consists of, at most.
const PARTS_MAX: usize = 4;

impl OsFd {
    pub(crate) fn new(os: &Handle, fd: OwnedFd) -> Self {
        let set = fcntl_getfl(&fd).and_then(|flags| fcntl_setfl(&fd, flags | OFlags::NONBLOCK));
        set.expect("an open descriptor can be made non-blocking");
        let watch = epoll::create(epoll::CreateFlags::CLOEXEC).expect("a descriptor can be made");
        match epoll::add(&watch, &fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN) {
            // Files are always readable: nobody waits for them.
            Ok(()) | Err(Errno::PERM) => {}
            Err(error) => panic!("a descriptor cannot be watched: {error}"),
        }
        Self { os: os.clone(), fd: Rc::new(fd), watch: Rc::new(watch) }
    }

    pub(crate) async fn read_parts(
        &self,
        mut head: Vec<u8>,
        mut data: DmaBuf,
    ) -> (Result<usize, Errno>, Vec<u8>, DmaBuf) {
        let result = loop {
            let mut parts = [IoSliceMut::new(&mut head), IoSliceMut::new(&mut data)];
            match rustix::io::readv(&self.fd, &mut parts) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if let Err(error) = self.ready(&self.watch, PollFlags::IN).await {
                        break Err(error);
                    }
                }
                result => break result,
            }
        };
        (result, head, data)
    }

    pub(crate) async fn write_parts(&self, parts: &[Part]) -> Result<usize, Errno> {
        assert!(parts.len() <= PARTS_MAX, "a message has at most {PARTS_MAX} parts");
        let slices: [IoSlice<'_>; PARTS_MAX] =
            array::from_fn(|index| IoSlice::new(parts.get(index).map_or(&[], |part| part)));
        loop {
            match rustix::io::writev(&self.fd, &slices[..parts.len()]) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.ready(&self.fd, PollFlags::OUT).await?,
                result => return result,
            }
        }
    }

    async fn ready(&self, fd: &Rc<OwnedFd>, events: PollFlags) -> Result<(), Errno> {
        self.os.start(fd, Kind::Ready(events)).await.0.map(drop)
    }
}

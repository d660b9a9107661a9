//! Other descriptors of the kernel (`/dev/fuse`, event descriptors) on the reactor. They exist under the `os` driver only.

use crate::context::{Context, with};
use crate::os::OsFd;
use crate::{DmaBuf, Errno, Part};
use std::os::fd::OwnedFd;

/// A descriptor whose reads and writes go through the reactor.
#[derive(Debug)]
pub struct Fd(OsFd);

impl Fd {
    /// Takes over `fd` and makes it non-blocking: nothing behind it may wait for a disk.
    ///
    /// # Panics
    /// In the simulator, which has no kernel.
    pub fn new(fd: OwnedFd) -> Self {
        with(|context| match context {
            Context::Os(os) => Self(OsFd::new(os, fd)),
            Context::Sim(_) => panic!("the simulator has no descriptors"),
        })
    }

    /// Reads once, when there is something: first into `head`, then into `data` (`readv`); returns the count of bytes
    /// and both buffers. Ready at once, without a turn of the reactor, where there is something already.
    pub async fn read_parts(&self, head: Vec<u8>, data: DmaBuf) -> (Result<usize, Errno>, Vec<u8>, DmaBuf) {
        self.0.read_parts(head, data).await
    }

    /// Writes all parts in one call (`writev`); returns the count of bytes.
    ///
    /// # Panics
    /// With more than four parts.
    pub async fn write_parts(&self, parts: &[Part]) -> Result<usize, Errno> {
        self.0.write_parts(parts).await
    }
}

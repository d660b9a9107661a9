//! `rt::File` in a simulated world: the futures over the operations of a simulated disk.
//!
//! # Invariants
//! 1. The buffer of an operation lies in the world's state until it completes; a dropped future leaves it there.

use super::Request;
use crate::file::{Access, Durability, OpenOptions};
use crate::sim::executor::Handle;
use crate::{BLOCK_ALIGN, DmaBuf, DmaBytes, Errno};
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Block size of a file that [`OpenOptions::create_len_bytes`] creates.
const FILE_BLOCK_SIZE: u32 = 4096;

/// An open file of a simulated disk.
#[derive(Debug)]
pub(crate) struct SimFile {
    handle: Handle,
    disk: usize,
    open: u64,
    len_bytes: u64,
    block_size: u32,
    options: OpenOptions,
}

impl SimFile {
    pub(crate) async fn open(sim: &Handle, path: &Path, options: OpenOptions) -> io::Result<Self> {
        sim.pass(5_000).await;
        let state = &mut *sim.world.state.borrow_mut();
        let node = state.processes[sim.process.0].node;
        let found = state.find_disk(node, path);
        let created = || {
            let len = options.create_len_bytes.filter(|_| options.access == Access::Write)?;
            Some(state.add_disk(node, path, len, FILE_BLOCK_SIZE))
        };
        let Some(disk) = found.or_else(created) else { return Err(Errno::NOENT.into()) };
        let open = state.disks[disk].open(sim.process, options.access != Access::Read)?;
        let (len_bytes, block_size) = (state.disks[disk].len_bytes, state.disks[disk].block_size);
        Ok(Self { handle: sim.clone(), disk, open, len_bytes, block_size, options })
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    pub(crate) fn block_size(&self) -> u32 {
        self.block_size
    }

    pub(crate) async fn read_at(&self, offset_bytes: u64, buf: DmaBuf) -> Result<DmaBuf, Errno> {
        self.check(offset_bytes, &buf, Errno::IO)?;
        let buf = self.perform(Request::Read { offset: offset_bytes, buf }).await?;
        Ok(buf.expect("a read gives its buffer back"))
    }

    pub(crate) async fn write_at(
        &self,
        offset_bytes: u64,
        data: DmaBytes,
        durability: Durability,
    ) -> Result<(), Errno> {
        self.check_writable()?;
        self.check(offset_bytes, &data, Errno::NOSPC)?;
        self.perform(Request::Write { offset: offset_bytes, data, durability }).await?;
        Ok(())
    }

    pub(crate) async fn sync(&self) -> Result<(), Errno> {
        self.perform(Request::Sync).await?;
        Ok(())
    }

    pub(crate) async fn zero_range(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        _release: bool,
    ) -> Result<(), Errno> {
        self.check_writable()?;
        let block = u64::from(self.block_size);
        let end = offset_bytes.checked_add(len_bytes).ok_or(Errno::INVAL)?;
        if end > self.len_bytes {
            return Err(Errno::NOSPC);
        }
        if !offset_bytes.is_multiple_of(block) || !end.is_multiple_of(block) {
            return Err(Errno::INVAL);
        }
        self.perform(Request::Zero { blocks: offset_bytes / block..end / block }).await?;
        Ok(())
    }

    fn check_writable(&self) -> Result<(), Errno> {
        if self.options.access == Access::Read { Err(Errno::BADF) } else { Ok(()) }
    }

    /// What the kernel checks before it asks the disk.
    fn check(&self, offset_bytes: u64, bytes: &[u8], beyond_end: Errno) -> Result<(), Errno> {
        let end = offset_bytes.checked_add(bytes.len() as u64).ok_or(Errno::INVAL)?;
        let block = self.block_size as usize;
        let whole_blocks = offset_bytes.is_multiple_of(u64::from(self.block_size))
            && bytes.len().is_multiple_of(block)
            && bytes.as_ptr().align_offset(block.min(BLOCK_ALIGN)) == 0;
        if self.options.direct && !whole_blocks {
            return Err(Errno::INVAL);
        }
        if end > self.len_bytes { Err(beyond_end) } else { Ok(()) }
    }

    async fn perform(&self, request: Request) -> Result<Option<DmaBuf>, Errno> {
        let op = {
            let state = &mut *self.handle.world.state.borrow_mut();
            state.disk_submit(self.disk, self.handle.process, self.open, request)
        };
        Operation { handle: &self.handle, disk: self.disk, op }.await
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.handle.world.state.borrow_mut().disks[self.disk].close(self.open);
    }
}

/// Waits for an operation; `None` is one that a dying process submitted and nobody will do.
struct Operation<'a> {
    handle: &'a Handle,
    disk: usize,
    op: Option<u64>,
}

impl Future for Operation<'_> {
    type Output = Result<Option<DmaBuf>, Errno>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(op) = self.op else { return Poll::Pending };
        let polled = self.handle.world.state.borrow_mut().disk_poll(self.disk, op, cx.waker());
        if polled.is_ready() {
            self.op = None;
        }
        polled
    }
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        if let Some(op) = self.op {
            self.handle.world.state.borrow_mut().disk_abandon(self.disk, op);
        }
    }
}

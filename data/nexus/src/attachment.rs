//! An attachment: one host's way to the volume, a [`Device`] (I10).
//!
//! Each attachment has a number from the record, taken before its first I/O. A path that reconnects keeps its number; so
//! a host that may have lost completed, unflushed writes is told, and a host that attaches anew is not.

use crate::attend::close_leg;
use crate::leg::Change;
use crate::state::{Nexus, State};
use device::{BlockCount, Device, Geometry, Lba, Status};
use model::MemberState;
use rt::{DmaBuf, DmaBytes, Durability};
use std::cell::Cell;
use std::rc::Rc;
use uuid::Uuid;

/// One attachment of a volume; a cheap handle.
#[derive(Clone)]
pub struct Attachment {
    state: Rc<State>,
    number: u64,
}

impl Nexus {
    /// A new attachment.
    ///
    /// # Errors
    /// `Fenced` when this nexus does not own the volume any more.
    pub async fn attach(&self) -> Result<Attachment, Status> {
        // The number is that of the edit that was written: others may attach at the same time.
        let number = Cell::new(0);
        let numbered = self.0.change_record(|record| {
            record.attachment += 1;
            number.set(record.attachment);
            true
        });
        numbered.await?;
        Ok(self.resume(number.get()))
    }

    /// The attachment that a host had before, under its old number.
    pub fn resume(&self, number: u64) -> Attachment {
        Attachment { state: Rc::clone(&self.0), number }
    }

    /// Closes the volume in order: waits for what is under way, flushes, and gives the volume back.
    ///
    /// # Errors
    /// When not everything could be flushed; the volume is closed nevertheless, and the next owner resyncs.
    pub async fn close(&self) -> Result<(), Status> {
        let state = &self.0;
        let drained = state.drained().await;
        let flushed = state.flush().await;
        let equal = state.members().iter().all(|m| !state.may_be_in_sync(m) || m.owed.borrow().count() == 0);
        let clean = flushed.is_ok() && equal;
        let closed = state
            .change_record(|record| {
                record.owner = None;
                record.clean = clean;
                for member in &mut record.members {
                    if let MemberState::Rebuilding { since } = member.state {
                        member.state = MemberState::Stale { since };
                    }
                }
                true
            })
            .await;
        state.stop(Status::Gone);
        state.cancel_tasks();
        drop(drained);
        for member in state.members() {
            close_leg(&member).await;
        }
        closed?;
        flushed
    }

    /// Stops at once, without a word to the store: the next owner takes the volume over as after a crash.
    pub async fn abandon(&self) {
        self.0.stop(Status::Gone);
        self.0.cancel_tasks();
        for member in self.0.members() {
            close_leg(&member).await;
        }
    }

    /// Grows the volume: on every member first, then for the hosts (I8 in its simple form).
    pub async fn resize(&self, size_bytes: u64) -> Result<(), Status> {
        let state = &self.0;
        if size_bytes <= state.geometry().size().0 {
            return Ok(());
        }
        let _drained = state.drained().await;
        for member in state.members().into_iter().filter(|member| member.receives()) {
            member.leg().ok_or(Status::Gone)?.resize(size_bytes).await?;
        }
        let grown = state.change_record(|record| {
            let changes = record.size_bytes < size_bytes;
            record.size_bytes = record.size_bytes.max(size_bytes);
            changes
        });
        grown.await
    }
}

impl Attachment {
    /// The number of the attachment, for [`Nexus::resume`].
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The volume.
    pub fn volume(&self) -> Uuid {
        self.state.volume
    }

    /// Fails with `Gap` where writes of this attachment may have been lost (I10).
    fn gapless(&self) -> Result<(), Status> {
        if self.number <= self.state.keeper.with(|record| record.gap_through) {
            Err(Status::Gap)
        } else {
            Ok(())
        }
    }
}

impl Device for Attachment {
    fn geometry(&self) -> Geometry {
        self.state.geometry()
    }

    async fn read(&self, lba: Lba, buf: DmaBuf) -> Result<DmaBuf, Status> {
        self.state.read(lba, buf).await
    }

    async fn write(&self, lba: Lba, data: DmaBytes, durability: Durability) -> Result<(), Status> {
        self.gapless()?;
        let blocks = self.geometry().check(lba, data.len())?;
        self.state.change(lba, blocks, Change::Write(data), durability).await?;
        self.gapless()
    }

    async fn write_zeroes(&self, lba: Lba, count: BlockCount, durability: Durability) -> Result<(), Status> {
        self.gapless()?;
        self.state.change(lba, count, Change::Zeroes(count), durability).await?;
        self.gapless()
    }

    async fn unmap(&self, lba: Lba, count: BlockCount) -> Result<(), Status> {
        self.gapless()?;
        self.state.change(lba, count, Change::Unmap(count), Durability::Cached).await?;
        self.gapless()
    }

    async fn flush(&self) -> Result<(), Status> {
        self.gapless()?;
        self.state.flush().await?;
        self.gapless()
    }
}

//! An attachment: one host's way to the volume, a [`Device`] (I10).
//!
//! Each attachment has a number from the record, taken before its first I/O. A path that reconnects keeps its number; so
//! a host that may have lost completed, unflushed writes is told, and a host that attaches anew is not. Hosts on the
//! target are known by their own identifier, which the record keeps with the number until they have detached; a block
//! device of a node keeps its number beside itself.

use crate::attend::close_leg;
use crate::leg::Change;
use crate::state::{Nexus, State};
use device::{BlockCount, Device, Geometry, Lba, Status};
use model::limits::HOSTS_MAX;
use model::{HostRecord, MemberState, VolumeRecord};
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

    /// The attachment of a host on the target: the one that the record has of it, else a new one.
    ///
    /// `is_connected` says which hosts have a connection now. Where the record is full, one without is forgotten, after
    /// a flush: what it had completed is durable then, so that no gap can come to concern it.
    /// # Errors
    /// `Fenced` when this nexus does not own the volume any more; `Aborted` where there are too many hosts.
    pub async fn attach_host(
        &self,
        host: Uuid,
        is_connected: impl Fn(Uuid) -> bool,
    ) -> Result<Attachment, Status> {
        let known =
            |record: &VolumeRecord| record.hosts.iter().find(|h| h.host == host).map(|h| h.attachment);
        let (before, full) = self.0.keeper.with(|record| (known(record), record.hosts.len() >= HOSTS_MAX));
        if let Some(number) = before {
            return Ok(self.resume(number));
        }
        let mut gone: Vec<Uuid> = Vec::new();
        if full {
            self.0.keeper.with(|record| {
                gone.extend(record.hosts.iter().map(|h| h.host).filter(|host| !is_connected(*host)));
            });
            self.0.flush().await?;
        }
        let written = Cell::new(None);
        let attached = self.0.change_record(|record| {
            written.set(known(record));
            if written.get().is_some() {
                return false;
            }
            if record.hosts.len() >= HOSTS_MAX {
                let gap = record.gap_through;
                let may_go =
                    |h: &HostRecord| gone.contains(&h.host) && !is_connected(h.host) && h.attachment > gap;
                let Some(oldest) = record.hosts.iter().position(may_go) else { return false };
                record.hosts.remove(oldest);
            }
            record.attachment += 1;
            record.hosts.push(HostRecord { host, attachment: record.attachment });
            written.set(Some(record.attachment));
            true
        });
        attached.await?;
        written.get().map(|number| self.resume(number)).ok_or(Status::Aborted)
    }

    /// A host has detached in order: when it comes again it is a new attachment. Nothing happens unless `is_gone` still
    /// says so when the record is changed.
    pub async fn detach_host(&self, host: Uuid, is_gone: impl Fn() -> bool) -> Result<(), Status> {
        let detached = self.0.change_record(|record| {
            let before = record.hosts.len();
            if is_gone() {
                record.hosts.retain(|h| h.host != host);
            }
            record.hosts.len() != before
        });
        detached.await
    }

    /// The attachment that a host had before, under its old number.
    pub fn resume(&self, number: u64) -> Attachment {
        Attachment { state: Rc::clone(&self.0), number }
    }

    /// Whether only hosts of this node's targets can have written since the attachment `number` was given, by a nexus of
    /// `epoch` on this node: then what its host remembers of the volume is still so, and it may go on.
    pub fn is_latest(&self, number: u64, epoch: u64) -> bool {
        self.0.keeper.with(|record| {
            let hosts = record.hosts.iter().filter(|host| host.attachment > number).count() as u64;
            let by_hosts = record.attachment.checked_sub(number) == Some(hosts);
            // The next epoch: nobody had the volume in between.
            record.attachment == number || (by_hosts && self.epoch() == epoch + 1)
        })
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

    /// Grows the volume: on every member first, then for the hosts (I8 in its simple form). I/O waits for the members
    /// and not for the store.
    pub async fn resize(&self, size_bytes: u64) -> Result<(), Status> {
        let state = &self.0;
        if size_bytes <= state.geometry().size().0 {
            return Ok(());
        }
        {
            let _drained = state.drained().await;
            state.grow_members(size_bytes);
            for member in state.members().into_iter().filter(|member| member.receives()) {
                member.leg().ok_or(Status::Gone)?.resize(size_bytes).await?;
            }
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

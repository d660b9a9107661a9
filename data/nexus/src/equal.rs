//! Making members equal: the resync after an unclean end (I6) and the rebuild of a stale member (I7).
//!
//! Both are one thing: a member *is owed* extents; each is made equal in an exclusive turn of its own, by comparing keyed
//! hashes of its 4 KiB blocks with a source and sending the blocks that differ.
//!
//! # Invariants
//! 1. An extent that some member in sync is not owed is taken from such a member, so that what a read has seen stays.
//! 2. An extent leaves a member's debt only in a turn on that extent, after its blocks were found or made equal.
//! 3. Progress noted on a receiver says: below the cursor it was equal, and has received every write, up to a generation
//!    of which all writes had ended and been flushed there.

use crate::Planted;
use crate::attend::Connection;
use crate::leg::{Change, Hello, Leg};
use crate::member::Member;
use crate::owed::Owed;
use crate::record::{finish_rebuild, node_is_taken};
use crate::state::{State, count};
use device::{BlockCount, Lba, Status};
use futures_util::future::join_all;
use model::{Generation, MemberState};
use pool::{Changed, EXTENT_SIZE, Progress};
use rt::{DmaBuf, Durability};
use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;

/// Extents made equal side by side.
const LANES: usize = 4;
/// Extents between two notes of progress on the receiver.
const PROGRESS_EXTENTS: u64 = 128;
/// Extents asked for at once.
const CHANGED_AT_ONCE: usize = 1024;
/// The unit of comparison.
const HASHED_BLOCK: u64 = 4096;

impl State {
    /// Whether some member in sync is owed `extent`: then no read of it may return (I6).
    pub(crate) fn is_owed_in_sync(&self, extent: u64) -> bool {
        self.members()
            .iter()
            .any(|member| self.may_be_in_sync(member) && member.owed.borrow().contains(extent))
    }

    /// Makes `extent` equal on all members in sync, in the caller's turn, however often members come and go.
    pub(crate) async fn settle_in_turn(&self, extent: u64) -> Result<(), Status> {
        while self.is_owed_in_sync(extent) {
            if let Some(status) = self.stopped() {
                return Err(status);
            }
            let tried = self.equalize_in_turn(extent).await;
            if self.is_owed_in_sync(extent) {
                // The source or a member that is owed it is away: until it is back, or stale in the store.
                tracing::debug!(volume = %self.volume, extent, ?tried, "extent is still owed");
                rt::race(self.changed.wait(), rt::sleep(self.config.reconnect_pause)).await;
            }
        }
        Ok(())
    }

    /// Makes `extent` equal on every reachable member that is owed it, in the caller's turn on that extent.
    pub(crate) async fn equalize_in_turn(&self, extent: u64) -> Result<(), Status> {
        let in_sync: Vec<_> = self
            .members()
            .into_iter()
            .filter(|member| self.in_sync(member) && member.leg().is_some())
            .collect();
        let holds = |member: &&Rc<Member>| !member.owed.borrow().contains(extent);
        // If every one in sync is owed it, any of them may be chosen, as long as nobody has read it: I6 sees to that.
        // But one that is away and not owed it may have been read: then it must be waited for, or be stale.
        let away = self.members().into_iter().any(|member| {
            self.may_be_in_sync(&member) && member.leg().is_none() && !member.owed.borrow().contains(extent)
        });
        let source = match in_sync.iter().find(holds) {
            Some(source) => Rc::clone(source),
            None if away => return Err(Status::Gone),
            None => Rc::clone(in_sync.first().ok_or(Status::Gone)?),
        };
        source.owed.borrow_mut().remove(extent);
        let from = source.leg().ok_or(Status::Gone)?;
        let behind: Vec<_> = self
            .members()
            .into_iter()
            .filter(|member| {
                member.receives() && member.leg().is_some() && member.owed.borrow().contains(extent)
            })
            .collect();
        if behind.is_empty() {
            return Ok(());
        }
        let seed = rt::random_u64();
        let hashes = self.asking(&source, &from, from.hash_extent(extent, seed)).await?;
        let copied =
            join_all(behind.iter().map(|target| self.equalize_one(&source, target, extent, seed, &hashes)))
                .await;
        count(&self.counters.resynced_extents, 1);
        copied.into_iter().collect()
    }

    /// Sends `target` the blocks of `extent` in which its hashes differ from the source's.
    async fn equalize_one(
        &self,
        source: &Rc<Member>,
        target: &Rc<Member>,
        extent: u64,
        seed: u64,
        hashes: &[[u8; 16]],
    ) -> Result<(), Status> {
        let (Some(from), Some(to)) = (source.leg(), target.leg()) else { return Err(Status::Gone) };
        let theirs = self.asking(target, &to, to.hash_extent(extent, seed)).await?;
        if theirs.len() != hashes.len() {
            return Err(Status::Internal);
        }
        let differs = |index: usize| hashes[index] != theirs[index];
        let mut first = 0;
        while let Some(start) = (first..hashes.len()).find(|&index| differs(index)) {
            let end = (start..hashes.len()).find(|&index| !differs(index)).unwrap_or(hashes.len());
            self.copy_hashed(source, &from, target, &to, extent, start..end).await?;
            first = end;
        }
        target.owed.borrow_mut().remove(extent);
        Ok(())
    }

    /// Copies the hashed blocks `blocks` of `extent`; zeroes take no space on the receiver.
    async fn copy_hashed(
        &self,
        source: &Rc<Member>,
        from: &Rc<Leg>,
        target: &Rc<Member>,
        to: &Rc<Leg>,
        extent: u64,
        blocks: std::ops::Range<usize>,
    ) -> Result<(), Status> {
        let geometry = self.geometry();
        let block_size = u64::from(geometry.block_size);
        let start = extent * EXTENT_SIZE + blocks.start as u64 * HASHED_BLOCK;
        let len = ((blocks.end - blocks.start) as u64 * HASHED_BLOCK).min(geometry.size().0 - start);
        let lba = Lba(start / block_size);
        let buf = DmaBuf::new(usize::try_from(len).expect("an extent fits"));
        let data = self.asking(source, from, from.read(lba, buf)).await?.freeze();
        let change = if data.iter().all(|&byte| byte == 0) {
            Change::Unmap(BlockCount(len / block_size))
        } else {
            Change::Write(data)
        };
        self.asking(target, to, to.change(self.generation(), lba, change, Durability::Cached)).await?;
        target.copied_bytes.set(target.copied_bytes.get() + len);
        count(&self.counters.copied_bytes, len);
        Ok(())
    }

    /// Notes an answer for the lease; a failure that is not the connection's gives the leg up.
    async fn asking<T>(
        &self,
        member: &Rc<Member>,
        leg: &Rc<Leg>,
        question: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let asked = rt::now();
        let answer = question.await;
        match &answer {
            Ok(_) => member.answered(asked),
            Err(Status::Fenced) => self.stop(Status::Fenced),
            Err(Status::Gone | Status::TimedOut | Status::Aborted) => {}
            // What is being rebuilt may get space from its other extents. One in sync must not: every read and write of
            // this extent waits for it, those that would give space back among them.
            Err(Status::NoSpace) if !self.in_sync(member) => {}
            Err(status) if !self.in_sync(member) || self.others_in_sync_up(member) => {
                member.condemn(leg, *status);
            }
            Err(status) => {
                tracing::warn!(volume = %self.volume, member = %member.replica, %status, "the last member in sync fails");
            }
        }
        answer
    }

    /// Sees to it that the members in sync get what they are owed: after opening, after a write that failed for the host,
    /// and for a member that missed such a write in the moment in which it became in sync.
    pub(crate) fn start_resync(self: &Rc<Self>) {
        if !self.resyncing.replace(true) {
            let state = Rc::clone(self);
            rt::spawn(async move {
                state.resync().await;
                state.resyncing.set(false);
            })
            .detach();
        }
    }

    async fn resync(&self) {
        let debt = || {
            self.members()
                .into_iter()
                .find_map(|m| if self.in_sync(&m) { m.owed.borrow().next(0) } else { None })
        };
        while let Some(extent) = debt() {
            let turn = self.arrive_at_extent(extent);
            turn.granted().await;
            if self.settle_in_turn(extent).await.is_err() {
                return;
            }
        }
    }

    /// Lets a stale (or new) member join the writes and starts its rebuild; false if that is not possible now.
    pub(crate) async fn rejoin(self: &Rc<Self>, member: &Rc<Member>) -> bool {
        // Beside one of its node it could not become in sync; it waits until it is no longer wished, or that one is away.
        let taken = self.keeper.with(|record| node_is_taken(record, member.replica));
        if taken || !self.others_in_sync_up(member) {
            return false;
        }
        let connection = match self.connect(member.replica).await {
            Ok(connection) => connection,
            Err(Status::Fenced) => {
                self.stop(Status::Fenced);
                return false;
            }
            Err(_) => return false,
        };
        let leg = Rc::clone(&connection.leg);
        match self.join(member, connection).await {
            Ok(hello) => {
                let rebuild = Rc::clone(self).rebuild(Rc::clone(member), leg, hello);
                rt::spawn(rebuild).detach();
                true
            }
            Err(status) => {
                tracing::info!(volume = %self.volume, member = %member.replica, %status, "member cannot join yet");
                member.set_receives(false);
                member.down();
                leg.close().await;
                false
            }
        }
    }

    /// Joins the member to the writes at a drained point, then finds out what it is owed (I7).
    async fn join(self: &Rc<Self>, member: &Rc<Member>, connection: Connection) -> Result<Hello, Status> {
        let Connection { leg, hello, asked } = connection;
        let size_bytes = self.geometry().size().0;
        if hello.size_bytes < size_bytes {
            leg.resize(size_bytes).await?;
        }
        let made_rebuilding = self.change_entry(member, |entry| {
            let changes = matches!(entry.state, MemberState::Stale { .. } | MemberState::New);
            if changes {
                entry.state = MemberState::Rebuilding { since: Generation::ZERO };
            }
            changes
        });
        made_rebuilding.await?;
        {
            let _drained = self.drained().await;
            member.up(Rc::clone(&leg), asked);
            member.set_receives(self.config.planted != Planted::LateJoin);
        }
        let owed = self.debt(member, &leg, hello.progress).await?;
        if hello.progress.is_some() {
            count(&member.resumed, 1);
            count(&self.counters.resumed, 1);
        }
        member.copied_bytes.set(0);
        *member.owed.borrow_mut() = owed;
        Ok(hello)
    }

    /// What a member is owed: everything that it or the source holds beyond the cursor of its last rebuild and, before
    /// the cursor, what changed since the generation up to which it had received every write.
    async fn debt(
        self: &Rc<Self>,
        member: &Rc<Member>,
        leg: &Rc<Leg>,
        progress: Option<Progress>,
    ) -> Result<Owed, Status> {
        let source =
            self.members().into_iter().find(|m| self.in_sync(m) && m.leg().is_some()).ok_or(Status::Gone)?;
        let from = source.leg().ok_or(Status::Gone)?;
        let cursor = progress.map_or(0, |progress| progress.cursor_extent);
        let mut owed = Owed::nothing();
        for (asked, asked_leg) in [(&source, &from), (member, leg)] {
            self.gather(asked, asked_leg, Generation::ZERO, cursor, u64::MAX, &mut owed).await?;
            if let Some(progress) = progress {
                self.gather(asked, asked_leg, progress.received_since, 0, cursor, &mut owed).await?;
            }
        }
        Ok(owed)
    }

    /// Adds the extents in `first..end` that changed since `since` on one member.
    async fn gather(
        &self,
        member: &Rc<Member>,
        leg: &Rc<Leg>,
        mut since: Generation,
        first: u64,
        end: u64,
        owed: &mut Owed,
    ) -> Result<(), Status> {
        let mut next = Some(first);
        let end = end.min(self.extents());
        while let Some(from) = next.filter(|from| *from < end) {
            match self.asking(member, leg, leg.changed_since(since, from, CHANGED_AT_ONCE)).await? {
                Changed::Everything if since == Generation::ZERO => {
                    (from..end).for_each(|extent| owed.insert(extent));
                    return Ok(());
                }
                // It cannot tell: then it is all that it holds.
                Changed::Everything => since = Generation::ZERO,
                Changed::Extents { list, next: more } => {
                    list.iter()
                        .filter(|(extent, _)| *extent < end)
                        .for_each(|(extent, _)| owed.insert(*extent));
                    next = more;
                }
            }
        }
        Ok(())
    }

    /// Gives a member what it is owed, then makes it in sync by one swap.
    async fn rebuild(self: Rc<Self>, member: Rc<Member>, leg: Rc<Leg>, hello: Hello) {
        let from = Cell::new(0);
        let failed = Cell::new(false);
        join_all((0..LANES).map(|_| self.rebuild_lane(&member, &leg, &from, &failed))).await;
        let owed = member.owed.borrow().count();
        if failed.get() || owed > 0 || !member.has(&leg) || self.stopped().is_some() {
            // The leg goes; the member is retired and rejoins, going on where its progress was noted.
            member.condemn(&leg, Status::Aborted);
            return;
        }
        if self.config.planted == Planted::LateJoin {
            member.set_receives(true);
        }
        let finished = async {
            self.note_progress(&member, &leg).await?;
            let replica = member.replica;
            let Hello { incarnation, boot_id, .. } = hello;
            let swapped =
                self.change_record(move |record| finish_rebuild(record, replica, incarnation, boot_id)).await;
            member.changed.notify();
            swapped
        };
        match finished.await {
            // Another one of its node was faster.
            Ok(()) if matches!(self.state_of(&member), MemberState::Rebuilding { .. }) => {
                member.condemn(&leg, Status::Aborted);
            }
            Ok(()) => {
                self.start_resync();
                count(&self.counters.rebuilt, 1);
                tracing::info!(volume = %self.volume, member = %member.replica, node = member.node, bytes = member.copied_bytes.get(), "member is in sync again");
            }
            Err(_) => member.condemn(&leg, Status::Aborted),
        }
    }

    /// Takes one owed extent after the other until none is left.
    async fn rebuild_lane(
        self: &Rc<Self>,
        member: &Rc<Member>,
        leg: &Rc<Leg>,
        from: &Cell<u64>,
        failed: &Cell<bool>,
    ) {
        loop {
            let next = member.owed.borrow().next(from.get());
            let Some(extent) = next else { return };
            from.set(extent + 1);
            let turn = self.arrive_at_extent(extent);
            turn.granted().await;
            if failed.get() || !member.has(leg) || self.stopped().is_some() {
                failed.set(true);
                return;
            }
            let settled = self.equalize_in_turn(extent).await;
            drop(turn);
            // Without space for this extent others may still be made equal, and give space back: it stays owed.
            let full = settled == Err(Status::NoSpace);
            if !full && settled.is_err() && member.owed.borrow().contains(extent) {
                failed.set(true);
                return;
            }
            if extent % PROGRESS_EXTENTS == PROGRESS_EXTENTS - 1
                && self.note_progress(member, leg).await.is_err()
            {
                failed.set(true);
                return;
            }
        }
    }

    /// Notes on the receiver how far it is, durably.
    async fn note_progress(self: &Rc<Self>, member: &Rc<Member>, leg: &Rc<Leg>) -> Result<(), Status> {
        let (cursor_extent, received_since) = {
            let drained = self.drained().await;
            let cursor_extent = member.owed.borrow().next(0).unwrap_or_else(|| self.extents());
            (cursor_extent, self.close_generation(&drained))
        };
        self.asking(member, leg, leg.flush()).await?;
        let progress = Progress { source_epoch: self.keeper.epoch(), cursor_extent, received_since };
        self.asking(member, leg, leg.set_progress(Some(progress))).await
    }
}

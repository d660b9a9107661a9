//! Making members equal: the resync after an unclean end (I6) and the rebuild of a stale member (I7).
//!
//! Both are one thing: a member *is owed* extents; each is made equal in an exclusive turn of its own, by comparing keyed
//! hashes of its 4 KiB blocks with a source and sending the blocks that differ.
//!
//! # Invariants
//! 1. An extent that some member in sync is not owed is taken from such a member, so that what a read has seen stays.
//! 2. An extent leaves a member's debt only in a turn on that extent, after its blocks were found or made equal.
//! 3. A block that a member cannot read makes nobody stale while another member in sync can read it: it is taken from
//!    there and rewritten.
//! 4. A block is recorded as bad only on a member that is being rebuilt, when every member in sync is up and none could
//!    read it, twice.
//! 5. Progress noted on a receiver says: below the cursor it was equal, and has received every write, up to a generation
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
use pool::{Changed, EXTENT_SIZE, Progress, UNREADABLE};
use rt::{DmaBuf, Durability};
use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

/// Extents made equal side by side.
const LANES: usize = 4;
/// Extents between two notes of progress on the receiver.
const PROGRESS_EXTENTS: u64 = 128;
/// Extents asked for at once.
const CHANGED_AT_ONCE: usize = 1024;
/// How long after the first attempt a block that nobody could read is read again, and then recorded as bad.
const READ_AGAIN: Duration = Duration::from_secs(5);
/// How often such a block is looked at later, each time after twice as long.
const BAD_RETRIES: u32 = 9;
/// The unit of comparison.
const HASHED_BLOCK: u64 = 4096;

/// One pass of a rebuild over what is owed.
struct Pass {
    /// The next extent to look at.
    from: Cell<u64>,
    unreadable: Unreadable,
    /// Blocks were met that no member can read.
    met: Cell<bool>,
}

/// What becomes of a block that no member can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// The extent stays owed.
    Stays,
    /// The receiver records it as bad, and the rebuild goes on.
    Recorded,
}

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
            let tried = self.equalize_in_turn(extent, Unreadable::Stays).await;
            if self.is_owed_in_sync(extent) {
                // The source or a member that is owed it is away: until it is back, or stale in the store.
                tracing::debug!(volume = %self.volume, extent, ?tried, "extent is still owed");
                rt::race(self.changed.wait(), rt::sleep(self.config.reconnect_pause)).await;
            }
        }
        Ok(())
    }

    /// Makes `extent` equal on every reachable member that is owed it, in the caller's turn on that extent.
    pub(crate) async fn equalize_in_turn(&self, extent: u64, unreadable: Unreadable) -> Result<(), Status> {
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
        if self.behind(extent).is_empty() {
            return Ok(());
        }
        let seed = rt::random_u64();
        let mut hashes = self.hashes(&source, &from, extent, seed).await?;
        if hashes.contains(&UNREADABLE) {
            self.mend(&source, &from, extent, seed, &mut hashes).await?;
        }
        let behind = self.behind(extent);
        let unreadable = if self.all_in_sync_up() { unreadable } else { Unreadable::Stays };
        let one = |target| self.equalize_one(&source, target, extent, (seed, &hashes[..]), unreadable);
        let copied = join_all(behind.iter().map(one)).await;
        count(&self.counters.resynced_extents, 1);
        copied.into_iter().collect()
    }

    /// The reachable members that are owed `extent`.
    fn behind(&self, extent: u64) -> Vec<Rc<Member>> {
        let owed = |member: &Rc<Member>| {
            member.receives() && member.leg().is_some() && member.owed.borrow().contains(extent)
        };
        self.members().into_iter().filter(owed).collect()
    }

    /// The hashes of `extent` on a member. Blocks that it cannot read are named in them; if it can read nothing at all it
    /// is given up, where that is possible.
    async fn hashes(
        &self,
        member: &Rc<Member>,
        leg: &Rc<Leg>,
        extent: u64,
        seed: u64,
    ) -> Result<Vec<[u8; 16]>, Status> {
        let hashes = self.asking(member, leg, leg.hash_extent(extent, seed)).await;
        if hashes == Err(Status::MediaRead) && (!self.in_sync(member) || self.others_in_sync_up(member)) {
            member.condemn(leg, Status::MediaRead);
        }
        hashes
    }

    /// Rewrites the blocks of `extent` that `source` cannot read with what another member in sync has, first of those
    /// that are not owed it; `hashes` are then those of the rewritten blocks. One that is owed it may differ, by a write
    /// that was never acknowledged; so a member that cannot read such a block either is owed the extent as well, lest it
    /// reads it again one day. For the same reason none may be away then.
    async fn mend(
        &self,
        source: &Rc<Member>,
        to: &Rc<Leg>,
        extent: u64,
        seed: u64,
        hashes: &mut [[u8; 16]],
    ) -> Result<(), Status> {
        let mut others: Vec<_> = self
            .members()
            .into_iter()
            .filter(|member| !Rc::ptr_eq(member, source) && self.in_sync(member))
            .filter_map(|member| member.leg().map(|leg| (member, leg)))
            .collect();
        others.sort_by_key(|(member, _)| member.owed.borrow().contains(extent));
        let mut blind = Vec::new();
        for (other, from) in others {
            let is_owed = other.owed.borrow().contains(extent);
            if !hashes.contains(&UNREADABLE) || (is_owed && !self.all_in_sync_up()) {
                break;
            }
            let theirs = self.hashes(&other, &from, extent, seed).await?;
            if theirs.len() != hashes.len() {
                return Err(Status::Internal);
            }
            for block in (0..theirs.len()).filter(|block| hashes[*block] == UNREADABLE).collect::<Vec<_>>() {
                let copied = match theirs[block] {
                    UNREADABLE => Err(Status::MediaRead),
                    _ => self.copy_hashed(&other, &from, source, to, extent, block..block + 1).await,
                };
                match copied {
                    Ok(()) => {
                        tracing::warn!(volume = %self.volume, member = %source.replica, extent, block, "a block that the member could not read is rewritten");
                        hashes[block] = theirs[block];
                    }
                    Err(Status::MediaRead) => blind.push((Rc::clone(&other), block)),
                    Err(status) => return Err(status),
                }
            }
        }
        for (other, _) in blind.iter().filter(|(_, block)| hashes[*block] != UNREADABLE) {
            other.owed.borrow_mut().insert(extent);
        }
        Ok(())
    }

    /// Sends `target` the blocks of `extent` in which its hashes differ from the source's.
    ///
    /// # Errors
    /// `MediaRead` when no member can read some of them and they are not to be recorded as bad; the target has the others
    /// then, and is still owed the extent.
    async fn equalize_one(
        &self,
        source: &Rc<Member>,
        target: &Rc<Member>,
        extent: u64,
        (seed, hashes): (u64, &[[u8; 16]]),
        unreadable: Unreadable,
    ) -> Result<(), Status> {
        let (Some(from), Some(to)) = (source.leg(), target.leg()) else { return Err(Status::Gone) };
        let theirs = self.hashes(target, &to, extent, seed).await?;
        if theirs.len() != hashes.len() {
            return Err(Status::Internal);
        }
        let sent = |index: usize| hashes[index] != theirs[index] && hashes[index] != UNREADABLE;
        let mut first = 0;
        while let Some(start) = (first..hashes.len()).find(|&index| sent(index)) {
            let end = (start..hashes.len()).find(|&index| !sent(index)).unwrap_or(hashes.len());
            self.copy_hashed(source, &from, target, &to, extent, start..end).await?;
            first = end;
        }
        // What neither can read is equal: there is nothing that could be given.
        let lost = |index: &usize| hashes[*index] == UNREADABLE && theirs[*index] != UNREADABLE;
        for block in (0..hashes.len()).filter(lost) {
            // One in sync that could read it would have been the source of it: only what is being rebuilt gets here.
            if unreadable == Unreadable::Stays || self.in_sync(target) {
                return Err(Status::MediaRead);
            }
            self.record_bad(target, &to, extent, block).await?;
        }
        target.owed.borrow_mut().remove(extent);
        Ok(())
    }

    /// Records on `target` that the contents of a block are lost (I7).
    async fn record_bad(
        &self,
        target: &Rc<Member>,
        to: &Rc<Leg>,
        extent: u64,
        block: usize,
    ) -> Result<(), Status> {
        let block_size = u64::from(self.geometry().block_size);
        let lba = Lba((extent * EXTENT_SIZE + block as u64 * HASHED_BLOCK) / block_size);
        tracing::error!(volume = %self.volume, member = %target.replica, lba = lba.0, "no member can read a block: its contents are lost until it is written");
        let bad = Change::Bad(BlockCount(HASHED_BLOCK / block_size));
        self.asking(target, to, to.change(self.generation(), lba, bad, Durability::Durable)).await?;
        target.bad.borrow_mut().insert(extent);
        Ok(())
    }

    /// Looks again at the extents of which blocks were recorded as bad on `member`: a disk or cable may have been repaired.
    async fn retry_bad(self: Rc<Self>, member: Rc<Member>) {
        let mut pause = READ_AGAIN * 2;
        for _ in 0..BAD_RETRIES {
            rt::sleep(pause).await;
            pause *= 2;
            if self.stopped().is_some() || !self.in_sync(&member) {
                return;
            }
            let extents = member.bad.borrow().clone();
            for extent in extents {
                member.owed.borrow_mut().insert(extent);
            }
            self.start_resync();
        }
    }

    /// Whether every member that may be in sync is up: only then can it be said that nobody can read a block.
    fn all_in_sync_up(&self) -> bool {
        self.members().iter().all(|member| !self.may_be_in_sync(member) || member.leg().is_some())
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
            // One block that cannot be read says nothing of the others.
            Err(Status::Gone | Status::TimedOut | Status::Aborted | Status::MediaRead) => {}
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
        let connection = match self.connect(member.replica, self.config.lease).await {
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
            // Here, where nobody can make the members larger beside it.
            if hello.size_bytes < self.member_bytes() {
                leg.resize(self.member_bytes()).await?;
            }
            member.up(Rc::clone(&leg), asked);
            member.set_receives(self.config.planted != Planted::LateJoin);
        }
        let owed = self.debt(member, &leg, hello.progress).await?;
        if hello.progress.is_some() {
            count(&member.resumed, 1);
            count(&self.counters.resumed, 1);
        }
        member.copied_bytes.set(0);
        member.bad.take();
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
        let failed = Cell::new(false);
        for unreadable in [Unreadable::Stays, Unreadable::Recorded] {
            let pass = Pass { from: Cell::new(0), unreadable, met: Cell::new(false) };
            join_all((0..LANES).map(|_| self.rebuild_lane(&member, &leg, &pass, &failed))).await;
            if failed.get() || !pass.met.get() {
                break;
            }
            // A disk may only have been out of breath: what nobody could read is tried once more before it is given up.
            rt::sleep(READ_AGAIN).await;
        }
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
                if !member.bad.borrow().is_empty() {
                    self.keep(rt::spawn(Rc::clone(&self).retry_bad(Rc::clone(&member))));
                }
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
        pass: &Pass,
        failed: &Cell<bool>,
    ) {
        loop {
            let next = member.owed.borrow().next(pass.from.get());
            let Some(extent) = next else { return };
            pass.from.set(extent + 1);
            let turn = self.arrive_at_extent(extent);
            turn.granted().await;
            if failed.get() || !member.has(leg) || self.stopped().is_some() {
                failed.set(true);
                return;
            }
            let settled = self.equalize_in_turn(extent, pass.unreadable).await;
            drop(turn);
            if settled == Err(Status::MediaRead) {
                pass.met.set(true);
            }
            // Without space for this extent others may still be made equal, and give space back: it stays owed. So does
            // one with a block that cannot be read.
            let stays = matches!(settled, Err(Status::NoSpace | Status::MediaRead));
            if !stays && settled.is_err() && member.owed.borrow().contains(extent) {
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

//! The path of a read: its place in the order, the nearest member in sync, the lease.
//!
//! # Invariants
//! I6, I9 and I11 of the crate: no read of an owed extent, none after the lease has run out, none beside a write.

use crate::leg::Leg;
use crate::member::Member;
use crate::order::Kind;
use crate::shield::shielded;
use crate::state::{State, count};
use device::{BlockCount, Lba, Status};
use pool::EXTENT_SIZE;
use rt::DmaBuf;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

/// What a member can read or not.
const BLOCK_BYTES: u64 = 4096;
/// How often a read that waits for the lease looks again; answers to I/O renew it without telling.
const LEASE_LOOK: Duration = Duration::from_millis(20);

impl State {
    /// Fills `buf` from block `lba` on.
    pub(crate) async fn read(self: &Rc<Self>, lba: Lba, buf: DmaBuf) -> Result<DmaBuf, Status> {
        let _in_use = self.activity.begin();
        let geometry = self.geometry();
        let blocks = geometry.check(lba, buf.len())?;
        let extents = self.extents_of(lba, blocks);
        let (start, len) = (geometry.offset_bytes(lba), buf.len());
        let mut buf = Some(buf);
        let mut mended = false;
        loop {
            if self.is_any_owed(&extents) {
                let buf = buf.take().unwrap_or_else(|| DmaBuf::new(len));
                return self.read_owed(lba, buf, extents).await;
            }
            let turn = self.arrive(start..start + len as u64, Kind::Shared);
            turn.granted().await;
            // What it waited for, or waits for now, may leave a member owing the extent: then not in this turn.
            match self.read_any(lba, blocks, &extents, &mut buf, len).await {
                Ok(Some(data)) => {
                    self.lease().await?;
                    return Ok(data);
                }
                Ok(None) => {}
                // No member can read all of it, but for each block there may be one that can: once they have mended each
                // other's blocks, it is tried again.
                Err(Status::MediaRead)
                    if !mended && blocks.0 * u64::from(geometry.block_size) > BLOCK_BYTES =>
                {
                    mended = true;
                    match self.members().into_iter().find(|m| self.in_sync(m) && m.leg().is_some()) {
                        Some(member) => self.mend_later(&member, Status::MediaRead, &extents),
                        None => return Err(Status::MediaRead),
                    }
                }
                Err(status) => return Err(status),
            }
        }
    }

    fn is_any_owed(&self, extents: &Range<u64>) -> bool {
        extents.clone().any(|extent| self.is_owed_in_sync(extent))
    }

    /// A read of extents that members in sync are owed: first makes them equal, in its own turn (I6).
    async fn read_owed(
        self: &Rc<Self>,
        lba: Lba,
        buf: DmaBuf,
        extents: Range<u64>,
    ) -> Result<DmaBuf, Status> {
        let turn = self.arrive(extents.start * EXTENT_SIZE..extents.end * EXTENT_SIZE, Kind::Exclusive);
        let state = Rc::clone(self);
        shielded(async move {
            turn.granted().await;
            let len = buf.len();
            let blocks = state.geometry().check(lba, len)?;
            let mut buf = Some(buf);
            loop {
                for extent in extents.clone() {
                    state.settle_in_turn(extent).await?;
                }
                if let Some(data) = state.read_any(lba, blocks, &extents, &mut buf, len).await? {
                    state.lease().await?;
                    return Ok(data);
                }
            }
        })
        .await
    }

    /// Reads from the nearest member in sync that can, trying the next one where a block cannot be read or a member is
    /// away; `None` once a member in sync is owed any of `extents` (I6). A block that no member in sync can read fails; a
    /// member that is away, or whose pool is being opened again, is waited for (I4).
    async fn read_any(
        self: &Rc<Self>,
        lba: Lba,
        blocks: BlockCount,
        extents: &Range<u64>,
        buf: &mut Option<DmaBuf>,
        len: usize,
    ) -> Result<Option<DmaBuf>, Status> {
        let mut unreadable: Vec<(Rc<Member>, Status)> = Vec::new();
        // Asked over a leg that is ending.
        let mut away: Vec<(Rc<Member>, Rc<Leg>)> = Vec::new();
        loop {
            if let Some(status) = self.stopped() {
                return Err(status);
            }
            if self.is_any_owed(extents) {
                return Ok(None);
            }
            let in_sync: Vec<_> = self.members().into_iter().filter(|member| self.in_sync(member)).collect();
            away.retain(|(member, leg)| member.has(leg));
            let failed = |member: &Rc<Member>| unreadable.iter().any(|(tried, _)| Rc::ptr_eq(tried, member));
            let untried = |member: &&Rc<Member>| {
                !failed(member) && !away.iter().any(|(tried, _)| Rc::ptr_eq(tried, member))
            };
            let Some(member) = nearest(in_sync.iter().filter(untried)) else {
                match unreadable.last() {
                    Some((_, status)) if in_sync.iter().all(failed) => return Err(*status),
                    _ => rt::race(self.changed.wait(), rt::sleep(self.config.reconnect_pause)).await,
                }
                continue;
            };
            let Some(leg) = member.leg() else { continue };
            let _under_way = member.begin_read();
            let asked = rt::now();
            match leg.read(lba, buf.take().unwrap_or_else(|| DmaBuf::new(len))).await {
                Ok(data) => {
                    member.answered(asked);
                    for (other, status) in &unreadable {
                        self.mend_later(other, *status, extents);
                    }
                    return Ok(Some(data));
                }
                Err(Status::Fenced) => self.stop(Status::Fenced),
                Err(Status::Gone | Status::TimedOut | Status::Aborted) => away.push((member, leg)),
                Err(status) => {
                    tracing::warn!(volume = %self.volume, member = %member.replica, lba = lba.0, blocks = blocks.0, %status, "member cannot read");
                    unreadable.push((member, status));
                }
            }
        }
    }

    /// What one member in sync could not read and another one could is rewritten, in a turn on its extent: until then the
    /// member is owed it.
    fn mend_later(self: &Rc<Self>, member: &Member, status: Status, extents: &Range<u64>) {
        if status == Status::MediaRead && self.in_sync(member) && self.others_in_sync_up(member) {
            extents.clone().for_each(|extent| member.owed.borrow_mut().insert(extent));
            self.start_resync();
        }
    }

    /// Waits until every member in sync has answered within the lease time (I9).
    async fn lease(&self) -> Result<(), Status> {
        loop {
            if let Some(status) = self.stopped() {
                return Err(status);
            }
            let lease = self.config.lease;
            if self.members().iter().all(|member| !self.may_be_in_sync(member) || member.lease_holds(lease)) {
                return Ok(());
            }
            count(&self.counters.lease_waits, 1);
            rt::race(self.changed.wait(), rt::sleep(LEASE_LOOK)).await;
        }
    }
}

/// The local member, else the one with the fewest reads under way.
fn nearest<'a>(members: impl Iterator<Item = &'a Rc<Member>>) -> Option<Rc<Member>> {
    members
        .filter_map(|member| member.leg().map(|leg| (!leg.is_local(), member.reads(), member)))
        .min_by_key(|(remote, reads, _)| (*remote, *reads))
        .map(|(_, _, member)| Rc::clone(member))
}

//! The nexus's hand on the volume's record: changes by compare-and-swap, one at a time, read back when an answer is lost.
//!
//! # Invariants
//! 1. The record is changed by full replacement at a known revision, and only while it names this nexus and its epoch.
//! 2. While the answer to a swap is unknown, [`Keeper::may_be_in_sync`] keeps the stricter rule of both outcomes.
//! 3. A nexus that finds another owner or epoch in the record stops for good.
//! 4. What the store has confirmed is handed to the members before anybody acts on it (I12): until they have it, what was
//!    and what is to be both count, as in 2.
//! 5. What the store has confirmed in this epoch counts, also when the store is set back within the epoch (I12).

use model::{MemberRecord, MemberState, Settled, VolumeRecord};
use rt::sync::Mutex;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// How long to wait before asking a store again that did not answer.
const STORE_RETRY: Duration = Duration::from_millis(200);

/// A future of a record operation. Records are no part of an I/O: boxing them costs nothing that matters.
pub type RecordFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, RecordError>> + 'a>>;

/// A record and its revision in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The record.
    pub record: VolumeRecord,
    /// The store's revision of it.
    pub revision: u64,
}

/// Where records are kept: the store's client, or the simulator's store.
pub trait Records {
    /// Reads the record of `volume` from the store itself, not from a cache.
    fn read(&self, volume: Uuid) -> RecordFuture<'_, Versioned>;

    /// Replaces the record at `revision`; returns the new revision.
    fn replace(&self, revision: u64, record: VolumeRecord) -> RecordFuture<'_, u64>;
}

/// Why a record operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// The record has another revision by now; nothing was changed.
    Conflict,
    /// There is no such record.
    NotFound,
    /// The store did not answer; what was asked may or may not have been done.
    Unreachable,
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Conflict => "the record was changed by somebody else",
            Self::NotFound => "the volume has no record",
            Self::Unreachable => "the store cannot be reached",
        })
    }
}

impl std::error::Error for RecordError {}

/// This nexus does not own the volume any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deposed;

/// The record of an open volume.
pub(crate) struct Keeper {
    records: Rc<dyn Records>,
    current: RefCell<VolumeRecord>,
    /// What a swap under way would make of it.
    proposed: RefCell<Option<VolumeRecord>>,
    revision: Cell<u64>,
    one_at_a_time: Mutex<()>,
    store_errors: Cell<u64>,
}

impl Keeper {
    /// Takes over the record as it was last read or written.
    pub(crate) fn new(records: Rc<dyn Records>, known: Versioned) -> Self {
        Self {
            records,
            current: RefCell::new(known.record),
            proposed: RefCell::new(None),
            revision: Cell::new(known.revision),
            one_at_a_time: Mutex::new(()),
            store_errors: Cell::new(0),
        }
    }

    /// The record as the store last confirmed it.
    pub(crate) fn current(&self) -> VolumeRecord {
        self.current.borrow().clone()
    }

    /// Looks at the record as the store last confirmed it, without a copy.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&VolumeRecord) -> T) -> T {
        look(&self.current.borrow())
    }

    /// The epoch of this nexus.
    pub(crate) fn epoch(&self) -> u64 {
        self.current.borrow().epoch
    }

    /// How often the store failed to answer.
    pub(crate) fn store_errors(&self) -> u64 {
        self.store_errors.get()
    }

    /// The confirmed state of a member; `Removed` if the record does not name it.
    pub(crate) fn state(&self, replica: Uuid) -> MemberState {
        member(&self.current.borrow(), replica).map_or(MemberState::Removed, |m| m.state)
    }

    /// Whether the member is, or may be by a swap whose answer is unknown, `InSync` (counts for I1, I2 and I9).
    pub(crate) fn may_be_in_sync(&self, replica: Uuid) -> bool {
        let in_sync =
            |record: &VolumeRecord| member(record, replica).map(|m| m.state) == Some(MemberState::InSync);
        in_sync(&self.current.borrow()) || self.proposed.borrow().as_ref().is_some_and(in_sync)
    }

    /// Changes the record durably; returns when the store has confirmed it, however long the store is away.
    ///
    /// `edit` may run several times, each time on the latest record; it says whether there is anything to change. What the
    /// store has confirmed is given to `hand_out`, and counts when that has ended.
    /// # Errors
    /// [`Deposed`] when the record names another owner or epoch.
    pub(crate) async fn change(
        &self,
        edit: impl Fn(&mut VolumeRecord) -> bool,
        hand_out: impl AsyncFn(&VolumeRecord),
    ) -> Result<(), Deposed> {
        let _one = self.one_at_a_time.lock().await;
        loop {
            let mut next = self.current();
            if !edit(&mut next) {
                return Ok(());
            }
            next.version += 1;
            next.settled = Some(Settled { epoch: next.epoch, version: next.version });
            *self.proposed.borrow_mut() = Some(next.clone());
            let answer = self.records.replace(self.revision.get(), next.clone()).await;
            let done = match answer {
                Ok(revision) => Some(revision),
                Err(RecordError::NotFound) => return Err(Deposed),
                Err(RecordError::Conflict | RecordError::Unreachable) => self.read_back(&next).await?,
            };
            if let Some(revision) = done {
                // Invariant 4. Who gives up here has the old revision, and so reads back before the next change.
                hand_out(&next).await;
                self.revision.set(revision);
                *self.current.borrow_mut() = next;
            }
            *self.proposed.borrow_mut() = None;
            if done.is_some() {
                return Ok(());
            }
        }
    }

    /// Whether the store holds the record as it was last confirmed.
    pub(crate) async fn is_as_confirmed(&self) -> Result<bool, RecordError> {
        let known = self.current();
        Ok(self.records.read(known.volume).await?.record == known)
    }

    /// Leaves another record in the store than this nexus has, which ends here.
    pub(crate) async fn hand_over(&self, record: VolumeRecord) -> Result<(), RecordError> {
        self.records.replace(self.revision.get(), record).await.map(drop)
    }

    /// Gives the record as it is to `hand_out`, between two changes.
    pub(crate) async fn hand(&self, hand_out: impl AsyncFn(&VolumeRecord)) {
        let _one = self.one_at_a_time.lock().await;
        hand_out(&self.current()).await;
    }

    /// Asks the store what became of `proposed`: its revision if it is what the store holds; otherwise that is known now.
    async fn read_back(&self, proposed: &VolumeRecord) -> Result<Option<u64>, Deposed> {
        loop {
            match self.records.read(proposed.volume).await {
                Ok(found) => {
                    if found.record.epoch != proposed.epoch || self.foreign_owner(&found.record, proposed) {
                        return Err(Deposed);
                    }
                    if found.record == *proposed {
                        return Ok(Some(found.revision));
                    }
                    self.revision.set(found.revision);
                    if found.record.version < self.current.borrow().version {
                        tracing::warn!(volume = %proposed.volume, "the store was set back; it is given the record again");
                        return Ok(None); // Invariant 5.
                    }
                    *self.current.borrow_mut() = found.record;
                    return Ok(None);
                }
                Err(RecordError::NotFound) => return Err(Deposed),
                Err(_) => {
                    self.store_errors.set(self.store_errors.get() + 1);
                    rt::sleep(STORE_RETRY).await;
                }
            }
        }
    }

    /// Whether the record found belongs to somebody else: not the owner we have, nor what we proposed (a close).
    fn foreign_owner(&self, found: &VolumeRecord, proposed: &VolumeRecord) -> bool {
        found.owner != self.current.borrow().owner && found.owner != proposed.owner
    }
}

/// The record's entry of a replica.
pub(crate) fn member(record: &VolumeRecord, replica: Uuid) -> Option<&MemberRecord> {
    record.members.iter().find(|member| member.replica == replica)
}

/// Whether another member on this one's node is in sync. Then this one must not be: two copies that die with one node
/// count as one (docs/decisions/0009).
pub(crate) fn node_is_taken(record: &VolumeRecord, replica: Uuid) -> bool {
    let Some(entry) = member(record, replica) else { return false };
    let mut others = record.members.iter().filter(|other| other.replica != replica);
    others.any(|other| other.node == entry.node && other.state == MemberState::InSync)
}

/// Makes a member that has been given everything `InSync`, unless its node has one that is.
pub(crate) fn finish_rebuild(
    record: &mut VolumeRecord,
    replica: Uuid,
    incarnation: Uuid,
    boot_id: Uuid,
) -> bool {
    if node_is_taken(record, replica) {
        return false;
    }
    match member_mut(record, replica) {
        Some(entry) if matches!(entry.state, MemberState::Rebuilding { .. }) => {
            entry.state = MemberState::InSync;
            entry.incarnation = Some(incarnation);
            entry.boot_id = Some(boot_id);
            true
        }
        _ => false,
    }
}

/// The record's entry of a replica, to be edited.
pub(crate) fn member_mut(record: &mut VolumeRecord, replica: Uuid) -> Option<&mut MemberRecord> {
    record.members.iter_mut().find(|member| member.replica == replica)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Generation;

    #[test]
    fn a_node_has_one_member_in_sync_at_most() {
        const REBUILDING: MemberState = MemberState::Rebuilding { since: Generation::ZERO };
        let id = Uuid::from_u128;
        let entry = |replica, node: &str, state| MemberRecord {
            state,
            ..MemberRecord::new(id(replica), id(replica), node.into())
        };
        // Replica 2 was on the disk of n2 that was replaced by the one of replica 4.
        let mut record = VolumeRecord::new(
            id(9),
            1 << 20,
            4096,
            vec![
                entry(1, "n1", MemberState::InSync),
                entry(2, "n2", MemberState::InSync),
                entry(4, "n2", REBUILDING),
            ],
        );
        assert!(!finish_rebuild(&mut record, id(4), id(7), id(8)), "the old one may still count");
        record.members[1].state = MemberState::Stale { since: Generation::ZERO };
        assert!(!node_is_taken(&record, id(4)));
        assert!(finish_rebuild(&mut record, id(4), id(7), id(8)));
        assert_eq!(
            (record.members[2].state, record.members[2].incarnation),
            (MemberState::InSync, Some(id(7)))
        );
        // The old disk is back.
        assert!(node_is_taken(&record, id(2)) && !node_is_taken(&record, id(1)));
        record.members[1].state = REBUILDING;
        assert!(!finish_rebuild(&mut record, id(2), id(7), id(8)));
        assert_eq!(record.members[1].state, REBUILDING);
    }
}

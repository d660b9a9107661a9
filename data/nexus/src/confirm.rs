//! Confirming the record at an opening (I12): the store may be older than what the members have seen, or the record may
//! have been made again from a copy of it.
//!
//! # Invariants
//! 1. The store gives an epoch before any member hears of it, and confirms a record before any member keeps it. So a
//!    higher epoch or a later record on a member says that the store was set back, and nothing else does.
//! 2. What is found goes into the store before the opening is tried again, marked `unconfirmed`: openings that come to
//!    nothing take epochs and versions, and would come to look later than what was found.
//! 3. A record that is marked is opened only when each member that can have a later one has said that it has none.
//!
//! Why a crash at any point is safe: until the store has what was found, each opening finds it again, since none of them
//! moves `settled`; from then on the mark is there until an opening has confirmed it and says so in the same change that
//! says who is in sync.

use crate::Planted;
use crate::attend::Connection;
use crate::leg::{Kept, Leg};
use crate::member::Member;
use crate::open::OpenError;
use crate::state::State;
use device::Status;
use model::{MemberState, VolumeRecord};
use rt::Instant;
use std::rc::Rc;
use uuid::Uuid;

/// What a member has answered at an opening.
pub(crate) struct Heard {
    pub(crate) member: Rc<Member>,
    /// Its association and when it accepted our epoch; none: it has accepted a higher one before.
    pub(crate) accepted: Option<(Connection, Instant)>,
    kept: Kept,
}

impl State {
    /// Tells a member of our epoch and asks what it keeps, within the lease.
    pub(crate) async fn hear(&self, member: Rc<Member>) -> Result<Heard, Status> {
        let record = self.keeper.current();
        let entry = crate::record::member(&record, member.replica).ok_or(Status::Gone)?.clone();
        let heard = async {
            let leg = Rc::new((self.dial)(entry).await?);
            let asked = rt::now();
            let hello = match leg.accept_epoch(record.epoch, self.id).await {
                Ok(hello) => Some(hello),
                Err(Status::Fenced) => None,
                Err(status) => return Err(status),
            };
            let at = rt::now();
            // After the epoch: nobody older can give it a copy from now on.
            let kept = kept(&leg).await?;
            let accepted = hello.map(|hello| (Connection { leg: Rc::clone(&leg), hello, asked }, at));
            if accepted.is_none() {
                leg.close().await;
            }
            Ok(Heard { member, accepted, kept })
        };
        rt::timeout(self.config.lease, heard).await.unwrap_or(Err(Status::TimedOut))
    }

    /// Sees to it that the record, which was `before` when this opening began, is the latest that there is.
    pub(crate) async fn confirm(&self, before: &VolumeRecord, heard: &[Heard]) -> Result<(), OpenError> {
        if heard.iter().any(|answer| answer.accepted.is_none()) && !self.keeper.is_as_confirmed().await? {
            return Err(OpenError::Fenced);
        }
        if self.config.planted == Planted::TrustsStore {
            return Ok(());
        }
        if let Some(found) = later(before, &self.keeper.current(), heard) {
            tracing::warn!(
                volume = %self.volume, epoch = found.epoch, version = found.version, settled = ?found.settled,
                "the store was set back: members have seen a later record or epoch, which it is given now"
            );
            // Invariant 2.
            self.keeper.hand_over(found).await?;
            return Err(OpenError::SetBack);
        }
        // Invariant 3.
        let silent = silent(before, heard);
        if before.unconfirmed && !silent.is_empty() {
            return Err(OpenError::Unconfirmed(silent));
        }
        Ok(())
    }
}

async fn kept(leg: &Leg) -> Result<Kept, Status> {
    match leg.kept().await {
        // An engine from before there were copies.
        Err(Status::Invalid) => Ok(Kept::default()),
        other => other,
    }
}

/// What the store is to hold instead of `before`, of which `taken` was made by this opening (invariant 1).
fn later(before: &VolumeRecord, taken: &VolumeRecord, heard: &[Heard]) -> Option<VolumeRecord> {
    let copies = heard.iter().filter_map(|answer| copy(before.volume, answer));
    let found = copies.fold(None, |found: Option<VolumeRecord>, copy| {
        if copy.is_later_than(found.as_ref().unwrap_or(before)) { Some(copy) } else { found }
    });
    if found.is_none() && heard.iter().all(|answer| answer.accepted.is_some()) {
        return None;
    }
    let epoch = heard.iter().map(|answer| answer.kept.epoch).max().unwrap_or(0).max(taken.epoch);
    Some(found.unwrap_or_else(|| before.clone()).recovered(epoch, taken.version))
}

/// The copy of the record that a member keeps, if it can be read.
fn copy(volume: Uuid, answer: &Heard) -> Option<VolumeRecord> {
    if answer.kept.record.is_empty() {
        return None;
    }
    match serde_json::from_slice::<VolumeRecord>(&answer.kept.record) {
        Ok(copy) => Some(copy).filter(|copy| copy.volume == volume),
        Err(error) => {
            tracing::warn!(%volume, member = %answer.member.replica, %error, "its copy of the record cannot be read");
            None
        }
    }
}

/// The nodes of members that have not answered and may have been handed a later record: all that were ever made and are
/// not given up.
fn silent(record: &VolumeRecord, heard: &[Heard]) -> Vec<String> {
    let answered = |replica: Uuid| heard.iter().any(|answer| answer.member.replica == replica);
    let may_know = |state: MemberState| !matches!(state, MemberState::New | MemberState::Removed);
    let silent = record.members.iter().filter(|entry| may_know(entry.state) && !answered(entry.replica));
    silent.map(|entry| entry.node.clone()).collect()
}

//! The wished members: the nexus takes in those that the record lacks, lets go of those that are no longer wished once all
//! the wished ones have every write, and forgets those that were let go and are destroyed.
//!
//! 1. A member is forgotten only after the record has said `Removed` of it.
//! 2. A replica that was forgotten must not be wished again: it would be made again, under an identity that others knew as
//!    another one. Who calls sees to that: a wish that changes the record is the latest one (docs/decisions/0028).

use crate::attend::close_leg;
use crate::member::Member;
use crate::state::{Nexus, State};
use device::Status;
use model::{MemberRecord, MemberState, VolumeRecord};
use std::rc::Rc;
use uuid::Uuid;

impl Nexus {
    /// Whether the record is as [`Self::adopt`] would make it now.
    pub fn has_adopted(&self, wished: &[MemberRecord], destroyed: &[Uuid]) -> bool {
        let mut record = self.0.keeper.current();
        let changes = take_in(&mut record, wished)
            || let_go(&mut record, wished)
            || forget(&mut record, wished, destroyed);
        wished.is_empty() || !changes
    }

    /// Makes the record's members those of `wished`, as far as that is safe now, and forgets those that are `destroyed`;
    /// call it again later.
    pub async fn adopt(&self, wished: &[MemberRecord], destroyed: &[Uuid]) -> Result<(), Status> {
        let state = &self.0;
        if wished.is_empty() {
            return Ok(());
        }
        state.change_record(|record| take_in(record, wished)).await?;
        let known: Vec<_> = state.members().iter().map(|member| member.replica).collect();
        for entry in state.keeper.current().members {
            if !known.contains(&entry.replica) && entry.state != MemberState::Removed {
                let member = Member::new(&entry);
                state.members.borrow_mut().push(Rc::clone(&member));
                state.keep(rt::spawn(Rc::clone(state).attend(member)));
            }
        }
        state.change_record(|record| let_go(record, wished)).await?;
        drop_removed(state).await;
        state.change_record(|record| forget(record, wished, destroyed)).await
    }
}

/// Names the wished members that the record lacks; they begin as new ones.
fn take_in(record: &mut VolumeRecord, wished: &[MemberRecord]) -> bool {
    let before = record.members.len();
    for wish in wished {
        if record.members.iter().all(|member| member.replica != wish.replica) {
            record.members.push(MemberRecord::new(wish.replica, wish.pool, wish.node.clone()));
        }
    }
    record.members.len() != before
}

/// Removes the others once every wished one is in sync.
fn let_go(record: &mut VolumeRecord, wished: &[MemberRecord]) -> bool {
    let is_wished = |member: &MemberRecord| wished.iter().any(|wish| wish.replica == member.replica);
    let in_sync = record.members.iter().filter(|m| is_wished(m) && m.state == MemberState::InSync).count();
    if in_sync < wished.len() {
        return false;
    }
    let mut changes = false;
    for member in record.members.iter_mut().filter(|member| !is_wished(member)) {
        changes |= member.state != MemberState::Removed;
        member.state = MemberState::Removed;
    }
    changes
}

/// Drops what was let go and is destroyed (invariant 1).
fn forget(record: &mut VolumeRecord, wished: &[MemberRecord], destroyed: &[Uuid]) -> bool {
    let before = record.members.len();
    let is_wished = |member: &MemberRecord| wished.iter().any(|wish| wish.replica == member.replica);
    let goes = |member: &MemberRecord| {
        member.state == MemberState::Removed && destroyed.contains(&member.replica) && !is_wished(member)
    };
    record.members.retain(|member| !goes(member));
    record.members.len() != before
}

async fn drop_removed(state: &Rc<State>) {
    let removed = |member: &Rc<Member>| state.state_of(member) == MemberState::Removed;
    let gone: Vec<_> = state.members().into_iter().filter(removed).collect();
    state.members.borrow_mut().retain(|member| !removed(member));
    for member in gone {
        member.set_receives(false);
        close_leg(&member).await;
    }
}

//! The wished members: the nexus takes in those that the record lacks, and lets go of those that are no longer wished
//! once all the wished ones have every write.

use crate::attend::close_leg;
use crate::member::Member;
use crate::state::{Nexus, State};
use device::Status;
use model::{MemberRecord, MemberState, VolumeRecord};
use std::rc::Rc;

impl Nexus {
    /// Makes the record's members those of `wished`, as far as that is safe now; call it again later.
    pub async fn adopt(&self, wished: &[MemberRecord]) -> Result<(), Status> {
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
        Ok(())
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

async fn drop_removed(state: &Rc<State>) {
    let removed = |member: &Rc<Member>| state.state_of(member) == MemberState::Removed;
    let gone: Vec<_> = state.members().into_iter().filter(removed).collect();
    state.members.borrow_mut().retain(|member| !removed(member));
    for member in gone {
        member.set_receives(false);
        close_leg(&member).await;
    }
}

//! The members' copies of the volume's record (I12): what is left of it when the store is lost or older.
//!
//! # Invariants
//! 1. A member that is in sync and up has the record that counts, or a later one: it is handed out after the store has
//!    confirmed it and before anybody acts on it, one record after the other; and who comes back has it before it is up.
//!    So what nobody was up to be told, such as the number of an attachment, is not on the way of any write.
//! 2. A copy is never a reason to wait longer than the lease, nor to give a member up: one that does not take it in time
//!    is found out by its writes and heartbeats. To find the latest record one copy of it is enough, for it is looked
//!    for on all members.

use crate::leg::Leg;
use crate::member::Member;
use crate::record::member;
use crate::state::State;
use device::Status;
use futures_util::future::join_all;
use model::{MemberState, VolumeRecord};
use pool::RECORD_LEN_MAX;
use std::rc::Rc;
use std::time::Duration;

/// Has every member that is up, and in sync by this record, keep a copy of it; also one that comes up meanwhile.
pub(crate) async fn hand_out(state: &State, record: &VolumeRecord) {
    let in_sync = |known: &Rc<Member>| {
        member(record, known.replica).is_some_and(|entry| entry.state == MemberState::InSync)
    };
    let copy = encode(record);
    let mut handed: Vec<Rc<Leg>> = Vec::new();
    while let Some(copy) = &copy {
        let up = state.members().into_iter().filter(in_sync).filter_map(|known| known.leg());
        let legs: Vec<Rc<Leg>> = up.filter(|leg| !handed.iter().any(|had| Rc::ptr_eq(had, leg))).collect();
        if legs.is_empty() {
            return;
        }
        join_all(legs.iter().map(|leg| give(leg, copy, state.config.lease))).await;
        handed.extend(legs);
    }
}

/// Gives a member that is back the record that counts, before it is up; whether that still counts then. A change of it
/// that is under way is not waited for, since the store may be away: when it is handed out, the member is up.
pub(crate) async fn catch_up(state: &State, leg: &Leg) -> bool {
    let (version, copy) = state.keeper.with(|record| (record.version, encode(record)));
    if let Some(copy) = copy {
        // Writes wait for the member: no longer than for one that does not come back.
        rt::race(give(leg, &copy, state.config.regain_window), leg.dead()).await;
    }
    state.keeper.with(|record| record.version) == version
}

async fn give(leg: &Leg, copy: &[u8], limit: Duration) {
    match rt::timeout(limit, leg.set_record(copy)).await {
        // An engine from before there were copies says `Invalid`.
        Ok(Ok(()) | Err(Status::Invalid)) => {}
        Ok(Err(status)) => tracing::debug!(?status, "a member has no copy of the record"),
        Err(_) => tracing::debug!("a member has not kept its copy of the record in time"),
    }
}

/// The bytes of a copy: JSON, padded with spaces to whole dwords. A record that is too long goes without its hosts, which
/// then count as new ones; none if that is too long as well.
fn encode(record: &VolumeRecord) -> Option<Vec<u8>> {
    let whole = padded(record);
    if whole.len() <= RECORD_LEN_MAX {
        return Some(whole);
    }
    let short = padded(&VolumeRecord { hosts: Vec::new(), ..record.clone() });
    if short.len() > RECORD_LEN_MAX {
        tracing::warn!(volume = %record.volume, bytes = short.len(), "the record is too long for members to keep");
        return None;
    }
    Some(short)
}

fn padded(record: &VolumeRecord) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(record).expect("a record is plain data");
    bytes.resize(bytes.len().next_multiple_of(4), b' ');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{HostRecord, MemberRecord};
    use uuid::Uuid;

    fn record(hosts: u128, members: u128) -> VolumeRecord {
        let id = Uuid::from_u128;
        let member = |index| MemberRecord::new(id(index), id(index), format!("n{index}"));
        let host = |index| HostRecord { host: id(index), attachment: 1 };
        VolumeRecord {
            hosts: (0..hosts).map(host).collect(),
            ..VolumeRecord::new(id(9), 1 << 20, 4096, (0..members).map(member).collect())
        }
    }

    #[test]
    fn a_copy_is_the_record() {
        let largest = record(64, 5);
        let copy = encode(&largest).unwrap();
        assert!(copy.len() <= RECORD_LEN_MAX && copy.len().is_multiple_of(4));
        assert_eq!(serde_json::from_slice::<VolumeRecord>(&copy).unwrap(), largest);
    }

    #[test]
    fn what_is_too_long_goes_without_its_hosts() {
        let copy = encode(&record(1000, 5)).unwrap();
        assert_eq!(serde_json::from_slice::<VolumeRecord>(&copy).unwrap(), record(0, 5));
        assert_eq!(encode(&record(0, 1000)), None);
    }
}

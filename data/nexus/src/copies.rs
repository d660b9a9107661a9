//! The members' copies of the volume's record (I12): what is left of it when the store is lost or older.
//!
//! # Invariants
//! 1. A member that is in sync and up has the record that counts, or a later one: it is handed out after the store has
//!    confirmed it and before anybody acts on it, one record after the other.
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

/// Has every member that is up, and in sync by this record, keep a copy of it.
pub(crate) async fn hand_out(state: &State, record: &VolumeRecord) {
    let in_sync = |known: &Rc<Member>| {
        member(record, known.replica).is_some_and(|entry| entry.state == MemberState::InSync)
    };
    let legs: Vec<Rc<Leg>> =
        state.members().iter().filter(|known| in_sync(known)).filter_map(|known| known.leg()).collect();
    let Some(copy) = encode(record).filter(|_| !legs.is_empty()) else { return };
    join_all(legs.iter().map(|leg| give(leg, &copy, state.config.lease))).await;
}

/// Has a member that is back keep a copy of the record as it is, between two changes of it. Nobody waits for that: the
/// store may be away in the middle of a change.
pub(crate) fn catch_up(state: &Rc<State>, leg: Rc<Leg>) {
    let state = Rc::clone(state);
    let given = async move {
        let give = async |record: &VolumeRecord| {
            if let Some(copy) = encode(record) {
                give(&leg, &copy, state.config.lease).await;
            }
        };
        rt::race(state.keeper.hand(give), leg.dead()).await;
    };
    rt::spawn(given).detach();
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

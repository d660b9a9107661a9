//! Makes and destroys the replicas of this node as the records say, and reports which are there, and what it reads.
//!
//! 1. A record that is to be confirmed is no order: it may be from before, and nothing is made or destroyed by it (I12).

mod kept;

use crate::{Known, State};
use kept::Kept;
use model::{MemberRecord, MemberState, NodeReplicas, ReplicaReport, ReplicaState, VolumeRecord};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use uuid::Uuid;

/// What was last reported.
#[derive(Default)]
pub(crate) struct Replicas {
    reported: RefCell<Option<NodeReplicas>>,
    /// The copies of records that are reported are those of replicas behind this one, then those before it.
    after: Cell<Uuid>,
    /// The last that was reported, if there was no room for all.
    last: Cell<Option<Uuid>>,
}

impl Replicas {
    /// Lets all be reported anew at the next look, although it is as before: somebody may have deleted the object. Of the
    /// copies for which there was no room others are reported.
    pub(crate) fn tell_again(&self) {
        self.reported.take();
        if let Some(last) = self.last.take() {
            self.after.set(last);
        }
    }

    /// Follows the records.
    pub(crate) async fn converge(&self, state: &State, known: &Known) {
        let mut reports = Vec::new();
        let mut named = BTreeSet::new();
        for record in known.records.values().map(|item| &item.value) {
            for member in record.members.iter().filter(|member| member.node == state.config.node) {
                named.insert(member.replica);
                reports.push(follow(state, record, member, known).await);
            }
        }
        let mut copies = Vec::new();
        for (replica, pool, port) in state.pools.ports() {
            if !named.contains(&replica) {
                let config = port.replica().config();
                if let Some(bytes) = port.replica().record() {
                    copies.push(Kept { replica, volume: config.volume, bytes });
                }
                let message = "no record names it; it is kept, because absence is never an order".to_owned();
                let report = ReplicaReport {
                    replica,
                    volume: config.volume,
                    pool,
                    state: ReplicaState::Present,
                    used_bytes: port.replica().info().used_bytes,
                    message: Some(message),
                    record: None,
                };
                reports.push(report);
            }
        }
        reports.sort_by_key(|report| report.replica);
        let (mut copies, last) = kept::choose(copies, self.after.get());
        self.last.set(last);
        for report in &mut reports {
            report.record = copies.remove(&report.replica).map(Box::new);
        }
        let readers = state.reader_reports();
        let report = NodeReplicas { node: state.config.node.clone(), replicas: reports, readers };
        if self.reported.borrow().as_ref() != Some(&report)
            && state.control.report_replicas(report.clone()).await.is_ok()
        {
            *self.reported.borrow_mut() = Some(report);
        }
    }
}

/// Does what the record says of one member of this node.
async fn follow(state: &State, record: &VolumeRecord, member: &MemberRecord, known: &Known) -> ReplicaReport {
    let present = || state.pools.port(member.replica);
    let mut failure = None;
    match member.state {
        // Invariant 1.
        MemberState::New | MemberState::Removed if record.unconfirmed => {}
        MemberState::New if present().is_none() && state.pools.has(member.pool) => {
            failure = make(state, record, member, known).await.err();
        }
        // Its disk was taken away or blanked: there is nothing that this node could destroy, now or later.
        MemberState::Removed if state.pools.is_gone(member.pool) => {}
        MemberState::Removed if !state.pools.has(member.pool) => {
            failure = Some(format!("pool {} is not open on this node", member.pool));
        }
        MemberState::Removed if present().is_some() && said(state, record, member).await.is_some() => {
            failure = state.pools.destroy(member.replica).await.err();
        }
        _ => {}
    }
    // A port may be gone, and what it led to be there: the pool itself is asked before anybody forgets the replica.
    let destroyed = || state.pools.has_destroyed(member.pool, member.replica);
    if member.state == MemberState::Removed
        && failure.is_none()
        && present().is_none()
        && !state.pools.is_gone(member.pool)
        && !destroyed()
    {
        failure = Some(format!("pool {} has failed, and is being opened again", member.pool));
    }
    if let Some(cause) = &failure {
        tracing::warn!(node = state.config.node, replica = %member.replica, cause, "replica cannot follow its record");
    }
    let port = present();
    let replica_state = match (&port, &failure) {
        (_, Some(_)) => ReplicaState::Failed,
        (Some(_), None) => ReplicaState::Present,
        (None, None) if member.state == MemberState::Removed => ReplicaState::Destroyed,
        (None, None) => ReplicaState::Missing,
    };
    let absent = replica_state == ReplicaState::Destroyed && state.pools.is_gone(member.pool);
    let note = || format!("pool {} is not on this node any more; what is on it stays there", member.pool);
    ReplicaReport {
        replica: member.replica,
        volume: record.volume,
        pool: member.pool,
        state: replica_state,
        used_bytes: port.map_or(0, |port| port.replica().info().used_bytes),
        message: failure.or_else(|| absent.then(note)),
        record: None,
    }
}

/// Makes the replica of a member that is `New`, unless the volume is about to go.
async fn make(
    state: &State,
    record: &VolumeRecord,
    member: &MemberRecord,
    known: &Known,
) -> Result<(), String> {
    let mut volumes = known.volumes.values().map(|item| &item.value);
    let Some(volume) = volumes.find(|volume| volume.uuid == record.volume && !volume.intent.deleting) else {
        return Ok(());
    };
    let Some(record) = said(state, record, member).await else { return Ok(()) };
    state.pools.create(member.pool, member.replica, volume, record.size_bytes).await
}

/// The record as the store itself has it, if it still says the same of the member (invariants 1 and 4 of the crate) and is
/// an order at all (invariant 1).
async fn said(state: &State, record: &VolumeRecord, member: &MemberRecord) -> Option<VolumeRecord> {
    let fresh = state.control.records().read(record.volume).await.ok()?.record;
    let same = |found: &MemberRecord| found.replica == member.replica && found.state == member.state;
    (!fresh.unconfirmed && fresh.members.iter().any(same)).then_some(fresh)
}

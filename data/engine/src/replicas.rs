//! Makes and destroys the replicas of this node as the records say, and reports which are there.

use crate::State;
use model::{MemberRecord, MemberState, NodeReplicas, ReplicaReport, ReplicaState, Volume, VolumeRecord};
use std::cell::RefCell;
use std::collections::BTreeSet;
use uuid::Uuid;

/// What was last reported.
#[derive(Default)]
pub(crate) struct Replicas {
    reported: RefCell<Option<NodeReplicas>>,
    /// Destroyed by order of a record, until no record names them.
    destroyed: RefCell<BTreeSet<Uuid>>,
}

impl Replicas {
    /// Follows the records, which were read from the store itself.
    pub(crate) async fn converge(&self, state: &State, volumes: &[Volume], records: &[VolumeRecord]) {
        let mut reports = Vec::new();
        let mut named = BTreeSet::new();
        for record in records {
            for member in record.members.iter().filter(|member| member.node == state.config.node) {
                named.insert(member.replica);
                let volume = volumes.iter().find(|volume| volume.uuid == record.volume);
                reports.push(self.follow(state, record, member, volume).await);
            }
        }
        for (replica, pool, port) in state.pools.ports() {
            if !named.contains(&replica) {
                let config = port.replica().config();
                let message = "no record names it; it is kept, because absence is never an order".to_owned();
                let report = ReplicaReport {
                    replica,
                    volume: config.volume,
                    pool,
                    state: ReplicaState::Present,
                    used_bytes: port.replica().info().used_bytes,
                    message: Some(message),
                };
                reports.push(report);
            }
        }
        self.destroyed.borrow_mut().retain(|replica| named.contains(replica));
        reports.sort_by_key(|report| report.replica);
        let report = NodeReplicas { node: state.config.node.clone(), replicas: reports };
        if self.reported.borrow().as_ref() != Some(&report)
            && state.control.report_replicas(report.clone()).await.is_ok()
        {
            *self.reported.borrow_mut() = Some(report);
        }
    }

    /// Does what the record says of one member of this node.
    async fn follow(
        &self,
        state: &State,
        record: &VolumeRecord,
        member: &MemberRecord,
        volume: Option<&Volume>,
    ) -> ReplicaReport {
        let mut failure = None;
        let present = || state.pools.port(member.replica);
        match member.state {
            MemberState::New if present().is_none() => {
                let volume = volume.filter(|volume| !volume.intent.deleting);
                if let (Some(volume), true) = (volume, state.pools.has(member.pool)) {
                    let made =
                        state.pools.create(member.pool, member.replica, volume, record.size_bytes).await;
                    failure = made.err();
                }
            }
            // Its disk was taken away or blanked: there is nothing that this node could destroy, now or later.
            MemberState::Removed if !state.pools.knows(member.pool) => {}
            MemberState::Removed => match state.pools.destroy(member.replica).await {
                Ok(()) if state.pools.has(member.pool) => {
                    self.destroyed.borrow_mut().insert(member.replica);
                }
                Ok(()) => failure = Some(format!("pool {} is not open on this node", member.pool)),
                Err(cause) => failure = Some(cause),
            },
            _ => {}
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
        let absent = replica_state == ReplicaState::Destroyed && !state.pools.knows(member.pool);
        let note = || format!("pool {} is not on this node any more; what is on it stays there", member.pool);
        ReplicaReport {
            replica: member.replica,
            volume: record.volume,
            pool: member.pool,
            state: replica_state,
            used_bytes: port.map_or(0, |port| port.replica().info().used_bytes),
            message: failure.or_else(|| absent.then(note)),
        }
    }
}

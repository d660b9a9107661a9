//! What an open volume says of itself: for the engine's reports, metrics and the simulator's totals.

use crate::state::Nexus;
use model::{MemberState, VolumeRecord};
use uuid::Uuid;

/// One member of an open volume.
#[derive(Clone, Debug)]
pub struct MemberStatus {
    /// The replica.
    pub replica: Uuid,
    /// Its node.
    pub node: String,
    /// Its state in the record.
    pub state: MemberState,
    /// Whether there is a connection.
    pub up: bool,
    /// Extents that it is still owed.
    pub owed_extents: u64,
    /// Extents that it was owed at the start of its rebuild or resync.
    pub total_extents: u64,
    /// Bytes that were sent to make it equal.
    pub copied_bytes: u64,
    /// Rebuilds of it that went on where an earlier one had stopped.
    pub resumed: u64,
}

/// An open volume.
#[derive(Clone, Debug)]
pub struct NexusStatus {
    /// The record as the store last confirmed it.
    pub record: VolumeRecord,
    /// Its members.
    pub members: Vec<MemberStatus>,
    /// Members made stale since it was opened.
    pub retired: u64,
    /// Rebuilds finished.
    pub rebuilt: u64,
    /// Rebuilds that went on where an earlier one had stopped.
    pub resumed: u64,
    /// Bytes copied by rebuilds and resyncs.
    pub copied_bytes: u64,
    /// Operations that had to wait for an overlapping one.
    pub overlaps: u64,
    /// Writes refused for want of space.
    pub refused_for_space: u64,
    /// Reads that waited for the lease.
    pub lease_waits: u64,
    /// Times the store did not answer.
    pub store_errors: u64,
}

impl Nexus {
    /// The volume as this nexus sees it now.
    pub fn status(&self) -> NexusStatus {
        let state = &self.0;
        let counters = &state.counters;
        let members = state
            .members()
            .iter()
            .map(|member| {
                let owed = member.owed.borrow();
                MemberStatus {
                    replica: member.replica,
                    node: member.node.clone(),
                    state: state.state_of(member),
                    up: member.leg().is_some(),
                    owed_extents: owed.count(),
                    total_extents: owed.total(),
                    copied_bytes: member.copied_bytes.get(),
                    resumed: member.resumed.get(),
                }
            })
            .collect();
        NexusStatus {
            record: state.keeper.current(),
            members,
            retired: counters.retired.get(),
            rebuilt: counters.rebuilt.get(),
            resumed: counters.resumed.get(),
            copied_bytes: counters.copied_bytes.get(),
            overlaps: counters.overlaps.get(),
            refused_for_space: counters.refused_for_space.get(),
            lease_waits: counters.lease_waits.get(),
            store_errors: state.keeper.store_errors(),
        }
    }
}

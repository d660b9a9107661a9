//! A record that the store has lost, made again from what replicas keep of it (I12, docs/decisions/0031).
//!
//! 1. It has an epoch above those of all copies and no owner: a nexus that still runs by the record that was lost cannot
//!    change this one, nor take it for its own. It may know of members that have missed writes what this copy does not.

use crate::{View, index::Reported, index::told_of};
use model::{Volume, VolumeRecord};

/// A record from the latest copy of it that nodes report.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovery {
    /// The name of its volume, which must still be there and not be deleted.
    pub volume: String,
    /// What the store is to hold: marked as to be confirmed.
    pub record: VolumeRecord,
    /// The revision of the record in whose place it comes, which is to be confirmed too and from an earlier copy; none if
    /// there is no record.
    pub replaces: Option<u64>,
}

/// The copies of the volume's record that nodes report, each with its node.
pub(crate) fn copies<'a>(
    view: &'a View,
    reported: &'a Reported,
    volume: &Volume,
) -> impl Iterator<Item = (&'a str, &'a VolumeRecord)> {
    let uuid = volume.uuid;
    told_of(reported, uuid).filter_map(move |(node, replica)| {
        let reports = &view.replicas.get(node)?.value.replicas;
        let report = reports.iter().find(|report| (report.volume, report.replica) == (uuid, replica))?;
        let record = report.record.as_deref().filter(|record| record.volume == uuid)?;
        Some((node, record))
    })
}

/// What is to be written for a volume that has had a record, if it has none now, or one that is to be confirmed and that
/// some node has a later copy of.
pub(crate) fn recovery(view: &View, reported: &Reported, volume: &Volume) -> Option<Recovery> {
    let known = view.record(volume.uuid);
    if !volume.intent.recorded || known.is_some_and(|known| !known.value.unconfirmed) {
        return None;
    }
    let (mut latest, mut epoch, mut version) = (None::<&VolumeRecord>, 0, 0);
    let copies = copies(view, reported, volume).map(|(_, record)| record);
    for record in copies.chain(known.map(|known| &known.value)) {
        (epoch, version) = (epoch.max(record.epoch), version.max(record.version));
        if latest.is_none_or(|latest| record.is_later_than(latest)) {
            latest = Some(record);
        }
    }
    let latest = latest.filter(|latest| known.is_none_or(|known| latest.is_later_than(&known.value)))?;
    Some(Recovery {
        volume: volume.name.clone(),
        // Invariant 1.
        record: latest.clone().recovered(epoch, version),
        replaces: known.map(|known| known.revision),
    })
}

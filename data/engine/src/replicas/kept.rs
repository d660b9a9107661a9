//! The copies of records that replicas keep which no record names: what is reported of them, so that a record that the store
//! has lost can be made again (I12).

use model::{Object, VolumeRecord};
use std::collections::BTreeMap;
use uuid::Uuid;

/// How many bytes of copies go into one report: it is one object, and stores take objects of a megabyte or so.
const REPORT_LEN_MAX: usize = 256 << 10;

/// A copy as a replica keeps it.
pub(super) struct Kept {
    pub(super) replica: Uuid,
    pub(super) volume: Uuid,
    pub(super) bytes: Vec<u8>,
}

/// The copies that are to be reported, by replica: in order from the first behind `after`, then from the beginning, as many
/// as there is room for; and the last one, if that is not all.
pub(super) fn choose(mut kept: Vec<Kept>, after: Uuid) -> (BTreeMap<Uuid, VolumeRecord>, Option<Uuid>) {
    kept.sort_by_key(|copy| (copy.replica <= after, copy.replica));
    let (mut chosen, mut last, mut room) = (BTreeMap::new(), None, REPORT_LEN_MAX);
    for copy in kept {
        let text = copy.bytes.trim_ascii_end();
        let Some(record) = read(&copy, text) else { continue };
        let Some(rest) = room.checked_sub(text.len()) else { return (chosen, last) };
        room = rest;
        last = Some(copy.replica);
        chosen.insert(copy.replica, record);
    }
    (chosen, None)
}

/// The record in a copy, if it is one of the replica's volume.
fn read(copy: &Kept, text: &[u8]) -> Option<VolumeRecord> {
    let why = match serde_json::from_slice::<VolumeRecord>(text) {
        Ok(record) if record.volume != copy.volume => format!("it is one of volume {}", record.volume),
        Ok(record) => match record.validate() {
            Ok(()) => return Some(record),
            Err(invalid) => invalid.to_string(),
        },
        Err(error) => error.to_string(),
    };
    let Kept { replica, volume, .. } = copy;
    tracing::debug!(%replica, %volume, why, "a copy of a record cannot be used");
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{HostRecord, MemberRecord};

    fn record(volume: u128, hosts: u128) -> VolumeRecord {
        let id = Uuid::from_u128;
        let host = |index| HostRecord { host: id(index + 1), attachment: 1 };
        let members = vec![MemberRecord::new(id(2), id(3), "n1".into())];
        VolumeRecord {
            attachment: 1,
            hosts: (0..hosts).map(host).collect(),
            ..VolumeRecord::new(id(volume), 1 << 20, 4096, members)
        }
    }

    fn kept(replica: u128, bytes: &[u8]) -> Kept {
        Kept { replica: Uuid::from_u128(replica), volume: Uuid::from_u128(9), bytes: bytes.to_vec() }
    }

    fn padded(record: &VolumeRecord) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(record).unwrap();
        bytes.resize(bytes.len() + 3, b' ');
        bytes
    }

    fn chosen(kept: Vec<Kept>, after: u128) -> (Vec<u128>, Option<u128>) {
        let (chosen, last) = choose(kept, Uuid::from_u128(after));
        (chosen.into_keys().map(|replica| replica.as_u128()).collect(), last.map(|replica| replica.as_u128()))
    }

    #[test]
    fn what_is_no_record_of_the_volume_is_left_out() {
        let good = record(9, 2);
        let nowhere = VolumeRecord { block_size: 7, ..record(9, 0) };
        let copies = vec![
            kept(1, b""),
            kept(2, b"    "),
            kept(3, b"{\"volume\": 7}"),
            kept(4, &[0xff; 64]),
            kept(5, &padded(&record(8, 0))),
            kept(6, &padded(&nowhere)),
            kept(7, &padded(&good)),
        ];
        let (found, last) = choose(copies, Uuid::nil());
        assert_eq!((found, last), (BTreeMap::from([(Uuid::from_u128(7), good)]), None));
    }

    #[test]
    fn a_report_stays_small_and_every_copy_has_its_turn() {
        let large = padded(&record(9, 64));
        let fit = u128::try_from(REPORT_LEN_MAX / (large.len() - 3)).unwrap();
        let all = || (1..=3 * fit).rev().map(|replica| kept(replica, &large)).collect::<Vec<_>>();
        assert_eq!(chosen(all(), 0), ((1..=fit).collect(), Some(fit)));
        assert_eq!(chosen(all(), fit), ((fit + 1..=2 * fit).collect(), Some(2 * fit)));
        let wrapped = (1..fit).chain([3 * fit]).collect();
        assert_eq!(chosen(all(), 3 * fit - 1), (wrapped, Some(fit - 1)), "from the beginning again");
        let few = || all().split_off(usize::try_from(2 * fit).unwrap());
        assert_eq!(chosen(few(), 1), ((1..=fit).collect(), None), "there is room for all");
    }
}

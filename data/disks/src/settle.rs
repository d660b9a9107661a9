//! How the reports of a node change the cluster's disks: one object per disk, whichever node has it.
//!
//! 1. A disk that moved keeps its object; one that vanished is `Missing`, and nothing is forgotten of it.
//! 2. A node takes the object of another one over only when that one has lost the disk, or is not there. Two disks that
//!    say the same of themselves, on two nodes at once, are two objects, and neither is taken for the other.

use crate::name;
use model::{Disk, DiskState};
use std::collections::BTreeSet;

/// What a node has to write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Created or replaced.
    pub put: Vec<Disk>,
    /// Deleted: a name that was given only for as long as there were two of a name.
    pub delete: Vec<String>,
}

/// The names under which `node` may have to write what it has found.
pub fn settled_names(node: &str, found: &[Disk]) -> BTreeSet<String> {
    found.iter().flat_map(|disk| [disk.name.clone(), second_name(node, &disk.name)]).collect()
}

/// What `node`, which has found `found`, has to write over what is `there`, which is at least what is there of the node and
/// of [`settled_names`]; `is_alive` says whether another node is ready.
pub fn settle(there: &[Disk], is_alive: impl Fn(&str) -> bool, node: &str, found: Vec<Disk>) -> Changes {
    let named = |name: &str| there.iter().find(|disk| disk.name == name);
    let mut changes = Changes::default();
    let mut mine = Vec::new();
    for disk in found {
        let second = second_name(node, &disk.name);
        let owner = named(&disk.name)
            .filter(|disk| disk.node != node && disk.state != DiskState::Missing && is_alive(&disk.node));
        let disk = if let Some(owner) = owner {
            second_of_a_name(disk, second, owner)
        } else {
            changes.delete.extend(named(&second).filter(|disk| disk.node == node).map(|_| second));
            disk
        };
        if named(&disk.name) != Some(&disk) {
            changes.put.push(disk.clone());
        }
        mine.push(disk.name);
    }
    let was_here = |disk: &&Disk| disk.node == node && disk.state != DiskState::Missing;
    let gone = there.iter().filter(was_here);
    let gone = gone.filter(|disk| !mine.contains(&disk.name) && !changes.delete.contains(&disk.name));
    changes.put.extend(gone.map(missing).collect::<Vec<_>>());
    changes
}

fn second_name(node: &str, name: &str) -> String {
    name::label(&format!("{name}-{node}"))
}

fn second_of_a_name(disk: Disk, name: String, owner: &Disk) -> Disk {
    let is_pool = disk.state == DiskState::Pool;
    let message = format!(
        "{} of node {} says the same of itself: give one of them another serial number, or wait until that one is gone",
        owner.device, owner.node
    );
    Disk {
        name,
        state: if is_pool { DiskState::Pool } else { DiskState::InUse },
        message: Some(message),
        ..disk
    }
}

fn missing(disk: &Disk) -> Disk {
    let message =
        format!("{} of node {} is not there any more, or no longer allowed", disk.device, disk.node);
    Disk { state: DiskState::Missing, message: Some(message), ..disk.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::DiskClass;

    fn disk(name: &str, node: &str) -> Disk {
        Disk {
            name: name.into(),
            node: node.into(),
            device: "/dev/sda".into(),
            by_id: None,
            parent: None,
            state: DiskState::Available,
            pool: None,
            class: DiskClass::Ssd,
            model: None,
            serial: None,
            size_bytes: 1 << 40,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
            partitions: Vec::new(),
            signatures: Vec::new(),
            message: None,
        }
    }

    /// What is there after `node` has written what it has to.
    fn after(there: &[Disk], alive: bool, node: &str, found: &[Disk]) -> Vec<Disk> {
        let changes = settle(there, |_| alive, node, found.to_vec());
        let mut after = there.to_vec();
        after.retain(|disk| !changes.delete.contains(&disk.name));
        for put in changes.put {
            after.retain(|disk| disk.name != put.name);
            after.push(put);
        }
        after.sort_by(|a, b| a.name.cmp(&b.name));
        after
    }

    fn states(disks: &[Disk]) -> Vec<(&str, &str, DiskState)> {
        disks.iter().map(|disk| (disk.name.as_str(), disk.node.as_str(), disk.state)).collect()
    }

    #[test]
    fn a_disk_that_stays_is_written_once() {
        let found = [disk("a", "n1"), disk("b", "n1")];
        let there = after(&[], true, "n1", &found);
        assert_eq!(there, found);
        assert_eq!(settle(&there, |_| true, "n1", found.to_vec()), Changes::default());
    }

    #[test]
    fn a_disk_that_vanished_is_missing_once_and_comes_back() {
        let there = after(&[disk("a", "n1")], true, "n1", &[]);
        assert_eq!(states(&there), [("a", "n1", DiskState::Missing)]);
        assert_eq!(there[0].size_bytes, 1 << 40, "what it is stays known");
        assert_eq!(settle(&there, |_| true, "n1", Vec::new()), Changes::default());
        assert_eq!(after(&there, true, "n1", &[disk("a", "n1")]), [disk("a", "n1")]);
    }

    #[test]
    fn a_disk_that_moved_keeps_its_object() {
        let moved = [disk("a", "n2")];
        let lost = after(&[disk("a", "n1")], true, "n1", &[]);
        assert_eq!(after(&lost, true, "n2", &moved), moved, "the old node has said so");
        assert_eq!(after(&[disk("a", "n1")], false, "n2", &moved), moved, "the old node is dead");
        assert_eq!(after(&moved, true, "n1", &[]), moved, "and does not claim it back");
    }

    #[test]
    fn two_of_a_name_are_two_until_one_is_gone() {
        let two = after(&[disk("a", "n1")], true, "n2", &[disk("a", "n2")]);
        assert_eq!(states(&two), [("a", "n1", DiskState::Available), ("a-n2", "n2", DiskState::InUse)]);
        assert!(two[1].message.as_ref().unwrap().contains("/dev/sda of node n1"), "{two:?}");
        assert_eq!(settle(&two, |_| true, "n2", vec![disk("a", "n2")]), Changes::default());
        let lost = after(&two, true, "n1", &[]);
        assert_eq!(after(&lost, true, "n2", &[disk("a", "n2")]), [disk("a", "n2")]);
        assert_eq!(settled_names("n2", &[disk("a", "n2")]), ["a", "a-n2"].map(str::to_owned).into());
    }
}

//! Where copies go, by tables and properties.

use super::*;
use crate::testing::{GIB, Scene};
use model::ReplicaState;
use proptest::prelude::*;

/// A copy of 1 GiB that may be anywhere.
const ONE: Copies<'static> = Copies::new(GIB, 1);
/// Of 4 GiB: nothing more is promised of them.
const LITTLE: u64 = GIB / 8;

fn place_in(
    scene: &Scene,
    size_bytes: u64,
    present: &[MemberIntent],
    wanted: usize,
) -> Result<String, NoPlace> {
    place_copies(scene, &Copies { size_bytes, present, wanted, ..ONE })
}

fn place_copies(scene: &Scene, copies: &Copies<'_>) -> Result<String, NoPlace> {
    let mut next = 0;
    let mut new_uuid = || {
        next += 1;
        Uuid::from_u128(1000 + next)
    };
    let mut promised = Promised::of(&scene.view);
    let members = place(&scene.view, &mut promised, OVERCOMMIT_DEFAULT, copies, &mut new_uuid)?;
    Ok(members.iter().map(|member| member.node.as_str()).collect::<Vec<_>>().join(" "))
}

#[test]
fn copies_spread_over_nodes() {
    let mut scene = Scene::with_nodes(4);
    assert_eq!(place_in(&scene, GIB, &[], 3).unwrap(), "n1 n2 n3");
    scene.volume("a", 3, &[1, 2, 3]);
    assert_eq!(place_in(&scene, GIB, &[], 3).unwrap(), "n4 n1 n2", "the emptiest first");
    scene.pool_mut(2).free_bytes = LITTLE;
    assert_eq!(place_in(&scene, GIB, &[], 3).unwrap(), "n4 n1 n3", "a node without room is left out");
    scene.pool_mut(1).state = PoolState::Degraded;
    assert_eq!(place_in(&scene, GIB, &[], 2).unwrap(), "n4 n3");
    scene.pool_mut(3).state = PoolState::Gone;
    assert!(place_in(&scene, GIB, &[], 2).is_err(), "nothing is placed on a disk that is gone");
    let present = scene.volume_mut("a").intent.members[2..].to_vec();
    assert_eq!(place_in(&scene, GIB, &present, 1).unwrap(), "n4", "never a second on one node");
}

#[test]
fn the_better_pool_of_a_node_is_taken() {
    let mut scene = Scene::with_nodes(1);
    let mut second = scene.pool_mut(1).clone();
    second.uuid = Uuid::from_u128(999);
    second.name = "disk1".into();
    scene.pool_mut(1).free_bytes = 0;
    scene.add_pool(second);
    let members = place(&scene.view, &mut Promised::default(), 1, &ONE, &mut || Uuid::from_u128(5)).unwrap();
    assert_eq!(members[0].pool, Uuid::from_u128(999));
}

#[test]
fn a_copy_is_near_if_that_is_possible() {
    let mut scene = Scene::with_nodes(4);
    let near = |scene: &Scene, node: &str, wanted, present: &[MemberIntent]| {
        place_copies(scene, &Copies { present, wanted, near: Some(node), ..ONE })
    };
    assert_eq!(near(&scene, "n4", 1, &[]).unwrap(), "n4");
    scene.volume("a", 3, &[2, 3, 4]);
    assert_eq!(near(&scene, "n4", 2, &[]).unwrap(), "n4 n1", "the others by space");
    assert_eq!(near(&scene, "n4", 4, &[]).unwrap(), "n4 n1 n2 n3");
    let present = scene.volume_mut("a").intent.members[2..].to_vec();
    assert_eq!(near(&scene, "n4", 2, &present).unwrap(), "n1 n2", "never a second on one node");
    assert_eq!(near(&scene, "n7", 2, &[]).unwrap(), "n1 n2", "there is no such node");
    scene.node_mut(4).spec.scheduling = Scheduling::Cordoned;
    assert_eq!(near(&scene, "n4", 2, &[]).unwrap(), "n1 n2");
    scene.node_mut(4).spec.scheduling = Scheduling::Enabled;
    scene.pool_mut(4).free_bytes = LITTLE;
    assert_eq!(near(&scene, "n4", 2, &[]).unwrap(), "n1 n2", "it has no room");
    assert!(near(&scene, "n4", 4, &[]).is_err());
    scene.node_mut(3).state = NodeState::NotReady;
    assert_eq!(near(&scene, "n3", 2, &[]).unwrap(), "n1 n2");
}

#[test]
fn copies_are_on_disks_of_the_class() {
    let mut scene = Scene::with_nodes(4);
    let class = Some(DiskClass::Nvme);
    let of_class = |scene: &Scene, size_bytes, wanted, near| {
        place_copies(scene, &Copies { size_bytes, class, wanted, near, ..ONE })
    };
    let says = |scene: &Scene, size_bytes, wanted, text: &str| {
        assert_eq!(of_class(scene, size_bytes, wanted, None).unwrap_err().to_string(), text);
    };
    says(
        &scene,
        GIB,
        1,
        "1 copy needs as many nodes with disks of class NVMe, 0 can take one; \
         add such disks, or ask for fewer copies or another class",
    );
    scene.pool_mut(2).class = class;
    scene.pool_mut(3).class = Some(DiskClass::Hdd);
    scene.pool_mut(4).class = class;
    assert_eq!(of_class(&scene, GIB, 2, None).unwrap(), "n2 n4");
    assert_eq!(of_class(&scene, GIB, 2, Some("n4")).unwrap(), "n4 n2");
    assert_eq!(of_class(&scene, GIB, 2, Some("n3")).unwrap(), "n2 n4", "its disk is of another class");
    assert_eq!(place_in(&scene, GIB, &[], 4).unwrap(), "n1 n2 n3 n4", "any disk");
    let second = Pool { uuid: Uuid::from_u128(999), ..scene.pool_mut(4).clone() };
    scene.add_pool(Pool { node: "n3".into(), ..second });
    assert_eq!(of_class(&scene, GIB, 3, None).unwrap(), "n2 n3 n4", "the other disk of the node");
    says(
        &scene,
        50 * GIB,
        3,
        "3 copies need as many nodes with room for 50 GiB on disks of class NVMe, 0 have that; \
         the most on another is 40 GiB; add disks, delete volumes, or ask for less",
    );
    scene.node_mut(2).spec.scheduling = Scheduling::Cordoned;
    says(
        &scene,
        GIB,
        3,
        "3 copies need as many nodes with disks of class NVMe, 2 can take one (cordoned: n2); \
         add such disks, uncordon a node, or ask for fewer copies or another class",
    );
}

const ZONE: &str = model::topology::ZONE_KEY;

/// Six nodes: n1 and n2 in zone a, n3 and n4 in b, n5 in c, n6 nowhere.
fn zoned() -> Scene {
    let mut scene = Scene::with_nodes(6);
    for (node, zone) in (1..).zip(["a", "a", "b", "b", "c"]) {
        scene.node_mut(node).topology.insert(ZONE.into(), zone.into());
    }
    scene
}

#[test]
fn copies_are_in_different_zones() {
    let mut scene = zoned();
    let spread = Some(ZONE);
    let of = |scene: &Scene, wanted| place_copies(scene, &Copies { spread, wanted, ..ONE });
    assert_eq!(of(&scene, 3).unwrap(), "n1 n3 n5");
    assert_eq!(place_in(&scene, GIB, &[], 3).unwrap(), "n1 n2 n3", "others are not concerned");
    scene.volume("a", 2, &[1, 3]);
    assert_eq!(of(&scene, 3).unwrap(), "n2 n4 n5", "the emptiest of each zone");
    let near = |scene: &Scene, node| {
        place_copies(scene, &Copies { spread, wanted: 3, near: Some(node), ..ONE }).unwrap()
    };
    assert_eq!(near(&scene, "n3"), "n3 n2 n5", "near comes before empty");
    assert_eq!(near(&scene, "n6"), "n2 n4 n5", "it is in no zone");
    scene.pool_mut(2).free_bytes = LITTLE;
    scene.pool_mut(4).state = PoolState::Gone;
    assert_eq!(of(&scene, 3).unwrap(), "n5 n1 n3");
    scene.node_mut(5).topology.insert(ZONE.into(), "b".into());
    assert!(of(&scene, 3).is_err(), "rather no place than two in one zone");
    assert_eq!(of(&scene, 2).unwrap(), "n5 n1");
    let racks = Copies { spread: Some("rack"), ..ONE };
    assert_eq!(
        place_copies(&scene, &racks).unwrap_err().to_string(),
        "1 copy needs as many values of the label rack, 0 have a node that can take one \
         (without the label: n1, n2, n3, n4, n5 and 1 more); \
         label the nodes that are not, start some elsewhere, or ask for fewer copies"
    );
}

#[test]
fn a_zone_is_taken_by_a_copy_that_stays() {
    let mut scene = zoned();
    let members = scene.volume("a", 3, &[1, 3, 5]).intent.members.clone();
    let another = |scene: &Scene, leaving: &[Uuid]| {
        place_copies(scene, &Copies { spread: Some(ZONE), present: &members, leaving, ..ONE })
    };
    assert_eq!(
        another(&scene, &[]).unwrap_err().to_string(),
        "1 copy needs as many zones (topology.kubernetes.io/zone), 0 have a node that can take one \
         (a copy is in: a, b, c; without the label: n6); \
         label the nodes that are not, start some elsewhere, or ask for fewer copies"
    );
    assert_eq!(another(&scene, &[members[0].replica]).unwrap(), "n2", "in the zone of the one that goes");
    assert_eq!(another(&scene, &[members[1].replica]).unwrap(), "n4");
    let none = another(&scene, &[members[2].replica]).unwrap_err().to_string();
    assert!(none.contains("(a copy is in: a, b; without the label: n6)"), "never on its node: {none}");
    scene.pool_mut(5).state = PoolState::Gone;
    let mut second = scene.pool_mut(5).clone();
    (second.uuid, second.state) = (Uuid::from_u128(999), PoolState::Online);
    scene.add_pool(second);
    assert_eq!(another(&scene, &[]).unwrap(), "n5", "its disk is gone, and so is what it took");
}

#[test]
fn too_few_zones_are_named() {
    let mut scene = zoned();
    let says = |scene: &Scene, copies: Copies<'_>, text: &str| {
        let copies = Copies { spread: Some(ZONE), ..copies };
        assert_eq!(place_copies(scene, &copies).unwrap_err().to_string(), text);
    };
    scene.node_mut(6).topology.insert(ZONE.into(), "b".into());
    scene.node_mut(5).spec.scheduling = Scheduling::Cordoned;
    let three = Copies { wanted: 3, ..ONE };
    says(
        &scene,
        three,
        "3 copies need as many zones (topology.kubernetes.io/zone), 2 have a node that can take one: a, b \
         (cordoned: n5); uncordon a node, start some elsewhere, or ask for fewer copies",
    );
    scene.node_mut(5).spec.scheduling = Scheduling::Enabled;
    scene.node_mut(5).state = NodeState::NotReady;
    scene.node_mut(2).state = NodeState::NotReady;
    scene.pool_mut(1).class = Some(DiskClass::Nvme);
    says(
        &scene,
        Copies { class: Some(DiskClass::Nvme), wanted: 2, ..ONE },
        "2 copies need as many zones (topology.kubernetes.io/zone) with disks of class NVMe, \
         1 has a node that can take one: a (NotReady: n2, n5); \
         add such disks elsewhere, or ask for fewer copies or another class",
    );
    scene.node_mut(5).state = NodeState::Ready;
    says(
        &scene,
        Copies { size_bytes: 50 * GIB, ..three },
        "3 copies need as many zones (topology.kubernetes.io/zone) with a node with room for 50 GiB, 0 have that; \
         the most in another is 40 GiB; add disks, delete volumes, or ask for less",
    );
}

#[test]
fn a_copy_that_has_to_be_somewhere_is_there_or_nowhere() {
    let mut scene = zoned();
    let on = |scene: &Scene, nodes: &[&str], copies: Copies<'_>| {
        let nodes = nodes.iter().map(|node| (*node).to_owned()).collect();
        place_copies(scene, &Copies { on: Some(&nodes), ..copies })
    };
    let two = Copies { wanted: 2, ..ONE };
    assert_eq!(on(&scene, &["n6"], two).unwrap(), "n6 n1");
    assert_eq!(on(&scene, &["n4", "n6"], Copies { near: Some("n6"), ..two }).unwrap(), "n6 n4");
    assert_eq!(on(&scene, &["n4", "n7"], Copies { spread: Some(ZONE), ..two }).unwrap(), "n4 n1");
    let near = Some("n1");
    assert_eq!(on(&scene, &["n4"], Copies { near, ..ONE }).unwrap(), "n4", "a wish gives way");
    let cannot = |scene: &Scene, node: &str, copies: Copies<'_>| {
        let why = on(scene, &[node], copies).unwrap_err();
        assert!(matches!(why, NoPlace::NotThere { .. }), "{why}");
        why.cause()
    };
    assert_eq!(cannot(&scene, "n7", two), "a copy has to be on n7 (no node of Orlop)");
    let zones = Copies { spread: Some(ZONE), ..two };
    assert_eq!(
        cannot(&scene, "n6", zones),
        "a copy has to be on n6 (without the label topology.kubernetes.io/zone)"
    );
    scene.pool_mut(1).free_bytes = LITTLE;
    assert_eq!(cannot(&scene, "n1", two), "a copy has to be on n1 (room for 128 MiB)");
    scene.pool_mut(2).state = PoolState::Failed;
    assert_eq!(cannot(&scene, "n2", two), "a copy has to be on n2 (without a pool)");
    scene.node_mut(3).state = NodeState::NotReady;
    assert_eq!(cannot(&scene, "n3", two), "a copy has to be on n3 (NotReady)");
    scene.node_mut(4).spec.scheduling = Scheduling::Drained;
    scene.pool_mut(5).class = Some(DiskClass::Hdd);
    scene.pool_mut(6).class = Some(DiskClass::Hdd);
    let hdd = Copies { class: Some(DiskClass::Hdd), ..ONE };
    assert_eq!(
        on(&scene, &["n1", "n4"], hdd).unwrap_err().to_string(),
        "a copy has to be on n1 (without disks of class HDD) or n4 (Drained); choose another node, or make it fit"
    );
}

#[test]
fn no_place_says_why() {
    let mut scene = Scene::with_nodes(3);
    let says = |scene: &Scene, size, wanted, text: &str| {
        let message = place_in(scene, size, &[], wanted).unwrap_err().to_string();
        assert_eq!(message, text);
    };
    says(
        &scene,
        50 * GIB,
        3,
        "3 copies need as many nodes with room for 50 GiB, 0 have that; the most on another is 40 GiB; \
         add disks, delete volumes, or ask for less",
    );
    says(
        &scene,
        GIB,
        4,
        "4 copies need as many nodes, 3 can take one; start more nodes, or ask for fewer copies",
    );
    scene.node_mut(3).state = NodeState::NotReady;
    says(
        &scene,
        GIB,
        3,
        "3 copies need as many nodes, 2 can take one (NotReady: n3); start more nodes, or ask for fewer copies",
    );
}

#[test]
fn nothing_is_placed_on_a_cordoned_node() {
    let mut scene = Scene::with_nodes(4);
    for scheduling in [Scheduling::Cordoned, Scheduling::Drained, Scheduling::Evacuated] {
        scene.node_mut(2).spec.scheduling = scheduling;
        assert_eq!(place_in(&scene, GIB, &[], 3).unwrap(), "n1 n3 n4", "{scheduling}");
    }
    scene.node_mut(3).state = NodeState::NotReady;
    assert_eq!(
        place_in(&scene, GIB, &[], 3).unwrap_err().to_string(),
        "3 copies need as many nodes, 2 can take one (NotReady: n3; cordoned: n2); \
         start more nodes, uncordon one, or ask for fewer copies"
    );
    scene.node_mut(2).spec.scheduling = Scheduling::Enabled;
    assert_eq!(place_in(&scene, GIB, &[], 3).unwrap(), "n1 n2 n4");
}

#[test]
fn promises_are_bounded() {
    let mut scene = Scene::with_nodes(1);
    for index in 0..40 {
        assert!(place_in(&scene, GIB, &[], 1).is_ok(), "{index}: 4 GiB, ten times promised");
        scene.volume(&format!("v{index}"), 1, &[1]);
    }
    assert!(matches!(place_in(&scene, GIB, &[], 1), Err(NoPlace::TooLittleSpace { .. })));
    let members = scene.volume_mut("v0").intent.members.clone();
    assert!(check_growth(&scene.view, OVERCOMMIT_DEFAULT, &members, GIB, 2 * GIB).is_err());
    assert!(check_growth(&scene.view, 11, &members, GIB, 2 * GIB).is_ok());
}

#[test]
fn a_volume_may_be_larger_than_a_disk() {
    let mut scene = Scene::with_nodes(3);
    assert_eq!(place_in(&scene, 40 * GIB, &[], 3).unwrap(), "n1 n2 n3");
    assert!(place_in(&scene, 41 * GIB, &[], 3).is_err());
    scene.pool_mut(1).free_bytes = GIB / 2;
    assert_eq!(place_in(&scene, GIB, &[], 2).unwrap(), "n2 n3", "those that have all of it free come first");
    assert_eq!(place_in(&scene, GIB, &[], 3).unwrap(), "n2 n3 n1");
    let near = Copies { near: Some("n1"), ..ONE };
    assert_eq!(place_copies(&scene, &near).unwrap(), "n2", "near is less");
    let nodes = ["n1".to_owned()].into();
    let on = Copies { on: Some(&nodes), ..ONE };
    assert_eq!(place_copies(&scene, &on).unwrap(), "n1", "where it has to be is more");
    scene.pool_mut(1).free_bytes = LITTLE;
    assert!(place_in(&scene, GIB, &[], 3).is_err(), "what is nearly full gets no more");
    assert_eq!(place_in(&scene, LITTLE, &[], 3).unwrap(), "n2 n3 n1", "than it has");
}

#[test]
fn another_copy_needs_what_the_others_hold() {
    let mut scene = Scene::with_nodes(3);
    scene.volume("a", 3, &[1, 2]);
    let volume = scene.volume_mut("a").clone();
    let place = |scene: &Scene| {
        let held_bytes = scene.view.held_bytes(&volume);
        place_copies(scene, &Copies { held_bytes, present: &volume.intent.members, ..ONE })
    };
    scene.pool_mut(3).free_bytes = GIB / 2;
    assert_eq!(scene.view.held_bytes(&volume), GIB, "nobody says what it holds: perhaps all");
    assert!(place(&scene).is_err());
    for (node, member) in (1..).zip(&volume.intent.members) {
        scene.report(node, member.replica, ReplicaState::Present);
    }
    assert_eq!(place(&scene).unwrap(), "n3", "it holds nothing");
    let mut used = |node: &str, bytes| {
        scene.view.replicas.get_mut(node).unwrap().value.replicas[0].used_bytes = bytes;
        place(&scene)
    };
    assert_eq!(used("n1", GIB / 2).unwrap(), "n3");
    let why = used("n2", GIB / 2 + 1).unwrap_err();
    assert!(why.cause().contains("the most on another is 512 MiB"), "{why}");
    assert_eq!(scene.view.held_bytes(&Scene::with_nodes(1).volume("new", 1, &[]).clone()), 0);
}

/// Room for each number of copies from 0 to 4, in GiB, if nothing is promised twice.
fn room(scene: &Scene, copies: &Copies<'_>) -> [u64; 5] {
    let promised = Promised::of(&scene.view);
    [0, 1, 2, 3, 4].map(|wanted| largest(&scene.view, &promised, 1, &Copies { wanted, ..*copies }) / GIB)
}

/// Nodes whose pools have so many GiB.
fn with_room(gib: &[u64]) -> Scene {
    let mut scene = Scene::with_nodes(gib.len() as u128);
    for (node, gib) in (1..).zip(gib) {
        let pool = scene.pool_mut(node);
        (pool.capacity_bytes, pool.free_bytes) = (gib * GIB, gib * GIB);
    }
    scene
}

#[test]
fn room_is_counted_on_different_nodes() {
    let mut scene = with_room(&[4, 2, 3]);
    assert_eq!(room(&scene, &ONE), [0, 4, 3, 2, 0]);
    assert_eq!(largest(&scene.view, &Promised::default(), 10, &ONE), 40 * GIB);
    scene.volume("a", 2, &[1, 3]);
    assert_eq!(room(&scene, &ONE), [0, 3, 2, 2, 0], "what was promised is not there");
    scene.view.volumes.clear();
    scene.pool_mut(2).node = "n1".into();
    assert_eq!(room(&scene, &ONE), [0, 4, 3, 0, 0], "two pools of one node are one place");
    scene.node_mut(3).state = NodeState::NotReady;
    assert_eq!(room(&scene, &ONE), [0, 4, 0, 0, 0]);
    scene.node_mut(3).state = NodeState::Ready;
    scene.pool_mut(1).state = PoolState::Gone;
    assert_eq!(room(&scene, &ONE), [0, 3, 2, 0, 0]);
    scene.node_mut(3).spec.scheduling = Scheduling::Cordoned;
    assert_eq!(room(&scene, &ONE), [0, 2, 0, 0, 0], "nothing is placed there");
    let hdd = Copies { class: Some(DiskClass::Hdd), ..ONE };
    assert_eq!(room(&scene, &hdd), [0; 5], "nobody says what their disks are");
    scene.pool_mut(2).class = Some(DiskClass::Hdd);
    assert_eq!(room(&scene, &hdd), [0, 2, 0, 0, 0]);
}

#[test]
fn room_is_counted_in_different_zones_and_where_a_copy_has_to_be() {
    let mut scene = with_room(&[8, 7, 2, 4, 9]);
    let zones = Copies { spread: Some(ZONE), ..ONE };
    assert_eq!(room(&scene, &zones), [0; 5], "no node says where it is");
    for (node, zone) in (1..).zip(["a", "a", "b", "c"]) {
        scene.node_mut(node).topology.insert(ZONE.into(), zone.into());
    }
    let at = |scene: &Scene, node: &str, copies: &Copies<'_>| {
        let nodes = [node.to_owned()].into();
        room(scene, &Copies { on: Some(&nodes), ..*copies })
    };
    assert_eq!(room(&scene, &ONE), [0, 9, 8, 7, 4]);
    assert_eq!(room(&scene, &zones), [0, 8, 4, 2, 0], "n5 is nowhere");
    assert_eq!(at(&scene, "n3", &ONE), [0, 2, 2, 2, 2]);
    assert_eq!(at(&scene, "n2", &ONE), [0, 7, 7, 7, 4]);
    assert_eq!(at(&scene, "n2", &zones), [0, 7, 4, 2, 0], "and not n1, in its zone");
    assert_eq!(at(&scene, "n5", &zones), [0; 5]);
    assert_eq!(at(&scene, "n7", &zones), [0; 5]);
    scene.node_mut(2).spec.scheduling = Scheduling::Cordoned;
    assert_eq!(at(&scene, "n2", &zones), [0; 5]);
}

proptest! {
    /// What there is room for is placed, and nothing larger is.
    #[test]
    fn the_largest_volume_is_the_largest(
        gib in proptest::collection::vec((0_u64..9, 0_u64..9), 1..6),
        wanted in 1_usize..5,
        overcommit in 1_u64..4,
        node in proptest::option::of(1_u128..6),
    ) {
        let mut scene = Scene::with_nodes(gib.len() as u128);
        for (index, (capacity, free)) in (1..).zip(&gib) {
            let pool = scene.pool_mut(index);
            (pool.capacity_bytes, pool.free_bytes) = (capacity * GIB, free.min(capacity) * GIB);
        }
        let nodes = node.map(|node| [format!("n{node}")].into());
        let copies = Copies { on: nodes.as_ref(), ..Copies::new(0, wanted) };
        let bytes = largest(&scene.view, &Promised::default(), overcommit, &copies);
        let fits = |size_bytes| {
            let copies = Copies { size_bytes, ..copies };
            place(&scene.view, &mut Promised::default(), overcommit, &copies, &mut Uuid::new_v4).is_ok()
        };
        prop_assert!(bytes == 0 || fits(bytes), "{bytes}");
        prop_assert!(!fits(bytes + 1), "{bytes}");
    }
}

//! The answers, one table row per situation that a user can be in.

use super::*;
use crate::{Attach, Generation, MemberIntent, MemberRecord, MemberStatus, NodeSpec, Owner};
use VolumeState::{
    Attached, Attaching, Available, Creating, Degraded, Deleting, Detaching, Pending, Stalled,
};

pub(crate) struct Scene {
    pub(crate) volume: Volume,
    pub(crate) record: Option<VolumeRecord>,
    pub(crate) status: Option<VolumeStatus>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) pools: Vec<Pool>,
    replicas: Vec<NodeReplicas>,
}

impl Scene {
    pub(crate) fn around(&self) -> Surroundings<'_> {
        Surroundings::new(&self.nodes, &self.pools, &self.replicas)
    }

    /// What node `n{index}` says of its copy.
    pub(crate) fn report(&mut self, index: u128, state: ReplicaState) {
        let report = ReplicaReport {
            replica: Uuid::from_u128(10 + index),
            volume: self.volume.uuid,
            pool: Uuid::from_u128(20 + index),
            state,
            used_bytes: 0,
            message: None,
            record: None,
        };
        self.replicas.push(NodeReplicas { node: name(index), replicas: vec![report], readers: Vec::new() });
    }

    /// What node `n{index}` says of its read-only device.
    fn reads(&mut self, index: u128, attach_serial: u64, device: Option<&str>, message: Option<&str>) {
        let report = ReaderReport {
            volume: self.volume.uuid,
            attach_serial,
            device: device.map(str::to_owned),
            size_bytes: 1 << 30,
            message: message.map(str::to_owned),
        };
        self.replicas.retain(|of| of.node != name(index));
        self.replicas.push(NodeReplicas { node: name(index), replicas: Vec::new(), readers: vec![report] });
    }
}

fn name(index: u128) -> String {
    format!("n{index}")
}

/// Three nodes, three copies in sync, attached to n1.
pub(crate) fn attached() -> Scene {
    let ids = 1..=3_u128;
    Scene {
        volume: Volume {
            name: "data".into(),
            uuid: Uuid::from_u128(100),
            spec: VolumeSpec {
                size_bytes: 1 << 30,
                copies: 3,
                stripes: 1,
                block_size: 4096,
                class: None,
                spread: None,
            },
            intent: VolumeIntent {
                members: ids
                    .clone()
                    .map(|id| MemberIntent {
                        replica: Uuid::from_u128(10 + id),
                        pool: Uuid::from_u128(20 + id),
                        node: name(id),
                    })
                    .collect(),
                attach: Some(Attach { node: "n1".into() }),
                forget: Vec::new(),
                readers: Vec::new(),
                attach_serial: 1,
                owner: Some("n1".into()),
                recorded: true,
                deleting: false,
            },
            message: None,
        },
        record: Some(VolumeRecord {
            version: 5,
            epoch: 2,
            owner: Some(Owner { nexus: Uuid::from_u128(50), node: "n1".into() }),
            clean: false,
            attachment: 1,
            ..VolumeRecord::new(
                Uuid::from_u128(100),
                1 << 30,
                4096,
                ids.clone()
                    .map(|id| MemberRecord {
                        state: MemberState::InSync,
                        ..MemberRecord::new(Uuid::from_u128(10 + id), Uuid::from_u128(20 + id), name(id))
                    })
                    .collect(),
            )
        }),
        status: Some(VolumeStatus {
            volume: Uuid::from_u128(100),
            node: "n1".into(),
            nexus: Uuid::from_u128(50),
            epoch: 2,
            state: NexusState::Serving,
            device: Some("/dev/loop7".into()),
            target: None,
            attachment: 1,
            attach_serial: 1,
            size_bytes: 1 << 30,
            stable: Generation::ZERO,
            members: Vec::new(),
            write_stall_max_ms: 0,
            message: None,
        }),
        nodes: ids
            .clone()
            .map(|id| Node {
                name: name(id),
                spec: NodeSpec::default(),
                state: NodeState::Ready,
                address: "127.0.0.1:4420".into(),
                metrics_address: None,
                pid: 1,
                boot_id: Uuid::from_u128(1),
                version: "0".into(),
                heartbeat: 1,
                topology: BTreeMap::new(),
            })
            .collect(),
        pools: ids
            .map(|id| Pool {
                name: "disk0".into(),
                uuid: Uuid::from_u128(20 + id),
                node: name(id),
                spec: crate::PoolSpec::default(),
                uri: "mem://".into(),
                class: None,
                state: PoolState::Online,
                capacity_bytes: 4 << 30,
                used_bytes: 0,
                free_bytes: 4 << 30,
                incarnation: Uuid::from_u128(30 + id),
                boot_id: Uuid::from_u128(1),
                message: None,
            })
            .collect(),
        replicas: Vec::new(),
    }
}

fn check(what: &str, change: impl FnOnce(&mut Scene), state: VolumeState, says: Option<&str>) {
    let mut scene = attached();
    change(&mut scene);
    let got = explain(&scene.volume, scene.record.as_ref(), scene.status.as_ref(), &scene.around());
    assert_eq!(got.state, state, "{what}: {got:?}");
    match (says, &got.message) {
        (None, None) => {}
        (Some(says), Some(message)) if message.contains(says) && !message.contains('\n') => {}
        _ => panic!("{what}: wanted {says:?}, got {got:?}"),
    }
}

pub(crate) fn detach(scene: &mut Scene) {
    scene.volume.intent.attach = None;
    scene.volume.intent.owner = None;
    scene.record.as_mut().unwrap().owner = None;
    let status = scene.status.as_mut().unwrap();
    status.state = NexusState::Closed;
    status.device = None;
}

#[test]
fn where_it_lives_has_one_answer() {
    check("all well", |_| {}, Attached, None);
    check("closed", detach, Available, None);
    check("record lost", |s| s.record = None, Stalled, Some("its record is missing"));
    let held = |scene: &mut Scene| {
        (scene.record, scene.volume.message) =
            (None, Some(format!("{RECORD_MISSING}; copies are kept on n2")));
    };
    check("and its copies are known", held, Stalled, Some("copies are kept on n2"));
    let copied = |scene: &mut Scene| scene.record = scene.record.take().map(|record| record.recovered(0, 0));
    check(
        "from a copy",
        copied,
        Stalled,
        Some("its record is from a copy, and it opens when all its members"),
    );
    let waits = |scene: &mut Scene| {
        copied(scene);
        scene.nodes[1].state = NodeState::NotReady;
    };
    check("and a member is away", waits, Stalled, Some("have answered (I12): node n2 is NotReady"));
    let says = |scene: &mut Scene| {
        scene.record.as_mut().unwrap().unconfirmed = true;
        let status = scene.status.as_mut().unwrap();
        (status.state, status.message) = (NexusState::Opening, Some("waiting for n2".into()));
    };
    check("and somebody is opening it", says, Stalled, Some("waiting for n2"));
    let waited = |scene: &mut Scene| (scene.record, scene.volume.message) = (None, Some("no place".into()));
    check("and it waited before", waited, Stalled, Some("its record is missing"));
    check(
        "not placed",
        |s| {
            s.record = None;
            s.volume.intent.recorded = false;
        },
        Pending,
        Some("waits for the manager"),
    );
    check(
        "no room",
        |s| {
            s.record = None;
            s.volume.intent.recorded = false;
            s.volume.message = Some("too few nodes".into());
        },
        Pending,
        Some("too few nodes"),
    );
    check(
        "being made",
        |s| {
            detach(s);
            s.record.as_mut().unwrap().members.iter_mut().for_each(|m| m.state = MemberState::New);
        },
        Creating,
        Some("replicas are being made"),
    );
    check(
        "being made, node away",
        |s| {
            detach(s);
            s.record.as_mut().unwrap().members.iter_mut().for_each(|m| m.state = MemberState::New);
            s.nodes[1].state = NodeState::NotReady;
        },
        Creating,
        Some("node n2 is NotReady"),
    );
    check(
        "a copy away",
        |s| s.nodes[2].state = NodeState::NotReady,
        Degraded,
        Some("2 of 3 copies in sync: node n3"),
    );
}

#[test]
fn what_it_does_has_one_answer() {
    check(
        "rebuilding",
        |s| {
            s.record.as_mut().unwrap().members[2].state = MemberState::Rebuilding { since: Generation::ZERO };
            s.status.as_mut().unwrap().members.push(MemberStatus {
                replica: Uuid::from_u128(13),
                node: "n3".into(),
                state: MemberPhase::Rebuilding,
                reachable: true,
                rebuild: Some(Rebuild { done_bytes: 1 << 20, total_bytes: 4 << 20, ..Rebuild::default() }),
                rebuilt: None,
                message: None,
            });
        },
        Degraded,
        Some("copy on n3 is rebuilding, 1 MiB of 4 MiB"),
    );
    check(
        "owner dead",
        |s| s.nodes[0].state = NodeState::NotReady,
        Stalled,
        Some("attach the volume to another node"),
    );
    check(
        "moving",
        |s| {
            s.volume.intent.attach = Some(Attach { node: "n2".into() });
            s.volume.intent.owner = Some("n2".into());
            s.nodes[0].state = NodeState::NotReady;
        },
        Attaching,
        Some("node n2 takes over from node n1 (node n1 is NotReady"),
    );
    check(
        "serial not answered",
        |s| s.volume.intent.attach_serial = 2,
        Attaching,
        Some("n1 is making the device"),
    );
    check(
        "nexus stalled",
        |s| {
            s.status.as_mut().unwrap().state = NexusState::Stalled;
            s.status.as_mut().unwrap().message = Some("the store cannot be reached".into());
        },
        Stalled,
        Some("the store cannot be reached"),
    );
    check(
        "detaching",
        |s| {
            s.volume.intent.attach = None;
            s.volume.intent.owner = None;
        },
        Detaching,
        Some("node n1 is closing the device"),
    );
    check(
        "all copies away",
        |s| {
            detach(s);
            s.nodes.iter_mut().for_each(|node| node.state = NodeState::NotReady);
        },
        Stalled,
        Some("NotReady (n1, n2, n3)"),
    );
    check(
        "deleting, node away",
        |s| {
            detach(s);
            s.volume.intent.deleting = true;
            s.nodes[1].state = NodeState::NotReady;
        },
        Deleting,
        Some("node n2 is NotReady"),
    );
    check(
        "pool failed",
        |s| {
            s.record.as_mut().unwrap().members[1].state = MemberState::Stale { since: Generation::ZERO };
            s.pools[1].state = PoolState::Failed;
            s.pools[1].message = Some("disk gone".into());
        },
        Degraded,
        Some("pool disk0 of node n2 has failed: disk gone"),
    );
}

/// n1 has the nexus; n2 and n3 read.
fn read_by_two() -> Scene {
    let mut scene = attached();
    scene.volume.intent.attach = None;
    scene.volume.intent.readers = vec!["n2".into(), "n3".into()];
    scene.volume.intent.attach_serial = 2;
    scene.status.as_mut().unwrap().device = None;
    scene.reads(2, 2, Some("/dev/loop2"), None);
    scene.reads(3, 2, Some("/dev/loop3"), None);
    scene
}

#[test]
fn each_reader_has_a_device_or_a_reason() {
    type Change = fn(&mut Scene);
    let rows: [(&str, Change, VolumeState, Option<&str>); 8] = [
        ("all read", |_| {}, Attached, None),
        ("one says nothing yet", |s| drop(s.replicas.pop()), Attaching, Some("node n3 is making the device")),
        ("one cannot", |s| s.reads(3, 2, None, Some("not root")), Attaching, Some("node n3: not root")),
        ("one is of before", |s| s.reads(3, 1, Some("/dev/loop3"), None), Attaching, Some("n3 is making")),
        (
            "a node is away, and no copy is missed",
            |s| {
                s.nodes[2].state = NodeState::NotReady;
                s.volume.spec.copies = 2;
            },
            Attached,
            Some("NotReady (n3)"),
        ),
        ("one leaves", |s| s.volume.intent.readers.truncate(1), Detaching, Some("n3 is closing the device")),
        (
            "one is used",
            |s| {
                s.volume.intent.readers.clear();
                s.replicas.remove(0);
                s.reads(3, 2, Some("/dev/loop3"), Some("mounted at /x"));
            },
            Detaching,
            Some("mounted at /x"),
        ),
        (
            "nexus stalled",
            |s| s.status.as_mut().unwrap().state = NexusState::Stalled,
            Stalled,
            Some("no copy that is in sync"),
        ),
    ];
    for (what, change, wanted, says) in rows {
        let mut scene = read_by_two();
        change(&mut scene);
        let status = show(&scene).status;
        assert_eq!(status.state, wanted, "{what}: {:?}", status.message);
        assert_eq!(status.message.is_some(), says.is_some(), "{what}: {:?}", status.message);
        assert!(status.message.unwrap_or_default().contains(says.unwrap_or_default()), "{what}");
    }
}

#[test]
fn devices_of_readers_are_shown_while_they_are_there() {
    let mut scene = read_by_two();
    scene.volume.intent.readers = vec!["n1".into(), "n2".into()];
    let status = show(&scene).status;
    let seen: Vec<_> =
        status.readers.iter().map(|reader| (reader.node.as_str(), reader.device.as_deref())).collect();
    assert_eq!(seen, [("n1", None), ("n2", Some("/dev/loop2")), ("n3", Some("/dev/loop3"))]);
    assert!(status.has_device(None) && status.has_device(Some("n3")) && !status.has_device(Some("n1")));
    scene.nodes[2].state = NodeState::NotReady;
    assert!(!show(&scene).status.has_device(Some("n3")), "what a node said before it was away");
    scene.reads(2, 1, Some("/dev/loop2"), None);
    assert!(!show(&scene).status.has_device(Some("n2")), "what is of before a writer is not what is wished");
    assert_eq!(serde_json::to_value(show(&attached()).status).unwrap().get("readers"), None);
}

#[test]
fn a_dead_nexus_shows_no_device() {
    let mut scene = attached();
    assert_eq!(show(&scene).status.device.as_deref(), Some("/dev/loop7"));
    scene.nodes[0].state = NodeState::NotReady;
    assert_eq!(show(&scene).status.device, None);
    scene.nodes[0].state = NodeState::Ready;
    scene.record.as_mut().unwrap().epoch = 3;
    assert_eq!(show(&scene).status.device, None, "status of an epoch that is over");
}

#[test]
fn the_json_is_what_the_issue_fixes() {
    let scene = attached();
    let json = serde_json::to_value(show(&scene)).unwrap();
    assert_eq!(json["spec"]["sizeBytes"], 1 << 30);
    assert_eq!(json["status"]["state"], "Attached");
    assert_eq!(json["status"]["device"], "/dev/loop7");
    assert_eq!(json["status"]["owner"], "n1");
    assert_eq!(json["status"]["epoch"], 2);
    let member = &json["status"]["members"][0];
    assert_eq!(member["node"], "n1");
    assert_eq!(member["state"], "InSync");
    assert!(member["replica"].is_string() && member["rebuild"].is_null());
    assert!(member["present"] == true && member["message"].is_null());
}

/// While nobody has the volume open its record says what was, not what is.
#[test]
fn a_copy_that_is_lost_does_not_count_whatever_the_record_says() {
    let closed = |change: fn(&mut Scene)| {
        move |scene: &mut Scene| {
            detach(scene);
            change(scene);
        }
    };
    check(
        "disk replaced",
        closed(|s| s.pools[1].state = PoolState::Gone),
        Degraded,
        Some("2 of 3 copies in sync: pool disk0 (00000000-0000-0000-0000-000000000016) is gone from node n2"),
    );
    check(
        "pool failed",
        closed(|s| s.pools[1].state = PoolState::Failed),
        Degraded,
        Some("node n2 has failed"),
    );
    check(
        "replica missing",
        closed(|s| s.report(2, ReplicaState::Missing)),
        Degraded,
        Some("2 of 3 copies in sync: replica 00000000-0000-0000-0000-00000000000c is missing from node n2"),
    );
    check("replica there", closed(|s| s.report(2, ReplicaState::Present)), Available, None);
    check(
        "all lost",
        closed(|s| s.pools.iter_mut().for_each(|pool| pool.state = PoolState::Gone)),
        Stalled,
        Some("no copy that is in sync can be reached: pool disk0"),
    );
    let mut scene = attached();
    detach(&mut scene);
    scene.pools[1].state = PoolState::Gone;
    let members = show(&scene).status.members;
    assert_eq!(members.iter().map(|member| member.present).collect::<Vec<_>>(), [true, false, true]);
    assert!(members[1].state == MemberPhase::InSync && members[1].message.is_some(), "{members:?}");
}

/// A resize that was answered before the device had grown let `resize2fs` and CSI's expansion find the old size.
#[test]
fn a_volume_has_grown_when_its_device_has() {
    let mut scene = attached();
    let size = |scene: &Scene| show(scene).status.size_bytes >> 30;
    scene.record.as_mut().unwrap().size_bytes = 2 << 30;
    assert_eq!(size(&scene), 1, "the device has not followed");
    scene.status.as_mut().unwrap().size_bytes = 2 << 30;
    assert_eq!(size(&scene), 2);
    scene.status.as_mut().unwrap().size_bytes = 1 << 30;
    detach(&mut scene);
    assert_eq!(size(&scene), 2, "there is no device");
}

fn show(scene: &Scene) -> VolumeView {
    view(&scene.volume, 9, scene.record.as_ref(), scene.status.as_ref(), &scene.around())
}

//! What a drain of n3 waits for, one table row per situation; the volume "data" has copies on n1, n2 and n3.

use super::*;
use crate::{
    Attach, Generation, MemberPhase, MemberStatus, Owner, PoolState, ReplicaState,
    explain::tests::{Scene, attached, detach},
};
use Scheduling::{Cordoned, Drained, Enabled, Evacuated};

const STALE: MemberState = MemberState::Stale { since: Generation::ZERO };

fn show(scene: &Scene) -> NodeView {
    let facts =
        VolumeFacts { volume: &scene.volume, record: scene.record.as_ref(), status: scene.status.as_ref() };
    node_view(&Stored { revision: 9, value: scene.nodes[2].clone() }, [facts], &scene.around())
}

fn check(what: &str, scheduling: Scheduling, change: impl FnOnce(&mut Scene), says: &[(Held, &str)]) {
    let mut scene = attached();
    detach(&mut scene);
    scene.nodes[2].spec.scheduling = scheduling;
    change(&mut scene);
    let waits = show(&scene).waits_for;
    assert_eq!(waits.len(), says.len(), "{what}: {waits:?}");
    for (wait, (held, text)) in waits.iter().zip(says) {
        assert!(wait.held == *held && wait.message.contains(text), "{what}: wanted {says:?}, got {waits:?}");
        assert!(wait.volume == "data" && !wait.message.contains('\n'));
    }
}

fn run_on_n3(scene: &mut Scene) {
    scene.volume.intent.owner = Some("n3".into());
    scene.record.as_mut().unwrap().owner = Some(Owner { nexus: Uuid::from_u128(50), node: "n3".into() });
}

fn attach_on_n3(scene: &mut Scene) {
    run_on_n3(scene);
    scene.volume.intent.attach = Some(Attach { node: "n3".into() });
}

fn state(scene: &mut Scene, index: usize, state: MemberState) {
    scene.record.as_mut().unwrap().members[index].state = state;
}

/// A fourth copy, in this state.
fn add_n4(scene: &mut Scene, state: MemberState) {
    let (replica, pool) = (Uuid::from_u128(14), Uuid::from_u128(24));
    scene.volume.intent.members.push(MemberIntent { replica, pool, node: "n4".into() });
    let member = MemberRecord { state, ..MemberRecord::new(replica, pool, "n4".into()) };
    scene.record.as_mut().unwrap().members.push(member);
    let node = Node { name: "n4".into(), ..scene.nodes[0].clone() };
    let of_node = crate::Pool { uuid: pool, node: "n4".into(), ..scene.pools[0].clone() };
    scene.nodes.push(node);
    scene.pools.push(of_node);
}

#[test]
fn a_node_that_is_not_drained_waits_for_nothing() {
    check("enabled", Enabled, attach_on_n3, &[]);
    check("cordoned", Cordoned, attach_on_n3, &[]);
}

#[test]
fn a_drain_waits_for_what_runs_and_for_the_last_copy() {
    check("two other copies", Drained, |_| {}, &[]);
    check("attached", Drained, attach_on_n3, &[(Held::Attachment, "`orlop volume detach data`")]);
    check("nexus", Drained, run_on_n3, &[(Held::Nexus, "has work to do")]);
    check(
        "read, and the nexus leaves",
        Drained,
        |s| (run_on_n3(s), s.volume.intent.readers = vec!["n3".into()]).1,
        &[(Held::Attachment, "`orlop volume detach data --node n3`"), (Held::Nexus, "has work to do")],
    );
    check(
        "nexus closing",
        Drained,
        |s| (run_on_n3(s), s.volume.intent.owner = None).1,
        &[(Held::Nexus, "closing")],
    );
    check(
        "nexus wished",
        Drained,
        |s| s.volume.intent.owner = Some("n3".into()),
        &[(Held::Nexus, "has work")],
    );
    check(
        "the others are stale",
        Drained,
        |s| (state(s, 0, STALE), state(s, 1, STALE)).0,
        &[(Held::Copy, "its only copy that is in sync is there: copy on n1 waits to be rebuilt")],
    );
    check("it is stale itself", Drained, |s| state(s, 2, STALE), &[]);
    check(
        "the others are away",
        Drained,
        |s| {
            s.nodes[0].state = NodeState::NotReady;
            s.pools[1].state = PoolState::Gone;
        },
        &[(Held::Copy, "no other copy that is in sync stays: node n1 is NotReady, pool disk0")],
    );
    check(
        "the others are drained",
        Drained,
        |s| (s.nodes[0].spec.scheduling, s.nodes[1].spec.scheduling) = (Drained, Evacuated),
        &[(Held::Copy, "node n1 is drained, too, node n2 is drained, too")],
    );
    check(
        "one copy",
        Drained,
        |s| s.record.as_mut().unwrap().members.drain(..2).for_each(drop),
        &[(Held::Copy, "its only copy that is in sync is there")],
    );
}

#[test]
fn an_evacuation_waits_for_every_copy() {
    check(
        "no place",
        Evacuated,
        |s| s.volume.message = Some("no place: x".into()),
        &[(Held::Copy, "no place: x")],
    );
    check("not planned", Evacuated, |_| {}, &[(Held::Copy, "not found another place yet")]);
    check("made", Evacuated, |s| add_n4(s, MemberState::New), &[(Held::Copy, "copy on n4 is being made")]);
    check(
        "being rebuilt",
        Evacuated,
        |s| {
            add_n4(s, MemberState::Rebuilding { since: Generation::ZERO });
            s.status.as_mut().unwrap().members.push(MemberStatus {
                replica: Uuid::from_u128(14),
                node: "n4".into(),
                state: MemberPhase::Rebuilding,
                reachable: true,
                rebuild: Some(Rebuild { done_bytes: 1 << 20, total_bytes: 4 << 20, ..Rebuild::default() }),
                rebuilt: None,
                message: None,
            });
        },
        &[(Held::Copy, "copy on n4 is rebuilding, 1 MiB of 4 MiB")],
    );
    let left = |s: &mut Scene| {
        add_n4(s, MemberState::InSync);
        s.volume.intent.members.remove(2);
    };
    check("let go", Evacuated, left, &[(Held::Copy, "given up when the others")]);
    let removed = |s: &mut Scene| {
        left(s);
        state(s, 2, MemberState::Removed);
    };
    check("destroyed", Evacuated, removed, &[(Held::Copy, "being destroyed")]);
    let destroyed = |s: &mut Scene| {
        removed(s);
        s.report(3, ReplicaState::Destroyed);
    };
    check("a record may name it until it is opened again", Evacuated, destroyed, &[]);
    let away = |s: &mut Scene| {
        removed(s);
        s.nodes[2].state = NodeState::NotReady;
    };
    check("of a node that is away", Evacuated, away, &[]);
}

#[test]
fn what_is_on_a_node_is_shown() {
    let mut scene = attached();
    let data = || vec!["data".to_owned()];
    let view = show(&scene);
    assert_eq!((view.attached, view.nexuses, view.copies), (vec![], vec![], data()));
    attach_on_n3(&mut scene);
    let view = show(&scene);
    assert_eq!((&view.attached, &view.nexuses, &view.copies), (&data(), &data(), &data()));
    let json = serde_json::to_value(&view).unwrap();
    assert_eq!(
        (&json["name"], &json["revision"], &json["waitsFor"]),
        (&"n3".into(), &9.into(), &serde_json::json!([]))
    );
    assert_eq!(serde_json::from_value::<NodeView>(json).unwrap(), view);
}

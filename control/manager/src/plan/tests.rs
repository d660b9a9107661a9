//! Tables: a situation, and what the manager writes.

use super::*;
use crate::testing::Scene;
use model::{
    Attach, Generation, MemberIntent, MemberStatus, Object, Pool, PoolState, Rebuild, ReplicaReport,
    ReplicaState, Scheduling, Settled, VolumeIntent,
};
use std::collections::BTreeSet;

const STALE: MemberState = MemberState::Stale { since: Generation::ZERO };

/// Plans after the view has been watched for so long, with nothing changing but the heartbeats of nodes that are ready.
fn plan_after(scene: &Scene, seconds: u64) -> Vec<Action> {
    let config = Config::default();
    let mut observed = Observed::default();
    let mut scene = scene.clone();
    for second in 100..=100 + seconds {
        for node in scene.view.nodes.values_mut().filter(|node| node.value.state == NodeState::Ready) {
            node.value.heartbeat = second;
        }
        observed.observe(&scene.view, Duration::from_secs(second), config.lease);
    }
    let mut next = 0;
    plan(&scene.view, &observed, &config, &mut || {
        next += 1;
        Uuid::from_u128(7000 + next)
    })
}

/// The intent that is written for the one volume, as `members / owner / message`.
fn wish_after(scene: &Scene, seconds: u64) -> String {
    let actions = plan_after(scene, seconds);
    let mut volumes = actions.iter().filter_map(|action| match action {
        Action::Volume(volume) => Some(&volume.value),
        _ => None,
    });
    let Some(volume) = volumes.next() else { return "unchanged".into() };
    let nodes: Vec<&str> = volume.intent.members.iter().map(|member| member.node.as_str()).collect();
    let owner = volume.intent.owner.as_deref().unwrap_or("-");
    format!("{} / {owner} / {}", nodes.join(" "), volume.message.as_deref().unwrap_or("-"))
}

fn attach(scene: &mut Scene, node: &str) {
    let intent = &mut scene.volume_mut("a").intent;
    intent.attach = Some(Attach { node: node.into() });
    intent.owner = Some(node.into());
}

fn serve(scene: &mut Scene, node: &str) {
    scene.nexus("a", node, NexusState::Serving);
}

#[test]
fn a_node_whose_lease_has_ended_is_not_ready() {
    let scene = Scene::with_nodes(1);
    let config = Config::default();
    let mut observed = Observed::default();
    for second in 0..=6 {
        observed.observe(&scene.view, Duration::from_secs(second), config.lease);
    }
    let actions = plan(&scene.view, &observed, &config, &mut Uuid::nil);
    let [Action::Node(node)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((node.value.name.as_str(), node.value.state), ("n1", NodeState::NotReady));
}

#[test]
fn a_placed_volume_gets_a_record_once() {
    let mut scene = Scene::with_nodes(3);
    let volume = scene.volume("a", 3, &[1, 2, 3]).clone();
    let [Action::CreateRecord(record)] = &plan_after(&scene, 0)[..] else { panic!("no record") };
    assert_eq!((record.volume, record.version, record.epoch, &record.owner), (volume.uuid, 1, 0, &None));
    assert!(record.members.iter().all(|member| member.state == MemberState::New));
    let replicas = |members: &[MemberRecord]| members.iter().map(|member| member.replica).collect::<Vec<_>>();
    let wanted: Vec<Uuid> = volume.intent.members.iter().map(|member| member.replica).collect();
    assert_eq!(replicas(&record.members), wanted);

    scene.volume_mut("a").intent.recorded = true;
    let says = "n1 n2 n3 / - / its record is missing from the store; restore the store, do not create the volume again; \
                no node reports a copy of it";
    assert_eq!(wish_after(&scene, 0), says);
    scene.volume_mut("a").message = Some(says["n1 n2 n3 / - / ".len()..].into());
    assert_eq!(plan_after(&scene, 0), [], "a record that was lost is not made again");
}

/// What is planned for a volume without a record, whose places are these, when n2 says this of one of its replicas.
fn planned_beside(places: &[u128], state: ReplicaState, message: Option<&str>) -> (Scene, Vec<Action>) {
    let mut scene = Scene::with_nodes(3);
    let volume = scene.volume("a", 3, places).uuid;
    let (replica, pool, message) = (Uuid::from_u128(99), Uuid::from_u128(22), message.map(str::to_owned));
    scene.say(2, ReplicaReport { replica, volume, pool, state, used_bytes: 0, message, record: None });
    let actions = plan_after(&scene, 0);
    (scene, actions)
}

/// An empty volume would take the place of its data (I12).
#[test]
fn no_record_is_made_for_a_volume_of_which_a_copy_is_there() {
    let table = [
        ("kept", ReplicaState::Present, Some("no record names it")),
        ("reported while there was a record", ReplicaState::Present, None),
        ("in a pool that is away", ReplicaState::Missing, None),
        ("cannot be used", ReplicaState::Failed, Some("the disk is broken")),
        ("taken away with its disk", ReplicaState::Destroyed, Some("not on this node any more")),
    ];
    for (what, state, message) in table {
        for places in [&[][..], &[1, 2, 3]] {
            let (mut scene, actions) = planned_beside(places, state, message);
            let [Action::Volume(held)] = &actions[..] else { panic!("{what}: {actions:?}") };
            let held = held.value.clone();
            assert!(held.intent.recorded, "{what}");
            assert_eq!(held.intent.members, scene.volume_mut("a").intent.members, "{what}");
            let message = held.message.as_deref().unwrap_or_default();
            assert!(message.starts_with(model::RECORD_MISSING), "{what}: {message}");
            assert!(message.ends_with("; copies are kept on n2"), "{what}: {message}");
            *scene.volume_mut("a") = held;
            scene.view.nodes.clear();
            assert_eq!(plan_after(&scene, 0), [], "{what}: its node is away");
        }
    }
    let (_, actions) = planned_beside(&[1, 2, 3], ReplicaState::Destroyed, None);
    assert!(matches!(&actions[..], [Action::CreateRecord(_)]), "destroyed for good: {actions:?}");
    let mut scene = Scene::with_nodes(3);
    scene.volume("a", 3, &[1, 2, 3]);
    scene.report(2, Uuid::from_u128(99), ReplicaState::Present);
    let actions = plan_after(&scene, 0);
    assert!(matches!(&actions[..], [Action::CreateRecord(_)]), "of another volume: {actions:?}");
}

#[test]
fn a_record_that_is_back_is_followed_again() {
    let mut scene = Scene::with_nodes(3);
    scene.recorded("a", 3, &[1, 2, 3], MemberState::InSync);
    let members = scene.volume_mut("a").intent.members.clone();
    let lost = std::mem::take(&mut scene.view.records);
    scene.volume_mut("a").intent = VolumeIntent { recorded: true, ..VolumeIntent::default() };
    let [Action::Volume(held)] = &plan_after(&scene, 0)[..] else { panic!("it says nothing") };
    *scene.volume_mut("a") = held.value.clone();
    assert_eq!(plan_after(&scene, 0), []);
    scene.view.records = lost;
    let [Action::RestoreIntent(volume, _)] = &plan_after(&scene, 0)[..] else { panic!("it is not followed") };
    assert_eq!((&volume.value.intent.members, &volume.value.message), (&members, &None));
}

/// What a replica keeps of the record of volume "a": it was settled at this epoch and version, and got these since.
fn keep(
    scene: &mut Scene,
    (node, replica): (u128, u128),
    settled: (u64, u64),
    now: (u64, u64),
) -> VolumeRecord {
    let volume = scene.volume_mut("a").uuid;
    let (pool, replica) = (Uuid::from_u128(20 + node), Uuid::from_u128(replica));
    let member =
        MemberRecord { state: MemberState::InSync, ..MemberRecord::new(replica, pool, format!("n{node}")) };
    let record = VolumeRecord {
        epoch: now.0,
        version: now.1,
        settled: Some(Settled { epoch: settled.0, version: settled.1 }),
        ..VolumeRecord::new(volume, 1 << 30, 4096, vec![member])
    };
    let (state, message) = (ReplicaState::Present, Some("no record names it".to_owned()));
    let kept = Some(Box::new(record.clone()));
    scene.say(node, ReplicaReport { replica, volume, pool, state, used_bytes: 0, message, record: kept });
    record
}

/// A volume that had a record and has none, and is known to.
fn without_record() -> Scene {
    let mut scene = Scene::with_nodes(3);
    scene.volume("a", 1, &[]).intent.recorded = true;
    scene
}

#[test]
fn a_record_that_was_lost_is_made_again_from_the_latest_copy() {
    let mut scene = without_record();
    let latest = keep(&mut scene, (1, 91), (7, 30), (7, 30));
    // It was opened in vain, by a store that was set back.
    keep(&mut scene, (2, 92), (5, 20), (9, 22));
    let [Action::Volume(held)] = &plan_after(&scene, 0)[..] else { panic!("it says nothing") };
    let says = "copies are kept on n1, n2, and the record is made again from what is kept of it on n1, n2";
    assert!(held.value.message.as_ref().is_some_and(|message| message.ends_with(says)), "{held:?}");
    assert!(held.value.intent.members.is_empty(), "{held:?}");
    *scene.volume_mut("a") = held.value.clone();
    let actions = plan_after(&scene, 0);
    let [Action::RecoverRecord(Recovery { volume, record, replaces: None })] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!((volume.as_str(), record), ("a", &latest.recovered(9, 30)));
    assert_eq!((record.epoch, record.version, record.unconfirmed), (10, 31, true));

    scene.volume_mut("a").intent.deleting = true;
    let actions = plan_after(&scene, 0);
    assert!(matches!(&actions[..], [Action::DeleteVolume(_)]), "what goes is not made again: {actions:?}");
}

#[test]
fn no_record_is_made_from_what_is_no_copy_of_it() {
    let table: [(&str, Change); 3] = [
        ("there is none", |scene, _| scene.view.replicas.clear()),
        ("of another volume", |scene, _| {
            let report = &mut scene.view.replicas.get_mut("n1").unwrap().value.replicas[0];
            report.record.as_mut().unwrap().volume = Uuid::from_u128(1);
        }),
        ("destroyed for good", |scene, _| {
            let report = &mut scene.view.replicas.get_mut("n1").unwrap().value.replicas[0];
            (report.state, report.message) = (ReplicaState::Destroyed, None);
        }),
    ];
    for (what, change) in table {
        let mut scene = without_record();
        let copy = keep(&mut scene, (1, 91), (7, 30), (7, 30));
        change(&mut scene, &copy.members[0]);
        let [Action::Volume(held)] = &plan_after(&scene, 0)[..] else { panic!("{what}: it says nothing") };
        *scene.volume_mut("a") = held.value.clone();
        assert_eq!(plan_after(&scene, 0), [], "{what}");
    }
}

/// A record from a copy, that names `a` on n1, in sync, and what its volume wishes.
fn to_be_confirmed() -> (Scene, VolumeRecord) {
    let mut scene = without_record();
    let record = keep(&mut scene, (1, 91), (7, 30), (7, 30)).recovered(7, 30);
    scene.view.replicas.clear();
    scene.view.records.insert(record.key(), Stored { revision: 4, value: record.clone() });
    let [Action::RestoreIntent(wished, 4)] = &plan_after(&scene, 0)[..] else { panic!("nothing is wished") };
    assert_eq!(wished.value.intent.owner.as_deref(), Some("n1"), "somebody has to open it");
    *scene.volume_mut("a") = wished.value.clone();
    assert_eq!(plan_after(&scene, 0), []);
    (scene, record)
}

#[test]
fn a_later_copy_comes_in_the_place_of_a_record_that_is_to_be_confirmed() {
    let (mut scene, record) = to_be_confirmed();
    keep(&mut scene, (2, 92), (7, 29), (7, 29));
    assert_eq!(plan_after(&scene, 0), [], "an earlier one");
    let later = keep(&mut scene, (3, 93), (8, 1), (8, 1));
    let actions = plan_after(&scene, 0);
    let [Action::RecoverRecord(Recovery { record: next, replaces: Some(4), .. })] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!((next.version, next), (record.version + 1, &later.recovered(8, record.version)));
    scene.record_mut("a").unconfirmed = false;
    assert_eq!(plan_after(&scene, 0), [], "somebody may have written by it");
}

/// Whoever used its device there has it still.
#[test]
fn a_volume_whose_record_was_lost_is_opened_where_it_was() {
    let mut scene = Scene::with_nodes(3);
    scene.recorded("a", 3, &[1, 2, 3], MemberState::InSync);
    scene.nexus("a", "n3", NexusState::Serving);
    let record = scene.record_mut("a").clone().recovered(8, 0);
    *scene.record_mut("a") = record;
    let owner = |scene: &Scene| match &plan_after(scene, 0)[..] {
        [Action::RestoreIntent(volume, _)] => volume.value.intent.owner.clone(),
        actions => panic!("{actions:?}"),
    };
    assert_eq!(owner(&scene).as_deref(), Some("n3"));
    scene.node_mut(3).state = NodeState::NotReady;
    assert_eq!(owner(&scene).as_deref(), Some("n1"), "it is gone with its node");
}

/// It may be from before, and so may be what is wished.
#[test]
fn nothing_is_replaced_or_forgotten_by_a_record_that_is_to_be_confirmed() {
    let (mut scene, record) = to_be_confirmed();
    scene.node_mut(1).spec.scheduling = Scheduling::Evacuated;
    scene.pool_mut(1).state = PoolState::Gone;
    assert_eq!(wish_after(&scene, 200), "unchanged", "its only copy is lost, and is to leave");
    let wished = scene.volume_mut("a").intent.members.clone();
    scene.volume_mut("a").intent.members[0].replica = Uuid::from_u128(99);
    scene.volume_mut("a").intent.forget = vec![Uuid::from_u128(98)];
    let actions = plan_after(&scene, 0);
    let [Action::RestoreIntent(volume, 4)] = &actions[..] else { panic!("{actions:?}") };
    let VolumeIntent { members, forget, .. } = &volume.value.intent;
    assert_eq!((members, forget), (&wished, &Vec::new()), "what is wished is from another time");

    scene.volume_mut("a").intent.deleting = true;
    let actions = plan_after(&scene, 0);
    let [Action::EmptyRecord(emptied)] = &actions[..] else { panic!("{actions:?}") };
    assert!(!emptied.value.unconfirmed && emptied.value.epoch > record.epoch, "its user's word is enough");
}

/// Its object was deleted by hand and made again: its data is not to be copied for that.
#[test]
fn a_volume_whose_intent_was_lost_has_the_copies_of_its_record() {
    let mut scene = Scene::with_nodes(4);
    scene.recorded("a", 3, &[1, 2, 3], MemberState::InSync);
    let members = scene.volume_mut("a").intent.members.clone();
    let mut removed = scene.record_mut("a").members[0].clone();
    (removed.replica, removed.state) = (Uuid::from_u128(99), MemberState::Removed);
    scene.record_mut("a").members.push(removed);
    scene.volume_mut("a").intent = VolumeIntent::default();
    let [Action::RestoreIntent(volume, seen)] = &plan_after(&scene, 0)[..] else {
        panic!("nothing is wished")
    };
    assert_eq!((&volume.value.intent.members, *seen), (&members, 1));
    assert!(volume.value.intent.recorded);
}

/// What becomes of a scene and of the replica in it that was removed.
type Change = fn(&mut Scene, &MemberRecord);

/// The replicas that are to be forgotten of a volume whose second copy, on n2, was replaced and `change`d since.
fn forgotten(change: impl FnOnce(&mut Scene, &MemberRecord)) -> Vec<Uuid> {
    let mut scene = Scene::with_nodes(4);
    scene.recorded("a", 3, &[1, 2, 3, 4], MemberState::InSync);
    attach(&mut scene, "n1");
    serve(&mut scene, "n1");
    scene.record_mut("a").members[1].state = MemberState::Removed;
    scene.volume_mut("a").intent.members.remove(1);
    let removed = scene.record_mut("a").members[1].clone();
    scene.report(2, removed.replica, ReplicaState::Destroyed);
    change(&mut scene, &removed);
    let actions = plan_after(&scene, 0);
    let mut volumes = actions.iter().filter_map(|action| match action {
        Action::Volume(volume) => Some(volume.value.intent.forget.clone()),
        _ => None,
    });
    volumes.next().unwrap_or_else(|| scene.volume_mut("a").intent.forget.clone())
}

#[test]
fn what_is_destroyed_for_good_is_to_be_forgotten() {
    let mut replica = Uuid::nil();
    let found = forgotten(|_, removed| replica = removed.replica);
    assert_eq!(found, [replica]);
    let table: [(&str, Change); 12] = [
        ("in sync", |scene, _| scene.record_mut("a").members[1].state = MemberState::InSync),
        ("stale", |scene, _| scene.record_mut("a").members[1].state = STALE),
        ("still there", |scene, removed| scene.report(2, removed.replica, ReplicaState::Present)),
        ("missing", |scene, removed| scene.report(2, removed.replica, ReplicaState::Missing)),
        ("cannot be destroyed", |scene, removed| scene.report(2, removed.replica, ReplicaState::Failed)),
        ("another node's word", |scene, removed| {
            scene.view.replicas.clear();
            scene.report(1, removed.replica, ReplicaState::Destroyed);
        }),
        ("nobody's word", |scene, _| scene.view.replicas.clear()),
        ("with its disk", |scene, removed| {
            let (replica, pool, volume) = (removed.replica, removed.pool, Uuid::from_u128(1));
            let (state, message) = (ReplicaState::Destroyed, Some("not on this node any more".to_owned()));
            scene
                .say(2, ReplicaReport { replica, volume, pool, state, used_bytes: 0, message, record: None });
        }),
        ("its pool is gone", |scene, _| scene.pool_mut(2).state = PoolState::Gone),
        ("its pool has failed", |scene, _| scene.pool_mut(2).state = PoolState::Failed),
        ("its node is away", |scene, _| scene.node_mut(2).state = NodeState::NotReady),
        ("its node was deleted", |scene, _| {
            scene.view.nodes.remove("n2");
            scene.view.replicas.clear();
        }),
    ];
    for (why_not, change) in table {
        assert!(forgotten(change).is_empty(), "{why_not}");
    }
    let wished = forgotten(|scene, removed| {
        let MemberRecord { replica, pool, node, .. } = removed.clone();
        scene.volume_mut("a").intent.members.push(MemberIntent { replica, pool, node });
        // Otherwise it is given up at once.
        scene.record_mut("a").members[2].state = STALE;
    });
    assert!(wished.is_empty(), "a replica that is wished");
}

#[test]
fn a_wish_to_forget_stays_until_that_is_done() {
    let away = |scene: &mut Scene, removed: &MemberRecord| {
        scene.volume_mut("a").intent.forget = vec![removed.replica];
        scene.node_mut(2).state = NodeState::NotReady;
        scene.view.replicas.clear();
    };
    assert_eq!(forgotten(away).len(), 1, "it is so for ever");
    let done = |scene: &mut Scene, removed: &MemberRecord| {
        away(scene, removed);
        scene.record_mut("a").members.remove(1);
    };
    assert!(forgotten(done).is_empty());
    let closed = |scene: &mut Scene, _: &MemberRecord| {
        scene.volume_mut("a").intent.attach = None;
        scene.volume_mut("a").intent.owner = None;
        scene.record_mut("a").owner = None;
        scene.record_mut("a").clean = true;
    };
    assert_eq!(forgotten(closed).len(), 1, "whoever opens it next does it");
}

#[test]
fn a_new_volume_is_opened_closed_and_left_alone() {
    let mut scene = Scene::with_nodes(3);
    scene.recorded("a", 3, &[1, 2, 3], MemberState::New);
    assert_eq!(wish_after(&scene, 0), "n1 n2 n3 / n1 / -", "somebody must make the replicas equal");
    scene.volume_mut("a").intent.owner = Some("n1".into());
    serve(&mut scene, "n1");
    assert_eq!(wish_after(&scene, 0), "unchanged", "still at it");
    scene.record_mut("a").members.iter_mut().for_each(|member| member.state = MemberState::InSync);
    assert_eq!(wish_after(&scene, 0), "n1 n2 n3 / - / -", "done");
    scene.volume_mut("a").intent.owner = None;
    assert_eq!(wish_after(&scene, 0), "unchanged", "it is closing");
    scene.record_mut("a").owner = None;
    scene.record_mut("a").clean = true;
    assert_eq!(plan_after(&scene, 0), []);
}

#[test]
fn an_attached_volume_stays_where_it_is() {
    let mut scene = Scene::with_nodes(4);
    scene.recorded("a", 3, &[1, 2, 3], MemberState::InSync);
    attach(&mut scene, "n1");
    serve(&mut scene, "n1");
    assert_eq!(wish_after(&scene, 0), "unchanged");
    scene.node_mut(1).state = NodeState::NotReady;
    assert_eq!(wish_after(&scene, 59), "unchanged");
    assert_eq!(wish_after(&scene, 60), "n1 n2 n3 n4 / n1 / -", "a new copy, the same place");
}

#[test]
fn a_detached_volume_is_repaired_by_a_nexus_that_can_move() {
    let mut scene = Scene::with_nodes(3);
    scene.recorded("a", 3, &[1, 2, 3], MemberState::InSync);
    assert_eq!(wish_after(&scene, 0), "unchanged");
    scene.record_mut("a").members[0].state = STALE;
    assert_eq!(wish_after(&scene, 0), "n1 n2 n3 / n2 / -", "a node with a good copy");
    scene.volume_mut("a").intent.owner = Some("n2".into());
    serve(&mut scene, "n2");
    assert_eq!(wish_after(&scene, 0), "unchanged");
    scene.node_mut(2).state = NodeState::NotReady;
    assert_eq!(wish_after(&scene, 0), "n1 n2 n3 / n3 / -");
    scene.node_mut(3).state = NodeState::NotReady;
    assert_eq!(wish_after(&scene, 0), "n1 n2 n3 / - / -", "nobody has a good copy");
    scene.node_mut(1).state = NodeState::NotReady;
    scene.node_mut(2).state = NodeState::Ready;
    scene.record_mut("a").owner = None;
    scene.record_mut("a").clean = true;
    assert_eq!(wish_after(&scene, 0), "n1 n2 n3 / - / -", "the stale copy is away: nothing to do");
}

#[test]
fn an_owner_that_died_is_followed_by_another() {
    let mut scene = Scene::with_nodes(3);
    scene.recorded("a", 3, &[1, 2, 3], MemberState::InSync);
    serve(&mut scene, "n1");
    scene.node_mut(1).state = NodeState::NotReady;
    assert_eq!(wish_after(&scene, 0), "n1 n2 n3 / n2 / -", "it was not closed in order");
    scene.node_mut(1).state = NodeState::Ready;
    scene.nexus("a", "n1", NexusState::Failed);
    assert_eq!(wish_after(&scene, 0), "n1 n2 n3 / n1 / -", "its engine started again without it");
    scene.volume_mut("a").intent.owner = Some("n1".into());
    scene.nexus("a", "n1", NexusState::Serving);
    let replica = scene.record_mut("a").members[1].replica;
    let resync = MemberStatus {
        replica,
        node: "n2".into(),
        state: model::MemberPhase::InSync,
        reachable: true,
        rebuild: Some(Rebuild::default()),
        rebuilt: None,
        message: None,
    };
    scene.status_mut("a").members.push(resync);
    assert_eq!(wish_after(&scene, 0), "unchanged", "its copies are being made equal");
    let half = Rebuild { done_bytes: 1, total_bytes: 2, ..Rebuild::default() };
    scene.status_mut("a").members[0].rebuild = None;
    scene.status_mut("a").members[0].rebuilt = Some(half);
    assert_eq!(wish_after(&scene, 0), "unchanged", "as an engine reports a resync");
    scene.status_mut("a").members[0].rebuilt = Some(Rebuild { done_bytes: 2, ..half });
    assert_eq!(wish_after(&scene, 0), "n1 n2 n3 / - / -");
}

#[test]
fn a_lost_copy_is_replaced_and_given_up_last() {
    let mut scene = Scene::with_nodes(4);
    scene.recorded("a", 3, &[1, 2, 3], MemberState::InSync);
    attach(&mut scene, "n1");
    serve(&mut scene, "n1");
    scene.node_mut(3).state = NodeState::NotReady;
    scene.record_mut("a").members[2].state = STALE;
    assert_eq!(wish_after(&scene, 59), "unchanged");
    assert_eq!(wish_after(&scene, 60), "n1 n2 n3 n4 / n1 / -");

    let spare = MemberRecord::new(Uuid::from_u128(77), Uuid::from_u128(24), "n4".into());
    scene.add_member("a", &spare);
    assert_eq!(wish_after(&scene, 60), "unchanged", "the new copy is not there yet");
    scene.record_mut("a").members[3].state = MemberState::Rebuilding { since: Generation::ZERO };
    assert_eq!(wish_after(&scene, 60), "unchanged");
    scene.record_mut("a").members[3].state = MemberState::InSync;
    assert_eq!(wish_after(&scene, 60), "n1 n2 n4 / n1 / -");

    scene.record_mut("a").members[2].state = MemberState::InSync;
    scene.record_mut("a").members[3].state = MemberState::Rebuilding { since: Generation::ZERO };
    scene.node_mut(3).state = NodeState::Ready;
    assert_eq!(wish_after(&scene, 0), "n1 n2 n3 / n1 / -", "the old one came back first");
}

/// The disk of n2 was replaced while the volume was closed: n2 is there, with another pool.
#[test]
fn a_lost_disk_is_replaced_on_its_own_node() {
    let mut scene = Scene::with_nodes(3);
    scene.recorded("a", 3, &[1, 2, 3], MemberState::InSync);
    let fresh = Pool { uuid: Uuid::from_u128(222), ..scene.pool_mut(2).clone() };
    scene.add_pool(fresh);
    scene.pool_mut(2).state = PoolState::Failed;
    let says = "n1 n2 n3 / - / copy on n2 is lost; no place for a new copy: 1 copy needs as many nodes, \
                0 can take one; start more nodes, or ask for fewer copies";
    assert_eq!(wish_after(&scene, 60), says, "it may be open again in a moment, and count");
    scene.pool_mut(2).state = PoolState::Gone;
    assert_eq!(wish_after(&scene, 59), "unchanged");
    assert_eq!(wish_after(&scene, 60), "n1 n2 n3 n2 / n1 / -", "and somebody who makes it");
    let [Action::Volume(wished)] = &plan_after(&scene, 60)[..] else { panic!("no wish") };
    assert_eq!(wished.value.intent.members[3].pool, Uuid::from_u128(222));

    let spare = MemberRecord::new(Uuid::from_u128(77), Uuid::from_u128(222), "n2".into());
    scene.add_member("a", &spare);
    scene.volume_mut("a").intent.owner = Some("n1".into());
    serve(&mut scene, "n1");
    scene.record_mut("a").members[1].state = STALE;
    scene.record_mut("a").members[3].state = MemberState::Rebuilding { since: Generation::ZERO };
    assert_eq!(
        wish_after(&scene, 60),
        "unchanged",
        "the old one is not given up before the new one is there"
    );
    scene.record_mut("a").members[3].state = MemberState::InSync;
    scene.node_mut(3).state = NodeState::NotReady;
    assert_eq!(wish_after(&scene, 0), "unchanged", "nor before as many as wanted are there");
    scene.node_mut(3).state = NodeState::Ready;
    let [Action::Volume(wished)] = &plan_after(&scene, 0)[..] else { panic!("no wish") };
    let kept = |wished: &Stored<Volume>| {
        let members = wished.value.intent.members.iter();
        members.map(|member| member.replica).collect::<BTreeSet<_>>()
    };
    let record = scene.record_mut("a").clone();
    let replica = |index: usize| record.members[index].replica;
    assert_eq!(kept(wished), BTreeSet::from([replica(0), replica(2), replica(3)]));

    // The old disk comes back, beside the new one, and its copy is made equal first.
    scene.pool_mut(2).state = PoolState::Online;
    scene.record_mut("a").members[1].state = MemberState::InSync;
    scene.record_mut("a").members[3].state = STALE;
    let [Action::Volume(wished)] = &plan_after(&scene, 0)[..] else { panic!("no wish") };
    assert_eq!(kept(wished), BTreeSet::from([replica(0), replica(1), replica(2)]));
    // What no nexus writes would still not make one node count twice.
    scene.record_mut("a").members[3].state = MemberState::InSync;
    scene.record_mut("a").members[2].state = STALE;
    assert_eq!(wish_after(&scene, 0), "unchanged");
}

/// A copy that is away for a moment is no reason to give up one that is there.
#[test]
fn what_is_given_up_is_what_is_not_there() {
    let mut scene = Scene::with_nodes(4);
    scene.recorded("a", 3, &[1, 2, 3], MemberState::InSync);
    let spare = MemberRecord {
        state: MemberState::InSync,
        ..MemberRecord::new(Uuid::from_u128(77), Uuid::from_u128(24), "n4".into())
    };
    scene.add_member("a", &spare);
    scene.pool_mut(2).state = PoolState::Gone;
    assert_eq!(wish_after(&scene, 0), "n1 n3 n4 / n1 / -");
}

#[test]
fn no_place_for_a_new_copy_is_said() {
    let mut scene = Scene::with_nodes(3);
    scene.recorded("a", 3, &[1, 2, 3], MemberState::InSync);
    scene.node_mut(3).state = NodeState::NotReady;
    let says = "n1 n2 n3 / - / copy on n3 is lost; no place for a new copy: 1 copy needs as many nodes, \
                0 can take one (NotReady: n3); start more nodes, or ask for fewer copies";
    assert_eq!(wish_after(&scene, 60), says);
    scene.volume_mut("a").message = Some("old".into());
    scene.node_mut(3).state = NodeState::Ready;
    assert_eq!(wish_after(&scene, 60), "n1 n2 n3 / - / -", "it is forgotten when it is over");
}

#[test]
fn growth_needs_a_nexus() {
    let mut scene = Scene::with_nodes(3);
    scene.recorded("a", 3, &[1, 2, 3], MemberState::InSync);
    scene.volume_mut("a").spec.size_bytes *= 2;
    assert_eq!(wish_after(&scene, 0), "n1 n2 n3 / n1 / -");
}

#[test]
fn a_volume_is_deleted_from_the_record_down() {
    let mut scene = Scene::with_nodes(3);
    scene.recorded("a", 3, &[1, 2, 3], MemberState::InSync);
    serve(&mut scene, "n1");
    scene.volume_mut("a").intent.deleting = true;
    assert_eq!(plan_after(&scene, 10), [], "the nexus closes by itself");
    assert!(matches!(plan_after(&scene, 11)[..], [Action::EmptyRecord(_)]), "nothing waits for ever");
    scene.node_mut(1).state = NodeState::NotReady;
    let before = scene.record_mut("a").clone();
    let [Action::EmptyRecord(emptied)] = &plan_after(&scene, 0)[..] else { panic!("not fenced") };
    assert_eq!((emptied.value.epoch, emptied.value.version), (before.epoch + 1, before.version + 1));
    assert_eq!(emptied.value.owner, None);
    assert!(emptied.value.members.iter().all(|member| member.state == MemberState::Removed));

    *scene.record_mut("a") = emptied.value.clone();
    assert_eq!(plan_after(&scene, 0), [], "no replica is destroyed yet");
    scene.report(2, before.members[1].replica, ReplicaState::Destroyed);
    scene.report(3, before.members[2].replica, ReplicaState::Destroyed);
    scene.report(2, before.members[0].replica, ReplicaState::Destroyed);
    assert_eq!(plan_after(&scene, 0), [], "only the node that has it can say so");
    scene.report(1, before.members[0].replica, ReplicaState::Destroyed);
    assert!(matches!(plan_after(&scene, 0)[..], [Action::DeleteRecord(_)]));
    scene.view.records.clear();
    assert!(matches!(plan_after(&scene, 0)[..], [Action::DeleteVolume(_)]));
}

/// Its operator has said that it does not come back.
#[test]
fn nobody_waits_for_a_node_that_was_deleted() {
    let mut scene = Scene::with_nodes(2);
    scene.recorded("a", 2, &[1, 2], MemberState::Removed);
    scene.volume_mut("a").intent.deleting = true;
    let replica = scene.record_mut("a").members[0].replica;
    scene.report(1, replica, ReplicaState::Destroyed);
    scene.node_mut(2).state = NodeState::NotReady;
    assert_eq!(plan_after(&scene, 1000), [], "it may come back and destroy its copy");
    scene.view.nodes.remove("n2");
    scene.view.pools.remove(&Uuid::from_u128(22).to_string());
    assert!(matches!(plan_after(&scene, 0)[..], [Action::DeleteRecord(_)]));
    // Its object alone is no word: somebody may have deleted that by hand.
    scene.report(2, Uuid::from_u128(7), ReplicaState::Present);
    assert_eq!(plan_after(&scene, 0), []);
}

#[test]
fn nothing_is_placed_in_a_pool_that_is_given_back() {
    let mut scene = Scene::with_nodes(3);
    scene.pool_mut(1).spec.release = true;
    scene.volume("a", 2, &[2]);
    assert_eq!(wish_after(&scene, 0), "n2 n3 / - / -");
}

fn wish(scene: &mut Scene, node: u128, scheduling: Scheduling) {
    scene.node_mut(node).spec.scheduling = scheduling;
}

#[test]
fn a_cordoned_node_keeps_what_it_has() {
    let mut scene = Scene::with_nodes(4);
    scene.recorded("a", 3, &[1, 2, 3], MemberState::InSync);
    wish(&mut scene, 1, Scheduling::Cordoned);
    assert_eq!(wish_after(&scene, 0), "unchanged");
    scene.record_mut("a").members[2].state = STALE;
    assert_eq!(wish_after(&scene, 0), "n1 n2 n3 / n2 / -", "no new nexus goes there");
    scene.volume_mut("a").intent.owner = Some("n1".into());
    serve(&mut scene, "n1");
    assert_eq!(wish_after(&scene, 0), "unchanged", "one that is there stays");
    scene.volume_mut("a").intent.owner = None;
    scene.record_mut("a").owner = None;
    wish(&mut scene, 2, Scheduling::Cordoned);
    assert_eq!(wish_after(&scene, 0), "n1 n2 n3 / n3 / -", "rather to the one whose copy is stale");
    wish(&mut scene, 3, Scheduling::Cordoned);
    assert_eq!(wish_after(&scene, 0), "n1 n2 n3 / n1 / -", "work is done");
}

#[test]
fn a_volume_that_is_read_has_a_nexus() {
    let mut scene = Scene::with_nodes(4);
    scene.recorded("a", 3, &[1, 2, 3], MemberState::InSync);
    assert_eq!(wish_after(&scene, 0), "unchanged");
    scene.volume_mut("a").intent.readers = vec!["n3".into(), "n4".into()];
    assert_eq!(wish_after(&scene, 0), "n1 n2 n3 / n3 / -", "beside a reader, where a copy is");
    scene.record_mut("a").members[2].state = STALE;
    assert_eq!(wish_after(&scene, 0), "n1 n2 n3 / n1 / -", "a good copy comes first");
    scene.record_mut("a").members[2].state = MemberState::InSync;
    scene.volume_mut("a").intent.owner = Some("n2".into());
    serve(&mut scene, "n2");
    assert_eq!(wish_after(&scene, 20), "unchanged", "where it is it stays");
    scene.node_mut(2).state = NodeState::NotReady;
    assert_eq!(wish_after(&scene, 0), "n1 n2 n3 / n3 / -", "it is opened elsewhere when its node dies");
    scene.node_mut(2).state = NodeState::Ready;
    wish(&mut scene, 2, Scheduling::Drained);
    assert_eq!(wish_after(&scene, 0), "n1 n2 n3 / - / -", "it leaves, whoever reads there");
    wish(&mut scene, 2, Scheduling::Enabled);
    for node in [3, 4] {
        scene.node_mut(node).state = NodeState::NotReady;
    }
    scene.record_mut("a").clean = true;
    assert_eq!(wish_after(&scene, 20), "n1 n2 n3 / - / -", "nobody is there to read");
}

#[test]
fn a_nexus_leaves_a_drained_node_in_order() {
    let mut scene = Scene::with_nodes(3);
    scene.recorded("a", 3, &[1, 2, 3], MemberState::InSync);
    scene.record_mut("a").members[2].state = STALE;
    scene.volume_mut("a").intent.owner = Some("n1".into());
    serve(&mut scene, "n1");
    wish(&mut scene, 1, Scheduling::Drained);
    assert_eq!(wish_after(&scene, 0), "n1 n2 n3 / - / -", "it is closed first");
    scene.volume_mut("a").intent.owner = None;
    assert_eq!(wish_after(&scene, 0), "unchanged", "it is closing");
    assert_eq!(wish_after(&scene, 11), "n1 n2 n3 / n2 / -", "nothing waits for ever");
    scene.record_mut("a").owner = None;
    scene.record_mut("a").clean = true;
    assert_eq!(wish_after(&scene, 0), "n1 n2 n3 / n2 / -");

    scene.volume_mut("a").intent.owner = Some("n1".into());
    serve(&mut scene, "n1");
    wish(&mut scene, 2, Scheduling::Drained);
    wish(&mut scene, 3, Scheduling::Evacuated);
    assert_eq!(wish_after(&scene, 0).split(" / ").nth(1), Some("n1"), "there is nowhere better to go");
    wish(&mut scene, 2, Scheduling::Enabled);
    attach(&mut scene, "n1");
    assert_eq!(wish_after(&scene, 0).split(" / ").nth(1), Some("n1"), "whoever uses the device decides");
}

#[test]
fn a_copy_leaves_an_evacuated_node_when_another_is_made() {
    let mut scene = Scene::with_nodes(4);
    scene.recorded("a", 3, &[1, 2, 3], MemberState::InSync);
    attach(&mut scene, "n3");
    serve(&mut scene, "n3");
    wish(&mut scene, 3, Scheduling::Drained);
    assert_eq!(wish_after(&scene, 0), "unchanged", "the copies of a node that comes back stay");
    wish(&mut scene, 3, Scheduling::Evacuated);
    assert_eq!(wish_after(&scene, 0), "n1 n2 n3 n4 / n3 / -");

    let spare = MemberRecord::new(Uuid::from_u128(77), Uuid::from_u128(24), "n4".into());
    scene.add_member("a", &spare);
    assert_eq!(wish_after(&scene, 0), "unchanged", "the new copy is not there yet");
    scene.record_mut("a").members[3].state = MemberState::Rebuilding { since: Generation::ZERO };
    assert_eq!(wish_after(&scene, 0), "unchanged");
    scene.record_mut("a").members[3].state = MemberState::InSync;
    scene.node_mut(1).state = NodeState::NotReady;
    assert_eq!(wish_after(&scene, 0), "unchanged", "one that is away does not count");
    scene.node_mut(1).state = NodeState::Ready;
    assert_eq!(wish_after(&scene, 0), "n1 n2 n4 / n3 / -", "also where its nexus is");
    wish(&mut scene, 3, Scheduling::Enabled);
    assert_eq!(wish_after(&scene, 0), "n3 n1 n2 / n3 / -", "the wish was taken back: the new one goes");
}

#[test]
fn a_copy_that_has_nowhere_to_go_stays_and_says_so() {
    let mut scene = Scene::with_nodes(3);
    scene.recorded("a", 3, &[1, 2, 3], MemberState::InSync);
    wish(&mut scene, 3, Scheduling::Evacuated);
    let says = "n1 n2 n3 / - / copy on n3 is to leave; no place for a new copy: 1 copy needs as many nodes, \
                0 can take one; start more nodes, or ask for fewer copies";
    assert_eq!(wish_after(&scene, 0), says);

    // Two are to leave, and there is a place for one.
    let mut scene = Scene::with_nodes(4);
    scene.recorded("a", 3, &[1, 2, 3], MemberState::InSync);
    scene.volume_mut("a").intent.owner = Some("n1".into());
    serve(&mut scene, "n1");
    wish(&mut scene, 2, Scheduling::Evacuated);
    wish(&mut scene, 3, Scheduling::Evacuated);
    let says = wish_after(&scene, 0);
    assert!(says.starts_with("n1 n2 n3 n4 / n1 / copy on n2, n3 is to leave; no place"), "{says}");
    let spare = MemberRecord::new(Uuid::from_u128(77), Uuid::from_u128(24), "n4".into());
    scene.add_member("a", &spare);
    scene.volume_mut("a").message = says.split(" / ").nth(2).map(str::to_owned);
    scene.record_mut("a").members[3].state = MemberState::Rebuilding { since: Generation::ZERO };
    let says = wish_after(&scene, 0);
    assert!(
        says.starts_with("n1 n2 n3 n4 / n1 / "),
        "neither the new one nor an old one is given up: {says}"
    );
    scene.record_mut("a").members[3].state = MemberState::InSync;
    assert_eq!(wish_after(&scene, 0), "n1 n4 n2 / n1 / -", "one has left");
}

/// A node that is drained comes back: a reboot is no reason to copy everything.
#[test]
fn a_copy_on_a_drained_node_is_awaited_for_an_hour() {
    let mut scene = Scene::with_nodes(4);
    scene.recorded("a", 3, &[1, 2, 3], MemberState::InSync);
    wish(&mut scene, 3, Scheduling::Drained);
    scene.node_mut(3).state = NodeState::NotReady;
    assert_eq!(wish_after(&scene, 3599), "unchanged");
    assert_eq!(wish_after(&scene, 3600), "n1 n2 n3 n4 / n1 / -");
    wish(&mut scene, 3, Scheduling::Enabled);
    assert_eq!(wish_after(&scene, 60), "n1 n2 n3 n4 / n1 / -");
}

/// Else a record that is made late would be that of another intent.
#[test]
fn what_is_placed_stays_until_there_is_a_record() {
    let mut scene = Scene::with_nodes(4);
    scene.volume("a", 3, &[1, 2, 3]);
    wish(&mut scene, 3, Scheduling::Evacuated);
    scene.node_mut(2).state = NodeState::NotReady;
    assert_eq!(wish_after(&scene, 60), "unchanged");
}

/// Volume `a` with copies in sync on n1, n2 and n3, each pair of n1 and n4, n2 and n5, n3 and n6 in a zone.
fn zoned() -> Scene {
    let mut scene = Scene::with_nodes(6);
    for (node, zone) in (1..).zip(["a", "b", "c", "a", "b", "c"]) {
        relabel(&mut scene, node, zone);
    }
    scene.recorded("a", 3, &[1, 2, 3], MemberState::InSync);
    scene.volume_mut("a").spec.spread = Some(model::topology::ZONE_KEY.into());
    scene.record_mut("a").clean = true;
    scene
}

fn relabel(scene: &mut Scene, node: u128, zone: &str) {
    scene.node_mut(node).topology.insert(model::topology::ZONE_KEY.into(), zone.into());
}

/// A copy on this node that is in this state.
fn add(scene: &mut Scene, node: u128, state: MemberState) {
    let (replica, pool) = (Uuid::from_u128(600 + node), Uuid::from_u128(20 + node));
    let member = MemberRecord { state, ..MemberRecord::new(replica, pool, format!("n{node}")) };
    scene.add_member("a", &member);
}

#[test]
fn a_copy_that_is_lost_is_replaced_in_its_zone() {
    let mut scene = zoned();
    assert_eq!(wish_after(&scene, 0), "unchanged");
    scene.node_mut(1).state = NodeState::NotReady;
    assert_eq!(wish_after(&scene, 50), "unchanged", "it may come back");
    assert!(wish_after(&scene, 70).starts_with("n1 n2 n3 n4 /"), "{}", wish_after(&scene, 70));
    add(&mut scene, 4, MemberState::Rebuilding { since: Generation::ZERO });
    scene.volume_mut("a").intent.owner = Some("n2".into());
    assert_eq!(wish_after(&scene, 70), "unchanged", "another is on its way");
    // It comes back first: it is as good as the one that was begun.
    scene.node_mut(1).state = NodeState::Ready;
    assert!(wish_after(&scene, 0).starts_with("n2 n1 n3 /"), "{}", wish_after(&scene, 0));
    // It comes back too late.
    for member in &mut scene.record_mut("a").members {
        member.state = if member.node == "n1" { STALE } else { MemberState::InSync };
    }
    assert!(wish_after(&scene, 0).starts_with("n2 n3 n4 /"), "{}", wish_after(&scene, 0));
}

#[test]
fn two_good_copies_in_one_zone_never_displace_the_one_of_another() {
    let mut scene = zoned();
    scene.node_mut(3).state = NodeState::NotReady;
    scene.node_mut(6).state = NodeState::NotReady;
    add(&mut scene, 4, MemberState::InSync);
    let wish = wish_after(&scene, 70);
    assert!(
        wish.starts_with("n1 n2 n3 n4 / ") && wish.contains("/ copy on n3 is lost; no place for a new copy: 1 copy needs as many zones (topology.kubernetes.io/zone), 0 have a node that can take one (a copy is in: a, b; NotReady: n3, n6)"),
        "{wish}"
    );
}

#[test]
fn a_node_is_evacuated_within_its_zone() {
    let mut scene = zoned();
    scene.node_mut(2).spec.scheduling = Scheduling::Evacuated;
    assert!(wish_after(&scene, 0).starts_with("n1 n2 n3 n5 /"), "{}", wish_after(&scene, 0));
    scene.volume_mut("a").intent.owner = Some("n1".into());
    add(&mut scene, 5, MemberState::Rebuilding { since: Generation::ZERO });
    assert_eq!(wish_after(&scene, 0), "unchanged", "the one that leaves is kept until then");
    scene.record_mut("a").members[3].state = MemberState::InSync;
    assert!(wish_after(&scene, 0).starts_with("n1 n3 n5 /"), "{}", wish_after(&scene, 0));

    let mut full = zoned();
    full.node_mut(2).spec.scheduling = Scheduling::Evacuated;
    full.node_mut(5).spec.scheduling = Scheduling::Cordoned;
    let wish = wish_after(&full, 0);
    assert!(
        wish.starts_with("n1 n2 n3 / ") && wish.contains("copy on n2 is to leave; no place for a new copy: 1 copy needs as many zones (topology.kubernetes.io/zone), 0 have a node that can take one (a copy is in: a, c; cordoned: n5)"),
        "{wish}"
    );
}

#[test]
fn copies_that_came_to_share_a_zone_are_parted() {
    let mut scene = zoned();
    relabel(&mut scene, 2, "a");
    assert!(wish_after(&scene, 0).starts_with("n1 n2 n3 n5 /"), "{}", wish_after(&scene, 0));
    relabel(&mut scene, 5, "a");
    let wish = wish_after(&scene, 0);
    let says = "not all copies are in different zones (topology.kubernetes.io/zone); no place for a new copy";
    assert!(wish.starts_with("n1 n2 n3 / ") && wish.contains(says), "{wish}");
    scene.node_mut(2).topology.clear();
    assert_eq!(wish_after(&scene, 0), "unchanged", "where nobody says where it is, it may be anywhere");
}

//! What the crate promises, judged on whatever keeps the objects: no implementation may differ in anything that is
//! relied on, and nothing may be relied on that one of them does not give.
//!
//! All test programs of stores use this file; `conforms` is the one judge.

use crate::proxy::Proxy;
use model::{ClusterInfo, Node, NodeReplicas, NodeSpec, NodeState, Scheduling, Stored};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use store::{Change, Client, ErrorKind, NUMBER_MAX, OBJECT_BYTES_MAX, Watch};
use tokio::{task::JoinSet, time::sleep};
use uuid::Uuid;

/// Judges an empty store. `proxy` is what stands between it and its client, if they are not one process.
pub(crate) async fn conforms(client: &Client, proxy: Option<&Proxy>) {
    compare_and_swap(client).await;
    a_new_object_has_a_new_revision(client).await;
    a_wish_and_a_report_are_one_object(client).await;
    lists_are_ordered_and_of_one_kind(client).await;
    bad_objects_are_refused(client).await;
    big_objects_are_kept_whole(client).await;
    one_of_many_writers_wins(client).await;
    nobody_is_told_of_other_kinds(client).await;
    a_watch_converges(client).await;
    a_slow_reader_converges(client).await;
    if let Some(proxy) = proxy {
        a_watch_ends_with_its_reader(client, proxy).await;
        nothing_falls_between_list_and_watch(client, proxy).await;
        a_lost_answer_is_unknown(client, proxy).await;
        a_watch_survives_its_connection(client, proxy).await;
    }
}

/// A well-formed object.
pub(crate) fn node(name: &str, heartbeat: u64) -> Node {
    Node {
        name: name.into(),
        spec: NodeSpec::default(),
        state: NodeState::Ready,
        address: "127.0.0.1:4420".into(),
        metrics_address: None,
        pid: 7,
        boot_id: Uuid::from_u128(1),
        version: "0.1.0".into(),
        heartbeat,
        topology: BTreeMap::new(),
    }
}

fn kind_of<T: std::fmt::Debug>(result: store::Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

async fn compare_and_swap(client: &Client) {
    assert_eq!(client.get::<Node>("n1").await.unwrap(), None);
    assert_eq!(kind_of(client.replace(&node("n1", 1), 5).await), ErrorKind::NotFound);
    assert_eq!(kind_of(client.delete::<Node>("n1", 5).await), ErrorKind::NotFound);
    assert_eq!(client.get::<Node>("n1").await.unwrap(), None, "what was refused left nothing");

    let created = client.create(&node("n1", 1)).await.unwrap();
    let stored = Stored { revision: created, value: node("n1", 1) };
    assert_eq!(client.get("n1").await.unwrap(), Some(stored));
    assert_eq!(kind_of(client.create(&node("n1", 2)).await), ErrorKind::Conflict);

    let replaced = client.replace(&node("n1", 2), created).await.unwrap();
    assert_ne!(replaced, created);
    assert_eq!(kind_of(client.replace(&node("n1", 3), created).await), ErrorKind::Conflict);
    assert_eq!(kind_of(client.delete::<Node>("n1", created).await), ErrorKind::Conflict);
    let stored = Stored { revision: replaced, value: node("n1", 2) };
    assert_eq!(client.get("n1").await.unwrap(), Some(stored), "what was refused changed nothing");

    client.delete::<Node>("n1", replaced).await.unwrap();
    assert_eq!(kind_of(client.delete::<Node>("n1", replaced).await), ErrorKind::NotFound);
    assert_eq!(client.get::<Node>("n1").await.unwrap(), None);
}

/// Of a node, two write: its operator the wish, its engine all the rest. Neither loses what the other wrote.
async fn a_wish_and_a_report_are_one_object(client: &Client) {
    let wished = |scheduling, heartbeat| Node { spec: NodeSpec { scheduling }, ..node("n1", heartbeat) };
    let first = client.create(&wished(Scheduling::Enabled, 1)).await.unwrap();
    let wish = client.replace(&wished(Scheduling::Drained, 1), first).await.unwrap();
    assert_ne!(wish, first, "a wish alone is a change");
    assert_eq!(kind_of(client.replace(&wished(Scheduling::Enabled, 2), first).await), ErrorKind::Conflict);
    let mut last = wish;
    for next in
        [wished(Scheduling::Drained, 2), wished(Scheduling::Evacuated, 3), wished(Scheduling::Enabled, 4)]
    {
        let revision = client.replace(&next, last).await.unwrap();
        assert_ne!(revision, last);
        assert_eq!(client.get("n1").await.unwrap(), Some(Stored { revision, value: next }));
        last = revision;
    }
    client.delete::<Node>("n1", last).await.unwrap();
}

async fn a_new_object_has_a_new_revision(client: &Client) {
    let mut given = Vec::new();
    for round in 0..3 {
        let created = client.create(&node("n1", round)).await.unwrap();
        let replaced = client.replace(&node("n1", round), created).await.unwrap();
        assert!(
            created > 0 && created != replaced && !given.contains(&created) && !given.contains(&replaced)
        );
        for old in &given {
            assert_eq!(kind_of(client.replace(&node("n1", 9), *old).await), ErrorKind::Conflict);
        }
        given.extend([created, replaced]);
        client.delete::<Node>("n1", replaced).await.unwrap();
    }
}

async fn lists_are_ordered_and_of_one_kind(client: &Client) {
    client.create(&ClusterInfo { uuid: Uuid::from_u128(1) }).await.unwrap();
    client
        .create(&NodeReplicas { node: "a1".into(), replicas: Vec::new(), readers: Vec::new() })
        .await
        .unwrap();
    for name in ["b", "ab", "a0", "a", "a-1"] {
        client.create(&node(name, 1)).await.unwrap();
    }
    let names: Vec<String> =
        client.list::<Node>().await.unwrap().into_iter().map(|item| item.value.name).collect();
    assert_eq!(names, ["a", "a-1", "a0", "ab", "b"]);
}

async fn bad_objects_are_refused(client: &Client) {
    let error = client.create(&node("N 1", 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let error = client.create(&ClusterInfo { uuid: Uuid::nil() }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let error = client.create(&node("zero", NUMBER_MAX + 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let error = client.get::<Node>("../x?y").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    // Where nothing is at revision 0 it would create.
    let error = client.replace(&node("zero", 1), 0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let error = client.delete::<Node>("zero", 0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert_eq!(client.get::<Node>("zero").await.unwrap(), None);
}

/// A node whose JSON has so many bytes.
fn node_of(name: &str, bytes: usize) -> Node {
    let empty = Node { address: String::new(), heartbeat: NUMBER_MAX, ..node(name, 1) };
    // Not all of them ASCII, and some quoted in JSON.
    let odd = Node { address: "\u{e4}\u{1f980}\"\\\n".into(), ..empty };
    let used = serde_json::to_vec(&odd).unwrap().len();
    Node { address: odd.address + &"x".repeat(bytes - used), ..odd }
}

async fn big_objects_are_kept_whole(client: &Client) {
    let mut watch = client.watch::<Node>();
    let error = client.create(&node_of("big", OBJECT_BYTES_MAX + 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    // So many that a list of them is more than one message of many a protocol.
    let names: Vec<String> = (0..6).map(|number| format!("big{number}")).collect();
    let mut created = BTreeMap::new();
    for name in &names {
        let value = node_of(name, OBJECT_BYTES_MAX);
        let revision = client.create(&value).await.unwrap();
        created.insert(name.clone(), Stored { revision, value });
    }
    for name in &names {
        assert!(
            client.get(name).await.unwrap().as_ref() == Some(&created[name]),
            "{name} is not what was put"
        );
    }
    let listed = by_key(client.list().await.unwrap());
    assert!(created.iter().all(|(name, object)| listed.get(name) == Some(object)));
    let mut seen = BTreeMap::new();
    follow(&mut watch, &mut seen, "big5").await;
    assert!(seen == listed, "the watch told something else");
    for (name, object) in created {
        client.delete::<Node>(&name, object.revision).await.unwrap();
    }
}

async fn one_of_many_writers_wins(client: &Client) {
    const WRITERS: u64 = 8;
    const EACH: u64 = 10;
    let mut creators = JoinSet::new();
    for writer in 0..WRITERS {
        let client = client.clone();
        creators.spawn(async move { client.create(&node("counter", writer)).await });
    }
    let created: Vec<_> = creators.join_all().await;
    let losers: Vec<_> = created.iter().filter_map(|result| result.as_ref().err()).collect();
    assert_eq!(losers.len(), 7, "{created:?}");
    assert!(losers.iter().all(|error| error.kind() == ErrorKind::Conflict), "{losers:?}");

    // Writers increment one counter: no increment may be lost.
    let begin = client.get::<Node>("counter").await.unwrap().unwrap().value.heartbeat;
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let client = client.clone();
        writers.spawn(async move {
            let mut done = 0;
            while done < EACH {
                let Stored { revision, value } = client.get::<Node>("counter").await.unwrap().unwrap();
                match client.replace(&node("counter", value.heartbeat + 1), revision).await {
                    Ok(_) => done += 1,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
                }
            }
        });
    }
    writers.join_all().await;
    let end = client.get::<Node>("counter").await.unwrap().unwrap();
    assert_eq!(end.value.heartbeat, begin + WRITERS * EACH);

    // Of a deletion and a replacement of the same state one is done.
    let value = node("counter", 0);
    let (deleted, replaced) =
        tokio::join!(client.delete::<Node>("counter", end.revision), client.replace(&value, end.revision));
    let left = client.get::<Node>("counter").await.unwrap();
    match (deleted, replaced) {
        (Ok(()), Err(error)) => assert!(error.kind() == ErrorKind::NotFound && left.is_none(), "{error}"),
        (Err(error), Ok(revision)) => {
            assert_eq!((error.kind(), left.unwrap().revision), (ErrorKind::Conflict, revision));
            client.delete::<Node>("counter", revision).await.unwrap();
        }
        both => panic!("{both:?}"),
    }
}

async fn nobody_is_told_of_other_kinds(client: &Client) {
    let mut watch = client.watch::<NodeReplicas>();
    let Some(Change::Relist(first)) = watch.next().await else { panic!("a watch begins with a list") };
    assert_eq!(first.len(), 1);
    client.create(&node("other", 1)).await.unwrap();
    client
        .create(&NodeReplicas { node: "mine".into(), replicas: Vec::new(), readers: Vec::new() })
        .await
        .unwrap();
    let Some(Change::Put(told)) = watch.next().await else { panic!("not told of its own kind") };
    assert_eq!(told.value.node, "mine");
    client.delete::<NodeReplicas>("mine", told.revision).await.unwrap();
    assert_eq!(watch.next().await, Some(Change::Delete("mine".into())));
}

/// Creates, replaces and deletes objects `PREFIX0` to `PREFIX3`, until it is stopped.
async fn write_for_ever(client: Client, prefix: String, stop: Arc<AtomicBool>) -> u64 {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        let name = format!("{prefix}{}", round % 4);
        match client.get::<Node>(&name).await.unwrap() {
            Some(stored) if round % 3 == 0 => client.delete::<Node>(&name, stored.revision).await.unwrap(),
            Some(stored) => drop(client.replace(&node(&name, round), stored.revision).await.unwrap()),
            None => drop(client.create(&node(&name, round)).await.unwrap()),
        }
        round += 1;
    }
    round
}

/// What a watcher has been told, applied in order, becomes what a list shows, under writers that never pause.
async fn a_watch_converges(client: &Client) {
    let mut watch = client.watch::<Node>();
    let mut seen = BTreeMap::new();
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for writer in ["wa", "wb", "wc"] {
        writers.spawn(write_for_ever(client.clone(), writer.into(), Arc::clone(&stop)));
    }
    for probe in 0..20 {
        let name = format!("probe{probe}");
        client.create(&node(&name, 1)).await.unwrap();
        follow(&mut watch, &mut seen, &name).await;
    }
    // One that begins in the midst of it.
    let mut late = client.watch::<Node>();
    let mut seen_late = BTreeMap::new();
    client.create(&node("probe-late", 1)).await.unwrap();
    follow(&mut late, &mut seen_late, "probe-late").await;
    stop.store(true, Ordering::Relaxed);
    assert!(writers.join_all().await.into_iter().all(|rounds| rounds > 0));
    settle(client, &mut watch, &mut seen, "last").await;
    follow(&mut late, &mut seen_late, "last").await;
    assert_eq!(seen_late, seen);
}

/// More changes than a watch ever holds, of more objects than fit on a page, before the reader begins to read.
async fn a_slow_reader_converges(client: &Client) {
    const OBJECTS: u64 = 150;
    const ROUNDS: u64 = 10;
    let mut watch = client.watch::<Node>();
    let mut seen = BTreeMap::new();
    client.create(&node("slow-begin", 1)).await.unwrap();
    follow(&mut watch, &mut seen, "slow-begin").await;
    let mut writers = JoinSet::new();
    for object in 0..OBJECTS {
        let client = client.clone();
        writers.spawn(async move {
            let name = format!("slow{object}");
            let mut revision = client.create(&node(&name, 0)).await.unwrap();
            for round in 1..ROUNDS {
                revision = client.replace(&node(&name, round), revision).await.unwrap();
            }
            if object % 10 == 0 {
                client.delete::<Node>(&name, revision).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    settle(client, &mut watch, &mut seen, "slow-end").await;
}

/// Nobody reads what is dropped, so nothing is held for it.
async fn a_watch_ends_with_its_reader(client: &Client, proxy: &Proxy) {
    proxy.watches_are(0).await;
    let watch = client.watch::<Node>();
    proxy.watches_are(1).await;
    drop(watch);
    proxy.watches_are(0).await;
}

/// The connection is cut again and again: the watch goes on, and ends up with what there is.
async fn a_watch_survives_its_connection(client: &Client, proxy: &Proxy) {
    let mut watch = client.watch::<Node>();
    let mut seen = BTreeMap::new();
    for round in 0..3 {
        let name = format!("cut{round}");
        insist(client, &name).await;
        follow(&mut watch, &mut seen, &name).await;
        proxy.cut();
    }
    settle(client, &mut watch, &mut seen, "cut-end").await;
}

/// The request of a watch is on its way for so long that everything changes meanwhile.
async fn nothing_falls_between_list_and_watch(client: &Client, proxy: &Proxy) {
    proxy.hold_watches(true);
    let mut watch = client.watch::<Node>();
    proxy.watch_is_held().await;
    client.create(&node("between0", 1)).await.unwrap();
    let gone = client.create(&node("between1", 1)).await.unwrap();
    client.delete::<Node>("between1", gone).await.unwrap();
    proxy.hold_watches(false);
    let mut seen = BTreeMap::new();
    settle(client, &mut watch, &mut seen, "between-end").await;
}

async fn a_lost_answer_is_unknown(client: &Client, proxy: &Proxy) {
    proxy.lose_answers(true);
    let error = client.create(&node("lost", 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unknown, "{error}");
    let found =
        client.get::<Node>("lost").await.unwrap().expect("the server had answered, hence it was done");
    let error = client.replace(&node("lost", 2), found.revision).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unknown, "{error}");
    let found = client.get::<Node>("lost").await.unwrap().unwrap();
    assert_eq!(found.value.heartbeat, 2);
    let error = client.delete::<Node>("lost", found.revision).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unknown, "{error}");
    assert_eq!(client.get::<Node>("lost").await.unwrap(), None);
    proxy.lose_answers(false);
    client.create(&node("lost", 3)).await.unwrap();
}

/// Creates a node however often it has to be asked; it may already have been done by a try whose answer was lost.
pub(crate) async fn insist(client: &Client, name: &str) {
    for _ in 0..600 {
        match client.create(&node(name, 1)).await.map_err(|error| error.kind()) {
            Ok(_) | Err(ErrorKind::Conflict) => return,
            Err(ErrorKind::Unavailable | ErrorKind::Unknown) => sleep(Duration::from_millis(100)).await,
            Err(kind) => panic!("{name}: {kind:?}"),
        }
    }
    panic!("{name} cannot be created");
}

pub(crate) fn by_key(items: Vec<Stored<Node>>) -> BTreeMap<String, Stored<Node>> {
    items.into_iter().map(|item| (item.value.name.clone(), item)).collect()
}

/// Creates `last`, and reads the watch until it has told of it: then it has told of everything.
pub(crate) async fn settle(
    client: &Client,
    watch: &mut Watch<Node>,
    seen: &mut BTreeMap<String, Stored<Node>>,
    last: &str,
) {
    insist(client, last).await;
    follow(watch, seen, last).await;
    assert_eq!(*seen, by_key(client.list().await.unwrap()));
}

/// Applies what the watch tells until it tells of `until`; no object may go back to what it was.
pub(crate) async fn follow(watch: &mut Watch<Node>, seen: &mut BTreeMap<String, Stored<Node>>, until: &str) {
    while !seen.contains_key(until) {
        match watch.next().await.unwrap() {
            Change::Relist(items) => {
                let items = by_key(items);
                for (name, item) in &items {
                    assert!(
                        seen.get(name).is_none_or(|old| old.revision <= item.revision),
                        "{name} went back"
                    );
                }
                *seen = items;
            }
            Change::Put(item) => {
                let (name, revision) = (item.value.name.clone(), item.revision);
                let old = seen.insert(name.clone(), item);
                assert!(old.is_none_or(|old| old.revision < revision), "{name} went back");
            }
            Change::Delete(key) => drop(seen.remove(&key)),
        }
    }
}

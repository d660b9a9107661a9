//! One test of the invariants of the crate for every implementation: they may not differ in anything that is relied on.

use crate::{node, open, served::Served};
use model::{ClusterInfo, Node, Stored};
use std::collections::BTreeMap;
use store::{Change, Client, ErrorKind, Watch};
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn embedded_conforms() {
    let folder = tempfile::tempdir().unwrap();
    conforms(&open(folder.path())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn remote_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(&open(folder.path())).await;
    conforms(&served.client()).await;
    served.stop().await;
}

async fn conforms(client: &Client) {
    compare_and_swap(client).await;
    lists_are_ordered_and_of_one_kind(client).await;
    bad_objects_are_refused(client).await;
    one_of_many_writers_wins(client).await;
    a_watch_converges(client).await;
}

async fn compare_and_swap(client: &Client) {
    assert_eq!(client.get::<Node>("n1").await.unwrap(), None);
    let kind = |result: store::Result<u64>| result.unwrap_err().kind();
    assert_eq!(kind(client.replace(&node("n1", 1), 5).await), ErrorKind::NotFound);

    let created = client.create(&node("n1", 1)).await.unwrap();
    let stored = Stored { revision: created, value: node("n1", 1) };
    assert_eq!(client.get("n1").await.unwrap(), Some(stored));
    assert_eq!(kind(client.create(&node("n1", 2)).await), ErrorKind::Conflict);

    let replaced = client.replace(&node("n1", 2), created).await.unwrap();
    assert_ne!(replaced, created);
    assert_eq!(kind(client.replace(&node("n1", 3), created).await), ErrorKind::Conflict);
    assert_eq!(client.get::<Node>("n1").await.unwrap().unwrap().value.heartbeat, 2);

    assert_eq!(client.delete::<Node>("n1", created).await.unwrap_err().kind(), ErrorKind::Conflict);
    client.delete::<Node>("n1", replaced).await.unwrap();
    assert_eq!(client.delete::<Node>("n1", replaced).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(client.get::<Node>("n1").await.unwrap(), None);

    let again = client.create(&node("n1", 9)).await.unwrap();
    assert!(again != created && again != replaced, "a revision is never given twice");
    client.delete::<Node>("n1", again).await.unwrap();
}

async fn lists_are_ordered_and_of_one_kind(client: &Client) {
    client.create(&ClusterInfo { uuid: Uuid::from_u128(1) }).await.unwrap();
    for name in ["b", "c", "a"] {
        client.create(&node(name, 1)).await.unwrap();
    }
    let names: Vec<String> =
        client.list::<Node>().await.unwrap().into_iter().map(|item| item.value.name).collect();
    assert_eq!(names, ["a", "b", "c"]);
}

async fn bad_objects_are_refused(client: &Client) {
    let error = client.create(&node("N 1", 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let error = client.create(&ClusterInfo { uuid: Uuid::nil() }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let error = client.get::<Node>("../x?y").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let error = client.create(&Node { address: "x".repeat(2 << 20), ..node("big", 1) }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

/// Writers increment one counter by compare-and-swap: no increment may be lost.
async fn one_of_many_writers_wins(client: &Client) {
    const WRITERS: u64 = 8;
    const EACH: u64 = 10;
    client.create(&node("counter", 0)).await.unwrap();
    let writers = (0..WRITERS).map(|_| {
        let client = client.clone();
        tokio::spawn(async move {
            let mut done = 0;
            while done < EACH {
                let Stored { revision, value } = client.get::<Node>("counter").await.unwrap().unwrap();
                match client.replace(&node("counter", value.heartbeat + 1), revision).await {
                    Ok(_) => done += 1,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
                }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let end = client.get::<Node>("counter").await.unwrap().unwrap();
    assert_eq!(end.value.heartbeat, WRITERS * EACH);
}

/// What a watcher has been told, applied in order, becomes what a list shows, under writers that never pause.
async fn a_watch_converges(client: &Client) {
    let mut watch = client.watch::<Node>();
    let Some(Change::Relist(first)) = watch.next().await else { panic!("a watch begins with a list") };
    let mut seen: BTreeMap<String, Stored<Node>> = by_key(first);
    assert!(seen.contains_key("counter"));

    for round in 0..30_u64 {
        let name = format!("w{}", round % 4);
        match client.get::<Node>(&name).await.unwrap() {
            Some(stored) if round % 3 == 0 => client.delete::<Node>(&name, stored.revision).await.unwrap(),
            Some(stored) => drop(client.replace(&node(&name, round), stored.revision).await.unwrap()),
            None => drop(client.create(&node(&name, round)).await.unwrap()),
        }
    }
    client.create(&node("last", 1)).await.unwrap();
    follow(&mut watch, &mut seen, "last").await;
    assert_eq!(seen, by_key(client.list::<Node>().await.unwrap()));
}

pub(crate) fn by_key(items: Vec<Stored<Node>>) -> BTreeMap<String, Stored<Node>> {
    items.into_iter().map(|item| (item.value.name.clone(), item)).collect()
}

/// Applies what the watch tells until it tells of `until`.
pub(crate) async fn follow(watch: &mut Watch<Node>, seen: &mut BTreeMap<String, Stored<Node>>, until: &str) {
    while !seen.contains_key(until) {
        match watch.next().await.unwrap() {
            Change::Relist(items) => *seen = by_key(items),
            Change::Put(item) => drop(seen.insert(item.value.name.clone(), item)),
            Change::Delete(key) => drop(seen.remove(&key)),
        }
    }
}

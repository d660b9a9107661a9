//! The tests: the judge of all stores, and then what only an etcd does.

use crate::Test;
use crate::conformance::{by_key, conforms, follow, insist, node, settle};
use crate::server::{Cluster, client};
use model::{Node, Stored};
use std::collections::BTreeMap;
use store::{Change, Client, ErrorKind, Etcd};
use tokio::task::JoinSet;

pub(crate) const TESTS: &[Test] = &[
    ("etcd_conforms", || Box::pin(etcd_conforms())),
    ("clusters_share_one_etcd", || Box::pin(clusters_share_one_etcd())),
    ("an_endpoint_that_is_not_there_is_passed_over", || {
        Box::pin(an_endpoint_that_is_not_there_is_passed_over())
    }),
    ("a_write_is_sent_once", || Box::pin(a_write_is_sent_once())),
    ("a_compaction_makes_a_watch_begin_again", || Box::pin(a_compaction_makes_a_watch_begin_again())),
    ("a_compaction_overtakes_a_slow_reader", || Box::pin(a_compaction_overtakes_a_slow_reader())),
    ("kill_nine_loses_nothing", || Box::pin(kill_nine_loses_nothing())),
    ("a_stopped_etcd_holds_nobody_for_ever", || Box::pin(a_stopped_etcd_holds_nobody_for_ever())),
    ("a_full_etcd_says_so", || Box::pin(a_full_etcd_says_so())),
    ("a_stopped_member_is_left", || Box::pin(a_stopped_member_is_left())),
    ("a_minority_answers_nothing", || Box::pin(a_minority_answers_nothing())),
];

async fn etcd_conforms() {
    let cluster = Cluster::one().await;
    let (client, proxy) = cluster.client_by_proxy().await;
    conforms(&client, Some(&proxy)).await;
}

async fn clusters_share_one_etcd() {
    let cluster = Cluster::one().await;
    let other = Etcd::new(&format!("http://{}", cluster.address())).unwrap().with_prefix("/other/").unwrap();
    let (ours, theirs) = (cluster.client(), Client::new(other));
    ours.create(&node("n1", 1)).await.unwrap();
    theirs.create(&node("n1", 2)).await.unwrap();
    assert_eq!(ours.get::<Node>("n1").await.unwrap().unwrap().value.heartbeat, 1);
    assert_eq!(theirs.list::<Node>().await.unwrap()[0].value.heartbeat, 2);
}

async fn an_endpoint_that_is_not_there_is_passed_over() {
    let cluster = Cluster::one().await;
    // Nobody listens on port 1.
    let endpoints = format!("http://127.0.0.1:1,http://{}", cluster.address());
    client(&endpoints).create(&node("n1", 1)).await.unwrap();
    assert!(client(&endpoints).get::<Node>("n1").await.unwrap().is_some());
    let client = client(&endpoints);
    let mut watch = client.watch::<Node>();
    settle(&client, &mut watch, &mut BTreeMap::new(), "last").await;
}

/// There is another endpoint, but the answer that was lost may have been a yes.
async fn a_write_is_sent_once() {
    let cluster = Cluster::one().await;
    let (_, proxy) = cluster.client_by_proxy().await;
    let client = client(&format!("http://{},http://{}", proxy.address, cluster.address()));
    proxy.lose_answers(true);
    let error = client.create(&node("n1", 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unknown, "{error}");
    // The next question is for the other one.
    assert_eq!(client.get::<Node>("n1").await.unwrap().unwrap().value.heartbeat, 1);
    client.create(&node("n2", 1)).await.unwrap();
}

/// The request of a watch comes when what it asks for has been forgotten, over a connection that is well.
async fn a_compaction_makes_a_watch_begin_again() {
    let cluster = Cluster::one().await;
    let (client, proxy) = cluster.client_by_proxy().await;
    proxy.hold_watches(true);
    let mut watch = client.watch::<Node>();
    assert_eq!(watch.next().await, Some(Change::Relist(Vec::new())));
    proxy.watch_is_held().await;
    let gone = client.create(&node("gone", 1)).await.unwrap();
    client.delete::<Node>("gone", gone).await.unwrap();
    let stays = client.create(&node("stays", 1)).await.unwrap();
    cluster.compact(stays).await;
    proxy.hold_watches(false);
    let stays = Stored { revision: stays, value: node("stays", 1) };
    let mut seen = by_key(vec![stays.clone()]);
    assert_eq!(watch.next().await, Some(Change::Relist(vec![stays])), "told by a list, not by events");
    settle(&client, &mut watch, &mut seen, "last").await;
}

async fn a_compaction_overtakes_a_slow_reader() {
    let cluster = Cluster::one().await;
    let client = cluster.client();
    let mut watch = client.watch::<Node>();
    let mut seen = BTreeMap::new();
    insist(&client, "begin").await;
    follow(&mut watch, &mut seen, "begin").await;
    let mut writers = JoinSet::new();
    for writer in 0..20 {
        let client = client.clone();
        writers.spawn(async move {
            let mut revision = client.create(&node(&format!("w{writer}"), 0)).await.unwrap();
            for round in 1..100 {
                revision = client.replace(&node(&format!("w{writer}"), round), revision).await.unwrap();
            }
            revision
        });
    }
    let last = writers.join_all().await.into_iter().max().unwrap();
    cluster.compact(last).await;
    settle(&client, &mut watch, &mut seen, "last").await;
}

/// Replaces a node for ever, until a write is not answered `Ok`: the last heartbeat that was, and the failure.
async fn write_until_failure(client: Client, name: String) -> (u64, ErrorKind) {
    let mut revision = client.create(&node(&name, 0)).await.unwrap();
    for heartbeat in 1.. {
        match client.replace(&node(&name, heartbeat), revision).await {
            Ok(next) => revision = next,
            Err(error) => return (heartbeat - 1, error.kind()),
        }
    }
    unreachable!("the numbers have no end")
}

async fn kill_nine_loses_nothing() {
    let mut cluster = Cluster::one().await;
    let client = cluster.client();
    let mut watch = client.watch::<Node>();
    let mut seen = BTreeMap::new();
    let mut writers = JoinSet::new();
    for writer in 0..4 {
        writers.spawn(write_until_failure(client.clone(), format!("w{writer}")));
    }
    // In the midst of it.
    while seen.get("w0").is_none_or(|item: &Stored<Node>| item.value.heartbeat < 20) {
        match watch.next().await.unwrap() {
            Change::Relist(items) => seen = by_key(items),
            Change::Put(item) => drop(seen.insert(item.value.name.clone(), item)),
            Change::Delete(key) => drop(seen.remove(&key)),
        }
    }
    cluster.kill(0);
    let mut answered = Vec::new();
    while let Some(ended) = writers.join_next().await {
        answered.push(ended.unwrap());
    }
    let error = client.get::<Node>("w0").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let error = client.list::<Node>().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let error = client.create(&node("never", 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "no connection, hence nothing was done: {error}");

    cluster.begin(0);
    assert!(cluster.answers().await);
    settle(&client, &mut watch, &mut seen, "last").await;
    assert!(!seen.contains_key("never"));
    let mut found: Vec<u64> = (0..4).map(|writer| seen[&format!("w{writer}")].value.heartbeat).collect();
    found.sort_unstable();
    answered.sort_unstable();
    for (found, (answered, kind)) in found.iter().zip(&answered) {
        // The one that was not answered may have happened, no other.
        let most = answered + u64::from(*kind == ErrorKind::Unknown);
        assert!(matches!(kind, ErrorKind::Unknown | ErrorKind::Unavailable), "{kind:?}");
        assert!((*answered..=most).contains(found), "found {found}, answered {answered}, then {kind:?}");
    }
}

async fn a_stopped_etcd_holds_nobody_for_ever() {
    let cluster = Cluster::one().await;
    let client = cluster.client();
    let mut watch = client.watch::<Node>();
    let mut seen = BTreeMap::new();
    settle(&client, &mut watch, &mut seen, "before").await;
    let before = seen["before"].revision;

    cluster.stop(0);
    let (new, old) = (node("during", 1), node("before", 2));
    let (created, replaced, got, listed) = tokio::join!(
        client.create(&new),
        client.replace(&old, before),
        client.get::<Node>("before"),
        client.list::<Node>()
    );
    cluster.go_on(0);
    assert_eq!(created.unwrap_err().kind(), ErrorKind::Unknown);
    assert_eq!(replaced.unwrap_err().kind(), ErrorKind::Unknown);
    assert_eq!(got.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(listed.unwrap_err().kind(), ErrorKind::Unavailable);

    // What is read back now may still change: only a swap decides it.
    insist(&client, "during").await;
    loop {
        let found = client.get::<Node>("before").await.unwrap().unwrap();
        if client.replace(&node("before", 3), found.revision).await.is_ok() {
            break;
        }
    }
    settle(&client, &mut watch, &mut seen, "last").await;
    assert_eq!(seen["before"].value.heartbeat, 3);
}

/// etcd also refuses the write that fills it, and keeps it.
async fn a_full_etcd_says_so() {
    let cluster = Cluster::start(1, &["--quota-backend-bytes", "4194304"]).await;
    let client = cluster.client();
    let big = |number: usize| Node { address: "x".repeat(500 << 10), ..node(&format!("n{number}"), 1) };
    let mut kept = 0;
    let error = loop {
        match client.create(&big(kept)).await {
            Ok(_) => kept += 1,
            Err(error) => break error,
        }
        assert!(kept < 100, "it is never full");
    };
    assert_eq!(error.kind(), ErrorKind::Unknown, "{error}");
    assert!(error.to_string().contains("database space exceeded"), "{error}");
    let found = client.list::<Node>().await.unwrap().len();
    assert!((kept..=kept + 1).contains(&found), "found {found}, kept {kept}");
    let error = client.create(&big(kept + 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unknown, "{error}");
}

/// One of three members is stopped, the one that everybody has asked so far: work and watch go on with the others.
async fn a_stopped_member_is_left() {
    let cluster = Cluster::start(3, &[]).await;
    let client = cluster.client();
    let mut watch = client.watch::<Node>();
    let mut seen = BTreeMap::new();
    settle(&client, &mut watch, &mut seen, "before").await;
    cluster.stop(0);
    insist(&client, "during").await;
    follow(&mut watch, &mut seen, "during").await;
    cluster.go_on(0);
    insist(&client, "after").await;
    follow(&mut watch, &mut seen, "after").await;
    assert_eq!(seen, by_key(client.list().await.unwrap()));
}

/// A member without a majority has old data and would tell nothing new: it counts as dead, also for a watch.
async fn a_minority_answers_nothing() {
    let cluster = Cluster::start(3, &[]).await;
    let (client, proxy) = cluster.client_by_proxy().await;
    let mut watch = client.watch::<Node>();
    let mut seen = BTreeMap::new();
    settle(&client, &mut watch, &mut seen, "before").await;
    proxy.watches_are(1).await;
    cluster.stop(1);
    cluster.stop(2);
    let new = node("during", 1);
    let (got, created) = tokio::join!(client.get::<Node>("before"), client.create(&new));
    assert_eq!(got.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(created.unwrap_err().kind(), ErrorKind::Unknown);
    proxy.watches_are(0).await;
    cluster.go_on(1);
    cluster.go_on(2);
    settle(&client, &mut watch, &mut seen, "after").await;
}

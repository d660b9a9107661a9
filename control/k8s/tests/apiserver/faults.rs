//! The judge of all stores, and then what an API server does to its clients.

use crate::Test;
use crate::conformance::{by_key, conforms, insist, node, settle};
use crate::server::{ControlPlane, OUTSIDER};
use model::{Node, Stored};
use std::collections::BTreeMap;
use store::{Change, Client, ErrorKind};
use tokio::task::JoinSet;

pub(crate) const TESTS: &[Test] = &[
    ("kubernetes_conforms", || Box::pin(kubernetes_conforms())),
    ("a_compaction_makes_a_watch_begin_again", || Box::pin(a_compaction_makes_a_watch_begin_again())),
    ("kill_nine_loses_nothing", || Box::pin(kill_nine_loses_nothing())),
    ("a_stopped_api_server_holds_nobody_for_ever", || Box::pin(a_stopped_api_server_holds_nobody_for_ever())),
    ("who_may_not_or_asks_too_early_is_told_so", || Box::pin(who_may_not_or_asks_too_early_is_told_so())),
];

async fn kubernetes_conforms() {
    let plane = ControlPlane::installed().await;
    let (client, proxy) = plane.client_by_proxy().await;
    conforms(&client, Some(&proxy)).await;
}

/// The request of a watch comes when what it asks for has been forgotten, over a connection that is well.
async fn a_compaction_makes_a_watch_begin_again() {
    // Else the API server itself remembers for longer than etcd.
    let plane = ControlPlane::start(&["--watch-cache=false"]).await;
    plane.store().await.install().await.unwrap();
    let (client, proxy) = plane.client_by_proxy().await;
    proxy.hold_watches(true);
    let mut watch = client.watch::<Node>();
    assert_eq!(watch.next().await, Some(Change::Relist(Vec::new())));
    proxy.watch_is_held().await;
    let gone = client.create(&node("gone", 1)).await.unwrap();
    client.delete::<Node>("gone", gone).await.unwrap();
    let stays = client.create(&node("stays", 1)).await.unwrap();
    plane.compact().await;
    proxy.hold_watches(false);
    let stays = Stored { revision: stays, value: node("stays", 1) };
    let mut seen = by_key(vec![stays.clone()]);
    assert_eq!(watch.next().await, Some(Change::Relist(vec![stays])), "told by a list, not by events");
    settle(&client, &mut watch, &mut seen, "last").await;
    // Under a watch that is open it changes nothing.
    plane.compact().await;
    settle(&client, &mut watch, &mut seen, "after").await;
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
    let mut plane = ControlPlane::installed().await;
    let client = plane.client().await;
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
    plane.kill();
    let mut answered = Vec::new();
    while let Some(ended) = writers.join_next().await {
        answered.push(ended.unwrap());
    }
    // Nobody listens: nothing was done.
    assert_eq!(client.create(&node("never", 1)).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(client.get::<Node>("w0").await.unwrap_err().kind(), ErrorKind::Unavailable);
    // The API server that comes back knows nothing from before.
    plane.compact().await;
    plane.begin();
    assert!(plane.answers().await);
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

async fn a_stopped_api_server_holds_nobody_for_ever() {
    let plane = ControlPlane::installed().await;
    let client = plane.client().await;
    let mut watch = client.watch::<Node>();
    let mut seen = BTreeMap::new();
    settle(&client, &mut watch, &mut seen, "before").await;
    let before = seen["before"].revision;

    plane.stop();
    let (new, old) = (node("during", 1), node("before", 2));
    let (created, replaced, got, listed) = tokio::join!(
        client.create(&new),
        client.replace(&old, before),
        client.get::<Node>("before"),
        client.list::<Node>()
    );
    plane.go_on();
    // What may have been made has no status.
    assert_eq!(created.unwrap_err().kind(), ErrorKind::Unavailable);
    // What has a spec is read before it is written.
    assert_eq!(replaced.unwrap_err().kind(), ErrorKind::Unavailable);
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

async fn who_may_not_or_asks_too_early_is_told_so() {
    let plane = ControlPlane::start(&[]).await;
    let client = plane.client().await;
    let early = client.get::<Node>("n1").await.unwrap_err();
    assert!(early.kind() == ErrorKind::Unavailable && early.to_string().contains("deploy/crds"), "{early}");
    let early = client.create(&node("n1", 1)).await.unwrap_err();
    assert!(early.kind() == ErrorKind::Unavailable && early.to_string().contains("deploy/crds"), "{early}");

    let outsider = Client::new(plane.store_as(OUTSIDER).await);
    let refused = outsider.create(&node("n1", 1)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    let missing = "cannot create resource \"nodes\" in API group \"orlop.io\"";
    assert!(refused.to_string().contains(missing), "{refused}");
    let stranger = Client::new(plane.store_as("unknown").await);
    let refused = stranger.list::<Node>().await.unwrap_err();
    assert!(
        refused.kind() == ErrorKind::Unavailable && refused.to_string().contains("credentials"),
        "{refused}"
    );
}

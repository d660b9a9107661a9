//! The loop on a real store: what is planned is written, and the loop ends when it is told to.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod fleet;
mod scale;

use manager::{Config, ensure_cluster, start};
use model::{
    MemberIntent, MemberState, Node, NodeReplicas, NodeSpec, NodeState, ReplicaReport, ReplicaState, Volume,
    VolumeIntent, VolumeRecord, VolumeSpec,
};
use std::time::Duration;
use store::{Client, Embedded, Mandate};
use tempfile::TempDir;
use uuid::Uuid;

fn store() -> (Client, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (Client::new(Embedded::open(&folder.path().join("store.redb")).unwrap()), folder)
}

fn node() -> Node {
    Node {
        name: "n1".into(),
        spec: NodeSpec::default(),
        state: NodeState::Ready,
        address: "127.0.0.1:4420".into(),
        metrics_address: None,
        pid: 1,
        boot_id: Uuid::from_u128(1),
        version: "0.1.0".into(),
        heartbeat: 1,
        topology: std::collections::BTreeMap::new(),
    }
}

fn volume() -> Volume {
    let member = MemberIntent { replica: Uuid::from_u128(3), pool: Uuid::from_u128(4), node: "n1".into() };
    Volume {
        name: "data".into(),
        uuid: Uuid::from_u128(2),
        spec: VolumeSpec {
            size_bytes: 1 << 30,
            copies: 1,
            stripes: 1,
            block_size: 4096,
            class: None,
            spread: None,
        },
        intent: VolumeIntent { members: vec![member], ..VolumeIntent::default() },
        message: None,
    }
}

/// Looks until there is an answer. A test that hangs here has failed.
async fn until<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    loop {
        if let Some(found) = look().await {
            return found;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_comes_and_goes() {
    let (client, _folder) = store();
    let patient = Config { lease: Duration::from_secs(3600), ..Config::default() };
    let manager = start(client.clone(), patient, Mandate::default(), None);
    client.create(&node()).await.unwrap();
    client.create(&volume()).await.unwrap();
    let key = volume().uuid.to_string();
    until(async || client.get::<VolumeRecord>(&key).await.unwrap()).await;
    // The replicas are to be made: somebody is wished for who does it.
    until(async || {
        let seen = client.get::<Volume>("data").await.unwrap().unwrap();
        (seen.value.intent.recorded && seen.value.intent.owner.as_deref() == Some("n1")).then_some(())
    })
    .await;

    let mut wish = client.get::<Volume>("data").await.unwrap().unwrap();
    wish.value.intent.deleting = true;
    wish.value.intent.owner = None;
    client.replace(&wish.value, wish.revision).await.unwrap();
    let record = until(async || {
        let record = client.get::<VolumeRecord>(&key).await.unwrap().unwrap().value;
        (record.members[0].state == MemberState::Removed).then_some(record)
    })
    .await;
    assert_eq!((record.epoch, record.owner), (1, None));
    let report = ReplicaReport {
        replica: record.members[0].replica,
        volume: volume().uuid,
        pool: record.members[0].pool,
        state: ReplicaState::Destroyed,
        used_bytes: 0,
        message: None,
        record: None,
    };
    client
        .create(&NodeReplicas { node: "n1".into(), replicas: vec![report], readers: Vec::new() })
        .await
        .unwrap();
    until(async || client.get::<Volume>("data").await.unwrap().is_none().then_some(())).await;
    assert!(client.list::<VolumeRecord>().await.unwrap().is_empty());
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_silent_is_not_ready() {
    let (client, _folder) = store();
    client.create(&node()).await.unwrap();
    let manager = start(
        client.clone(),
        Config { lease: Duration::from_secs(1), ..Config::default() },
        Mandate::default(),
        None,
    );
    let state = async || client.get::<Node>("n1").await.unwrap().unwrap().value.state;
    until(async || (state().await == NodeState::NotReady).then_some(())).await;
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_made_once() {
    let (client, _folder) = store();
    let made = ensure_cluster(&client).await.unwrap();
    assert!(!made.uuid.is_nil());
    assert_eq!(ensure_cluster(&client).await.unwrap(), made);
}

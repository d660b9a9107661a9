//! What runs beside the manager writes only while its term lasts: adoption, and what frees the pods of lost nodes.

use crate::Test;
use crate::conformance::node;
use crate::extender::claim;
use crate::server::ControlPlane;
use hyper::{Method, StatusCode};
use k8s::{Failover, FailoverConfig};
use model::{Attach, Node, NodeState, Volume, VolumeIntent, VolumeRecord, VolumeSpec};
use serde_json::{Value, json};
use std::time::Duration;
use store::{Client, ErrorKind, Mandate};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

pub(crate) const TESTS: &[Test] = &[
    ("an_adoption_ends_with_its_term", || Box::pin(an_adoption_ends_with_its_term())),
    ("pods_leave_a_lost_node_only_while_the_term_lasts", || {
        Box::pin(pods_leave_a_lost_node_only_while_the_term_lasts())
    }),
];

const HOUR: Duration = Duration::from_secs(3600);
/// Several looks at a lost node.
const LOOKS: Duration = Duration::from_secs(3);
const VOLUME: &str = "/apis/orlop.io/v1alpha1/volumes/data";
const NODE: &str = "/api/v1/nodes/n1";
const PODS: &str = "/api/v1/namespaces/default/pods";

/// It lists, waits until what it found is still, and only then writes.
async fn an_adoption_ends_with_its_term() {
    let plane = ControlPlane::installed().await;
    let store = plane.store().await;
    let applied = json!({
        "apiVersion": "orlop.io/v1alpha1", "kind": "Volume", "metadata": { "name": "data" },
        "spec": { "sizeBytes": 5 << 20 },
    });
    let (status, before) = plane.by_hand(Method::POST, "/apis/orlop.io/v1alpha1/volumes", &applied).await;
    assert_eq!(status, StatusCode::CREATED, "{before}");
    let (until, told) = watch::channel(Instant::now() + HOUR);
    let mandate = Mandate::until(told);
    let adoption = tokio::spawn({
        let (store, mandate) = (store.clone(), mandate.clone());
        async move { store.adopt(&mandate).await }
    });
    sleep(LOOKS).await;
    assert!(!adoption.is_finished(), "it waits");
    until.send_replace(Instant::now());
    let refused = adoption.await.unwrap().unwrap_err();
    assert!(refused.kind() == ErrorKind::Unavailable && refused.to_string().contains("lead"), "{refused}");
    let (_, after) = plane.by_hand(Method::GET, VOLUME, &Value::Null).await;
    assert_eq!(after, before, "it is as it was applied");
    until.send_replace(Instant::now() + HOUR);
    assert_eq!(store.adopt(&mandate).await.unwrap(), ["data"]);
    assert!(plane.client().await.get::<Volume>("data").await.unwrap().is_some());
}

/// A pod whose class has opted in, and one that has not, on a node whose engine is away.
async fn pods_leave_a_lost_node_only_while_the_term_lasts() {
    let plane = ControlPlane::installed().await;
    let client = plane.client().await;
    lost_node(&plane, &client).await;
    let (until, told) = watch::channel(Instant::now());
    let config = FailoverConfig { after: Duration::ZERO, share_percent: 34 };
    let failover = Failover::new(plane.store().await, client.clone(), config, Mandate::until(told));
    let failover = tokio::spawn(failover.run());
    let before = scene(&plane, &client).await;
    sleep(LOOKS).await;
    assert_eq!(scene(&plane, &client).await, before, "it does not lead yet");
    assert!(!has_taint(&before, "orlop.io/failed-over") && before[1]["attach"]["node"] == "n1", "{before}");

    until.send_replace(Instant::now() + HOUR);
    let fenced = async || loop {
        let scene = scene(&plane, &client).await;
        if has_taint(&scene, "orlop.io/failed-over") && scene[1]["attach"].is_null() {
            return scene;
        }
        sleep(Duration::from_millis(100)).await;
    };
    let taken = fenced().await;
    assert_eq!(taken[2], json!(["bystander", "moves"]), "its volume is not open elsewhere yet");

    // Now it is, so the pod is next; and the term has ended.
    until.send_replace(Instant::now());
    let mut record = client.get::<VolumeRecord>(&Uuid::from_u128(7).to_string()).await.unwrap().unwrap();
    record.value.clean = true;
    client.replace(&record.value, record.revision).await.unwrap();
    sleep(LOOKS).await;
    assert_eq!(scene(&plane, &client).await, taken, "it does not lead any more");

    until.send_replace(Instant::now() + HOUR);
    while scene(&plane, &client).await[2] != json!(["bystander"]) {
        sleep(Duration::from_millis(100)).await;
    }
    assert!(!failover.is_finished());
    failover.abort();
}

/// Node, claim, volume, record and pods as they are when an engine has just gone away.
async fn lost_node(plane: &ControlPlane, client: &Client) {
    client.create(&Node { state: NodeState::NotReady, ..node("n1", 1) }).await.unwrap();
    for name in ["n2", "n3"] {
        client.create(&node(name, 1)).await.unwrap();
    }
    claim(plane, "ours", "csi.orlop.io", &json!({ "failover": "automatic" })).await;
    claim(plane, "manual", "csi.orlop.io", &json!({})).await;
    let intent = VolumeIntent {
        attach: Some(Attach { node: "n1".into() }),
        owner: Some("n1".into()),
        ..VolumeIntent::default()
    };
    let spec = VolumeSpec {
        size_bytes: 1 << 30,
        copies: 1,
        stripes: 1,
        block_size: 4096,
        class: None,
        spread: None,
    };
    let uuid = Uuid::from_u128(7);
    client.create(&Volume { name: "pvc-1".into(), uuid, spec, intent, message: None }).await.unwrap();
    // Its owner has gone without a word.
    let record = VolumeRecord { clean: false, ..VolumeRecord::new(uuid, 1 << 30, 4096, Vec::new()) };
    client.create(&record).await.unwrap();
    let pod = |name: &str, claim: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
            "spec": {
                "nodeName": "n1", "automountServiceAccountToken": false,
                "containers": [{ "name": "main", "image": "none" }],
                "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": claim } }],
            },
        })
    };
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" } });
    for (path, object) in [
        ("/api/v1/namespaces/default/serviceaccounts", account),
        ("/api/v1/nodes", node),
        (PODS, pod("moves", "ours")),
        (PODS, pod("bystander", "manual")),
    ] {
        let (status, answer) = plane.by_hand(Method::POST, path, &object).await;
        assert_eq!(status, StatusCode::CREATED, "{answer}");
    }
}

/// All that it could write: the node's taints, the volume's intent, and which pods there are.
async fn scene(plane: &ControlPlane, client: &Client) -> Value {
    let (_, node) = plane.by_hand(Method::GET, NODE, &Value::Null).await;
    let (_, pods) = plane.by_hand(Method::GET, PODS, &Value::Null).await;
    let volume = client.get::<Volume>("pvc-1").await.unwrap().unwrap();
    let mut names: Vec<&Value> =
        pods["items"].as_array().unwrap().iter().map(|pod| &pod["metadata"]["name"]).collect();
    names.sort_by_key(|name| name.as_str());
    json!([node["spec"]["taints"], volume.value.intent, names])
}

fn has_taint(scene: &Value, key: &str) -> bool {
    scene[0].as_array().is_some_and(|taints| taints.iter().any(|taint| taint["key"] == key))
}

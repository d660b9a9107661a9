//! The scheduler extender beside a real API server: a claim's copies are found, and the nodes judged.

use crate::Test;
use crate::conformance::node;
use crate::server::ControlPlane;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, body::Bytes};
use hyper_util::{client::legacy::Client as Http, rt::TokioExecutor};
use k8s::{Cidr, Extender};
use model::{
    Generation, MemberRecord, MemberState, Node, NodeState, Scheduling, Volume, VolumeIntent, VolumeRecord,
    VolumeSpec,
};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;
use store::Client;
use uuid::Uuid;

pub(crate) const TESTS: &[Test] = &[
    ("nodes_with_a_copy_come_first", || Box::pin(nodes_with_a_copy_come_first())),
    ("a_scheduler_asks_and_goes_on_alone", || Box::pin(a_scheduler_asks_and_goes_on_alone())),
];

const SIZE_BYTES: u64 = 1 << 30;

async fn nodes_with_a_copy_come_first() {
    let control = ControlPlane::installed().await;
    let client = control.client().await;
    for (name, state, scheduling) in [
        ("n1", NodeState::Ready, Scheduling::Enabled),
        ("n2", NodeState::Ready, Scheduling::Enabled),
        ("n3", NodeState::NotReady, Scheduling::Enabled),
        ("n4", NodeState::Ready, Scheduling::Cordoned),
        ("n5", NodeState::Ready, Scheduling::Enabled),
    ] {
        let mut node = node(name, 1);
        (node.state, node.spec.scheduling) = (state, scheduling);
        client.create(&node).await.unwrap();
    }
    volume(&client).await;
    claim(&control, "ours", "csi.orlop.io", &json!({})).await;
    claim(&control, "other", "csi.example.com", &json!({})).await;

    let extender =
        Extender::start("127.0.0.1:0".parse().unwrap(), here(), control.store().await, client).await.unwrap();
    let at = extender.address();
    while ask(at, "filter", &["n1", "n3"], &["ours"]).await["NodeNames"] != json!(["n1"]) {
        // The watch has not told the engines yet.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let all = ["n1", "n2", "n3", "n4", "n5", "n6"];
    let filtered = ask(at, "filter", &all, &["ours"]).await;
    assert_eq!(filtered["NodeNames"], json!(["n1", "n2", "n4", "n5"]));
    let failed = &filtered["FailedAndUnresolvableNodes"];
    assert!(failed["n3"].as_str().unwrap().contains("NotReady"), "{failed}");
    assert!(failed["n6"].as_str().unwrap().contains("no engine"), "{failed}");
    assert_eq!(ask(at, "filter", &["n3", "n6"], &["ours"]).await["NodeNames"], json!(["n3", "n6"]));
    // n1 and n3 have a copy in sync, n2 one that is stale.
    assert_eq!(scores(at, &all, &["ours"]).await, [10, 1, 0, 0, 1, 0]);
    assert_eq!(scores(at, &all, &["other", "ours", "absent"]).await, [10, 1, 0, 0, 1, 0]);
    for claims in [&[][..], &["other"], &["absent"]] {
        assert_eq!(ask(at, "filter", &all, claims).await["NodeNames"], json!(all), "{claims:?}");
        assert_eq!(scores(at, &all, claims).await, [0; 6], "{claims:?}");
    }

    control.stop();
    let began = tokio::time::Instant::now();
    // Not asked for within the last second, as far as the extender knows.
    let silent = ask(at, "filter", &all, &["absent-2"]).await;
    assert_eq!(silent["NodeNames"], json!(all), "an API server that stands still changes nothing");
    assert!(began.elapsed() < Duration::from_millis(1900), "it took {:?}", began.elapsed());
    control.go_on();
}

/// A real kube-scheduler, configured as the documentation says. The pods prefer n2, which has no copy in sync: only the
/// extender outweighs that, so each pod by its own tells whether it was asked.
async fn a_scheduler_asks_and_goes_on_alone() {
    let control = ControlPlane::installed().await;
    let client = control.client().await;
    for name in ["n1", "n2", "n3"] {
        client.create(&node(name, 1)).await.unwrap();
        kubernetes_node(&control, name).await;
    }
    volume(&client).await;
    claim(&control, "ours", "csi.orlop.io", &json!({})).await;
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
    let (status, answer) =
        control.by_hand(Method::POST, "/api/v1/namespaces/default/serviceaccounts", &account).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");

    let start = async |at: SocketAddr| loop {
        match Extender::start(at, here(), control.store().await, client.clone()).await {
            Ok(extender) => return extender,
            // The one before has been dropped just now.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let extender = start("127.0.0.1:0".parse().unwrap()).await;
    let at = extender.address();
    drop(extender);
    let _scheduler = control.scheduler(at);
    assert_eq!(lands_on(&control, "before").await, "n2", "nobody answers");

    let extender = start(at).await;
    while scores(at, &["n1", "n2", "n3"], &["ours"]).await != [10, 1, 10] {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for name in ["near-1", "near-2", "near-3"] {
        let there = lands_on(&control, name).await;
        assert!(["n1", "n3"].contains(&there.as_str()), "{name} is on {there}");
    }
    for (away, other) in [("n1", "n3"), ("n3", "n2")] {
        let mut stored = client.get::<Node>(away).await.unwrap().unwrap();
        stored.value.state = NodeState::NotReady;
        client.replace(&stored.value, stored.revision).await.unwrap();
        while ask(at, "filter", &[away, "n2"], &["ours"]).await["NodeNames"] != json!(["n2"]) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(lands_on(&control, &format!("without-{away}")).await, other);
    }
    drop(extender);
    assert_eq!(lands_on(&control, "after").await, "n2", "nobody answers any more");
}

/// A node that takes pods, as far as a scheduler sees.
async fn kubernetes_node(control: &ControlPlane, name: &str) {
    let node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
    });
    let room = json!({ "cpu": "4", "memory": "8Gi", "pods": "110" });
    let ready = json!({ "type": "Ready", "status": "True" });
    let status = json!({ "status": { "capacity": room, "allocatable": room, "conditions": [ready] } });
    // A new node is tainted until a controller sees that it is ready, and there is none.
    let untainted = json!({ "spec": { "taints": null } });
    let path = format!("/api/v1/nodes/{name}");
    for (method, path, body) in [
        (Method::POST, "/api/v1/nodes".to_owned(), node),
        (Method::PATCH, format!("{path}/status"), status),
        (Method::PATCH, path, untainted),
    ] {
        let (status, answer) = control.by_hand(method, &path, &body).await;
        assert!(status.is_success(), "{answer}");
    }
}

/// Makes a pod with the claim that prefers n2; where the scheduler puts it.
async fn lands_on(control: &ControlPlane, name: &str) -> String {
    let preference = json!({ "matchExpressions": [{ "key": "kubernetes.io/hostname", "operator": "In", "values": ["n2"] }] });
    let preferred = json!([{ "weight": 100, "preference": preference }]);
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": {
            "automountServiceAccountToken": false,
            "affinity": { "nodeAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": preferred } },
            "containers": [{ "name": "main", "image": "none" }],
            "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": "ours" } }],
        },
    });
    let pods = "/api/v1/namespaces/default/pods";
    let (status, answer) = control.by_hand(Method::POST, pods, &pod).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    for _ in 0..600 {
        let (_, pod) = control.by_hand(Method::GET, &format!("{pods}/{name}"), &Value::Null).await;
        if let Some(node) = pod["spec"]["nodeName"].as_str() {
            return node.to_owned();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{name} is on no node; the scheduler says {}", control.scheduler_log());
}

/// With a copy in sync on n1 and n3, and a stale one on n2.
async fn volume(client: &Client) {
    let volume = Volume {
        name: "pvc-1".into(),
        uuid: Uuid::from_u128(7),
        spec: VolumeSpec {
            size_bytes: SIZE_BYTES,
            copies: 3,
            stripes: 1,
            block_size: 4096,
            class: None,
            spread: None,
        },
        intent: VolumeIntent::default(),
        message: None,
    };
    client.create(&volume).await.unwrap();
    let member = |number: u128, node: &str, state| MemberRecord {
        state,
        ..MemberRecord::new(Uuid::from_u128(number), Uuid::from_u128(number + 10), node.into())
    };
    let members = vec![
        member(1, "n1", MemberState::InSync),
        member(2, "n2", MemberState::Stale { since: Generation::ZERO }),
        member(3, "n3", MemberState::InSync),
    ];
    client.create(&VolumeRecord::new(volume.uuid, SIZE_BYTES, 4096, members)).await.unwrap();
}

/// A claim that is bound to a volume of the driver, which its class gave these attributes.
pub(crate) async fn claim(control: &ControlPlane, name: &str, driver: &str, attributes: &Value) {
    let capacity = json!({ "storage": "1Gi" });
    let volume = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": { "name": format!("volume-of-{name}") },
        "spec": {
            "capacity": capacity,
            "accessModes": ["ReadWriteOnce"],
            "csi": { "driver": driver, "volumeHandle": "pvc-1", "volumeAttributes": attributes },
        },
    });
    let claim = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        // What Kubernetes's controller manager writes when both know each other.
        "metadata": { "name": name, "annotations": { "pv.kubernetes.io/bind-completed": "yes" } },
        "spec": {
            "storageClassName": "",
            "accessModes": ["ReadWriteOnce"],
            "resources": { "requests": capacity },
            "volumeName": format!("volume-of-{name}"),
        },
    });
    for (path, object) in
        [("/api/v1/persistentvolumes", volume), ("/api/v1/namespaces/default/persistentvolumeclaims", claim)]
    {
        loop {
            let (status, answer) = control.by_hand(Method::POST, path, &object).await;
            if status == StatusCode::CREATED {
                break;
            }
            // The API server makes the namespace soon after its start.
            assert_eq!(answer["details"]["name"], "default", "{status} {answer}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn scores(at: SocketAddr, nodes: &[&str], claims: &[&str]) -> Vec<u64> {
    let answer = ask(at, "prioritize", nodes, claims).await;
    let list = answer.as_array().unwrap();
    assert!(list.iter().map(|one| one["Host"].as_str().unwrap()).eq(nodes.iter().copied()), "{answer}");
    list.iter().map(|one| one["Score"].as_u64().unwrap()).collect()
}

/// As kube-scheduler asks with `nodeCacheCapable: true`.
async fn ask(at: SocketAddr, verb: &str, nodes: &[&str], claims: &[&str]) -> Value {
    let volume = |claim: &&str| json!({ "name": claim, "persistentVolumeClaim": { "claimName": claim } });
    let volumes: Vec<Value> = claims.iter().map(volume).collect();
    let pod = json!({
        "metadata": { "name": "pod", "namespace": "default" },
        "spec": { "containers": [{ "name": "main" }], "volumes": volumes },
    });
    let body = json!({ "Pod": pod, "Nodes": null, "NodeNames": nodes }).to_string();
    let request = Request::post(format!("http://{at}/{verb}")).body(Full::new(Bytes::from(body))).unwrap();
    let response = Http::builder(TokioExecutor::new()).build_http().request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

/// Who may ask: this machine.
fn here() -> Vec<Cidr> {
    vec!["127.0.0.0/8".parse().unwrap()]
}

//! What the objects are to people: definitions, what they refuse, what somebody made, changed or deleted by hand.

use crate::Test;
use crate::conformance::node;
use crate::server::ControlPlane;
use hyper::{Method, StatusCode};
use k8s::Severity;
use model::{
    Attach, DiskClass, Kind, MemberIntent, MemberRecord, Node, NodeReplicas, NodeState, Object, Pool,
    PoolSpec, PoolState, ReplicaReport, ReplicaState, Scheduling, Settled, Volume, VolumeIntent,
    VolumeRecord, VolumeSpec, topology::ZONE_KEY,
};
use serde_json::{Value, json};
use std::time::Duration;
use store::{Change, Client, ErrorKind, Expect, Mandate, Store};
use uuid::Uuid;

pub(crate) const TESTS: &[Test] = &[
    ("definitions_are_applied_again", || Box::pin(definitions_are_applied_again())),
    ("a_volume_is_a_spec_and_a_status", || Box::pin(a_volume_is_a_spec_and_a_status())),
    ("an_operator_and_an_engine_write_one_node", || Box::pin(an_operator_and_an_engine_write_one_node())),
    ("a_pool_is_wished_to_be_given_back", || Box::pin(a_pool_is_wished_to_be_given_back())),
    ("conditions_follow_what_is_written", || Box::pin(conditions_follow_what_is_written())),
    ("a_volume_tells_whether_it_is_placed", || Box::pin(a_volume_tells_whether_it_is_placed())),
    ("events_are_found_by_their_object", || Box::pin(events_are_found_by_their_object())),
    ("an_engine_reads_where_its_node_is", || Box::pin(an_engine_reads_where_its_node_is())),
    ("what_no_volume_may_be_is_refused", || Box::pin(what_no_volume_may_be_is_refused())),
    ("what_is_made_by_hand_is_absent_until_it_is_whole", || {
        Box::pin(what_is_made_by_hand_is_absent_until_it_is_whole())
    }),
    ("a_volume_that_is_applied_again_is_the_same", || Box::pin(a_volume_that_is_applied_again_is_the_same())),
    ("a_record_that_is_applied_again_is_made_from_a_copy", || {
        Box::pin(a_record_that_is_applied_again_is_made_from_a_copy())
    }),
];

const NODES: &str = "/apis/orlop.io/v1alpha1/nodes";
const VOLUMES: &str = "/apis/orlop.io/v1alpha1/volumes";

fn volume(name: &str, mib: u64) -> Volume {
    Volume {
        name: name.into(),
        uuid: Uuid::from_u128(7),
        spec: VolumeSpec {
            size_bytes: mib << 20,
            copies: 1,
            stripes: 1,
            block_size: 4096,
            class: None,
            spread: None,
        },
        intent: VolumeIntent {
            members: vec![MemberIntent {
                replica: Uuid::from_u128(8),
                pool: Uuid::from_u128(9),
                node: "n1".into(),
            }],
            ..VolumeIntent::default()
        },
        message: None,
    }
}

/// As a person writes it.
fn applied(name: &str, spec: &Value) -> Value {
    json!({ "apiVersion": "orlop.io/v1alpha1", "kind": "Volume", "metadata": { "name": name }, "spec": spec })
}

async fn get<T: Object>(client: &Client, key: &str) -> T {
    client.get(key).await.unwrap().unwrap().value
}

async fn definitions_are_applied_again() {
    let plane = ControlPlane::installed().await;
    let client = plane.client().await;
    let revision = client.create(&node("n1", 1)).await.unwrap();
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/nodes.orlop.io";
    let (_, before) = plane.by_hand(Method::GET, path, &Value::Null).await;
    plane.store().await.install().await.unwrap();
    let (_, after) = plane.by_hand(Method::GET, path, &Value::Null).await;
    assert_eq!(before["metadata"]["resourceVersion"], after["metadata"]["resourceVersion"], "{after}");
    assert_eq!(client.get::<Node>("n1").await.unwrap().unwrap().revision, revision);
    for condition in after["status"]["conditions"].as_array().unwrap() {
        let wanted = if condition["type"] == "NonStructuralSchema" { "False" } else { "True" };
        assert_eq!(condition["status"], wanted, "{condition}");
    }
    let (status, columns) = plane.by_hand(Method::GET, &format!("{NODES}/n1"), &Value::Null).await;
    assert_eq!(status, StatusCode::OK, "{columns}");
}

/// `kubectl edit onode/n1`, while its engine reports every second.
async fn an_operator_and_an_engine_write_one_node() {
    let plane = ControlPlane::installed().await;
    let client = plane.client().await;
    let path = format!("{NODES}/n1");
    let wish = async |scheduling: &str| {
        let wish = json!({ "spec": { "scheduling": scheduling } });
        plane.by_hand(Method::PATCH, &path, &wish).await
    };
    client.create(&node("n1", 1)).await.unwrap();
    let (_, object) = plane.by_hand(Method::GET, &path, &Value::Null).await;
    assert_eq!(object["spec"], json!({ "scheduling": "Enabled" }));
    assert!(object["status"].get("spec").is_none(), "{object}");

    let before = client.get::<Node>("n1").await.unwrap().unwrap();
    assert_eq!(wish("Drained").await.0, StatusCode::OK);
    let late = client.replace(&node("n1", 2), before.revision).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Conflict, "a report must not take the wish back");
    let found = client.get::<Node>("n1").await.unwrap().unwrap();
    assert_eq!(found.value.spec.scheduling, Scheduling::Drained);
    let report = Node { heartbeat: 2, ..found.value };
    client.replace(&report, found.revision).await.unwrap();
    assert_eq!(get::<Node>(&client, "n1").await, report);
    let (status, answer) = wish("Gone").await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");

    // It is wished before its engine has ever run: the engine knows nothing of it.
    let applied = json!({
        "apiVersion": "orlop.io/v1alpha1", "kind": "Node", "metadata": { "name": "n2" },
        "spec": { "scheduling": "Cordoned" },
    });
    assert_eq!(plane.by_hand(Method::POST, NODES, &applied).await.0, StatusCode::CREATED);
    client.create(&node("n2", 1)).await.unwrap();
    assert_eq!(get::<Node>(&client, "n2").await.spec.scheduling, Scheduling::Cordoned);
}

fn pool(state: PoolState, used_bytes: u64) -> Pool {
    Pool {
        name: "disk0".into(),
        uuid: Uuid::from_u128(9),
        node: "n1".into(),
        spec: PoolSpec::default(),
        uri: "mem://".into(),
        class: None,
        state,
        capacity_bytes: 1 << 30,
        used_bytes,
        free_bytes: 0,
        incarnation: Uuid::from_u128(10),
        boot_id: Uuid::from_u128(11),
        message: None,
    }
}

/// What is wished of a pool is its spec, and there is none where nothing is wished.
async fn a_pool_is_wished_to_be_given_back() {
    let plane = ControlPlane::installed().await;
    let client = plane.client().await;
    let path = format!("/apis/orlop.io/v1alpha1/pools/{}", Uuid::from_u128(9));
    let before = client.create(&pool(PoolState::Online, 0)).await.unwrap();
    let (_, object) = plane.by_hand(Method::GET, &path, &Value::Null).await;
    assert!(object.get("spec").is_none_or(|spec| *spec == json!({})), "{object}");
    assert!(object["status"].get("spec").is_none(), "{object}");
    let key = Uuid::from_u128(9).to_string();
    assert_eq!(get::<Pool>(&client, &key).await, pool(PoolState::Online, 0));

    let wished = Pool { spec: PoolSpec { release: true }, ..pool(PoolState::Online, 0) };
    let revision = client.replace(&wished, before).await.unwrap();
    let (_, object) = plane.by_hand(Method::GET, &path, &Value::Null).await;
    assert_eq!(object["spec"], json!({ "release": true }));
    let late = client.replace(&pool(PoolState::Online, 1), before).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Conflict);
    // An engine from before there were wishes knows of none, and takes none back.
    client.replace(&pool(PoolState::Online, 1), revision).await.unwrap();
    let Pool { spec, used_bytes, .. } = get::<Pool>(&client, &key).await;
    assert_eq!((spec.release, used_bytes), (true, 1));
    let unknown = json!({ "spec": { "relase": true } });
    let strict = format!("{path}?fieldValidation=Strict");
    let (status, answer) = plane.by_hand(Method::PATCH, &strict, &unknown).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
}

/// `kubectl wait --for=condition=Ready onode/n1`, while its engine reports every second.
async fn conditions_follow_what_is_written() {
    let plane = ControlPlane::installed().await;
    let client = plane.client().await;
    let conditions = async |path: &str| {
        let (_, object) = plane.by_hand(Method::GET, path, &Value::Null).await;
        let conditions = object["status"]["conditions"].as_array().unwrap().clone();
        assert_eq!(conditions.len(), 1, "{object}");
        conditions[0].clone()
    };
    let path = format!("{NODES}/n1");
    let mut revision = client.create(&node("n1", 1)).await.unwrap();
    let first = conditions(&path).await;
    assert_eq!((&first["type"], &first["status"]), (&json!("Ready"), &json!("True")), "{first}");
    assert_eq!(get::<Node>(&client, "n1").await, node("n1", 1), "they are no part of the value");
    // Kubernetes knows no parts of a second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    revision = client.replace(&node("n1", 2), revision).await.unwrap();
    assert_eq!(conditions(&path).await, first);
    let away = Node { state: NodeState::NotReady, ..node("n1", 2) };
    client.replace(&away, revision).await.unwrap();
    let away = conditions(&path).await;
    assert_eq!(away["status"], "False");
    assert_ne!(away["lastTransitionTime"], first["lastTransitionTime"]);

    let path = format!("/apis/orlop.io/v1alpha1/pools/{}", Uuid::from_u128(9));
    let mut revision = client.create(&pool(PoolState::Online, 0)).await.unwrap();
    let first = conditions(&path).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    // Who wrote it knows what it wrote; another one asks.
    for (used_bytes, writer) in [(1, client), (2, plane.client().await), (3, plane.client().await)] {
        revision = writer.replace(&pool(PoolState::Online, used_bytes), revision).await.unwrap();
        assert_eq!(conditions(&path).await, first, "{used_bytes}");
    }
    let client = plane.client().await;
    client.replace(&pool(PoolState::Failed, 3), revision).await.unwrap();
    let failed = conditions(&path).await;
    assert_eq!((&failed["status"], &failed["reason"]), (&json!("False"), &json!("Failed")));
    assert_ne!(failed["lastTransitionTime"], first["lastTransitionTime"]);
}

/// `kubectl wait --for=condition=Placed ovol/data`, while the manager and the API write its spec and its intent.
async fn a_volume_tells_whether_it_is_placed() {
    let plane = ControlPlane::installed().await;
    let client = plane.client().await;
    let placed = async || {
        let (_, object) = plane.by_hand(Method::GET, &format!("{VOLUMES}/data"), &Value::Null).await;
        let conditions = object["status"]["conditions"].as_array().unwrap().clone();
        assert_eq!((conditions.len(), &conditions[0]["type"]), (1, &json!("Placed")), "{object}");
        conditions[0].clone()
    };
    let whole = volume("data", 1);
    let new = Volume { intent: VolumeIntent::default(), ..whole.clone() };
    let revision = client.create(&new).await.unwrap();
    let waits = placed().await;
    assert_eq!((&waits["status"], &waits["reason"]), (&json!("False"), &json!("Waiting")), "{waits}");
    assert_eq!(get::<Volume>(&client, "data").await, new, "it is no part of the value");
    // Kubernetes knows no parts of a second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let full = Volume { message: Some("no place for a new copy: full".into()), ..new };
    let revision = client.replace(&full, revision).await.unwrap();
    let no_place = placed().await;
    assert_eq!((&no_place["reason"], &no_place["message"]), (&json!("NoPlace"), &json!(full.message)));
    assert_eq!(no_place["lastTransitionTime"], waits["lastTransitionTime"]);
    let revision = client.replace(&whole, revision).await.unwrap();
    let there = placed().await;
    assert_eq!(
        (&there["status"], &there["message"]),
        (&json!("True"), &json!("its copies have places on n1"))
    );
    assert_ne!(there["lastTransitionTime"], waits["lastTransitionTime"]);

    // Spec and status at once, the status by another writer, which asks as before.
    let both = Volume { message: Some("no place for a new copy: larger".into()), ..volume("data", 2) };
    plane.client().await.replace(&both, revision).await.unwrap();
    assert_eq!(placed().await["reason"], "NoPlace");
}

/// `kubectl describe ovol data` asks with this selector.
async fn events_are_found_by_their_object() {
    let plane = ControlPlane::installed().await;
    let store = plane.store().await;
    Client::new(store.clone()).create(&volume("data", 1)).await.unwrap();
    let (_, object) = plane.by_hand(Method::GET, &format!("{VOLUMES}/data"), &Value::Null).await;
    let uid = object["metadata"]["uid"].as_str().unwrap();
    let events = format!(
        "/api/v1/events?fieldSelector=involvedObject.name%3Ddata%2CinvolvedObject.namespace%3D\
         %2CinvolvedObject.kind%3DVolume%2CinvolvedObject.uid%3D{uid}"
    );
    store.tell_of(Kind::Volume, "data", Severity::Warning, "Degraded", "1 of 2".into()).await;
    store.tell_of(Kind::Volume, "data", Severity::Normal, "Whole", "x".repeat(4096)).await;
    store.tell_of(Kind::Volume, "other", Severity::Warning, "Degraded", "there is none".into()).await;
    let (status, found) = plane.by_hand(Method::GET, &events, &Value::Null).await;
    assert_eq!(status, StatusCode::OK, "{found}");
    let mut found: Vec<_> = found["items"].as_array().unwrap().iter().collect();
    found.sort_by_key(|event| event["reason"].as_str());
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!((&found[0]["type"], &found[0]["message"]), (&json!("Warning"), &json!("1 of 2")));
    assert_eq!(found[0]["metadata"]["namespace"], "default", "of an object without a namespace");
    assert_eq!(found[1]["type"], "Normal");
    assert_eq!(found[1]["message"].as_str().unwrap().len(), 1024);
}

async fn a_volume_is_a_spec_and_a_status() {
    let plane = ControlPlane::installed().await;
    let (one, two) = (plane.client().await, plane.client().await);
    let small = volume("data", 1);
    let created = one.create(&small).await.unwrap();
    assert_eq!(get::<Volume>(&one, "data").await, small);
    assert_eq!(one.create(&volume("data", 2)).await.unwrap_err().kind(), ErrorKind::Conflict);

    // Whatever changes, the other one knows only what was before.
    let larger = volume("data", 2);
    let attach = VolumeIntent {
        attach: Some(Attach { node: "n1".into() }),
        owner: Some("n1".into()),
        ..small.intent.clone()
    };
    let attached = Volume { intent: attach, ..larger.clone() };
    let detached = Volume { spec: volume("data", 3).spec, ..larger.clone() };
    let mut revision = created;
    for next in [larger, attached, detached.clone(), detached] {
        let (won, lost) = (one.replace(&next, revision).await.unwrap(), revision);
        assert_eq!(get::<Volume>(&two, "data").await, next);
        assert_ne!(won, lost, "each write is a new revision");
        assert_eq!(two.replace(&small, lost).await.unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(two.delete::<Volume>("data", lost).await.unwrap_err().kind(), ErrorKind::Conflict);
        revision = won;
    }
    let (grown, moved) = (volume("data", 4), Volume { message: Some("moved".into()), ..volume("data", 3) });
    let (first, second) = tokio::join!(one.replace(&grown, revision), two.replace(&moved, revision));
    assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
    let lost = first.err().or(second.err()).unwrap();
    assert_eq!(lost.kind(), ErrorKind::Conflict, "{lost}");

    // What people add to an object stays, and is a change.
    let before = one.get::<Volume>("data").await.unwrap().unwrap();
    let labelled = json!({ "metadata": { "labels": { "team": "blue" } } });
    plane.by_hand(Method::PATCH, &format!("{VOLUMES}/data"), &labelled).await;
    let lost = one.replace(&volume("data", 5), before.revision).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Conflict, "{lost}");
    let revision = one.get::<Volume>("data").await.unwrap().unwrap().revision;
    let both = Volume { message: Some("larger".into()), ..volume("data", 5) };
    let revision = one.replace(&both, revision).await.unwrap();
    assert_eq!(get::<Volume>(&one, "data").await, both);
    let (_, object) = plane.by_hand(Method::GET, &format!("{VOLUMES}/data"), &Value::Null).await;
    assert_eq!(object["metadata"]["labels"]["team"], "blue", "{object}");
    one.delete::<Volume>("data", revision).await.unwrap();
    assert_eq!(one.replace(&both, revision).await.unwrap_err().kind(), ErrorKind::NotFound);
}

async fn an_engine_reads_where_its_node_is() {
    let plane = ControlPlane::installed().await;
    let store = plane.store().await;
    let labels = json!({ ZONE_KEY: "a", "rack": "r7", "kubernetes.io/os": "linux" });
    let node =
        json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "placed", "labels": labels } });
    let (status, answer) = plane.by_hand(Method::POST, "/api/v1/nodes", &node).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let told = |labels: [(String, String); 2]| Some(labels.into());
    let keys = ["rack".to_owned()];
    let found = store.topology("placed", &keys).await.unwrap();
    assert_eq!(found, told([label("rack", "r7"), label(ZONE_KEY, "a")]));
    let moved = json!({ "metadata": { "labels": { ZONE_KEY: "b" } } });
    plane.by_hand(Method::PATCH, "/api/v1/nodes/placed", &moved).await;
    let found = store.topology("placed", &keys).await.unwrap();
    assert_eq!(found, told([label("rack", "r7"), label(ZONE_KEY, "b")]));
    assert_eq!(store.topology("not-there", &keys).await.unwrap(), None);
}

async fn what_no_volume_may_be_is_refused() {
    let plane = ControlPlane::installed().await;
    let store = plane.store().await;
    let client = Client::new(store.clone());
    let revision = client.create(&volume("data", 2)).await.unwrap();
    let shrunk = client.replace(&volume("data", 1), revision).await.unwrap_err();
    assert!(shrunk.kind() == ErrorKind::Invalid && shrunk.to_string().contains("cannot shrink"), "{shrunk}");
    let other = Volume { uuid: Uuid::from_u128(70), ..volume("data", 2) };
    let other = client.replace(&other, revision).await.unwrap_err();
    assert!(other.kind() == ErrorKind::Invalid && other.to_string().contains("UUID"), "{other}");
    assert_eq!(get::<Volume>(&client, "data").await, volume("data", 2), "nothing has changed");

    let spec = VolumeSpec { class: Some(DiskClass::Nvme), ..volume("fast", 2).spec };
    let mut fast = Volume { name: "fast".into(), uuid: Uuid::from_u128(71), spec, ..volume("fast", 2) };
    let revision = client.create(&fast).await.unwrap();
    assert_eq!(get::<Volume>(&client, "fast").await, fast);
    fast.spec.size_bytes = 3 << 20;
    let revision = client.replace(&fast, revision).await.unwrap();
    let other = VolumeSpec { class: Some(DiskClass::Hdd), ..fast.spec.clone() };
    let other = client.replace(&Volume { spec: other, ..fast.clone() }, revision).await.unwrap_err();
    assert!(other.kind() == ErrorKind::Invalid && other.to_string().contains("class"), "{other}");
    let path = format!("{VOLUMES}/fast");
    let none = json!({ "spec": { "class": null } });
    let (status, answer) = plane.by_hand(Method::PATCH, &path, &none).await;
    let message = answer["message"].as_str().unwrap();
    assert!(status == StatusCode::UNPROCESSABLE_ENTITY && message.contains("class of a volume"), "{message}");
    assert_eq!(get::<Volume>(&client, "fast").await, fast);

    let spec = VolumeSpec { spread: Some(ZONE_KEY.into()), ..volume("apart", 2).spec };
    let apart = Volume { name: "apart".into(), uuid: Uuid::from_u128(72), spec, ..volume("apart", 2) };
    client.create(&apart).await.unwrap();
    assert_eq!(get::<Volume>(&client, "apart").await, apart);
    for other in [json!({ "spread": "rack" }), json!({ "spread": null })] {
        let wish = json!({ "spec": other });
        let (status, answer) = plane.by_hand(Method::PATCH, &format!("{VOLUMES}/apart"), &wish).await;
        let message = answer["message"].as_str().unwrap();
        let refused = message.contains("spread of a volume cannot be changed");
        assert!(status == StatusCode::UNPROCESSABLE_ENTITY && refused, "{other}: {message}");
    }
    let placed = Node { topology: [(ZONE_KEY.to_owned(), "a".to_owned())].into(), ..node("n2", 1) };
    client.create(&placed).await.unwrap();
    assert_eq!(get::<Node>(&client, "n2").await, placed);

    // A newer program than the definitions: nothing is dropped without a word.
    let mut newer = serde_json::to_value(node("n1", 1)).unwrap();
    newer["colour"] = "blue".into();
    let unknown = store.put(Kind::Node, "n1", Expect::Absent, newer).await.unwrap_err();
    assert!(unknown.kind() == ErrorKind::Invalid && unknown.to_string().contains("colour"), "{unknown}");

    let path = format!("{VOLUMES}/data");
    for (spec, says) in [
        (json!({ "sizeBytes": 1 << 20 }), "cannot shrink"),
        (json!({ "sizeBytes": (3 << 20) + 4096 }), "multiple of"),
        (json!({ "sizeBytes": 65_u64 << 40 }), "less than or equal to"),
        (json!({ "copies": 6 }), "less than or equal to 5"),
        (json!({ "copies": 0 }), "greater than or equal to 1"),
        (json!({ "stripes": 2 }), "less than or equal to 1"),
        (json!({ "blockSize": 1024 }), "Unsupported value"),
        (json!({ "blockSize": 512 }), "block size of a volume cannot be changed"),
        (json!({ "class": "NVMe" }), "class of a volume cannot be changed"),
        (json!({ "class": "tape" }), "Unsupported value"),
        (json!({ "spread": "rack" }), "spread of a volume cannot be changed"),
        (json!({ "spread": "no label" }), "spec.spread"),
        (json!({ "uuid": null }), "UUID of a volume cannot be changed"),
        (json!({ "uuid": "data" }), "uuid"),
    ] {
        let (status, answer) = plane.by_hand(Method::PATCH, &path, &json!({ "spec": spec })).await;
        let message = answer["message"].as_str().unwrap();
        assert!(status == StatusCode::UNPROCESSABLE_ENTITY && message.contains(says), "{spec}: {message}");
    }
    let dotted = applied("a.b", &json!({ "sizeBytes": 1 << 20 }));
    let (status, answer) = plane.by_hand(Method::POST, VOLUMES, &dotted).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
}

async fn what_is_made_by_hand_is_absent_until_it_is_whole() {
    let plane = ControlPlane::installed().await;
    let store = plane.store().await;
    let client = Client::new(store.clone());
    let mut watch = client.watch::<Node>();
    assert_eq!(watch.next().await, Some(Change::Relist(Vec::new())));
    let begun = json!({ "apiVersion": "orlop.io/v1alpha1", "kind": "Node", "metadata": { "name": "n1" } });
    let (status, begun) = plane.by_hand(Method::POST, NODES, &begun).await;
    assert_eq!(status, StatusCode::CREATED, "{begun}");
    let revision: u64 = begun["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    assert_eq!(client.get::<Node>("n1").await.unwrap(), None);
    assert_eq!(client.list::<Node>().await.unwrap(), []);
    assert_eq!(client.replace(&node("n1", 9), 1).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(client.delete::<Node>("n1", 1).await.unwrap_err().kind(), ErrorKind::NotFound);
    // The creation goes on with it.
    let created = client.create(&node("n1", 1)).await.unwrap();
    assert!(created > revision);
    let Some(Change::Put(put)) = watch.next().await else { panic!("told of what is absent") };
    assert_eq!((put.revision, put.value), (created, node("n1", 1)));
    let (_, whole) = plane.by_hand(Method::GET, &format!("{NODES}/n1"), &Value::Null).await;
    assert_eq!(whole["metadata"]["uid"], begun["metadata"]["uid"]);

    // Its writer is the only one that makes it whole: under another name it is refused.
    let other = client
        .create(&NodeReplicas { node: "n1".into(), replicas: Vec::new(), readers: Vec::new() })
        .await
        .unwrap();
    let renamed = json!({ "status": { "node": "n2" } });
    let path = "/apis/orlop.io/v1alpha1/nodereplicas/n1/status";
    let (status, answer) = plane.by_hand(Method::PATCH, path, &renamed).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    client.delete::<NodeReplicas>("n1", other).await.unwrap();

    // A volume without a UUID is given one, and nothing else of it is changed.
    assert_eq!(store.adopt(&Mandate::default()).await.unwrap(), Vec::<String>::new());
    let (status, answer) =
        plane.by_hand(Method::POST, VOLUMES, &applied("data", &json!({ "sizeBytes": 5 << 20 }))).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    assert_eq!(client.list::<Volume>().await.unwrap(), []);
    assert_eq!(client.create(&volume("data", 1)).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(store.adopt(&Mandate::default()).await.unwrap(), ["data"]);
    let adopted: Volume = get(&client, "data").await;
    let spec = VolumeSpec { copies: 3, ..volume("data", 5).spec };
    assert!(adopted.spec == spec && !adopted.uuid.is_nil() && adopted.intent == VolumeIntent::default());
    assert_eq!(store.adopt(&Mandate::default()).await.unwrap(), Vec::<String>::new());

    // A creation that was interrupted before its last write: the volume was never there, and is made as a new one.
    let (status, answer) =
        plane.by_hand(Method::POST, VOLUMES, &applied("half", &json!({ "sizeBytes": 5 << 20 }))).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    let (_, whole) = plane.by_hand(Method::GET, &format!("{VOLUMES}/data"), &Value::Null).await;
    let half = json!({ "status": whole["status"] });
    let (status, answer) = plane.by_hand(Method::PATCH, &format!("{VOLUMES}/half/status"), &half).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(client.get::<Volume>("half").await.unwrap(), None, "it has no UUID");
    assert_eq!(store.adopt(&Mandate::default()).await.unwrap(), ["half"]);
    let made: Volume = get(&client, "half").await;
    assert!(made.uuid != adopted.uuid && made.intent == VolumeIntent::default(), "{made:?}");
}

async fn a_volume_that_is_applied_again_is_the_same() {
    let plane = ControlPlane::installed().await;
    let store = plane.store().await;
    let client = Client::new(store.clone());
    client.create(&volume("data", 2)).await.unwrap();
    let before = client.get::<Volume>("data").await.unwrap().unwrap();
    let mut watch = client.watch::<Volume>();
    assert_eq!(watch.next().await, Some(Change::Relist(vec![before.clone()])));

    let path = format!("{VOLUMES}/data");
    let (_, object) = plane.by_hand(Method::GET, &path, &Value::Null).await;
    plane.by_hand(Method::DELETE, &path, &Value::Null).await;
    assert_eq!(watch.next().await, Some(Change::Delete("data".into())));
    assert_eq!(client.get::<Volume>("data").await.unwrap(), None);
    let (status, answer) = plane.by_hand(Method::POST, VOLUMES, &applied("data", &object["spec"])).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    assert_eq!(client.get::<Volume>("data").await.unwrap(), None, "nobody has judged it yet");
    assert_eq!(client.replace(&before.value, before.revision).await.unwrap_err().kind(), ErrorKind::NotFound);

    assert_eq!(store.adopt(&Mandate::default()).await.unwrap(), ["data"]);
    let Some(Change::Put(again)) = watch.next().await else { panic!("not told") };
    let intent = VolumeIntent { recorded: true, ..VolumeIntent::default() };
    let expected = Volume { intent, ..before.value };
    assert_eq!(again.value, expected, "its UUID leads to its data, which nobody must make anew");
    assert!(again.revision > before.revision);
}

/// What a backup program does with it, and what the manager and the engines do then (I12).
async fn a_record_that_is_applied_again_is_made_from_a_copy() {
    let plane = ControlPlane::installed().await;
    let client = Client::new(plane.store().await);
    let member = MemberRecord::new(Uuid::from_u128(8), Uuid::from_u128(9), "n1".into());
    let record = VolumeRecord {
        epoch: 7,
        settled: Some(Settled { epoch: 7, version: 30 }),
        ..VolumeRecord::new(Uuid::from_u128(7), 1 << 20, 4096, vec![member])
    };
    client.create(&record).await.unwrap();
    let key = record.key();
    assert_eq!(get::<VolumeRecord>(&client, &key).await, record);
    let folder = "/apis/orlop.io/v1alpha1/volumerecords";
    plane.by_hand(Method::DELETE, &format!("{folder}/{key}"), &Value::Null).await;
    let bare =
        json!({ "apiVersion": "orlop.io/v1alpha1", "kind": "VolumeRecord", "metadata": { "name": key } });
    let (status, answer) = plane.by_hand(Method::POST, folder, &bare).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    assert_eq!(client.get::<VolumeRecord>(&key).await.unwrap(), None, "it has no status");

    let report = ReplicaReport {
        replica: Uuid::from_u128(8),
        volume: record.volume,
        pool: Uuid::from_u128(9),
        state: ReplicaState::Present,
        used_bytes: 0,
        message: Some("no record names it".into()),
        record: Some(Box::new(record.clone())),
    };
    let report = NodeReplicas { node: "n1".into(), replicas: vec![report], readers: Vec::new() };
    client.create(&report).await.unwrap();
    assert_eq!(get::<NodeReplicas>(&client, "n1").await, report, "the definition knows the copy");

    let recovered = record.recovered(8, 30);
    client.create(&recovered).await.unwrap();
    assert_eq!(get::<VolumeRecord>(&client, &key).await, recovered);
    assert_eq!(client.create(&recovered).await.unwrap_err().kind(), ErrorKind::Conflict, "it is there now");
}

//! What each request does, and what each bad request is told.

use crate::cluster::{Cluster, ask, disk, node, pool};
use model::{
    Attach, DiskClass, Generation, MemberIntent, MemberRecord, MemberState, NexusState, Node, NodeReplicas,
    NodeState, Object, Owner, Pool, PoolState, ReaderReport, Stored, Volume, VolumeIntent, VolumeRecord,
    VolumeSpec, VolumeStatus, limits,
};
use serde_json::json;
use std::collections::BTreeSet;
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_created_with_a_place() {
    let cluster = Cluster::start(4).await;
    let created = cluster.create("data").await;
    assert_eq!(created.status, 201, "{:?}", created.body);
    assert_eq!(created.headers["location"], "/api/v1/volumes/data");
    let view = created.json();
    assert_eq!(view["spec"], json!({"sizeBytes": 1 << 30, "copies": 3, "stripes": 1, "blockSize": 4096}));
    assert_eq!(view["status"]["state"], "Pending");
    let members = view["intent"]["members"].as_array().unwrap();
    let nodes: BTreeSet<&str> = members.iter().map(|member| member["node"].as_str().unwrap()).collect();
    assert_eq!(nodes.len(), 3);

    let got = cluster.ask("GET", "/api/v1/volumes/data", "").await;
    assert_eq!(got.json(), view);
    assert_eq!(got.headers["etag"], format!("\"{}\"", view["revision"]));
    let list = cluster.ask("GET", "/api/v1/volumes", "").await.json();
    assert_eq!(list["items"], json!([view]));
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_near_a_node_if_that_is_possible() {
    let cluster = Cluster::start(4).await;
    let create = async |name: &str, near: &str| {
        let body = json!({"name": name, "spec": {"sizeBytes": 1 << 30, "copies": 2}, "near": near});
        cluster.ask("POST", "/api/v1/volumes", &body.to_string()).await
    };
    let nodes = |view: serde_json::Value| {
        let members = view["intent"]["members"].as_array().unwrap().clone();
        members.iter().map(|member| member["node"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let created = create("data", "n4").await;
    assert_eq!((created.status, nodes(created.json())), (201, vec!["n4".into(), "n1".into()]));
    assert_eq!(
        created.json()["spec"],
        json!({"sizeBytes": 1 << 30, "copies": 2, "stripes": 1, "blockSize": 4096})
    );
    create("data", "n3").await.is_problem(409, "exists already");
    assert_eq!(nodes(cluster.ask("GET", "/api/v1/volumes/data", "").await.json()), ["n4", "n1"]);
    assert_eq!(nodes(create("more", "no node/at all").await.json()), ["n2", "n3"], "there is no such node");
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_of_a_class_is_on_disks_of_that_class() {
    let cluster = Cluster::start(4).await;
    for index in [2, 4] {
        let Stored { revision, value } =
            cluster.client.get::<Pool>(&pool(index).key()).await.unwrap().unwrap();
        let with_class = Pool { class: Some(DiskClass::Nvme), ..value };
        cluster.client.replace(&with_class, revision).await.unwrap();
    }
    let create = async |name: &str, copies: u32, class: &str| {
        let body = json!({"name": name, "spec": {"sizeBytes": 1 << 30, "copies": copies, "class": class}});
        cluster.ask("POST", "/api/v1/volumes", &body.to_string()).await
    };
    create("data", 3, "NVMe").await.is_problem(
        409,
        "3 copies need as many nodes with disks of class NVMe, 2 can take one; add such disks",
    );
    create("data", 1, "HDD")
        .await
        .is_problem(409, "1 copy needs as many nodes with disks of class HDD, 0 can");
    let created = create("data", 2, "NVMe").await;
    assert_eq!((created.status, &created.json()["spec"]["class"]), (201, &json!("NVMe")));
    let members = created.json()["intent"]["members"].as_array().unwrap().clone();
    let nodes: BTreeSet<&str> = members.iter().map(|member| member["node"].as_str().unwrap()).collect();
    assert_eq!(nodes, BTreeSet::from(["n2", "n4"]));
    assert_eq!(create("more", 1, "tape").await.status, 400);
    cluster.server.stop().await;
}

fn nodes_of(view: &serde_json::Value) -> Vec<String> {
    let members = view["intent"]["members"].as_array().unwrap();
    members.iter().map(|member| member["node"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_in_different_zones() {
    let cluster = Cluster::start(4).await;
    for (index, zone) in (1..).zip(["a", "a", "b"]) {
        let Stored { revision, value } =
            cluster.client.get::<Node>(&format!("n{index}")).await.unwrap().unwrap();
        let topology = [("topology.kubernetes.io/zone".to_owned(), zone.to_owned())].into();
        cluster.client.replace(&Node { topology, ..value }, revision).await.unwrap();
    }
    let create = async |name: &str, copies: u32, spread: &str| {
        let body = json!({"name": name, "spec": {"sizeBytes": 1 << 30, "copies": copies, "spread": spread}});
        cluster.ask("POST", "/api/v1/volumes", &body.to_string()).await
    };
    let zone = "topology.kubernetes.io/zone";
    let refused = create("data", 3, zone).await;
    refused.is_problem(
        409,
        "3 copies need as many zones (topology.kubernetes.io/zone), 2 have a node that can take one: a, b",
    );
    assert_eq!(refused.json()["type"], "urn:orlop:problem:too-few-domains");
    let created = create("data", 2, zone).await;
    assert_eq!((created.status, nodes_of(&created.json())), (201, vec!["n1".into(), "n3".into()]));
    assert_eq!(created.json()["spec"]["spread"], zone);
    create("more", 1, "no label").await.is_problem(422, "\"no label\" is no label");
    let node = cluster.ask("GET", "/api/v1/nodes/n3", "").await.json();
    assert_eq!(node["topology"], json!({ zone: "b" }));
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_has_a_copy_where_it_has_to_have_one_or_is_not_made() {
    let cluster = Cluster::start(3).await;
    let create = async |name: &str, on: &[&str]| {
        let body = json!({"name": name, "spec": {"sizeBytes": 1 << 30, "copies": 1}, "on": on});
        cluster.ask("POST", "/api/v1/volumes", &body.to_string()).await
    };
    let created = create("data", &["n3"]).await;
    assert_eq!((created.status, nodes_of(&created.json())), (201, vec!["n3".into()]));
    assert_eq!(nodes_of(&create("other", &["n3", "n2"]).await.json()), ["n2"], "the emptier of them");
    let refused = create("nowhere", &["n7"]).await;
    refused.is_problem(409, "a copy has to be on n7 (no node of Orlop)");
    assert_eq!(refused.json()["type"], "urn:orlop:problem:not-there");
    assert_eq!(cluster.ask("GET", "/api/v1/volumes/nowhere", "").await.status, 404, "nothing is left");
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_and_pools_are_shown() {
    let cluster = Cluster::start(2).await;
    let nodes = cluster.ask("GET", "/api/v1/nodes", "").await.json();
    assert_eq!(nodes["items"][1]["name"], "n2");
    assert_eq!(nodes["items"][1]["state"], "Ready");
    assert_eq!(nodes["items"][1]["pid"], 4711);
    assert_eq!(nodes["items"][1]["address"], "127.0.0.1:4422");
    assert_eq!(nodes["items"][1]["spec"], json!({"scheduling": "Enabled"}));
    assert_eq!(cluster.ask("GET", "/api/v1/nodes/n1", "").await.json()["name"], "n1");
    let pools = cluster.ask("GET", "/api/v1/pools", "").await.json();
    assert_eq!(pools["items"][0]["capacityBytes"], 4_u64 << 30);
    let uuid = pools["items"][0]["uuid"].as_str().unwrap();
    assert_eq!(cluster.ask("GET", &format!("/api/v1/pools/{uuid}"), "").await.json()["node"], "n1");
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_are_shown_by_node() {
    let cluster = Cluster::start(0).await;
    assert_eq!(cluster.ask("GET", "/api/v1/disks", "").await.json()["items"], json!([]));
    for (name, node) in [("wwn-0x2", "n1"), ("wwn-0x1", "n2")] {
        cluster.client.create(&disk(name, node)).await.unwrap();
    }
    let disks = cluster.ask("GET", "/api/v1/disks", "").await.json();
    assert_eq!(
        (&disks["items"][0]["name"], &disks["items"][1]["name"]),
        (&json!("wwn-0x2"), &json!("wwn-0x1"))
    );
    let one = cluster.ask("GET", "/api/v1/disks/wwn-0x1", "").await.json();
    assert_eq!(
        (&one["class"], &one["state"], &one["sizeBytes"]),
        (&json!("NVMe"), &json!("InUse"), &json!(1_u64 << 40))
    );
    cluster
        .ask("GET", "/api/v1/disks/none", "")
        .await
        .is_problem(404, "there is no disk \"none\"; `orlop disk list`");
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_told_what_to_do_and_changes_nothing() {
    let cluster = Cluster::start(3).await;
    let create = async |body: &str| cluster.ask("POST", "/api/v1/volumes", body).await;
    let gib = 1_u64 << 30;
    create(r#"{"name": "A b", "spec": {"sizeBytes": 1048576}}"#).await.is_problem(422, "use 1 to 63 of a-z");
    create(r#"{"name": "x", "spec": {"sizeBytes": 77}}"#).await.is_problem(422, "not a multiple of 1 MiB");
    create(r#"{"name": "x", "spec": {"sizeBytes": 1048576, "stripes": 4}}"#)
        .await
        .is_problem(422, "4 stripes are not supported yet");
    create(r#"{"name": "x", "spec": {"sizeBytes": -1}}"#).await.is_problem(400, "the body");
    create(r#"{"name": "x", "spec": {"sizeBytes": 1048576, "color": "red"}}"#).await.is_problem(400, "color");
    create("nonsense").await.is_problem(400, "/openapi.json says");
    create(&json!({"name": "x", "spec": {"sizeBytes": gib, "copies": 5}}).to_string())
        .await
        .is_problem(409, "volume \"x\": 5 copies need as many nodes, 3 can take one; start more nodes");
    create(&json!({"name": "x", "spec": {"sizeBytes": 100 * gib}}).to_string())
        .await
        .is_problem(409, "volume \"x\": 3 copies need as many nodes with room for 100 GiB, 0 have that");
    let room = async |query: &str| cluster.ask("GET", &format!("/api/v1/capacity?{query}"), "").await;
    room("").await.is_problem(400, "missing field `copies`");
    room("copies=3&class=fast").await.is_problem(400, "unknown variant `fast`");
    room("copies=3&colour=red").await.is_problem(400, "unknown field `colour`");
    cluster.ask("GET", "/api/v1/volumes/none", "").await.is_problem(404, "there is no volume \"none\"");
    cluster.ask("GET", "/api/v1/volumes/N%20O", "").await.is_problem(404, "there is no volume \"N O\"");
    cluster.ask("DELETE", "/api/v1/volumes/none", "").await.is_problem(404, "there is no volume");
    cluster.ask("GET", "/api/v1/nodes/none", "").await.is_problem(404, "`orlop node list`");
    cluster.ask("GET", "/api/v2", "").await.is_problem(404, "/openapi.json lists the paths");
    cluster.ask("PATCH", "/api/v1/nodes", "").await.is_problem(405, "PATCH is not possible");
    assert!(cluster.client.list::<Volume>().await.unwrap().is_empty(), "nothing has changed");

    assert_eq!(cluster.create("data").await.status, 201);
    cluster.create("data").await.is_problem(409, "volume \"data\" exists already; choose another name");
    let attach = async |body: &str| cluster.ask("POST", "/api/v1/volumes/data/attach", body).await;
    attach(r#"{"node": "nine"}"#).await.is_problem(404, "there is no node \"nine\"");
    set_state(&cluster, 2, NodeState::NotReady).await;
    attach(r#"{"node": "n2"}"#).await.is_problem(409, "node n2 is NotReady; start its engine");
    cluster
        .ask("POST", "/api/v1/volumes/data/attach?wait=soon", "{}")
        .await
        .is_problem(400, "wait=\"soon\" is not a duration; use one such as 30s");
    let resize = async |bytes: u64| {
        let body = json!({"sizeBytes": bytes}).to_string();
        cluster.ask("POST", "/api/v1/volumes/data/resize", &body).await
    };
    resize(gib / 2).await.is_problem(409, "cannot shrink from 1 GiB to 512 MiB");
    resize(0).await.is_problem(422, "not a multiple of 1 MiB");
    resize(gib + 1).await.is_problem(422, "not a multiple of 1 MiB");
    resize(50 * gib).await.is_problem(409, "room for 49 GiB");
    let untouched = cluster.client.get::<Volume>("data").await.unwrap().unwrap();
    assert_eq!((untouched.value.spec.size_bytes, untouched.value.intent.attach), (gib, None));
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_there_is_room_for_is_what_can_be_made() {
    let cluster = Cluster::start(3).await;
    cluster.create("data").await;
    let client = api::client::Client::new(&format!("http://{}", cluster.server.address())).unwrap();
    let any = api::Room { copies: 3, class: None, spread: None, on: None };
    for (room, gib) in [
        (any.clone(), 15),
        (api::Room { copies: 4, ..any.clone() }, 0),
        (api::Room { class: Some(DiskClass::Nvme), ..any.clone() }, 0),
        (api::Room { spread: Some("example.com/rack".into()), ..any.clone() }, 0),
        (api::Room { on: Some("n2".into()), ..any.clone() }, 15),
        (api::Room { on: Some("n9".into()), ..any }, 0),
    ] {
        let told = client.capacity(&room).await.unwrap();
        assert_eq!(told.largest_volume_bytes >> 30, gib, "4 GiB, four times promised, and 1 taken: {room:?}");
    }
    let make = async |bytes: u64| {
        let body = json!({"name": "rest", "spec": {"sizeBytes": bytes}}).to_string();
        cluster.ask("POST", "/api/v1/volumes", &body).await
    };
    make((15 << 30) + (1 << 20)).await.is_problem(409, "the most on another is 15 GiB");
    assert_eq!(make(15 << 30).await.status, 201, "larger than a disk");
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wishes_become_intent() {
    let cluster = Cluster::start(3).await;
    cluster.create("data").await;
    let intent = async || cluster.client.get::<Volume>("data").await.unwrap().unwrap().value.intent;
    let post = async |action: &str, body: &str| {
        cluster.ask("POST", &format!("/api/v1/volumes/data/{action}"), body).await
    };
    let attached = post("attach", r#"{"node": "n2"}"#).await;
    assert_eq!(attached.status, 202, "there is no engine here: {:?}", attached.body);
    assert_eq!(intent().await.owner.as_deref(), Some("n2"));
    assert_eq!(intent().await.attach_serial, 1);
    post("attach", "{}").await;
    assert_eq!(intent().await.attach_serial, 1, "it is attached already");
    post("attach", r#"{"node": "n3"}"#).await.is_problem(409, "attached on node n2, which is Ready");
    cluster
        .ask("DELETE", "/api/v1/volumes/data", "")
        .await
        .is_problem(409, "run `orlop volume detach data` first");
    set_state(&cluster, 2, NodeState::NotReady).await;
    assert_eq!(post("attach", r#"{"node": "n3"}"#).await.status, 202, "its node is gone");
    assert_eq!((intent().await.owner.as_deref(), intent().await.attach_serial), (Some("n3"), 2));
    assert_eq!(post("attach", r#"{"node": "n1", "move": true}"#).await.status, 202, "by word");
    assert_eq!(intent().await.owner.as_deref(), Some("n1"));

    let grown = post("resize", r#"{"sizeBytes": 2147483648}"#).await;
    assert_eq!(grown.json()["spec"]["sizeBytes"], 2_u64 << 30);
    assert_eq!(post("detach", "").await.status, 200, "there never was a device");
    assert_eq!(intent().await.attach, None);
    assert_eq!(intent().await.owner.as_deref(), Some("n1"), "the manager lets it go, not the API");

    let old = cluster.ask_if("DELETE", "/api/v1/volumes/data", "", Some("\"1\"")).await;
    old.is_problem(412, "read the object again");
    assert!(!intent().await.deleting);
    let tag =
        cluster.ask("GET", "/api/v1/volumes/data", "").await.headers["etag"].to_str().unwrap().to_owned();
    let deleted = cluster.ask_if("DELETE", "/api/v1/volumes/data", "", Some(&tag)).await;
    assert_eq!((deleted.status, &deleted.json()["status"]["state"]), (202, &json!("Deleting")));
    assert!(intent().await.deleting);
    assert_eq!(cluster.ask("DELETE", "/api/v1/volumes/data", "").await.status, 202, "asked for already");
    post("attach", "{}").await.is_problem(409, "is being deleted; wait until it is gone");
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_from_a_copy_is_confirmed_by_the_explicit_word() {
    let cluster = Cluster::start(3).await;
    cluster.create("data").await;
    let recover = async || cluster.ask("POST", "/api/v1/volumes/data/recover", "").await;
    cluster.ask("POST", "/api/v1/volumes/none/recover", "").await.is_problem(404, "no volume \"none\"");
    recover().await.is_problem(409, "has no record yet; wait until its copies are made");

    let Stored { revision, mut value } = cluster.client.get::<Volume>("data").await.unwrap().unwrap();
    value.intent.recorded = true;
    cluster.client.replace(&value, revision).await.unwrap();
    recover().await.is_problem(409, "no copy of it was found; start the nodes that have its copies");

    let members = value.intent.members.iter().map(|member| MemberRecord {
        state: MemberState::InSync,
        ..MemberRecord::new(member.replica, member.pool, member.node.clone())
    });
    let record = VolumeRecord::new(value.uuid, 1 << 30, 4096, members.collect());
    let revision = cluster.client.create(&record).await.unwrap();
    recover().await.is_problem(409, "is not from a copy: nothing is to be confirmed");

    let owner = Some(Owner { nexus: Uuid::from_u128(50), node: "n1".into() });
    let marked = VolumeRecord { owner, ..record.recovered(7, 30) };
    cluster.client.replace(&marked, revision).await.unwrap();
    let shown = cluster.ask("GET", "/api/v1/volumes/data", "").await.json();
    assert_eq!(shown["status"]["state"], "Stalled");
    let why = shown["status"]["message"].as_str().unwrap();
    assert!(why.starts_with("its record is from a copy"), "{why}");
    let stale = cluster.ask_if("POST", "/api/v1/volumes/data/recover", "", Some("\"1\"")).await;
    stale.is_problem(412, "read the object again");
    let answer = recover().await;
    assert_eq!((answer.status, &answer.json()["status"]["state"]), (200, &json!("Available")));
    let key = value.uuid.to_string();
    let now = cluster.client.get::<VolumeRecord>(&key).await.unwrap().unwrap().value;
    let (epoch, version) = (marked.epoch + 1, marked.version + 1);
    assert_eq!(now, VolumeRecord { epoch, version, owner: None, unconfirmed: false, ..marked });
    recover().await.is_problem(409, "nothing is to be confirmed");
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_and_who_writes_exclude_each_other() {
    let cluster = Cluster::start(3).await;
    cluster.create("data").await;
    let intent = async || cluster.client.get::<Volume>("data").await.unwrap().unwrap().value.intent;
    let post = async |action: &str, body: &str| {
        cluster.ask("POST", &format!("/api/v1/volumes/data/{action}"), body).await
    };
    let read = async |node: &str| post("attach", &format!(r#"{{"node": "{node}", "readOnly": true}}"#)).await;
    let answer = read("n3").await;
    assert_eq!(answer.status, 202, "there is no engine here: {:?}", answer.body);
    assert_eq!(answer.json()["status"]["readers"], json!([{"node": "n3", "device": null, "message": null}]));
    for node in ["n2", "n3"] {
        assert_eq!(read(node).await.status, 202);
    }
    assert_eq!((intent().await.readers, intent().await.attach_serial), (vec!["n2".into(), "n3".into()], 1));
    assert_eq!(intent().await.owner, None, "where the nexus is is for the manager to say");
    read("n9").await.is_problem(404, "there is no node \"n9\"");
    let refusal = "is attached read only on n2, n3; run `orlop volume detach data` first";
    post("attach", r#"{"node": "n1"}"#).await.is_problem(409, refusal);
    post("attach", r#"{"node": "n2"}"#).await.is_problem(409, refusal);
    cluster.ask("DELETE", "/api/v1/volumes/data", "").await.is_problem(409, refusal);

    // An engine says what it has.
    let uuid = cluster.client.get::<Volume>("data").await.unwrap().unwrap().value.uuid;
    let device = Some("/dev/loop3".to_owned());
    let report = ReaderReport { volume: uuid, attach_serial: 1, device, size_bytes: 1 << 30, message: None };
    let report = NodeReplicas { node: "n3".into(), replicas: Vec::new(), readers: vec![report] };
    cluster.client.create(&report).await.unwrap();
    let waited = post("attach?wait=60s", r#"{"node": "n3", "readOnly": true}"#).await;
    assert_eq!(
        (waited.status, &waited.json()["status"]["readers"][1]["device"]),
        (200, &json!("/dev/loop3"))
    );
    assert_eq!(post("detach?node=n1", "").await.status, 200, "nothing is there");
    assert_eq!(post("detach?node=n3", "").await.status, 202, "its engine has not let it go yet");
    assert_eq!(intent().await.readers, ["n2"]);
    let revision = cluster.client.get::<NodeReplicas>("n3").await.unwrap().unwrap().revision;
    cluster.client.replace(&NodeReplicas { readers: Vec::new(), ..report }, revision).await.unwrap();
    assert_eq!(post("detach?node=n3&wait=60s", "").await.status, 200);

    set_state(&cluster, 2, NodeState::NotReady).await;
    assert_eq!(post("attach", r#"{"node": "n1"}"#).await.status, 202, "who read is not there");
    assert_eq!((intent().await.readers, intent().await.attach_serial), (Vec::new(), 2));
    read("n3")
        .await
        .is_problem(409, "is attached for writing on node n1; run `orlop volume detach data` first");
    assert_eq!(post("detach?node=n3", "").await.status, 200);
    assert!(intent().await.attach.is_some(), "it is on another node");
    post("detach", "").await;
    read("n2").await.is_problem(409, "node n2 is NotReady");
    read("n3").await;
    assert_eq!(intent().await.attach_serial, 3, "somebody may have written");
    assert_eq!(post("attach", r#"{"node": "n1", "move": true}"#).await.status, 202, "by word");
    assert_eq!((intent().await.readers, intent().await.attach_serial), (Vec::new(), 4));
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_takes_so_many_volumes_and_no_more() {
    let cluster = Cluster::start(1).await;
    let spec = VolumeSpec {
        size_bytes: 1 << 20,
        copies: 1,
        stripes: 1,
        block_size: 4096,
        class: None,
        spread: None,
    };
    for number in 0..=limits::ATTACHED_MAX {
        let attach = (number > 0).then(|| Attach { node: "n1".into() });
        let owner = attach.as_ref().map(|attach| attach.node.clone());
        let volume = Volume {
            name: format!("v{number}"),
            uuid: Uuid::new_v4(),
            spec: spec.clone(),
            intent: VolumeIntent { attach, owner, ..VolumeIntent::default() },
            message: None,
        };
        cluster.client.create(&volume).await.unwrap();
    }
    let full = cluster.ask("POST", "/api/v1/volumes/v0/attach", r#"{"node": "n1"}"#).await;
    assert_eq!((full.status, full.json()["type"].as_str()), (409, Some("urn:orlop:problem:node-full")));
    let again = cluster.ask("POST", "/api/v1/volumes/v1/attach", r#"{"node": "n1"}"#).await;
    assert_eq!(again.status, 202, "it is there already: {:?}", again.body);
    assert_eq!(cluster.ask("POST", "/api/v1/volumes/v2/detach", "").await.status, 200);
    let fits = cluster.ask("POST", "/api/v1/volumes/v0/attach", r#"{"node": "n1"}"#).await;
    assert_eq!(fits.status, 202, "{:?}", fits.body);
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_wished_to_be_drained() {
    let cluster = Cluster::start(4).await;
    let patch =
        async |name: &str, body: &str| cluster.ask("PATCH", &format!("/api/v1/nodes/{name}"), body).await;
    let wish = async |name: &str, scheduling: &str| {
        patch(name, &json!({"spec": {"scheduling": scheduling}}).to_string()).await
    };
    let cordoned = wish("n4", "Cordoned").await;
    assert_eq!((cordoned.status, &cordoned.json()["spec"]["scheduling"]), (200, &json!("Cordoned")));
    let tag = cordoned.headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(wish("n4", "Cordoned").await.headers["etag"], tag.as_str(), "it is so already");
    cluster.create("data").await;
    let got = cluster.ask("GET", "/api/v1/nodes/n4", "").await;
    assert_eq!(
        (&got.json()["copies"], &got.json()["waitsFor"]),
        (&json!([]), &json!([])),
        "nothing is placed there"
    );
    assert_eq!(got.headers["etag"], format!("\"{}\"", got.json()["revision"]));

    cluster.ask("POST", "/api/v1/volumes/data/attach", r#"{"node": "n1"}"#).await;
    let drained = wish("n1", "Drained").await;
    let node = drained.json();
    assert_eq!(
        (drained.status, &node["attached"], &node["copies"]),
        (202, &json!(["data"]), &json!(["data"]))
    );
    let wait = &node["waitsFor"][0];
    assert_eq!((&wait["volume"], &wait["held"]), (&json!("data"), &json!("Attachment")));
    assert!(wait["message"].as_str().unwrap().contains("`orlop volume detach data`"), "{wait}");
    let evacuated = wish("n2", "Evacuated").await;
    assert_eq!((evacuated.status, &evacuated.json()["waitsFor"][0]["held"]), (202, &json!("Copy")));
    let back = wish("n2", "Enabled").await;
    assert_eq!((back.status, &back.json()["waitsFor"]), (200, &json!([])));

    cluster.ask("POST", "/api/v1/volumes/data/detach", "").await;
    cluster
        .create("more")
        .await
        .is_problem(409, "2 can take one (cordoned: n1, n4); start more nodes, uncordon one");
    wish("n1", "Enabled").await;
    wish("n2", "Cordoned").await;
    cluster.ask("POST", "/api/v1/volumes/data/attach", "{}").await;
    let owner = cluster.client.get::<Volume>("data").await.unwrap().unwrap().value.intent.owner.unwrap();
    assert!(owner != "n2" && owner != "n4", "{owner} is cordoned");

    patch("n1", "{}").await.is_problem(400, "spec");
    patch("n1", r#"{"spec": {}}"#).await.is_problem(400, "scheduling");
    wish("n1", "Gone").await.is_problem(400, "Gone");
    wish("none", "Drained").await.is_problem(404, "there is no node \"none\"");
    let old = r#"{"spec": {"scheduling": "Drained"}}"#;
    cluster
        .ask_if("PATCH", "/api/v1/nodes/n3", old, Some("\"0\""))
        .await
        .is_problem(412, "read the object again");
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_ends_with_the_device_and_with_the_volume() {
    let cluster = Cluster::start(3).await;
    cluster.create("data").await;
    let waiting = cluster.ask("POST", "/api/v1/volumes/data/attach?wait=60s", r#"{"node": "n1"}"#);
    let engine = async {
        let volume = loop {
            let volume = cluster.client.get::<Volume>("data").await.unwrap().unwrap().value;
            if volume.intent.attach.is_some() {
                break volume;
            }
            tokio::task::yield_now().await;
        };
        report_attached(&cluster, &volume).await;
    };
    let (answer, ()) = tokio::join!(waiting, engine);
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    assert_eq!(answer.json()["status"]["device"], "/dev/loop7");
    assert_eq!(answer.json()["status"]["state"], "Attached");
    assert_eq!(answer.json()["status"]["owner"], "n1");

    cluster.ask("POST", "/api/v1/volumes/data/detach", "").await;
    let waiting = cluster.ask("DELETE", "/api/v1/volumes/data?wait=60s", "");
    let manager = async {
        loop {
            let Stored { revision, value } = cluster.client.get::<Volume>("data").await.unwrap().unwrap();
            if value.intent.deleting {
                return cluster.client.delete::<Volume>("data", revision).await.unwrap();
            }
            tokio::task::yield_now().await;
        }
    };
    let (answer, ()) = tokio::join!(waiting, manager);
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_server_ends_waits() {
    let cluster = Cluster::start(3).await;
    cluster.create("data").await;
    let address = cluster.server.address();
    let path = "/api/v1/volumes/data/attach?wait=300s";
    let waiting = tokio::spawn(async move { ask(address, "POST", path, "{}", None).await });
    // Once the wish is in the store, the request waits for an engine that there is not.
    while cluster.client.get::<Volume>("data").await.unwrap().unwrap().value.intent.attach.is_none() {
        tokio::task::yield_now().await;
    }
    cluster.server.stop().await;
    assert_eq!(waiting.await.unwrap().status, 202, "answered, not cut off");
    assert!(std::net::TcpStream::connect(address).is_err(), "nobody listens any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_is_named() {
    let cluster = Cluster::start(0).await;
    let listen = cluster.server.address();
    let config = api::ApiConfig { listen, client: cluster.client.clone(), overcommit: 4 };
    let error = api::serve(config).await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "address {listen} is in use; stop the program that listens there, or choose another with --listen"
        )
    );
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_what_there_is() {
    let cluster = Cluster::start(3).await;
    cluster.create("data").await;
    set_state(&cluster, 2, NodeState::NotReady).await;
    cluster.ask("GET", "/api/v1/volumes/none", "").await;
    assert_eq!(cluster.ask("GET", "/healthz", "").await.body, "ok");
    let text = String::from_utf8(cluster.ask("GET", "/metrics", "").await.body.to_vec()).unwrap();
    for line in [
        "orlop_volumes{state=\"Pending\"} 1",
        "orlop_volumes{state=\"Attached\"} 0",
        "orlop_nodes{state=\"Ready\"} 2",
        "orlop_nodes{state=\"NotReady\"} 1",
        "orlop_pool_capacity_bytes{node=\"n1\",pool=\"disk0\"} 4294967296",
        "orlop_pool_used_bytes{node=\"n1\",pool=\"disk0\"} 1073741824",
        "orlop_http_requests_total{method=\"GET\",path=\"/api/v1/volumes/{name}\",status=\"404\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(text.contains("orlop_store_operation_seconds_count{operation=\"put\"}"), "{text}");
    assert!(text.ends_with("# EOF\n"));
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_gone_is_forgotten() {
    let cluster = Cluster::start(4).await;
    cluster.create("data").await;
    let delete = |node: &'static str| cluster.ask("DELETE", node, "");
    delete("/api/v1/nodes/n1").await.is_problem(409, "node \"n1\" is Ready; end its engine");
    delete("/api/v1/nodes/n7").await.is_problem(404, "there is no node \"n7\"");
    set_state(&cluster, 1, NodeState::NotReady).await;
    delete("/api/v1/nodes/n1").await.is_problem(409, "has copies of volume data; they are made elsewhere");
    let node = cluster.ask("GET", "/api/v1/nodes/n4", "").await;
    set_state(&cluster, 4, NodeState::NotReady).await;
    let tag = node.headers["etag"].to_str().unwrap();
    cluster
        .ask_if("DELETE", "/api/v1/nodes/n4", "", Some(tag))
        .await
        .is_problem(412, "read the object again");
    cluster.client.create(&disk("wwn-1", "n4")).await.unwrap();
    cluster.client.create(&disk("wwn-2", "n3")).await.unwrap();
    assert_eq!(delete("/api/v1/nodes/n4").await.status, 204);
    let left = async |kind: &str| cluster.ask("GET", &format!("/api/v1/{kind}"), "").await.json();
    assert_eq!(left("nodes").await["items"].as_array().map(Vec::len), Some(3));
    assert_eq!(left("pools").await["items"].as_array().map(Vec::len), Some(3));
    assert_eq!(left("disks").await["items"][0]["name"], "wwn-2");
    delete("/api/v1/nodes/n4").await.is_problem(404, "n4");

    // Nothing is lost with a node whose copies are all to be destroyed, also where the volume's object is gone.
    let mut record = VolumeRecord::new(
        Uuid::from_u128(9),
        1 << 20,
        4096,
        vec![MemberRecord::new(Uuid::from_u128(8), Uuid::from_u128(21), "n1".into())],
    );
    let revision = cluster.client.create(&record).await.unwrap();
    cluster.ask("DELETE", "/api/v1/volumes/data", "").await;
    delete("/api/v1/nodes/n1")
        .await
        .is_problem(409, "has copies of volume 00000000-0000-0000-0000-000000000009");
    record.members[0].state = MemberState::Removed;
    cluster.client.replace(&record, revision).await.unwrap();
    assert_eq!(delete("/api/v1/nodes/n1").await.status, 204);
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_is_given_back_by_its_node() {
    let cluster = Cluster::start(4).await;
    cluster.create("data").await;
    let path = |index: u128| format!("/api/v1/pools/{}", Uuid::from_u128(20 + index));
    let held = cluster.ask("DELETE", &path(1), "").await;
    held.is_problem(
        409,
        "pool \"disk0\" of node \"n1\" has copies of volume data; `orlop node drain n1 --evacuate`",
    );
    set_state(&cluster, 4, NodeState::NotReady).await;
    cluster.ask("DELETE", &path(4), "").await.is_problem(409, "node n4 is NotReady; only the node");
    set_state(&cluster, 4, NodeState::Ready).await;
    let wished = cluster.ask("DELETE", &path(4), "").await;
    assert_eq!(wished.status, 202);
    let uuid = Uuid::from_u128(24).to_string();
    let Stored { revision, value } = cluster.client.get::<Pool>(&uuid).await.unwrap().unwrap();
    assert_eq!((value.spec.release, value.state), (true, PoolState::Online), "it is for its node to do");
    // Places are chosen by what watches have told, which may be a moment old.
    let four = async || cluster.ask("GET", "/api/v1/capacity?copies=4", "").await.json();
    while four().await["largestVolumeBytes"] != 0 {
        tokio::task::yield_now().await;
    }
    cluster.create("more").await;
    let body = r#"{"name": "four", "spec": {"sizeBytes": 1048576, "copies": 4}}"#;
    cluster.ask("POST", "/api/v1/volumes", body).await.is_problem(409, "3 can take one");
    let waiting = cluster.ask("DELETE", "/api/v1/pools/00000000-0000-0000-0000-000000000018?wait=60s", "");
    let engine = async {
        cluster.client.replace(&Pool { state: PoolState::Gone, ..value }, revision).await.unwrap();
    };
    let (gone, ()) = tokio::join!(waiting, engine);
    assert_eq!(gone.status, 204);
    assert_eq!(cluster.client.get::<Pool>(&uuid).await.unwrap(), None);
    cluster.ask("DELETE", &path(4), "").await.is_problem(404, "there is no pool");
    cluster.server.stop().await;
}

async fn set_state(cluster: &Cluster, index: u128, state: NodeState) {
    let name = format!("n{index}");
    let revision = cluster.client.get::<Node>(&name).await.unwrap().unwrap().revision;
    cluster.client.replace(&Node { state, ..node(index) }, revision).await.unwrap();
}

/// What a nexus and its engine would write.
async fn report_attached(cluster: &Cluster, volume: &Volume) {
    let nexus = Uuid::from_u128(50);
    let member = |member: &MemberIntent| MemberRecord {
        state: MemberState::InSync,
        ..MemberRecord::new(member.replica, member.pool, member.node.clone())
    };
    let members = volume.intent.members.iter().map(member).collect();
    let record = VolumeRecord {
        epoch: 1,
        owner: Some(Owner { nexus, node: "n1".into() }),
        clean: false,
        ..VolumeRecord::new(volume.uuid, volume.spec.size_bytes, 4096, members)
    };
    cluster.client.create(&record).await.unwrap();
    let status = VolumeStatus {
        volume: volume.uuid,
        node: "n1".into(),
        nexus,
        epoch: 1,
        state: NexusState::Serving,
        device: Some("/dev/loop7".into()),
        target: None,
        attachment: 1,
        attach_serial: volume.intent.attach_serial,
        size_bytes: volume.spec.size_bytes,
        stable: Generation::ZERO,
        members: Vec::new(),
        write_stall_max_ms: 0,
        message: None,
    };
    cluster.client.create(&status).await.unwrap();
}

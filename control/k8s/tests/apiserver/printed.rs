//! What `kubectl get` shows of each kind, and by which words it finds them.

use crate::Test;
use crate::conformance::node;
use crate::server::ControlPlane;
use hyper::{Method, StatusCode};
use model::{
    Attach, ClusterInfo, Disk, DiskClass, DiskPartition, DiskState, Generation, Kind, NexusState, Node,
    NodeReplicas, NodeSpec, Object, Owner, Pool, PoolSpec, PoolState, Scheduling, Volume, VolumeIntent,
    VolumeRecord, VolumeSpec, VolumeStatus, topology::ZONE_KEY,
};
use serde_json::{Value, json};
use store::Client;
use uuid::Uuid;

pub(crate) const TESTS: &[Test] = &[
    ("a_disk_is_read_as_it_was_written", || Box::pin(a_disk_is_read_as_it_was_written())),
    ("each_kind_is_shown_in_its_columns", || Box::pin(each_kind_is_shown_in_its_columns())),
    ("each_kind_is_found_by_its_short_name", || Box::pin(each_kind_is_found_by_its_short_name())),
];

const FOLDER: &str = "/apis/orlop.io/v1alpha1";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const SIZE_BYTES: u64 = 1 << 30;

/// With all that a disk can say.
fn disk() -> Disk {
    let partition = |number: u32, label: Option<&str>| DiskPartition {
        device: format!("/dev/sda{number}"),
        number,
        start_bytes: u64::from(number) << 20,
        size_bytes: 1 << 20,
        label: label.map(str::to_owned),
    };
    Disk {
        name: "wwn-0x5000".into(),
        node: "n1".into(),
        device: "/dev/sda".into(),
        by_id: Some("/dev/disk/by-id/wwn-0x5000".into()),
        parent: Some("wwn-0x4000".into()),
        state: DiskState::InUse,
        pool: Some(Uuid::from_u128(9)),
        class: DiskClass::Ssd,
        model: Some("Some \"disk\" of 1 TB".into()),
        serial: Some("S/N 7".into()),
        size_bytes: SIZE_BYTES,
        logical_block_bytes: 512,
        physical_block_bytes: 4096,
        partitions: vec![partition(1, Some("EFI System")), partition(2, None)],
        signatures: vec!["gpt".into(), "ext4".into()],
        message: Some("/dev/sda is the pool of another node: name it".into()),
    }
}

async fn a_disk_is_read_as_it_was_written() {
    let plane = ControlPlane::installed().await;
    let client = plane.client().await;
    let full = disk();
    let mut revision = client.create(&full).await.unwrap();
    let read = async || client.get::<Disk>(&full.name).await.unwrap().unwrap();
    assert_eq!((read().await.value, read().await.revision), (full.clone(), revision));
    assert_eq!(client.list::<Disk>().await.unwrap(), [read().await]);
    let path = format!("{FOLDER}/disks/{}", full.name);
    let usable = async || {
        let (_, object) = plane.by_hand(Method::GET, &path, &Value::Null).await;
        let conditions = object["status"]["conditions"].as_array().unwrap().clone();
        assert_eq!((conditions.len(), &conditions[0]["type"]), (1, &json!("Usable")), "{object}");
        conditions[0].clone()
    };
    let refused = usable().await;
    assert_eq!((&refused["status"], &refused["reason"]), (&json!("False"), &json!("InUse")));
    assert_eq!(refused["message"], json!(full.message));

    // Everything that may be absent, and then each state.
    let bare = Disk {
        by_id: None,
        parent: None,
        state: DiskState::Available,
        pool: None,
        model: None,
        serial: None,
        partitions: Vec::new(),
        signatures: Vec::new(),
        message: None,
        ..full.clone()
    };
    let taken = Disk { state: DiskState::Pool, pool: Some(Uuid::from_u128(9)), ..bare.clone() };
    let missing = Disk { state: DiskState::Missing, message: Some("it is gone".into()), ..taken.clone() };
    for (next, status, reason) in
        [(bare, "True", "Available"), (taken, "True", "Pool"), (missing, "False", "Missing")]
    {
        revision = client.replace(&next, revision).await.unwrap();
        assert_eq!(read().await.value, next);
        let usable = usable().await;
        assert_eq!((&usable["status"], &usable["reason"]), (&json!(status), &json!(reason)), "{usable}");
    }
    client.delete::<Disk>(&full.name, revision).await.unwrap();
    assert_eq!(client.get::<Disk>(&full.name).await.unwrap(), None);
}

/// One object of each kind, with a value for each column; their keys.
async fn one_of_each(client: &Client) -> Vec<(Kind, String)> {
    async fn put<T: Object>(client: &Client, object: T) -> (Kind, String) {
        client.create(&object).await.unwrap();
        (T::KIND, object.key())
    }
    let (message, owner) = (Some("what is wrong".to_owned()), Uuid::from_u128(5));
    let node = Node {
        spec: NodeSpec { scheduling: Scheduling::Cordoned },
        topology: [(ZONE_KEY.to_owned(), "a".to_owned())].into(),
        ..node("n1", 1)
    };
    let pool = Pool {
        name: "disk0".into(),
        uuid: Uuid::from_u128(9),
        node: "n1".into(),
        spec: PoolSpec { release: true },
        uri: "mem://".into(),
        class: Some(DiskClass::Nvme),
        state: PoolState::Degraded,
        capacity_bytes: SIZE_BYTES,
        used_bytes: 1 << 20,
        free_bytes: SIZE_BYTES - (1 << 20),
        incarnation: Uuid::from_u128(10),
        boot_id: Uuid::from_u128(11),
        message: message.clone(),
    };
    let volume = Volume {
        name: "data".into(),
        uuid: Uuid::from_u128(7),
        spec: VolumeSpec {
            size_bytes: SIZE_BYTES,
            copies: 2,
            stripes: 1,
            block_size: 4096,
            class: Some(DiskClass::Nvme),
            spread: Some(ZONE_KEY.into()),
        },
        intent: VolumeIntent {
            attach: Some(Attach { node: "n1".into() }),
            owner: Some("n1".into()),
            ..VolumeIntent::default()
        },
        message: message.clone(),
    };
    let record = VolumeRecord {
        epoch: 7,
        owner: Some(Owner { nexus: owner, node: "n1".into() }),
        clean: false,
        ..VolumeRecord::new(volume.uuid, SIZE_BYTES, 4096, Vec::new())
    };
    let status = VolumeStatus {
        volume: volume.uuid,
        node: "n1".into(),
        nexus: owner,
        epoch: 7,
        state: NexusState::Stalled,
        device: Some("/dev/loop0".into()),
        target: None,
        attachment: 1,
        attach_serial: 1,
        size_bytes: SIZE_BYTES,
        stable: Generation::ZERO,
        members: Vec::new(),
        write_stall_max_ms: 0,
        message,
    };
    let replicas = NodeReplicas { node: "n1".into(), replicas: Vec::new(), readers: Vec::new() };
    vec![
        put(client, ClusterInfo { uuid: Uuid::from_u128(3) }).await,
        put(client, node).await,
        put(client, pool).await,
        put(client, volume).await,
        put(client, record).await,
        put(client, status).await,
        put(client, replicas).await,
        put(client, disk()).await,
    ]
}

/// What `kubectl get` asks for: the API server makes the table.
async fn each_kind_is_shown_in_its_columns() {
    let plane = ControlPlane::installed().await;
    let there = one_of_each(&plane.client().await).await;
    assert_eq!(there.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), Kind::ALL);
    let definitions = k8s::crds();
    for (kind, key) in there {
        let wanted = definitions.iter().find(|crd| crd["spec"]["names"]["plural"] == kind.as_str()).unwrap();
        let wanted = wanted["spec"]["versions"][0]["additionalPrinterColumns"].as_array().unwrap();
        let folder = format!("{FOLDER}/{kind}");
        let (status, table) = plane.by_hand_as(Method::GET, &folder, TABLE, &Value::Null).await;
        assert_eq!((status, &table["kind"]), (StatusCode::OK, &json!("Table")), "{table}");
        let shown = |column: &Value| {
            json!([column["name"], column["type"], column["priority"].as_i64().unwrap_or_default()])
        };
        let columns: Vec<Value> = table["columnDefinitions"].as_array().unwrap().iter().map(shown).collect();
        assert_eq!(columns[0], json!(["Name", "string", 0]), "{kind}");
        assert_eq!(columns[1..], wanted.iter().map(shown).collect::<Vec<_>>(), "{kind}");

        let rows = table["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 1, "{table}");
        let cells = rows[0]["cells"].as_array().unwrap();
        assert_eq!((cells.len(), &cells[0]), (columns.len(), &json!(key)), "{kind}");
        let (_, object) = plane.by_hand(Method::GET, &format!("{folder}/{key}"), &Value::Null).await;
        for (column, cell) in wanted.iter().zip(&cells[1..]) {
            let (name, path) = (&column["name"], column["jsonPath"].as_str().unwrap());
            assert!(
                !cell.is_null() && *cell != "" && *cell != "<unknown>",
                "{kind} {name} is {cell}: {object}"
            );
            // The others are an age, a label, and one of a list.
            if column["type"] != "date" && !path.contains(['\\', '[']) {
                let told = object.pointer(&path.replace('.', "/"));
                assert_eq!(Some(cell), told, "{kind} {name}");
            }
        }
    }
    let (_, nodes) = plane.by_hand_as(Method::GET, &format!("{FOLDER}/nodes"), TABLE, &Value::Null).await;
    assert_eq!(nodes["rows"][0]["cells"].as_array().unwrap()[5], "a", "the zone");
    let (_, volumes) = plane.by_hand_as(Method::GET, &format!("{FOLDER}/volumes"), TABLE, &Value::Null).await;
    assert_eq!(volumes["rows"][0]["cells"].as_array().unwrap()[3], "False", "whether it is placed");
}

/// `kubectl get odisk`, `kubectl get orlop`.
async fn each_kind_is_found_by_its_short_name() {
    let plane = ControlPlane::installed().await;
    let (status, found) = plane.by_hand(Method::GET, FOLDER, &Value::Null).await;
    assert_eq!(status, StatusCode::OK, "{found}");
    let resources = found["resources"].as_array().unwrap();
    let whole = |resource: &&Value| !resource["name"].as_str().unwrap().contains('/');
    assert_eq!(resources.iter().filter(whole).count(), Kind::ALL.len(), "{found}");
    for (plural, kind, short) in [
        ("clusters", "Cluster", json!(null)),
        ("nodes", "Node", json!(["onode"])),
        ("pools", "Pool", json!(["opool"])),
        ("volumes", "Volume", json!(["ovol"])),
        ("volumerecords", "VolumeRecord", json!(null)),
        ("volumestatuses", "VolumeStatus", json!(null)),
        ("nodereplicas", "NodeReplicas", json!(null)),
        ("disks", "Disk", json!(["odisk"])),
    ] {
        let resource = resources.iter().find(|resource| resource["name"] == plural).unwrap();
        assert_eq!((&resource["kind"], &resource["shortNames"]), (&json!(kind), &short), "{resource}");
        assert_eq!(resource["categories"], json!(["orlop"]), "{resource}");
        assert_eq!(resource["namespaced"], false, "{resource}");
        let status = resources.iter().any(|resource| resource["name"] == format!("{plural}/status"));
        assert!(status, "{plural} have a status");
    }
}

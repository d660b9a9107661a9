//! The definitions of the custom resources: what Kubernetes has to know of each noun beside its schema.
//!
//! 1. Fields come from the Rust types; limits come from `model::limits`.
//! 2. What an API server can refuse, it refuses: a volume that shrinks, another UUID, a size that no pool can give.

mod schema;

use crate::condition::{CONDITIONS, schema as conditions};
use model::{
    ClusterInfo, Disk, Kind, Node, NodeReplicas, Pool, Volume, VolumeRecord, VolumeStatus,
    limits::{BLOCK_SIZES_BYTES, COPIES_MAX, SIZE_MAX_BYTES, SIZE_UNIT_BYTES, STRIPES_MAX},
    topology::LABEL_KEY_BYTES_MAX,
};
use schema::schema_of;
use serde_json::{Value, json};

/// The group of all kinds.
pub const GROUP: &str = "orlop.io";
/// The version of all kinds.
pub const VERSION: &str = "v1alpha1";

/// A label: a DNS subdomain and a slash where it has a prefix, and a name.
const LABEL_KEY: &str = "^([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$";

/// A column of `kubectl get`.
struct Column {
    name: &'static str,
    r#type: &'static str,
    path: &'static str,
    /// Only with `-o wide`.
    wide: bool,
}

const fn column(name: &'static str, r#type: &'static str, path: &'static str) -> Column {
    Column { name, r#type, path, wide: false }
}

const fn wide(name: &'static str, r#type: &'static str, path: &'static str) -> Column {
    Column { name, r#type, path, wide: true }
}

const CLUSTER: &[Column] = &[column("UUID", "string", ".status.uuid")];
const NODE: &[Column] = &[
    column("State", "string", ".status.state"),
    column("Scheduling", "string", ".spec.scheduling"),
    column("Address", "string", ".status.address"),
    column("Version", "string", ".status.version"),
    wide("Zone", "string", r".status.topology.topology\.kubernetes\.io/zone"),
];
const POOL: &[Column] = &[
    column("Pool", "string", ".status.name"),
    column("Node", "string", ".status.node"),
    column("State", "string", ".status.state"),
    column("Class", "string", ".status.class"),
    column("Capacity", "integer", ".status.capacityBytes"),
    column("Free", "integer", ".status.freeBytes"),
    column("Message", "string", ".status.message"),
    wide("URI", "string", ".status.uri"),
    wide("Release", "boolean", ".spec.release"),
];
const VOLUME: &[Column] = &[
    column("Size", "integer", ".spec.sizeBytes"),
    column("Copies", "integer", ".spec.copies"),
    column("Placed", "string", r#".status.conditions[?(@.type=="Placed")].status"#),
    column("Owner", "string", ".status.intent.owner"),
    column("Attached", "string", ".status.intent.attach.node"),
    column("Message", "string", ".status.message"),
    wide("Class", "string", ".spec.class"),
    wide("Spread", "string", ".spec.spread"),
    wide("UUID", "string", ".spec.uuid"),
];
const VOLUME_RECORD: &[Column] = &[
    column("Epoch", "integer", ".status.epoch"),
    column("Owner", "string", ".status.owner.node"),
    column("Clean", "boolean", ".status.clean"),
    column("Size", "integer", ".status.sizeBytes"),
    wide("Nexus", "string", ".status.owner.nexus"),
];
const VOLUME_STATUS: &[Column] = &[
    column("Node", "string", ".status.node"),
    column("State", "string", ".status.state"),
    column("Epoch", "integer", ".status.epoch"),
    column("Device", "string", ".status.device"),
    column("Message", "string", ".status.message"),
];
const DISK: &[Column] = &[
    column("Node", "string", ".status.node"),
    column("State", "string", ".status.state"),
    column("Class", "string", ".status.class"),
    column("Size", "integer", ".status.sizeBytes"),
    column("Device", "string", ".status.device"),
    column("Message", "string", ".status.message"),
    wide("Model", "string", ".status.model"),
    wide("Serial", "string", ".status.serial"),
    wide("Pool", "string", ".status.pool"),
];

/// The kind, as it is written in objects.
pub(crate) const fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Cluster => "Cluster",
        Kind::Node => "Node",
        Kind::Pool => "Pool",
        Kind::Volume => "Volume",
        Kind::VolumeRecord => "VolumeRecord",
        Kind::VolumeStatus => "VolumeStatus",
        Kind::NodeReplicas => "NodeReplicas",
        Kind::Disk => "Disk",
    }
}

const fn short_names(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Node => &["onode"],
        Kind::Pool => &["opool"],
        Kind::Volume => &["ovol"],
        Kind::Disk => &["odisk"],
        Kind::Cluster | Kind::VolumeRecord | Kind::VolumeStatus | Kind::NodeReplicas => &[],
    }
}

const fn columns(kind: Kind) -> &'static [Column] {
    match kind {
        Kind::Cluster => CLUSTER,
        Kind::Node => NODE,
        Kind::Pool => POOL,
        Kind::Volume => VOLUME,
        Kind::VolumeRecord => VOLUME_RECORD,
        Kind::VolumeStatus => VOLUME_STATUS,
        Kind::Disk => DISK,
        // A column shows one value: none of a list of replicas says anything.
        Kind::NodeReplicas => &[],
    }
}

/// The definitions of all kinds, as `deploy/crds` has them.
pub fn crds() -> Vec<Value> {
    Kind::ALL.into_iter().map(crd).collect()
}

fn crd(kind: Kind) -> Value {
    let schema = match kind {
        Kind::Cluster => report(schema_of::<ClusterInfo>(), &format!("'{}'", ClusterInfo::KEY)),
        Kind::Node => wished(with_conditions(schema_of::<Node>()), "self.status.name"),
        Kind::Pool => wished(with_conditions(schema_of::<Pool>()), "self.status.uuid"),
        Kind::Volume => volume(with_conditions(schema_of::<Volume>())),
        Kind::VolumeRecord => report(schema_of::<VolumeRecord>(), "self.status.volume"),
        Kind::VolumeStatus => report(with_conditions(schema_of::<VolumeStatus>()), "self.status.volume"),
        Kind::NodeReplicas => report(schema_of::<NodeReplicas>(), "self.status.node"),
        Kind::Disk => report(with_conditions(schema_of::<Disk>()), "self.status.name"),
    };
    let name = name(kind);
    let mut names = json!({
        "categories": ["orlop"],
        "kind": name,
        "listKind": format!("{name}List"),
        "plural": kind.as_str(),
        "singular": name.to_lowercase(),
    });
    // An API server drops a list of nothing, and then who applies it a second time is in conflict with who was first.
    if let short @ [_, ..] = short_names(kind) {
        names["shortNames"] = json!(short);
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{kind}.{GROUP}") },
        "spec": {
            "group": GROUP,
            "names": names,
            "scope": "Cluster",
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "schema": { "openAPIV3Schema": schema },
                "subresources": { "status": {} },
                "additionalPrinterColumns": printed(kind),
            }],
        },
    })
}

fn printed(kind: Kind) -> Vec<Value> {
    let age = column("Age", "date", ".metadata.creationTimestamp");
    let print = |column: &Column| {
        let Column { name, r#type, path, wide } = column;
        let mut printed = json!({ "name": name, "type": r#type, "jsonPath": path });
        if *wide {
            printed["priority"] = 1.into();
        }
        printed
    };
    columns(kind).iter().chain([&age]).map(print).collect()
}

/// The schema of a whole object.
fn object(description: &Value, properties: Value) -> Value {
    let mut object = json!({
        "type": "object",
        "description": description,
        "properties": {
            "apiVersion": { "type": "string" },
            "kind": { "type": "string" },
            "metadata": { "type": "object" },
        },
    });
    if let (Some(all), Value::Object(more)) = (object["properties"].as_object_mut(), properties) {
        all.extend(more);
    }
    object
}

/// An object that holds the value in its status, and whose name is `key`.
fn report(mut value: Value, key: &str) -> Value {
    let description = value["description"].take();
    value["description"] = "What is, as its one writer tells it; not for people to change.".into();
    stamp(&mut value);
    let mut object = object(&description, json!({ "status": value }));
    object["x-kubernetes-validations"] = json!([{
        "rule": format!("!has(self.status) || self.metadata.name == {key}"),
        "message": format!("the name is not {}", key.trim_start_matches("self.")),
    }]);
    object
}

/// What its operator wishes is its spec, which is there even where nobody has written one; all the rest is a report.
fn wished(mut value: Value, key: &str) -> Value {
    let spec = value["properties"].as_object_mut().and_then(|fields| fields.remove("spec"));
    let mut object = report(value, key);
    object["properties"]["spec"] = spec.unwrap_or_default();
    object
}

/// What its user wants is its spec; all the rest but its name is its status.
fn volume(mut value: Value) -> Value {
    let description = value["description"].take();
    let mut fields = value["properties"].take();
    let mut spec = fields["spec"].take();
    spec["properties"]["uuid"] = fields["uuid"].take();
    limit(&mut spec);
    let parts = ["name", "uuid", "spec"];
    if let Some(fields) = fields.as_object_mut() {
        fields.retain(|name, _| !parts.contains(&name.as_str()));
    }
    if let Some(required) = value["required"].as_array_mut() {
        required.retain(|name| name.as_str().is_some_and(|name| !parts.contains(&name)));
    }
    value["properties"] = fields;
    value["description"] =
        "Where it should live, as the controller decides; not for people to change.".into();
    stamp(&mut value);
    let mut object = object(&description, json!({ "spec": spec, "status": value }));
    object["required"] = json!(["spec"]);
    object["x-kubernetes-validations"] = json!([{
        "rule": "size(self.metadata.name) <= 63 && !self.metadata.name.contains('.')",
        "message": "a volume's name has at most 63 characters and no dot",
    }]);
    object
}

/// What the types do not say of a volume's spec.
fn limit(spec: &mut Value) {
    let unchanging = |what: &str| json!([{ "rule": "self == oldSelf", "message": format!("the {what} of a volume cannot be changed") }]);
    spec["x-kubernetes-validations"] = json!([{
        "rule": "!has(oldSelf.uuid) || (has(self.uuid) && self.uuid == oldSelf.uuid)",
        "message": "the UUID of a volume cannot be changed",
        "fieldPath": ".uuid",
    }, {
        "rule": "has(self.class) == has(oldSelf.class) && (!has(self.class) || self.class == oldSelf.class)",
        "message": "the class of a volume cannot be changed",
        "fieldPath": ".class",
    }, {
        "rule": "has(self.spread) == has(oldSelf.spread) && (!has(self.spread) || self.spread == oldSelf.spread)",
        "message": "the spread of a volume cannot be changed",
        "fieldPath": ".spread",
    }]);
    let fields = &mut spec["properties"];
    fields["uuid"]["description"] =
        "Never used twice. Given by the controller to a volume that has none.".into();
    fields["sizeBytes"]["minimum"] = SIZE_UNIT_BYTES.into();
    fields["sizeBytes"]["maximum"] = SIZE_MAX_BYTES.into();
    fields["sizeBytes"]["multipleOf"] = SIZE_UNIT_BYTES.into();
    fields["sizeBytes"]["x-kubernetes-validations"] =
        json!([{ "rule": "self >= oldSelf", "message": "a volume cannot shrink" }]);
    fields["copies"]["minimum"] = 1.into();
    fields["copies"]["maximum"] = COPIES_MAX.into();
    fields["stripes"]["minimum"] = 1.into();
    fields["stripes"]["maximum"] = STRIPES_MAX.into();
    fields["stripes"]["x-kubernetes-validations"] = unchanging("stripes");
    // One way to say nothing is enough.
    for field in ["class", "spread"] {
        fields[field].as_object_mut().expect("a field of the spec").remove("nullable");
    }
    fields["spread"]["minLength"] = 1.into();
    fields["spread"]["maxLength"] = LABEL_KEY_BYTES_MAX.into();
    fields["spread"]["pattern"] = LABEL_KEY.into();
    fields["blockSize"]["enum"] = json!(BLOCK_SIZES_BYTES);
    fields["blockSize"]["x-kubernetes-validations"] = unchanging("block size");
}

/// The value of a kind that has conditions.
fn with_conditions(mut value: Value) -> Value {
    value["properties"][CONDITIONS] = conditions();
    value
}

/// The field that `object` adds to each status.
fn stamp(status: &mut Value) {
    status["properties"][crate::object::STAMP] = json!({
        "type": "integer", "format": "int64",
        "description": "The resourceVersion that this status replaced: no two writes are the same.",
    });
}

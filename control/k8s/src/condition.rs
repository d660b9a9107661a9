//! `status.conditions` of nodes, pools, disks, volumes and statuses of volumes: what `kubectl wait --for=condition=Ready` and
//! every dashboard understand.
//!
//! 1. They follow from the other fields of the object they are in, whoever writes its status; nothing is ever decided by
//!    them, and the store does not know of them.
//! 2. `lastTransitionTime` is by the clock of who wrote the change, and stays until the next one.
//! 3. A volume tells only what its own intent knows: its other objects change without it. Whether it can be used, and
//!    whether its copies are in sync, its `VolumeStatus` tells.

use crate::event::shortened;
use k8s_openapi::jiff::{Timestamp, Unit};
use model::{
    DiskState, Kind, MemberPhase, MemberStatus, NexusState, NodeState, PoolState, RECORD_MISSING,
    VolumeIntent,
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use uuid::Uuid;

/// The field of the status.
pub(crate) const CONDITIONS: &str = "conditions";

/// Whether objects of this kind have them.
pub(crate) const fn has_conditions(kind: Kind) -> bool {
    matches!(kind, Kind::Node | Kind::Pool | Kind::Volume | Kind::VolumeStatus | Kind::Disk)
}

/// What a person is told of a status.
struct Condition {
    r#type: &'static str,
    is: bool,
    reason: &'static str,
    message: String,
}

/// The conditions of an object with this spec, where people wish something, and this status, which replaces one with the
/// conditions `before`; none where its kind has none.
pub(crate) fn conditions(
    kind: Kind,
    (spec, status): (Option<&Map<String, Value>>, &Map<String, Value>),
    before: Option<&Value>,
    now: Timestamp,
) -> Option<Value> {
    let message = || field(status, "message").flatten();
    let told = match kind {
        Kind::Node => vec![node(field(status, "state")?)],
        Kind::Pool => vec![pool(field(status, "state")?, message())],
        Kind::Disk => vec![usable(field(status, "state")?, field(status, "pool").flatten(), message())],
        Kind::Volume => vec![placed(field(spec?, "copies")?, &field(status, "intent")?, message())],
        Kind::VolumeStatus => {
            vec![serving(field(status, "state")?, message()), in_sync(&field::<Vec<_>>(status, "members")?)]
        }
        _ => return None,
    };
    Some(told.into_iter().map(|condition| condition.written(before, now)).collect())
}

impl Condition {
    /// As Kubernetes has it, after `before`.
    fn written(self, before: Option<&Value>, now: Timestamp) -> Value {
        let Self { r#type, is, reason, message } = self;
        let is = if is { "True" } else { "False" };
        let mut before = before.and_then(Value::as_array).into_iter().flatten();
        let same = before.find(|before| before["type"] == r#type && before["status"] == is);
        let since = same.and_then(|before| before["lastTransitionTime"].as_str()).map(str::to_owned);
        // Kubernetes writes these without fractions.
        let since = since.unwrap_or_else(|| now.round(Unit::Second).unwrap_or(now).to_string());
        json!({
            "type": r#type, "status": is, "reason": reason, "message": shortened(message),
            "lastTransitionTime": since,
        })
    }
}

fn field<T: DeserializeOwned>(fields: &Map<String, Value>, name: &str) -> Option<T> {
    serde_json::from_value(fields.get(name)?.clone()).ok()
}

/// The one that programs look for.
const READY: &str = "Ready";

fn node(state: NodeState) -> Condition {
    let (reason, message) = match state {
        NodeState::Ready => ("EngineRuns", "its engine runs"),
        NodeState::NotReady => ("EngineAway", "its engine has not been heard of, or has ended"),
    };
    Condition { r#type: READY, is: state == NodeState::Ready, reason, message: message.into() }
}

fn pool(state: PoolState, message: Option<String>) -> Condition {
    let (reason, otherwise) = match state {
        PoolState::Online => ("Online", "it is open"),
        PoolState::Degraded => ("Degraded", "nothing new is placed on it"),
        PoolState::Failed => ("Failed", "it cannot be opened now"),
        PoolState::Gone => ("Gone", "its node runs without it"),
    };
    let message = message.unwrap_or_else(|| otherwise.into());
    Condition { r#type: READY, is: state == PoolState::Online, reason, message }
}

/// Whether the disk is a pool of its node, or can become one: nothing about whether that pool is open.
fn usable(state: DiskState, pool: Option<Uuid>, message: Option<String>) -> Condition {
    let (is, reason, otherwise) = match (state, pool) {
        (DiskState::Available, _) => (true, "Available", "it is blank, and can become a pool".to_owned()),
        (DiskState::Pool, Some(pool)) => (true, "Pool", format!("it is the pool {pool}")),
        (DiskState::Pool, None) => (true, "Pool", "it is a pool".to_owned()),
        (DiskState::InUse, _) => (false, "InUse", "it carries something, or is used".to_owned()),
        (DiskState::Missing, _) => (false, "Missing", "its node does not find it any more".to_owned()),
    };
    Condition { r#type: "Usable", is, reason, message: message.unwrap_or(otherwise) }
}

/// Whether each copy of the volume has a place where it may stay: nothing about what is there yet.
fn placed(copies: u32, intent: &VolumeIntent, no_place: Option<String>) -> Condition {
    let nodes: Vec<&str> = intent.members.iter().map(|member| member.node.as_str()).collect();
    let enough = u32::try_from(nodes.len()).is_ok_and(|places| places >= copies);
    let (is, reason, message) = match no_place {
        _ if intent.deleting => (false, "Deleting", "the volume and all its data are to go".to_owned()),
        // That is what the message of a volume is about (`manager::intent`), or else its places.
        Some(lost) if lost.starts_with(RECORD_MISSING) => (false, "RecordMissing", lost),
        Some(no_place) => (false, "NoPlace", no_place),
        None if enough => (true, "Placed", format!("its copies have places on {}", nodes.join(", "))),
        None => {
            let message =
                format!("{} of {copies} copies have a place; the rest waits for the manager", nodes.len());
            (false, "Waiting", message)
        }
    };
    Condition { r#type: "Placed", is, reason, message }
}

/// Whether the volume can be read and written.
fn serving(state: NexusState, message: Option<String>) -> Condition {
    let (reason, otherwise) = match state {
        NexusState::Opening => ("Opening", "it connects to its copies"),
        NexusState::Serving => ("Serving", "it can be read and written"),
        NexusState::Stalled => ("Stalled", "reads and writes wait: no copy that is in sync can be reached"),
        NexusState::Closing => ("Closing", "it hands over"),
        NexusState::Closed => ("Closed", "nobody uses it"),
        NexusState::Failed => ("Failed", "it has moved to another node"),
    };
    let message = message.unwrap_or_else(|| otherwise.into());
    Condition { r#type: READY, is: state == NexusState::Serving, reason, message }
}

/// Whether all copies have every write.
fn in_sync(members: &[MemberStatus]) -> Condition {
    let kept = members.iter().filter(|member| member.state != MemberPhase::Removed);
    let good = |member: &&MemberStatus| member.state == MemberPhase::InSync && member.reachable;
    let (good, others): (Vec<_>, Vec<_>) = kept.partition(good);
    let is = others.is_empty() && !good.is_empty();
    let word = |member: &MemberStatus| match member.state {
        MemberPhase::InSync => format!("the one on {} cannot be reached", member.node),
        state => format!("the one on {} is {state}", member.node),
    };
    let said: Vec<String> = others.into_iter().map(word).collect();
    let (reason, message) = match (is, said.is_empty()) {
        (true, _) => ("InSync", format!("copies that have every write: {}", good.len())),
        (false, true) => ("NotOpen", "nobody looks at its copies now".to_owned()),
        (false, false) => ("CopiesBehind", format!("copies in sync: {}; {}", good.len(), said.join(", "))),
    };
    Condition { r#type: "InSync", is, reason, message }
}

/// Their schema, as Kubernetes has it for its own kinds.
pub(crate) fn schema() -> Value {
    let text = |description: &str| json!({ "type": "string", "description": description });
    let mut status = text("Whether it is so.");
    status["enum"] = json!(["True", "False", "Unknown"]);
    let mut since = text("Since when the status is this.");
    since["format"] = "date-time".into();
    json!({
        "type": "array",
        "description": "The same for programs that know nothing of Orlop; it follows from the other fields.",
        "items": {
            "type": "object",
            "properties": {
                "type": text("What it is about."),
                "status": status,
                "reason": text("Why, in one word."),
                "message": text("Why, in one line."),
                "lastTransitionTime": since,
                "observedGeneration": {
                    "type": "integer", "format": "int64", "minimum": 0,
                    "description": "The generation of the spec that this was told of.",
                },
            },
            "required": ["type", "status", "reason", "message", "lastTransitionTime"],
        },
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::MemberIntent;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn of(kind: Kind, status: Value, before: Option<&Value>, second: i64) -> Value {
        let Value::Object(status) = status else { panic!("no object") };
        let spec = json!({ "uuid": "00000000-0000-0000-0000-000000000007", "copies": 2 });
        conditions(kind, (spec.as_object(), &status), before, at(second)).unwrap()
    }

    /// What they say, without their times.
    fn said(conditions: &Value) -> String {
        let one = |c: &Value| {
            format!("{}={} {}: {}", c["type"], c["status"], c["reason"], c["message"]).replace('"', "")
        };
        conditions.as_array().unwrap().iter().map(one).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn the_time_is_that_of_the_last_change() {
        let ready = of(Kind::Node, json!({ "state": "Ready", "heartbeat": 1 }), None, 60);
        assert_eq!(ready[0]["status"], "True");
        assert_eq!(ready[0]["lastTransitionTime"], "1970-01-01T00:01:00Z");
        let later = of(Kind::Node, json!({ "state": "Ready", "heartbeat": 2 }), Some(&ready), 61);
        assert_eq!(later, ready);
        let away = of(Kind::Node, json!({ "state": "NotReady" }), Some(&later), 62);
        assert_eq!(away[0]["status"], "False");
        assert_eq!(away[0]["lastTransitionTime"], "1970-01-01T00:01:02Z");
        let back = of(Kind::Node, json!({ "state": "Ready" }), Some(&away), 63);
        assert_eq!(back[0]["lastTransitionTime"], "1970-01-01T00:01:03Z");
    }

    #[test]
    fn a_pool_says_why_it_cannot_be_used() {
        let failed = json!({ "state": "Failed", "message": "sector 7 cannot be read" });
        let failed = of(Kind::Pool, failed, None, 60);
        assert_eq!(failed[0]["reason"], "Failed");
        assert_eq!(failed[0]["message"], "sector 7 cannot be read");
        let gone = of(Kind::Pool, json!({ "state": "Gone", "message": null }), Some(&failed), 99);
        assert_eq!((&gone[0]["status"], &gone[0]["reason"]), (&json!("False"), &json!("Gone")));
        let since = &gone[0]["lastTransitionTime"];
        assert_eq!(*since, "1970-01-01T00:01:00Z", "it was not ready before, either");
    }

    #[test]
    fn a_disk_is_usable_or_says_why_not() {
        let pool = "00000000-0000-0000-0000-000000000009";
        let of = |status: Value, before: Option<&Value>, second: i64| of(Kind::Disk, status, before, second);
        let free = of(json!({ "state": "Available", "pool": null, "message": null }), None, 60);
        assert_eq!(said(&free), "Usable=True Available: it is blank, and can become a pool");
        let unwanted =
            json!({ "state": "Available", "pool": null, "message": "no selector of its node takes it: HDD" });
        let unwanted = of(unwanted, Some(&free), 61);
        assert_eq!(said(&unwanted), "Usable=True Available: no selector of its node takes it: HDD");
        let taken = of(json!({ "state": "Pool", "pool": pool, "message": null }), Some(&unwanted), 62);
        assert_eq!(said(&taken), format!("Usable=True Pool: it is the pool {pool}"));
        assert_eq!(taken[0]["lastTransitionTime"], "1970-01-01T00:01:00Z", "it was usable before");
        let missing = json!({ "state": "Missing", "pool": pool, "message": "/dev/sda of node n1 is not there any more" });
        let missing = of(missing, Some(&taken), 63);
        assert_eq!(said(&missing), "Usable=False Missing: /dev/sda of node n1 is not there any more");
        assert_eq!(missing[0]["lastTransitionTime"], "1970-01-01T00:01:03Z");
        let mounted = json!({ "state": "InUse", "pool": null, "message": "/dev/sda carries ext4: blank it" });
        let mounted = of(mounted, Some(&missing), 64);
        assert_eq!(said(&mounted), "Usable=False InUse: /dev/sda carries ext4: blank it");
        let mute = of(json!({ "state": "Missing" }), None, 60);
        assert_eq!(said(&mute), "Usable=False Missing: its node does not find it any more");
    }

    #[test]
    fn a_volume_is_ready_and_in_sync_or_says_what_is_not() {
        let member = |node: &str, state: &str, reachable: bool| {
            json!({
                "replica": "00000000-0000-0000-0000-000000000001", "node": node, "state": state,
                "reachable": reachable, "rebuild": null, "rebuilt": null, "message": null,
            })
        };
        let of = |state: &str, members: Value, before: Option<&Value>| {
            of(Kind::VolumeStatus, json!({ "state": state, "members": members }), before, 60)
        };
        let old = member("n3", "Removed", false);
        let whole = of("Serving", json!([member("n1", "InSync", true), old]), None);
        assert_eq!(
            said(&whole),
            "Ready=True Serving: it can be read and written; InSync=True InSync: copies that have every write: 1"
        );
        let members =
            [member("n1", "InSync", true), member("n2", "Rebuilding", true), member("n4", "InSync", false)];
        let behind = of("Serving", json!(members), Some(&whole));
        assert_eq!(
            said(&behind),
            "Ready=True Serving: it can be read and written; InSync=False CopiesBehind: copies in sync: 1; \
             the one on n2 is Rebuilding, the one on n4 cannot be reached"
        );
        let unopened = of("Opening", json!([]), Some(&behind));
        assert_eq!(
            said(&unopened),
            "Ready=False Opening: it connects to its copies; InSync=False NotOpen: nobody looks at its copies now"
        );
    }

    #[test]
    fn a_volume_is_placed_or_says_what_has_no_place() {
        let intent = |nodes: &[&str], deleting: bool| {
            let member =
                |node| MemberIntent { replica: Uuid::nil(), pool: Uuid::nil(), node: String::from(node) };
            let members = nodes.iter().copied().map(member).collect();
            VolumeIntent { members, deleting, ..VolumeIntent::default() }
        };
        let of = |intent: VolumeIntent, message: Option<&str>, before: Option<&Value>, second: i64| {
            of(Kind::Volume, json!({ "intent": intent, "message": message }), before, second)
        };
        let new = of(intent(&[], false), None, None, 60);
        let waits = "0 of 2 copies have a place; the rest waits for the manager";
        assert_eq!(said(&new), format!("Placed=False Waiting: {waits}"));
        let full = "not all copies have a place; no place for a new copy: add a node";
        let full_now = of(intent(&["n1"], false), Some(full), Some(&new), 61);
        assert_eq!(said(&full_now), format!("Placed=False NoPlace: {full}"));
        assert_eq!(
            full_now[0]["lastTransitionTime"], "1970-01-01T00:01:00Z",
            "it was not placed before, either"
        );
        let placed = of(intent(&["n1", "n2"], false), None, Some(&full_now), 62);
        assert_eq!(said(&placed), "Placed=True Placed: its copies have places on n1, n2");
        assert_eq!(placed[0]["lastTransitionTime"], "1970-01-01T00:01:02Z");

        // A copy is made anew beside the one that it replaces, or cannot leave its node.
        let healing = of(intent(&["n1", "n2", "n3"], false), None, Some(&placed), 63);
        assert_eq!(said(&healing), "Placed=True Placed: its copies have places on n1, n2, n3");
        assert_eq!(healing[0]["lastTransitionTime"], placed[0]["lastTransitionTime"]);
        let stays = "copy on n2 is to leave; no place for a new copy: add a node";
        let stays_now = of(intent(&["n1", "n2"], false), Some(stays), Some(&healing), 64);
        assert_eq!(said(&stays_now), format!("Placed=False NoPlace: {stays}"));
        let lost = format!("{RECORD_MISSING}; copies are kept on n1");
        let held = of(intent(&["n1", "n2"], false), Some(&lost), Some(&placed), 64);
        assert_eq!(said(&held), format!("Placed=False RecordMissing: {lost}"));
        let going = of(intent(&["n1", "n2"], true), None, Some(&placed), 65);
        assert_eq!(said(&going), "Placed=False Deleting: the volume and all its data are to go");
    }

    #[test]
    fn what_is_not_understood_has_none() {
        let unknown = json!({ "state": "Asleep" });
        assert_eq!(conditions(Kind::Node, (None, unknown.as_object().unwrap()), None, at(0)), None);
        assert_eq!(conditions(Kind::Volume, (Some(&Map::new()), &Map::new()), None, at(0)), None);
        for kind in [Kind::Disk, Kind::VolumeRecord, Kind::NodeReplicas, Kind::Cluster] {
            assert_eq!(conditions(kind, (None, &Map::new()), None, at(0)), None, "{kind}");
        }
        // What somebody has written there by hand is no time of ours.
        let before = json!({ "type": "Ready" });
        let ready = of(Kind::Node, json!({ "state": "Ready" }), Some(&before), 60);
        assert_eq!(ready[0]["lastTransitionTime"], "1970-01-01T00:01:00Z");
    }
}

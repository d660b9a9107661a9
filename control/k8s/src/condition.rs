//! `status.conditions` of nodes and pools: what `kubectl wait --for=condition=Ready` and every dashboard understand.
//!
//! 1. They follow from the other fields of the status they are in, whoever writes that; nothing is ever decided by them,
//!    and the store does not know of them.
//! 2. `lastTransitionTime` is by the clock of who wrote the change, and stays until the next one.

use crate::event::shortened;
use k8s_openapi::jiff::{Timestamp, Unit};
use model::{Kind, NodeState, PoolState};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// The field of the status.
pub(crate) const CONDITIONS: &str = "conditions";

/// Whether objects of this kind have them.
pub(crate) const fn has_conditions(kind: Kind) -> bool {
    matches!(kind, Kind::Node | Kind::Pool)
}

/// What a person is told of a status.
struct Ready {
    is: bool,
    reason: &'static str,
    message: String,
}

/// The conditions of an object with this status, which replaces one with the conditions `before`; none where its kind
/// has none.
pub(crate) fn conditions(
    kind: Kind,
    status: &Map<String, Value>,
    before: Option<&Value>,
    now: Timestamp,
) -> Option<Value> {
    let Ready { is, reason, message } = match kind {
        Kind::Node => node(field(status, "state")?),
        Kind::Pool => pool(field(status, "state")?, field(status, "message").flatten()),
        _ => return None,
    };
    let is = if is { "True" } else { "False" };
    let before = before.and_then(Value::as_array).into_iter().flatten();
    let same = before.clone().find(|before| before["type"] == "Ready" && before["status"] == is);
    let since = same.and_then(|before| before["lastTransitionTime"].as_str()).map(str::to_owned);
    // Kubernetes writes these without fractions.
    let since = since.unwrap_or_else(|| now.round(Unit::Second).unwrap_or(now).to_string());
    Some(json!([{
        "type": "Ready", "status": is, "reason": reason, "message": shortened(message), "lastTransitionTime": since,
    }]))
}

fn field<T: DeserializeOwned>(status: &Map<String, Value>, name: &str) -> Option<T> {
    serde_json::from_value(status.get(name)?.clone()).ok()
}

fn node(state: NodeState) -> Ready {
    match state {
        NodeState::Ready => Ready { is: true, reason: "EngineRuns", message: "its engine runs".into() },
        NodeState::NotReady => Ready {
            is: false,
            reason: "EngineAway",
            message: "its engine has not been heard of, or has ended".into(),
        },
    }
}

fn pool(state: PoolState, message: Option<String>) -> Ready {
    let (reason, otherwise) = match state {
        PoolState::Online => ("Online", "it is open"),
        PoolState::Degraded => ("Degraded", "nothing new is placed on it"),
        PoolState::Failed => ("Failed", "it cannot be opened now"),
        PoolState::Gone => ("Gone", "its node runs without it"),
    };
    let message = message.unwrap_or_else(|| otherwise.into());
    Ready { is: state == PoolState::Online, reason, message }
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

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn of(kind: Kind, status: Value, before: Option<&Value>, second: i64) -> Value {
        let Value::Object(status) = status else { panic!("no object") };
        conditions(kind, &status, before, at(second)).unwrap()
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
    fn what_is_not_understood_has_none() {
        let unknown = json!({ "state": "Asleep" });
        assert_eq!(conditions(Kind::Node, unknown.as_object().unwrap(), None, at(0)), None);
        assert_eq!(conditions(Kind::Volume, &Map::new(), None, at(0)), None);
        // What somebody has written there by hand is no time of ours.
        let before = json!({ "type": "Ready" });
        let ready = of(Kind::Node, json!({ "state": "Ready" }), Some(&before), 60);
        assert_eq!(ready[0]["lastTransitionTime"], "1970-01-01T00:01:00Z");
    }
}

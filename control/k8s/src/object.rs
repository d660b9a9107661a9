//! How a value of the store is an object of Kubernetes, and back.
//!
//! 1. What was put is what is found: nothing is added to a value, nothing is taken from it. The stamp and the conditions,
//!    which are in the status only, are no part of it.
//! 2. Every write changes something, for the API server does not write what is there already and then gives no new
//!    revision: the status carries a stamp, the revision that it replaced.

use crate::{
    GROUP, VERSION,
    condition::{CONDITIONS, conditions},
    crd,
};
use k8s_openapi::jiff::Timestamp;
use model::{Kind, Stored};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::{Error, ErrorKind, Result};

/// The field of the status that is ours alone (invariant 2).
pub(crate) const STAMP: &str = "replaces";

/// The field of a volume's spec that leads to its data.
pub(crate) const UUID: &str = "uuid";

type Fields = Map<String, Value>;

/// An object as the API server tells it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Object {
    pub(crate) metadata: Metadata,
    #[serde(default)]
    pub(crate) spec: Fields,
    #[serde(default)]
    status: Option<Fields>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Metadata {
    pub(crate) name: String,
    resource_version: String,
}

impl Object {
    /// Its revision, as a number.
    pub(crate) fn revision(&self) -> Result<u64> {
        let Metadata { name, resource_version } = &self.metadata;
        resource_version.parse().ok().filter(|revision| *revision > 0).ok_or_else(|| {
            let context = format!("{name} has the resourceVersion {resource_version:?}, which is no number");
            Error::new(ErrorKind::Corrupt, context)
        })
    }

    /// Whether it counts as present (invariant 2 of the crate).
    pub(crate) fn is_present(&self, kind: Kind) -> bool {
        self.status.is_some() && (kind != Kind::Volume || self.spec.contains_key(UUID))
    }

    /// Whether this is its spec.
    pub(crate) fn has_spec(&self, parts: &Parts) -> bool {
        parts.spec.as_ref().is_none_or(|spec| *spec == self.spec)
    }

    /// Whether this is its spec, but for a UUID that it does not have yet.
    pub(crate) fn lacks_uuid(&self, parts: &Parts) -> bool {
        !self.spec.contains_key(UUID)
            && parts.spec.as_ref().is_some_and(|spec| {
                spec.iter().all(|(name, value)| name == UUID || self.spec.get(name) == Some(value))
            })
    }

    /// Whether this is its status.
    pub(crate) fn has_status(&self, parts: &Parts) -> bool {
        let mut status = self.status.clone().unwrap_or_default();
        remove_ours(&mut status);
        status == parts.status
    }

    /// What is told in its conditions, if it has some.
    pub(crate) fn conditions(&self) -> Option<&Value> {
        self.status.as_ref()?.get(CONDITIONS)
    }

    /// As it is in the store; none if it is absent there.
    pub(crate) fn stored(self, kind: Kind) -> Result<Option<Stored<Value>>> {
        let present = self.is_present(kind);
        let revision = self.revision()?;
        let Some(mut value) = self.status.filter(|_| present) else { return Ok(None) };
        remove_ours(&mut value);
        let mut spec = self.spec;
        if kind == Kind::Volume {
            value.insert("name".into(), self.metadata.name.into());
            value.insert(UUID.into(), spec.remove(UUID).unwrap_or_default());
        }
        // A node from before there were wishes has none, and none is added (invariant 1).
        if has_wish(kind) && !spec.is_empty() {
            value.insert("spec".into(), spec.into());
        }
        Ok(Some(Stored { revision, value: value.into() }))
    }
}

/// Removes from a status what the store knows nothing of (invariant 1).
fn remove_ours(status: &mut Fields) {
    status.remove(STAMP);
    status.remove(CONDITIONS);
}

/// Whether a value of this kind has a part that people wish; all the rest is written by programs.
pub(crate) const fn has_wish(kind: Kind) -> bool {
    matches!(kind, Kind::Node | Kind::Pool | Kind::Volume)
}

/// A value, taken apart.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    /// Where people wish something.
    pub(crate) spec: Option<Fields>,
    status: Fields,
}

impl Parts {
    /// The parts of a value of the store.
    pub(crate) fn of(kind: Kind, key: &str, value: Value) -> Result<Self> {
        let malformed = || Error::new(ErrorKind::Invalid, format!("{kind}/{key} is not well formed"));
        let Value::Object(mut status) = value else { return Err(malformed()) };
        if !has_wish(kind) {
            return Ok(Self { spec: None, status });
        }
        let mut spec = match status.remove("spec") {
            Some(Value::Object(spec)) => spec,
            // Nothing is wished of it; what is wished already stays.
            None if kind == Kind::Pool => return Ok(Self { spec: None, status }),
            _ => return Err(malformed()),
        };
        if kind == Kind::Volume {
            status.remove("name");
            spec.insert(UUID.into(), status.remove(UUID).ok_or_else(malformed)?);
        }
        Ok(Self { spec: Some(spec), status })
    }

    /// The object that a creation begins with: all but the status and, of a volume, the UUID.
    pub(crate) fn beginning(&self, kind: Kind, key: &str) -> Value {
        let mut object = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"), "kind": crd::name(kind), "metadata": { "name": key },
        });
        if let Some(spec) = &self.spec {
            let mut spec = spec.clone();
            if kind == Kind::Volume {
                spec.remove(UUID);
            }
            object["spec"] = spec.into();
        }
        object
    }

    /// The change that makes the spec of the object at `revision` this one.
    pub(crate) fn spec_change(&self, revision: u64) -> Value {
        json!({ "metadata": { "resourceVersion": revision.to_string() }, "spec": self.spec })
    }

    /// The object that replaces the status of the one at `revision`, which has these conditions.
    pub(crate) fn status_change(
        &self,
        kind: Kind,
        key: &str,
        revision: u64,
        before: Option<&Value>,
    ) -> Value {
        let mut status = self.status.clone();
        status.insert(STAMP.into(), revision.into());
        let parts = (self.spec.as_ref(), &self.status);
        if let Some(conditions) = conditions(kind, parts, before, Timestamp::now()) {
            status.insert(CONDITIONS.into(), conditions);
        }
        json!({
            "apiVersion": format!("{GROUP}/{VERSION}"), "kind": crd::name(kind),
            "metadata": { "name": key, "resourceVersion": revision.to_string() },
            "status": status,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Object as _, Volume, VolumeIntent, VolumeSpec};
    use uuid::Uuid;

    fn object(json: Value) -> Object {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_volume_is_taken_apart_and_put_together() {
        let volume = Volume {
            name: "data".into(),
            uuid: Uuid::from_u128(7),
            spec: VolumeSpec {
                size_bytes: 1 << 20,
                copies: 1,
                stripes: 1,
                block_size: 4096,
                class: None,
                spread: None,
            },
            intent: VolumeIntent { attach_serial: 3, ..VolumeIntent::default() },
            message: Some("full".into()),
        };
        let value = serde_json::to_value(&volume).unwrap();
        let parts = Parts::of(Kind::Volume, &volume.key(), value.clone()).unwrap();
        let mut whole = parts.status_change(Kind::Volume, "data", 41, None);
        assert_eq!(whole["status"][STAMP], 41);
        whole["metadata"]["resourceVersion"] = "42".into();
        whole["spec"] = parts.beginning(Kind::Volume, "data")["spec"].clone();
        let begun = object(whole.clone());
        assert!(begun.lacks_uuid(&parts) && !begun.is_present(Kind::Volume), "the UUID is the last");
        whole["spec"]["sizeBytes"] = (2 << 20).into();
        assert!(!object(whole.clone()).lacks_uuid(&parts), "it is another volume");
        whole["spec"] = parts.spec_change(42)["spec"].clone();
        let found = object(whole.clone());
        assert!(found.has_spec(&parts) && found.has_status(&parts) && !found.lacks_uuid(&parts));
        assert_eq!(found.stored(Kind::Volume).unwrap(), Some(Stored { revision: 42, value }));

        // Invariant 2 of the crate.
        for part in ["spec", "status"] {
            let mut lacking = whole.clone();
            lacking.as_object_mut().unwrap().remove(part);
            assert_eq!(object(lacking).stored(Kind::Volume).unwrap(), None, "without {part}");
        }
    }

    /// `kubectl edit onode/n1` is how an operator wishes, and `kubectl` shows no name in a status.
    #[test]
    fn a_node_is_taken_apart_and_put_together() {
        let value =
            json!({ "name": "n1", "spec": { "scheduling": "Drained" }, "state": "Ready", "heartbeat": 3 });
        let parts = Parts::of(Kind::Node, "n1", value.clone()).unwrap();
        let mut whole = parts.status_change(Kind::Node, "n1", 41, None);
        let conditions = whole["status"].as_object_mut().unwrap().remove("conditions").unwrap();
        assert_eq!(conditions[0]["status"], "True");
        assert_eq!(whole["status"], json!({ "name": "n1", "state": "Ready", "heartbeat": 3, STAMP: 41 }));
        assert_eq!(parts.spec_change(41)["spec"], json!({ "scheduling": "Drained" }));
        whole["metadata"]["resourceVersion"] = "42".into();
        whole["spec"] = parts.beginning(Kind::Node, "n1")["spec"].clone();
        whole["status"]["conditions"] = conditions.clone();
        let found = object(whole.clone());
        assert_eq!(found.conditions(), Some(&conditions));
        assert!(found.has_spec(&parts) && found.has_status(&parts));
        assert_eq!(found.stored(Kind::Node).unwrap(), Some(Stored { revision: 42, value }));

        // A definition from before there were wishes: nothing is wished.
        whole.as_object_mut().unwrap().remove("spec");
        let old = object(whole).stored(Kind::Node).unwrap().unwrap().value;
        assert_eq!(old, json!({ "name": "n1", "state": "Ready", "heartbeat": 3 }));
        assert!(Parts::of(Kind::Node, "n1", json!({ "name": "n1" })).is_err(), "a program from before");
    }

    #[test]
    fn what_is_no_number_is_no_revision() {
        for bad in ["", "0", "-1", "x7", "99999999999999999999"] {
            let node = object(json!({ "metadata": { "name": "n1", "resourceVersion": bad }, "status": {} }));
            assert_eq!(node.stored(Kind::Node).unwrap_err().kind(), ErrorKind::Corrupt, "{bad}");
        }
    }
}

//! What a person is told about an object of Kubernetes, where they look first: `kubectl describe`, `kubectl events`.
//!
//! 1. An event is told once, or not at all: nothing waits for it, and nothing depends on it.

use crate::{
    GROUP, VERSION, crd,
    kubernetes::{Kubernetes, path},
    server::Verb,
};
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use model::Kind;
use serde_json::Value;
use std::fmt;
use store::Result;

/// Where events of objects without a namespace are.
const CLUSTER_NAMESPACE: &str = "default";
/// Kubernetes takes no longer ones.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Whether somebody may have to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// All is well, or is again.
    Normal,
    /// Somebody may have to act.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        })
    }
}

impl Kubernetes {
    /// Tells what has become of an object of Orlop; that it could not be told is only logged.
    pub async fn tell_of(&self, kind: Kind, key: &str, severity: Severity, reason: &str, message: String) {
        match self.one::<Value>(&path(kind, key)).await {
            Ok(Some(object)) => {
                let about = ObjectReference {
                    api_version: Some(format!("{GROUP}/{VERSION}")),
                    kind: Some(crd::name(kind).to_owned()),
                    name: Some(key.to_owned()),
                    // `kubectl describe` asks by it.
                    uid: object["metadata"]["uid"].as_str().map(str::to_owned),
                    ..ObjectReference::default()
                };
                self.tell(about, severity, reason, message).await;
            }
            Ok(None) => tracing::debug!(%kind, key, reason, "it is gone; its event is not told"),
            Err(error) => tracing::warn!(%error, %kind, key, reason, "an event could not be told"),
        }
    }

    /// Tells it; that it could not be told is only logged.
    pub(crate) async fn tell(
        &self,
        about: ObjectReference,
        severity: Severity,
        reason: &str,
        message: String,
    ) {
        let namespace = about.namespace.clone().unwrap_or_else(|| CLUSTER_NAMESPACE.to_owned());
        let now = Some(Time(Timestamp::now()));
        let event = Event {
            metadata: ObjectMeta {
                generate_name: Some("orlop-".to_owned()),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            involved_object: about,
            reason: Some(reason.to_owned()),
            message: Some(shortened(message)),
            type_: Some(severity.to_string()),
            source: Some(EventSource { component: Some("orlop-controller".to_owned()), host: None }),
            first_timestamp: now.clone(),
            last_timestamp: now,
            count: Some(1),
            ..Event::default()
        };
        let path = format!("/api/v1/namespaces/{namespace}/events");
        let told = match serde_json::to_value(event) {
            Ok(event) => self.make(&path, event).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = told {
            tracing::warn!(error, reason, "an event could not be told");
        }
    }

    async fn make(&self, path: &str, object: Value) -> Result<()> {
        self.ask::<Value>(&Verb::Create(object), path).await.map(drop)
    }
}

/// As much of it as Kubernetes takes.
pub(crate) fn shortened(mut message: String) -> String {
    const MORE: &str = "...";
    if message.len() > MESSAGE_BYTES_MAX {
        let mut length = MESSAGE_BYTES_MAX - MORE.len();
        while !message.is_char_boundary(length) {
            length -= 1;
        }
        message.truncate(length);
        message.push_str(MORE);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_between_characters() {
        assert_eq!(shortened("full".into()), "full");
        let whole = "x".repeat(MESSAGE_BYTES_MAX);
        assert_eq!(shortened(whole.clone()), whole);
        let cut = shortened("\u{e9}".repeat(MESSAGE_BYTES_MAX));
        assert!(cut.len() <= MESSAGE_BYTES_MAX && cut.ends_with("\u{e9}..."), "{cut}");
    }
}

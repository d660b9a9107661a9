//! What a person is told about an object of Kubernetes, where they look first: `kubectl describe`, `kubectl events`.

use crate::kubernetes::Kubernetes;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use serde_json::Value;

/// Where events of objects without a namespace are.
const CLUSTER_NAMESPACE: &str = "default";

impl Kubernetes {
    /// Tells it; that it could not be told is only logged.
    pub(crate) async fn tell(&self, about: ObjectReference, reason: &str, message: String) {
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
            message: Some(message),
            type_: Some("Warning".to_owned()),
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

    async fn make(&self, path: &str, object: Value) -> store::Result<()> {
        self.ask::<Value>(&crate::server::Verb::Create(object), path).await.map(drop)
    }
}

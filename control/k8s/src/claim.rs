//! From a pod to the volumes of Orlop that it uses: its claims, what they are bound to, and whose that is.
//!
//! 1. What is not there, not bound or another driver's is no volume of ours, and no error.

use crate::{kubernetes::Kubernetes, server::Verb};
use k8s_openapi::api::core::v1;
use serde::de::DeserializeOwned;
use store::{ErrorKind, OPERATION_TIMEOUT, Result};
use tokio::time::Instant;

/// Our driver.
pub(crate) const DRIVER: &str = "csi.orlop.io";

impl Kubernetes {
    /// Does something at a path, within the time of an operation.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, verb: &Verb, path: &str) -> Result<T> {
        self.server.ask(verb, path, Instant::now() + OPERATION_TIMEOUT).await
    }

    /// The object at a path, if it is there.
    pub(crate) async fn one<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>> {
        match self.ask(&Verb::Get, path).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The claim behind a volume of a pod.
pub(crate) fn claim_of(pod: &str, volume: &v1::Volume) -> Option<String> {
    let claim = volume.persistent_volume_claim.as_ref().map(|source| source.claim_name.clone());
    claim.or_else(|| volume.ephemeral.as_ref().map(|_| format!("{pod}-{}", volume.name)))
}

/// What of Orlop a claim stands for (invariant 1).
pub(crate) async fn source_of(
    kubernetes: &Kubernetes,
    namespace: &str,
    claim: &str,
) -> Result<Option<v1::CSIPersistentVolumeSource>> {
    let path = format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{claim}");
    let Some(claim) = kubernetes.one::<v1::PersistentVolumeClaim>(&path).await? else { return Ok(None) };
    let Some(volume) = claim.spec.and_then(|spec| spec.volume_name) else { return Ok(None) };
    let path = format!("/api/v1/persistentvolumes/{volume}");
    let volume = kubernetes.one::<v1::PersistentVolume>(&path).await?;
    Ok(volume.and_then(|volume| volume.spec?.csi).filter(|source| source.driver == DRIVER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_claim_is_named_by_the_pod_or_made_for_it() {
        let claim = |source: Value| {
            let mut volume = json!({ "name": "data" });
            volume.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
            claim_of("pod", &serde_json::from_value(volume).unwrap())
        };
        assert_eq!(claim(json!({ "persistentVolumeClaim": { "claimName": "c" } })), Some("c".into()));
        assert_eq!(claim(json!({ "ephemeral": {} })), Some("pod-data".into()));
        assert_eq!(claim(json!({ "emptyDir": {} })), None);
    }
}

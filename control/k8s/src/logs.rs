//! The logs of Orlop's own pods, for whoever is asked for help.
//!
//! 1. Only pods of one namespace with the label of the chart are looked at.
//! 2. All logs together are about as large as `ALL_BYTES`, however many pods there are: of each the end is taken.
//! 3. A log that cannot be had says why; the others are had all the same.

use crate::kubernetes::Kubernetes;
use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use std::path::Path;
use store::{OPERATION_TIMEOUT, Result};
use tokio::time::Instant;

/// The label that the chart gives each pod.
const SELECTOR: &str = "labelSelector=app.kubernetes.io%2Fname%3Dorlop";
/// Where a pod is told which namespace it is in.
const NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
/// As much as whoever runs in a small pod can hold.
const ALL_BYTES: usize = 64 << 20;
const ONE_BYTES_MIN: usize = 64 << 10;
const ONE_BYTES_MAX: usize = 4 << 20;
/// Our lines are about so long.
const LINE_BYTES: usize = 200;
/// How many are asked for at the same time.
const AT_ONCE: usize = 8;

/// The log of one container.
#[derive(Debug)]
pub struct Log {
    /// `POD.CONTAINER`, with `.before` for that of its last end.
    pub name: String,
    /// Its end, or why there is none.
    pub text: std::result::Result<String, String>,
}

/// What is asked for.
struct Wanted {
    name: String,
    path: String,
}

/// The namespace of the pod in which this runs; none outside of pods.
pub fn own_namespace() -> Option<String> {
    let text = std::fs::read_to_string(Path::new(NAMESPACE)).ok()?;
    Some(text.trim().to_owned()).filter(|name| !name.is_empty())
}

impl Kubernetes {
    /// The logs of all pods of Orlop in a namespace, and of the containers before those that were started again.
    ///
    /// # Errors
    /// The pods cannot be listed.
    pub async fn logs(&self, namespace: &str) -> Result<Vec<Log>> {
        let folder = format!("/api/v1/namespaces/{namespace}/pods");
        let deadline = Instant::now() + OPERATION_TIMEOUT;
        let pods = self.server.select::<Pod>(&folder, SELECTOR, deadline).await?.items;
        let wanted: Vec<Wanted> = pods.iter().flat_map(|pod| wanted(&folder, pod)).collect();
        let limit = limit(wanted.len());
        let limit = limit.as_str();
        let get = |wanted: Wanted| async move {
            let path = format!("{}&{limit}", wanted.path);
            let text = self.server.text(&path, Instant::now() + OPERATION_TIMEOUT).await;
            Log { name: wanted.name, text: text.map_err(|error| error.to_string()) }
        };
        Ok(stream::iter(wanted).map(get).buffered(AT_ONCE).collect().await)
    }
}

/// The logs that a pod has.
fn wanted(folder: &str, pod: &Pod) -> Vec<Wanted> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let status = pod.status.as_ref();
    let first = status.and_then(|status| status.init_container_statuses.as_ref());
    let then = status.and_then(|status| status.container_statuses.as_ref());
    let of = |container: &ContainerStatus| {
        let of = |before: bool| Wanted {
            name: format!("{name}.{}{}", container.name, if before { ".before" } else { "" }),
            path: format!(
                "{folder}/{name}/log?container={}&previous={before}&timestamps=true",
                container.name
            ),
        };
        let again = container.restart_count > 0;
        again.then(|| of(true)).into_iter().chain([of(false)]).collect::<Vec<_>>()
    };
    first.into_iter().chain(then).flatten().flat_map(of).collect()
}

/// How much of each of so many logs (invariant 2). Of the lines at the end, should they be long, the first ones count.
fn limit(logs: usize) -> String {
    let bytes = (ALL_BYTES / logs.max(1)).clamp(ONE_BYTES_MIN, ONE_BYTES_MAX);
    format!("tailLines={}&limitBytes={bytes}", bytes / LINE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_container_has_a_log_and_one_that_was_started_again_has_two() {
        let pod = json!({
            "metadata": { "name": "orlop-node-x" },
            "status": {
                "initContainerStatuses": [
                    { "name": "copy", "image": "", "imageID": "", "ready": true, "restartCount": 0 },
                ],
                "containerStatuses": [
                    { "name": "node", "image": "", "imageID": "", "ready": true, "restartCount": 2 },
                ],
            },
        });
        let found = wanted("/pods", &serde_json::from_value(pod).unwrap());
        let names: Vec<&str> = found.iter().map(|wanted| wanted.name.as_str()).collect();
        assert_eq!(names, ["orlop-node-x.copy", "orlop-node-x.node.before", "orlop-node-x.node"]);
        assert_eq!(found[1].path, "/pods/orlop-node-x/log?container=node&previous=true&timestamps=true");
        assert!(wanted("/pods", &Pod::default()).is_empty(), "nothing runs yet");
    }

    #[test]
    fn all_together_are_bounded() {
        assert_eq!(limit(0), "tailLines=20971&limitBytes=4194304");
        assert_eq!(limit(64), "tailLines=5242&limitBytes=1048576");
        assert_eq!(limit(100_000), "tailLines=327&limitBytes=65536");
    }
}

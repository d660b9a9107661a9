//! Where a node of Kubernetes is: those of its labels that engines report (docs/decisions/0024).

use crate::kubernetes::Kubernetes;
use model::topology::{REGION_KEY, ZONE_KEY};
use serde::Deserialize;
use std::collections::BTreeMap;
use store::Result;

/// What is read of it.
#[derive(Deserialize)]
struct Labelled {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

impl Kubernetes {
    /// The labels that name the zone and the region of a node, and those of `keys`; none if there is no such node.
    ///
    /// # Errors
    /// The API server does not answer, or does not let this account look at nodes.
    pub async fn topology(&self, node: &str, keys: &[String]) -> Result<Option<BTreeMap<String, String>>> {
        let found = self.one::<Labelled>(&format!("/api/v1/nodes/{node}")).await?;
        Ok(found.map(|found| told(found.metadata.labels, keys)))
    }
}

/// Those of the labels that say where the node is. One that says nothing is none.
fn told(mut labels: BTreeMap<String, String>, keys: &[String]) -> BTreeMap<String, String> {
    let is_told = |key: &str| [ZONE_KEY, REGION_KEY].contains(&key) || keys.iter().any(|told| told == key);
    labels.retain(|key, value| is_told(key) && !value.is_empty());
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_says_where_a_node_is_is_told() {
        let node = r#"{"metadata": {"name": "n1", "labels": {
            "kubernetes.io/hostname": "n1", "topology.kubernetes.io/zone": "a", "rack": "r7", "example.com/room": ""}}}"#;
        let labels = serde_json::from_str::<Labelled>(node).unwrap().metadata.labels;
        let keys = ["rack".to_owned(), "example.com/room".to_owned()];
        let told = told(labels, &keys).into_iter().map(|(key, value)| format!("{key}={value}"));
        assert_eq!(told.collect::<Vec<_>>(), ["rack=r7", "topology.kubernetes.io/zone=a"]);
        let bare: Labelled = serde_json::from_str(r#"{"metadata": {"name": "n1"}}"#).unwrap();
        assert!(bare.metadata.labels.is_empty());
    }
}

//! The labels that say where this node is: those that it was told at its start, and in a pod those of its Kubernetes node,
//! which may change.
//!
//! 1. What is not known is left as the store has it: an API server that does not answer moves no node out of its zone.

use crate::arguments::NodeOptions;
use crate::stores;
use k8s::Kubernetes;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::watch;

/// Labels with their values.
pub(super) type Labels = BTreeMap<String, String>;

/// How often the Kubernetes node is looked at.
const LOOK: Duration = Duration::from_secs(30);

/// The labels as they are known; none: not yet. Must be called within a tokio runtime.
pub(super) fn follow(
    options: &NodeOptions,
    kubernetes: Option<Kubernetes>,
) -> watch::Receiver<Option<Labels>> {
    let given: Labels = options.topology.iter().cloned().collect();
    // Outside a pod the name of a node is no name of a machine.
    let Some(kubernetes) = kubernetes.filter(|_| stores::is_pod(&options.store)) else {
        return watch::channel(Some(given)).1;
    };
    let (told, labels) = watch::channel(None);
    let (name, keys) = (options.name.clone(), options.topology_keys.clone());
    tokio::spawn(async move {
        let mut refused = false;
        while !told.is_closed() {
            match kubernetes.topology(&name, &keys).await {
                Ok(found) => {
                    refused = false;
                    // A node that is gone is made again with its labels.
                    let found = found.map(|found| found.into_iter().chain(given.clone()).collect());
                    told.send_if_modified(|known| tell(known, found));
                }
                Err(error) if !refused => {
                    refused = true;
                    tracing::warn!(%error, "the labels of this node are not known; they stay as they were");
                }
                Err(_) => {}
            }
            tokio::time::sleep(LOOK).await;
        }
    });
    labels
}

/// Takes in what was found; whether it says anything new (invariant 1).
fn tell(known: &mut Option<Labels>, found: Option<Labels>) -> bool {
    let is_new = found.is_some() && *known != found;
    if is_new {
        tracing::info!(labels = ?found, "where this node is");
        *known = found;
    }
    is_new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_found_changes_nothing() {
        let zone = |zone: &str| Some(Labels::from([("zone".to_owned(), zone.to_owned())]));
        let mut known = None;
        assert!(!tell(&mut known, None) && known.is_none());
        assert!(tell(&mut known, zone("a")) && !tell(&mut known, zone("a")) && !tell(&mut known, None));
        assert_eq!(known, zone("a"));
        assert!(tell(&mut known, Some(Labels::new())), "its labels were taken away");
        assert_eq!(known, Some(Labels::new()));
    }
}

//! Pods leave a node that is lost, without a person who says that it is off (docs/decisions/0014).
//!
//! The other way, the operator's own taint or the deletion of the Node, needs nothing of this. Beside the manager: it asks
//! Kubernetes about the nodes whose engines are away, and about those that it has marked.
//!
//! 1. All that it knows is in Kubernetes and in the records: another leader goes on where this one ended.
//! 2. Liveness is judged by this process's own clock, and only while it looked; a wrong guess costs a pod its place,
//!    never data: epochs fence the volumes.
//! 3. The mandate is asked before every write, and after what is asked for it.
//! 4. Not more than a share of the nodes is given up at a time: if more are away, it is rather this side that is cut off.

mod plan;
mod scene;

use crate::event::Severity;
use crate::kubernetes::Kubernetes;
use crate::server::Verb;
use k8s_openapi::api::core::v1;
use model::{Node, NodeState, Stored, Volume};
use plan::{Pod, Step};
use scene::{is_own_word, taints};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use store::{Client, ErrorKind, Mandate, OPERATION_TIMEOUT, Result, Watch};
use tokio::time::{Instant, sleep_until};

/// On a node from which volumes were taken: nothing is scheduled there until it is back and has let go of them.
const MARK: &str = "orlop.io/failed-over";
/// What Kubernetes takes for the word that a node is off.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// The value of that taint if it is ours.
const OWN: &str = "orlop";
/// Between two looks while something is under way.
const BUSY: Duration = Duration::from_millis(500);
/// Between two looks while a node is away and there is nothing to do about it.
const IDLE: Duration = Duration::from_secs(5);

/// How patient and how bold it is.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How long a node is `NotReady` before its pods leave it.
    pub after: Duration,
    /// How many nodes of a hundred may be given up at the same time; one always may.
    pub share_percent: u32,
}

/// Frees the pods of lost nodes while this process leads.
#[derive(Debug)]
pub struct Failover {
    kubernetes: Kubernetes,
    client: Client,
    config: Config,
    mandate: Mandate,
    nodes: BTreeMap<String, Stored<Node>>,
    /// Since when each node that is `NotReady` was seen so.
    away: BTreeMap<String, Instant>,
    /// Those that carry our mark, or may.
    marked: BTreeSet<String>,
}

impl Kubernetes {
    async fn some<T: DeserializeOwned>(&self, path: &str, selector: &str) -> Result<Vec<T>> {
        let listing = self.server.select(path, selector, Instant::now() + OPERATION_TIMEOUT).await?;
        Ok(listing.items)
    }
}

impl Failover {
    /// Begins to look; writes only with the mandate.
    pub fn new(kubernetes: Kubernetes, client: Client, config: Config, mandate: Mandate) -> Self {
        let (nodes, away, marked) = Default::default();
        Self { kubernetes, client, config, mandate, nodes, away, marked }
    }

    /// Looks until the store is closed, or it is dropped.
    pub async fn run(mut self) {
        let mut watch = self.client.watch::<Node>();
        self.find_marked().await;
        let mut due = Instant::now();
        loop {
            tokio::select! {
                open = self.next(&mut watch) => if !open { return },
                () = sleep_until(due) => {
                    let busy = self.round().await;
                    due = Instant::now() + if busy { BUSY } else { IDLE };
                    continue;
                }
            }
            due = due.min(Instant::now() + BUSY);
        }
    }

    /// What a leader before this one has begun.
    async fn find_marked(&mut self) {
        loop {
            match self.kubernetes.some::<v1::Node>("/api/v1/nodes", "").await {
                Ok(nodes) => {
                    let ours = |taint: &v1::Taint| taint.key == MARK || is_own_word(taint);
                    let marked = nodes.into_iter().filter(|node| taints(node).iter().any(ours));
                    self.marked = marked.filter_map(|node| node.metadata.name).collect();
                    return;
                }
                Err(error) => tracing::warn!(%error, "nodes cannot be listed; it is tried again"),
            }
            tokio::time::sleep(IDLE).await;
        }
    }

    /// Takes in what has changed; false once the store is closed.
    async fn next(&mut self, watch: &mut Watch<Node>) -> bool {
        let Some(change) = watch.next().await else { return false };
        change.apply(&mut self.nodes);
        let now = Instant::now();
        let nodes = self.nodes.values().map(|node| &node.value);
        let away = nodes.filter(|node| node.state == NodeState::NotReady).map(|node| &node.name);
        self.away = away.map(|name| (name.clone(), self.away.get(name).copied().unwrap_or(now))).collect();
        true
    }

    fn is_lost(&self, node: &str) -> bool {
        self.away.get(node).is_some_and(|since| since.elapsed() >= self.config.after)
    }

    /// Whether one more node may be given up (invariant 4).
    fn may_mark(&self) -> bool {
        plan::may_mark(self.nodes.len(), self.away.keys().chain(&self.marked), self.config.share_percent)
    }

    /// One look at each node that concerns us; whether something is under way.
    async fn round(&mut self) -> bool {
        let lost = self.away.keys().filter(|node| self.is_lost(node));
        let concerned: BTreeSet<String> = lost.chain(&self.marked).cloned().collect();
        // Those that are not lost yet will be soon.
        let mut busy = self.away.keys().any(|node| !self.is_lost(node));
        for node in concerned {
            match self.attend(&node).await {
                Ok(more) => busy |= more,
                Err(error) => {
                    busy = true;
                    match error.kind() {
                        ErrorKind::Conflict | ErrorKind::NotFound => {
                            tracing::debug!(node, %error, "planned anew");
                        }
                        _ => tracing::warn!(node, %error, "its pods are not freed yet; it is tried again"),
                    }
                }
            }
        }
        busy
    }

    /// Looks at one node and does what is next; whether something is under way.
    async fn attend(&mut self, name: &str) -> Result<bool> {
        let ready = self.nodes.get(name).is_some_and(|node| node.value.state == NodeState::Ready);
        let looked = scene::look(&self.kubernetes, &self.client, name, self.is_lost(name), ready).await?;
        let Some((mut node, scene)) = looked else {
            // Its pods are free with it.
            self.marked.remove(name);
            return Ok(false);
        };
        let plan = plan::plan(&scene, self.may_mark());
        for step in &plan.steps {
            self.perform(&mut node, name, step).await?;
        }
        Ok(plan.busy)
    }

    async fn perform(&mut self, node: &mut v1::Node, name: &str, step: &Step) -> Result<()> {
        // Invariant 3.
        self.mandate.ensure()?;
        match step {
            Step::Mark => {
                self.marked.insert(name.to_owned());
                self.taint(node, name, |taints| taints.push(taint(MARK, None))).await?;
                let message = "Orlop's engine on it is away: the pods that have opted in leave it".to_owned();
                tracing::warn!(node = name, "lost: its pods that have opted in leave it");
                let about = about_node(node);
                self.kubernetes.tell(about, Severity::Warning, "FailoverBegins", message).await;
            }
            Step::Fence(volume) => self.fence(volume, name).await?,
            Step::Suspend => {
                self.taint(node, name, |taints| taints.push(taint(OUT_OF_SERVICE, Some(OWN)))).await?;
            }
            Step::Free { pod, at_once } => self.free(pod, name, *at_once).await?,
            Step::Resume => {
                self.taint(node, name, |taints| taints.retain(|taint| !is_own_word(taint))).await?;
            }
            Step::Unmark => {
                self.taint(node, name, |taints| taints.retain(|taint| taint.key != MARK)).await?;
                self.marked.remove(name);
                tracing::info!(node = name, "is back, and holds nothing that was taken from it");
            }
        }
        Ok(())
    }

    /// Changes the taints of a node as it was seen.
    async fn taint(
        &self,
        node: &mut v1::Node,
        name: &str,
        change: impl FnOnce(&mut Vec<v1::Taint>),
    ) -> Result<()> {
        let mut wanted = taints(node).to_vec();
        change(&mut wanted);
        let body = json!({
            "metadata": { "resourceVersion": node.metadata.resource_version },
            "spec": { "taints": wanted },
        });
        let path = format!("/api/v1/nodes/{name}?fieldManager=orlop");
        *node = self.kubernetes.ask(&Verb::Merge(body), &path).await?;
        Ok(())
    }

    /// The volume is attached there no more: the manager has it opened elsewhere, which fences the node.
    async fn fence(&self, volume: &str, node: &str) -> Result<()> {
        let Some(found) = self.client.get::<Volume>(volume).await? else { return Ok(()) };
        let mut wished = found.value.clone();
        wished.intent.attach.take_if(|attach| attach.node == node);
        wished.intent.readers.retain(|reader| reader != node);
        if wished == found.value {
            return Ok(());
        }
        self.mandate.ensure()?;
        self.client.replace(&wished, found.revision).await?;
        tracing::warn!(volume, node, "is taken from a node that is lost");
        Ok(())
    }

    async fn free(&self, pod: &Pod, node: &str, at_once: bool) -> Result<()> {
        let Pod { namespace, name, uid, .. } = pod;
        let mut options = json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": { "uid": uid },
        });
        if at_once {
            options["gracePeriodSeconds"] = json!(0);
        }
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        self.kubernetes.ask::<Value>(&Verb::Delete(options), &path).await?;
        tracing::warn!(pod = name, namespace, node, "is freed: its volumes are open elsewhere");
        let message = format!("node {node} is lost to Orlop; the pod's volumes are open elsewhere");
        self.kubernetes.tell(about_pod(pod), Severity::Warning, "FailedOver", message).await;
        Ok(())
    }
}

/// It keeps new pods away, and evicts nobody by itself.
fn taint(key: &str, value: Option<&str>) -> v1::Taint {
    v1::Taint {
        key: key.to_owned(),
        value: value.map(str::to_owned),
        effect: "NoSchedule".to_owned(),
        time_added: None,
    }
}

fn about_node(node: &v1::Node) -> v1::ObjectReference {
    v1::ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: node.metadata.name.clone(),
        // Where `kubectl describe node` looks.
        uid: node.metadata.name.clone(),
        ..v1::ObjectReference::default()
    }
}

fn about_pod(pod: &Pod) -> v1::ObjectReference {
    v1::ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: Some(pod.uid.clone()),
        ..v1::ObjectReference::default()
    }
}

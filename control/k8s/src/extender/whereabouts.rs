//! What the extender knows: the engines as a watch tells them, and the copies behind a claim by single questions.
//!
//! 1. Nothing is ever listed for a request, and no request waits for the watch.
//! 2. What is known of a claim is kept for a moment, so that the two questions about a pod are one.
//! 3. What cannot be found out in time is not known, and no error.

use super::judge::{Copies, Engine, Engines};
use super::wire::Question;
use crate::{claim::source_of, kubernetes::Kubernetes};
use futures_util::future::join_all;
use model::{Node, Volume, VolumeRecord};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use store::{Change, Client, Result};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// How long the questions about a pod may take. Its scheduler waits meanwhile, and all other pods with it.
const LOOK: Duration = Duration::from_secs(1);
/// How long an answer is taken for true.
const RECENT: Duration = Duration::from_secs(1);
/// Answers that are kept; more are asked for again.
const RECENT_MAX: usize = 1024;

/// Namespace and name of a claim.
type Claim = (String, String);

/// What is known of where engines and copies are.
#[derive(Debug)]
pub(super) struct Whereabouts {
    kubernetes: Kubernetes,
    client: Client,
    /// None until the watch has told them for the first time.
    engines: watch::Receiver<Option<Engines>>,
    recent: Mutex<HashMap<Claim, (Instant, Option<Copies>)>>,
}

impl Whereabouts {
    /// Begins to follow the engines; must be called within a tokio runtime.
    pub(super) fn follow(kubernetes: Kubernetes, client: Client) -> Self {
        let (sender, engines) = watch::channel(None);
        tokio::spawn(follow(client.clone(), sender));
        Self { kubernetes, client, engines, recent: Mutex::default() }
    }

    /// Something found among the engines.
    pub(super) fn see<T>(&self, look: impl FnOnce(Option<&Engines>) -> T) -> T {
        look(self.engines.borrow().as_ref())
    }

    /// The copies of the pod's volumes of Orlop, as far as they can be found out now (invariant 3).
    pub(super) async fn volumes(&self, question: &Question) -> Vec<Copies> {
        let copies = question.claims.iter().map(|claim| self.copies(&question.namespace, claim));
        let Ok(copies) = timeout(LOOK, join_all(copies)).await else {
            tracing::warn!(namespace = question.namespace, "the claims of a pod are not told in time");
            return Vec::new();
        };
        copies.into_iter().flatten().collect()
    }

    async fn copies(&self, namespace: &str, claim: &str) -> Option<Copies> {
        let key = (namespace.to_owned(), claim.to_owned());
        if let Some((_, copies)) = self.recent().get(&key).filter(|(since, _)| since.elapsed() < RECENT) {
            return copies.clone();
        }
        match self.find(namespace, claim).await {
            Ok(copies) => {
                self.keep(key, copies.clone());
                copies
            }
            Err(error) => {
                tracing::warn!(namespace, claim, %error, "it is not known where its copies are");
                None
            }
        }
    }

    async fn find(&self, namespace: &str, claim: &str) -> Result<Option<Copies>> {
        let Some(source) = source_of(&self.kubernetes, namespace, claim).await? else { return Ok(None) };
        let Some(volume) = self.client.get::<Volume>(&source.volume_handle).await? else { return Ok(None) };
        let record = self.client.get::<VolumeRecord>(&volume.value.uuid.to_string()).await?;
        Ok(record.map(|record| Copies::of(&record.value)))
    }

    fn keep(&self, key: Claim, copies: Option<Copies>) {
        let mut recent = self.recent();
        if recent.len() >= RECENT_MAX {
            recent.retain(|_, (since, _)| since.elapsed() < RECENT);
        }
        if recent.len() < RECENT_MAX {
            recent.insert(key, (Instant::now(), copies));
        }
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, HashMap<Claim, (Instant, Option<Copies>)>> {
        // Each entry is whole, whoever panicked.
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the engines until nobody listens or the store is closed.
async fn follow(client: Client, sender: watch::Sender<Option<Engines>>) {
    let mut watch = client.watch::<Node>();
    loop {
        let change = tokio::select! {
            change = watch.next() => change,
            () = sender.closed() => return,
        };
        let Some(change) = change else { return };
        sender.send_modify(|engines| apply(engines.get_or_insert_default(), change));
    }
}

fn apply(engines: &mut Engines, change: Change<Node>) {
    match change {
        Change::Relist(nodes) => {
            let nodes = nodes.into_iter().map(|node| node.value);
            *engines = nodes.map(|node| (node.name.clone(), Engine::of(&node))).collect();
        }
        Change::Put(node) => drop(engines.insert(node.value.name.clone(), Engine::of(&node.value))),
        Change::Delete(name) => drop(engines.remove(&name)),
    }
}

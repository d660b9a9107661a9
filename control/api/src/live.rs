//! What the store holds as its watches tell it, for what may be a moment old: where to place, whom to attach to, and when
//! to look again. Nothing is asked of the store for it, however many requests wait.
//!
//! 1. It is made when it is first needed: a process that answers only questions about single volumes watches nothing.
//! 2. It never says of a volume that it is as wished: whoever waits looks into the store itself when something has changed.

use crate::{App, Problem};
use manager::View;
use model::{Object, Stored, Volume};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use store::{Client, Watch};
use tokio::sync::{OnceCell, watch};
use tokio::time::timeout;

/// How long the first lists may take.
const READY: Duration = Duration::from_secs(10);
/// How long a write of ours may take until a watch tells it.
const SEEN: Duration = Duration::from_secs(5);

/// A view that follows the store. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Live(watch::Receiver<Seen>);

/// Made at the first use (invariant 1).
#[derive(Clone, Default)]
pub(crate) struct Lazy(Arc<OnceCell<Live>>);

/// The view, and how many of its kinds have been listed.
#[derive(Default)]
struct Seen {
    view: View,
    listed: usize,
}

const KINDS: usize = 6;

/// By what one sees that something about a volume has changed: the revisions of its objects.
pub(crate) type Stamp = [Option<u64>; 3];

impl Lazy {
    /// The view, once everything is in it.
    pub(crate) async fn get(&self, client: &Client) -> Result<Live, Problem> {
        let mut live = self.0.get_or_init(|| async { Live::follow(client.clone()) }).await.clone();
        let complete = live.0.wait_for(|seen| seen.listed == KINDS);
        let complete = timeout(READY, complete).await.is_ok_and(|told| told.is_ok());
        if !complete {
            return Err(Problem::unavailable("the store does not tell what it holds"));
        }
        Ok(live)
    }

    /// The view, if somebody has needed it and everything is in it.
    pub(crate) fn ready(&self) -> Option<Live> {
        self.0.get().filter(|live| live.0.borrow().listed == KINDS).cloned()
    }
}

impl Live {
    fn follow(client: Client) -> Self {
        let (sender, receiver) = watch::channel(Seen::default());
        tokio::spawn(follow(client, sender));
        Self(receiver)
    }

    /// Something found in the view.
    pub(crate) fn see<T>(&self, look: impl FnOnce(&View) -> T) -> T {
        look(&self.0.borrow().view)
    }

    /// The revisions of what is known of a volume.
    pub(crate) fn stamp(&self, name: &str) -> Stamp {
        self.see(|view| stamp(view, name))
    }

    /// Waits until something about a volume has another revision than `before`.
    pub(crate) async fn changed(&mut self, name: &str, before: Stamp) {
        let closed = self.0.wait_for(|seen| stamp(&seen.view, name) != before).await.is_err();
        if closed {
            // The store is closed: nothing changes any more.
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the view has this revision of a volume or a later one; not for ever.
    pub(crate) async fn has(&mut self, name: &str, revision: u64) {
        let there =
            |seen: &Seen| seen.view.volumes.get(name).is_some_and(|volume| volume.revision >= revision);
        // Without it the next one may be promised the same space: over-commitment, not a loss.
        drop(timeout(SEEN, self.0.wait_for(there)).await);
    }
}

fn stamp(view: &View, name: &str) -> Stamp {
    let Some(Stored { revision, value: Volume { uuid, .. } }) = view.volumes.get(name) else {
        return [None; 3];
    };
    let record = view.record(*uuid).map(|record| record.revision);
    let status = view.status(*uuid).map(|status| status.revision);
    [Some(*revision), record, status]
}

async fn follow(client: Client, sender: watch::Sender<Seen>) {
    let (mut nodes, mut pools, mut volumes) = (client.watch(), client.watch(), client.watch());
    let (mut records, mut statuses, mut replicas) = (client.watch(), client.watch(), client.watch());
    let mut listed = [false; KINDS];
    loop {
        let open = tokio::select! {
            open = next(&mut nodes, &sender, |seen| &mut seen.view.nodes) => (0, open),
            open = next(&mut pools, &sender, |seen| &mut seen.view.pools) => (1, open),
            open = next(&mut volumes, &sender, |seen| &mut seen.view.volumes) => (2, open),
            open = next(&mut records, &sender, |seen| &mut seen.view.records) => (3, open),
            open = next(&mut statuses, &sender, |seen| &mut seen.view.statuses) => (4, open),
            open = next(&mut replicas, &sender, |seen| &mut seen.view.replicas) => (5, open),
            () = sender.closed() => return,
        };
        let (kind, true) = open else { return };
        if !listed[kind] {
            listed[kind] = true;
            sender.send_modify(|seen| seen.listed += 1);
        }
    }
}

/// Takes in the next change of one kind; false once the store is closed.
async fn next<T: Object>(
    watch: &mut Watch<T>,
    sender: &watch::Sender<Seen>,
    objects: impl FnOnce(&mut Seen) -> &mut BTreeMap<String, Stored<T>>,
) -> bool {
    let Some(change) = watch.next().await else { return false };
    sender.send_if_modified(|seen| change.apply(objects(seen)));
    true
}

impl App {
    /// The view that follows the store.
    pub(crate) async fn live(&self) -> Result<Live, Problem> {
        self.live.get(&self.client).await
    }
}

//! The engine's view of the control plane, over the store's client: questions go to the tokio threads, answers come back
//! to the reactor through a mailbox. What concerns this node is known by watches: nothing is listed again and again.
//!
//! Invariants:
//! 1. A write whose answer is unknown is reported as unknown, never as refused.
//! 2. A volume's status is never replaced by one of a lower epoch.
//! 3. What is wished of the node and its pools is written as it was found, and so are the node's labels until they are
//!    known: a report never takes a wish back, nor a node out of its zone.

use super::topology::Labels;
use engine::{Control, ControlError, ControlFuture, Known};
use model::{Node, NodeReplicas, Object, Pool, PoolSpec, Stored, Volume, VolumeRecord, VolumeStatus};
use nexus::{RecordError, RecordFuture, Records, Versioned};
use rt::mailbox;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use store::{Change, Client, ErrorKind};
use tokio::runtime::Handle;
use tokio::sync::watch;
use uuid::Uuid;

/// How often a report is tried again when somebody else writes the same object.
const ATTEMPTS_MAX: usize = 5;

/// The control plane as seen from a reactor.
#[derive(Clone)]
pub(super) struct StoreControl {
    runtime: Handle,
    client: Client,
    changed: mailbox::Receiver<()>,
    told: Arc<Mutex<Told>>,
    /// This node as it was written last: the next heartbeat replaces it without a look.
    written: Arc<Mutex<Option<Stored<Node>>>>,
    /// Where this node is, if that is known yet.
    labels: watch::Receiver<Option<Labels>>,
}

/// What the watches have told so far.
#[derive(Default)]
struct Told {
    known: Arc<Known>,
    volumes_listed: bool,
    records_listed: bool,
}

impl StoreControl {
    /// Asks for `node`, which has these `labels`, through `client`, on the threads of `runtime`.
    pub(super) fn new(
        runtime: Handle,
        client: Client,
        node: &str,
        labels: watch::Receiver<Option<Labels>>,
    ) -> Self {
        let (sender, changed) = mailbox::bounded(1);
        let told: Arc<Mutex<Told>> = Arc::default();
        let (here, taken) = (node.to_owned(), Arc::clone(&told));
        follow::<Volume>(&runtime, &client, &sender, move |change| {
            let Told { known, volumes_listed, .. } = &mut *lock(&taken);
            let first = !std::mem::replace(volumes_listed, true);
            let change = change.only(|volume| Known::has_volume(&here, volume));
            change.apply(&mut Arc::make_mut(known).volumes) || first
        });
        let (here, taken) = (node.to_owned(), Arc::clone(&told));
        follow::<VolumeRecord>(&runtime, &client, &sender, move |change| {
            let Told { known, records_listed, .. } = &mut *lock(&taken);
            let first = !std::mem::replace(records_listed, true);
            let change = change.only(|record| Known::has_record(&here, record));
            change.apply(&mut Arc::make_mut(known).records) || first
        });
        Self { runtime, client, changed, told, written: Arc::default(), labels }
    }

    /// Runs `work` on the tokio threads and waits for it on the reactor; none if the threads are gone.
    async fn ask<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let (sender, answer) = mailbox::bounded(1);
        self.runtime.spawn(async move {
            // Whoever asked may have been cancelled; then nobody wants the answer.
            drop(sender.send(work.await).await);
        });
        answer.recv().await.ok()
    }

    fn get<'a, T: Object>(&'a self, key: &str) -> ControlFuture<'a, Option<T>> {
        let (client, key) = (self.client.clone(), key.to_owned());
        Box::pin(async move {
            let found = self.ask(async move { client.get::<T>(&key).await }).await.ok_or_else(gone)?;
            Ok(found.map_err(failed)?.map(|item| item.value))
        })
    }

    fn report<T: Object + PartialEq>(&self, object: T) -> ControlFuture<'_, ()> {
        self.report_over(object, |_, new| Some(new))
    }

    /// Writes a report; where there is one, what `over(there, new)` makes of both, if anything.
    fn report_over<T: Object + PartialEq>(&self, object: T, over: Over<T>) -> ControlFuture<'_, ()> {
        let client = self.client.clone();
        Box::pin(async move {
            let put = self.ask(async move { put(&client, &object, over).await });
            put.await.ok_or_else(gone)?.map_err(failed).map(drop)
        })
    }
}

/// Lets `take` take in what changes of one kind, and tells `changed` when that says that something has changed; one message
/// stands for many.
fn follow<T: Object>(
    runtime: &Handle,
    client: &Client,
    changed: &mailbox::Sender<()>,
    take: impl Fn(Change<T>) -> bool + Send + 'static,
) {
    let (client, changed) = (client.clone(), changed.clone());
    runtime.spawn(async move {
        let mut watch = client.watch::<T>();
        while let Some(change) = watch.next().await {
            if take(change) {
                // Full means that the engine has not looked yet: it will see this change as well.
                let _full = changed.try_send(());
            }
        }
    });
}

/// Nothing panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes that the node is alive, and its labels if they are known, over what was `written` last; what was written is known
/// only after an answer.
async fn beat(
    client: &Client,
    written: &Mutex<Option<Stored<Node>>>,
    labels: Option<Labels>,
    node: Node,
) -> Result<(), store::Error> {
    let node = Node { topology: labels.clone().unwrap_or_default(), ..node };
    // Invariant 3.
    let over = |there: &Node, new: Node| {
        let topology = labels.clone().unwrap_or_else(|| there.topology.clone());
        Node { spec: there.spec, topology, ..new }
    };
    let last = lock(written).take();
    if let Some(Stored { revision, value: last }) = last {
        let next = over(&last, node.clone());
        match client.replace(&next, revision).await {
            Ok(revision) => {
                *lock(written) = Some(Stored { revision, value: next });
                return Ok(());
            }
            Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    let put = put(client, &node, |there, new| Some(over(there, new))).await?;
    *lock(written) = put;
    Ok(())
}

/// What a report becomes where there is one already; none: what is there stays.
type Over<T> = fn(there: &T, new: T) -> Option<T>;

/// Answers what is there now, if it is as it was to be.
async fn put<T: Object + PartialEq>(
    client: &Client,
    object: &T,
    over: impl Fn(&T, T) -> Option<T>,
) -> Result<Option<Stored<T>>, store::Error> {
    let mut last = None;
    for _ in 0..ATTEMPTS_MAX {
        let (written, value) = match client.get::<T>(&object.key()).await? {
            Some(Stored { revision, value }) => match over(&value, object.clone()) {
                Some(next) if next != value => (client.replace(&next, revision).await, next),
                Some(_) => return Ok(Some(Stored { revision, value })),
                None => return Ok(None),
            },
            None => (client.create(object).await, object.clone()),
        };
        match written {
            Ok(revision) => return Ok(Some(Stored { revision, value })),
            Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => {
                last = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    last.map_or(Ok(None), Err)
}

/// Invariant 3.
const KEEP_POOL_WISH: Over<Pool> = |there, new| Some(Pool { spec: there.spec, ..new });

fn gone() -> ControlError {
    ControlError("this process is ending".into())
}

#[expect(clippy::needless_pass_by_value, reason = "goes into map_err")]
fn failed(error: store::Error) -> ControlError {
    ControlError(error.to_string())
}

impl Control for StoreControl {
    fn records(&self) -> Rc<dyn Records> {
        Rc::new(self.clone())
    }

    fn node<'a>(&'a self, name: &'a str) -> ControlFuture<'a, Option<Node>> {
        self.get(name)
    }

    fn pools(&self) -> ControlFuture<'_, Vec<Pool>> {
        let client = self.client.clone();
        Box::pin(async move {
            let pools = self.ask(async move { client.list::<Pool>().await }).await.ok_or_else(gone)?;
            Ok(pools.map_err(failed)?.into_iter().map(|pool| pool.value).collect())
        })
    }

    fn volume<'a>(&'a self, name: &'a str) -> ControlFuture<'a, Option<Volume>> {
        self.get(name)
    }

    fn known(&self) -> Option<Arc<Known>> {
        let told = lock(&self.told);
        (told.volumes_listed && told.records_listed).then(|| Arc::clone(&told.known))
    }

    fn report_node(&self, node: Node) -> ControlFuture<'_, ()> {
        let (client, written) = (self.client.clone(), Arc::clone(&self.written));
        let labels = self.labels.borrow().clone();
        Box::pin(async move {
            let beat = self.ask(async move { beat(&client, &written, labels, node).await });
            beat.await.ok_or_else(gone)?.map_err(failed)
        })
    }

    fn report_pool(&self, pool: Pool) -> ControlFuture<'_, PoolSpec> {
        let client = self.client.clone();
        Box::pin(async move {
            let put = self.ask(async move { put(&client, &pool, KEEP_POOL_WISH).await });
            let there = put.await.ok_or_else(gone)?.map_err(failed)?;
            Ok(there.map(|there| there.value.spec).unwrap_or_default())
        })
    }

    fn report_replicas(&self, replicas: NodeReplicas) -> ControlFuture<'_, ()> {
        self.report(replicas)
    }

    fn report_volume(&self, status: VolumeStatus) -> ControlFuture<'_, ()> {
        self.report_over(status, |there, new| (there.epoch <= new.epoch).then_some(new))
    }

    fn changed(&self) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(async move {
            // Closed means that the tokio threads are gone, and with them every change.
            if self.changed.recv().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}

impl Records for StoreControl {
    fn read(&self, volume: Uuid) -> RecordFuture<'_, Versioned> {
        let client = self.client.clone();
        Box::pin(async move {
            let got = self.ask(async move { client.get::<VolumeRecord>(&volume.to_string()).await }).await;
            let stored = got.ok_or(RecordError::Unreachable)?.map_err(record_error)?;
            let Stored { revision, value: record } = stored.ok_or(RecordError::NotFound)?;
            Ok(Versioned { record, revision })
        })
    }

    fn replace(&self, revision: u64, record: VolumeRecord) -> RecordFuture<'_, u64> {
        let client = self.client.clone();
        Box::pin(async move {
            let swap = self.ask(async move { client.replace(&record, revision).await });
            swap.await.ok_or(RecordError::Unreachable)?.map_err(record_error)
        })
    }
}

/// Only what the store said for sure is a refusal; all else may have happened.
#[expect(clippy::needless_pass_by_value, reason = "goes into map_err")]
fn record_error(error: store::Error) -> RecordError {
    match error.kind() {
        ErrorKind::Conflict => RecordError::Conflict,
        ErrorKind::NotFound => RecordError::NotFound,
        kind => {
            if !matches!(kind, ErrorKind::Unknown | ErrorKind::Unavailable) {
                tracing::error!(%error, "the store refused a record");
            }
            RecordError::Unreachable
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{NodeSpec, NodeState, Scheduling, VolumeIntent};
    use store::Embedded;

    fn node(heartbeat: u64) -> Node {
        Node {
            name: "n1".into(),
            spec: NodeSpec::default(),
            state: NodeState::Ready,
            address: "127.0.0.1:4420".into(),
            metrics_address: None,
            pid: 1,
            boot_id: Uuid::from_u128(1),
            version: "0.1.0".into(),
            heartbeat,
            topology: Labels::new(),
        }
    }

    /// An engine that has just started knows of no wish, and not yet where it is.
    #[tokio::test]
    async fn a_report_never_takes_a_wish_back() {
        let folder = tempfile::tempdir().unwrap();
        let client = Client::new(Embedded::open(&folder.path().join("store.redb")).unwrap());
        let labels = |zone: &str| Some(Labels::from([("zone".to_owned(), zone.to_owned())]));
        let starts = async |labels, heartbeat| {
            beat(&client, &Mutex::default(), labels, node(heartbeat)).await.unwrap();
            client.get::<Node>("n1").await.unwrap().unwrap()
        };
        let Stored { revision, mut value } = starts(labels("a"), 1).await;
        value.spec.scheduling = Scheduling::Drained;
        client.replace(&value, revision).await.unwrap();
        let there = starts(None, 2).await.value;
        assert_eq!((there.spec.scheduling, there.heartbeat), (Scheduling::Drained, 2));
        assert_eq!(Some(there.topology), labels("a"));
        assert_eq!(Some(starts(labels("b"), 3).await.value.topology), labels("b"));
        assert_eq!(starts(Some(Labels::new()), 4).await.value.topology, Labels::new());
    }

    /// A heartbeat that remembers what it wrote is no exception.
    #[tokio::test]
    async fn a_heartbeat_replaces_what_was_written_last_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let client = Client::new(Embedded::open(&folder.path().join("store.redb")).unwrap());
        let written = Mutex::default();
        let there = async || client.get::<Node>("n1").await.unwrap().unwrap();
        beat(&client, &written, None, node(1)).await.unwrap();
        beat(&client, &written, None, node(2)).await.unwrap();
        assert_eq!(there().await.value.heartbeat, 2);
        let Stored { revision, mut value } = there().await;
        value.spec.scheduling = Scheduling::Drained;
        value.state = NodeState::NotReady;
        client.replace(&value, revision).await.unwrap();
        beat(&client, &written, None, node(3)).await.unwrap();
        let Node { spec, state, heartbeat, .. } = there().await.value;
        assert_eq!((spec.scheduling, state, heartbeat), (Scheduling::Drained, NodeState::Ready, 3));
        let revision = there().await.revision;
        client.delete::<Node>("n1", revision).await.unwrap();
        beat(&client, &written, None, node(4)).await.unwrap();
        assert_eq!(there().await.value.heartbeat, 4);
        let rack = Labels::from([("rack".to_owned(), "r7".to_owned())]);
        beat(&client, &written, Some(rack.clone()), node(5)).await.unwrap();
        beat(&client, &written, None, node(6)).await.unwrap();
        assert_eq!((there().await.value.topology, there().await.value.heartbeat), (rack, 6));
    }

    /// Waits until what the control plane knows is as `wanted`.
    async fn until(control: &StoreControl, wanted: impl Fn(&Known) -> bool) -> Arc<Known> {
        loop {
            if let Some(known) = control.known().filter(|known| wanted(known)) {
                return known;
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_concerns_other_nodes_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let client = Client::new(Embedded::open(&folder.path().join("store.redb")).unwrap());
        let control = StoreControl::new(Handle::current(), client.clone(), "n1", watch::channel(None).1);
        let empty = until(&control, |_| true).await;
        assert_eq!(*empty, Known::default());
        let volume = |number: u128, owner: &str| Volume {
            name: format!("v{number}"),
            uuid: Uuid::from_u128(number),
            spec: serde_json::from_str(r#"{"sizeBytes": 1048576}"#).unwrap(),
            intent: VolumeIntent { owner: Some(owner.into()), ..VolumeIntent::default() },
            message: None,
        };
        client.create(&volume(2, "n2")).await.unwrap();
        let revision = client.create(&volume(1, "n1")).await.unwrap();
        let known = until(&control, |known| !known.volumes.is_empty()).await;
        assert_eq!(known.volumes.keys().collect::<Vec<_>>(), ["v1"]);
        client.replace(&volume(1, "n2"), revision).await.unwrap();
        until(&control, |known| known.volumes.is_empty()).await;
        assert_eq!(empty.volumes.len(), 0, "what was given out does not change");
    }
}

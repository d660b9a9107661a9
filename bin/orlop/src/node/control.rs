//! The engine's view of the control plane, over the store's client: questions go to the tokio threads, answers come back
//! to the reactor through a mailbox.
//!
//! Invariants:
//! 1. A write whose answer is unknown is reported as unknown, never as refused.
//! 2. A volume's status is never replaced by one of a lower epoch.
//! 3. What is wished of the node is written as it was found: a report never takes a wish back.

use engine::{Control, ControlError, ControlFuture};
use model::{Node, NodeReplicas, Object, Pool, Stored, Volume, VolumeRecord, VolumeStatus};
use nexus::{RecordError, RecordFuture, Records, Versioned};
use rt::mailbox;
use std::pin::Pin;
use std::rc::Rc;
use store::{Client, ErrorKind};
use tokio::runtime::Handle;
use uuid::Uuid;

/// How often a report is tried again when somebody else writes the same object.
const ATTEMPTS_MAX: usize = 5;

/// The control plane as seen from a reactor.
#[derive(Clone)]
pub(super) struct StoreControl {
    runtime: Handle,
    client: Client,
    changed: mailbox::Receiver<()>,
}

impl StoreControl {
    /// Asks through `client`, on the threads of `runtime`.
    pub(super) fn new(runtime: Handle, client: Client) -> Self {
        let (sender, changed) = mailbox::bounded(1);
        watch::<Volume>(&runtime, &client, &sender);
        watch::<VolumeRecord>(&runtime, &client, &sender);
        Self { runtime, client, changed }
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

    fn list<T: Object>(&self) -> ControlFuture<'_, Vec<T>> {
        let client = self.client.clone();
        Box::pin(async move {
            let items = self.ask(async move { client.list::<T>().await }).await.ok_or_else(gone)?;
            Ok(items.map_err(failed)?.into_iter().map(|item| item.value).collect())
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
            put.await.ok_or_else(gone)?.map_err(failed)
        })
    }
}

/// Tells `changed` whenever an object of this kind changes; one message stands for many.
fn watch<T: Object>(runtime: &Handle, client: &Client, changed: &mailbox::Sender<()>) {
    let (client, changed) = (client.clone(), changed.clone());
    runtime.spawn(async move {
        let mut watch = client.watch::<T>();
        while watch.next().await.is_some() {
            // Full means that the engine has not looked yet: it will see this change as well.
            let _full = changed.try_send(());
        }
    });
}

/// What a report becomes where there is one already; none: what is there stays.
type Over<T> = fn(there: &T, new: T) -> Option<T>;

async fn put<T: Object + PartialEq>(client: &Client, object: &T, over: Over<T>) -> Result<(), store::Error> {
    let mut last = None;
    for _ in 0..ATTEMPTS_MAX {
        let result = match client.get::<T>(&object.key()).await? {
            Some(Stored { revision, value }) => match over(&value, object.clone()) {
                Some(next) if next != value => client.replace(&next, revision).await,
                _ => return Ok(()),
            },
            None => client.create(object).await,
        };
        match result {
            Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => {
                last = Some(error);
            }
            other => return other.map(|_| ()),
        }
    }
    last.map_or(Ok(()), Err)
}

/// Invariant 3.
const KEEP_WISH: Over<Node> = |there, new| Some(Node { spec: there.spec, ..new });

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

    fn nodes(&self) -> ControlFuture<'_, Vec<Node>> {
        self.list()
    }

    fn pools(&self) -> ControlFuture<'_, Vec<Pool>> {
        self.list()
    }

    fn volumes(&self) -> ControlFuture<'_, Vec<Volume>> {
        self.list()
    }

    fn records_of_all(&self) -> ControlFuture<'_, Vec<VolumeRecord>> {
        self.list()
    }

    fn report_node(&self, node: Node) -> ControlFuture<'_, ()> {
        self.report_over(node, KEEP_WISH)
    }

    fn report_pool(&self, pool: Pool) -> ControlFuture<'_, ()> {
        self.report(pool)
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
    use model::{NodeSpec, NodeState, Scheduling};
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
        }
    }

    /// An engine that has just started knows of no wish.
    #[tokio::test]
    async fn a_report_never_takes_a_wish_back() {
        let folder = tempfile::tempdir().unwrap();
        let client = Client::new(Embedded::open(&folder.path().join("store.redb")).unwrap());
        put(&client, &node(1), KEEP_WISH).await.unwrap();
        let Stored { revision, mut value } = client.get::<Node>("n1").await.unwrap().unwrap();
        value.spec.scheduling = Scheduling::Drained;
        client.replace(&value, revision).await.unwrap();
        put(&client, &node(2), KEEP_WISH).await.unwrap();
        let there = client.get::<Node>("n1").await.unwrap().unwrap().value;
        assert_eq!((there.spec.scheduling, there.heartbeat), (Scheduling::Drained, 2));
    }
}

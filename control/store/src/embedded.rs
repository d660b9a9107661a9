//! The store in one redb file, opened by one process, with an fsync for each commit.
//!
//! One thread writes. It takes all writes that wait, applies them in order in one transaction, commits, and only then
//! answers and tells the watchers, so that many writers share one fsync and nobody hears of what is not durable.
//!
//! 1. Revisions come from one counter, kept in the same transaction; none is given twice.
//! 2. A watcher subscribes before it lists, and drops events up to the revision of its list: it misses nothing.

use crate::{
    Error, ErrorKind, Event, Events, Expect, OPERATION_TIMEOUT, Result, Store, StoreFuture, WATCH_EVENTS_MAX,
    wire::decode,
};
use model::{Kind, Stored};
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, Table, TableDefinition};
use serde_json::Value;
use std::{path::Path, sync::Arc, thread::JoinHandle};
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::timeout,
};

/// (kind, key) -> (revision, JSON).
const OBJECTS: TableDefinition<'_, (&str, &str), (u64, &[u8])> = TableDefinition::new("objects");
/// "revision" -> the last revision given; "format" -> the version of this layout.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const FORMAT: u64 = 1;
/// How many writes share one commit at most.
const BATCH_MAX: usize = 256;
/// How many writes wait for the thread at most.
const QUEUE_MAX: usize = 1024;

type ObjectsTable<'txn> = Table<'txn, (&'static str, &'static str), (u64, &'static [u8])>;

struct Write {
    kind: Kind,
    key: String,
    /// None: nothing is there.
    replaces: Option<u64>,
    /// None: delete.
    json: Option<Vec<u8>>,
    answer: oneshot::Sender<Result<u64>>,
}

#[derive(Clone, Debug)]
struct Committed {
    kind: Kind,
    key: String,
    revision: u64,
    json: Option<Arc<[u8]>>,
}

/// The store in one file.
#[derive(Debug)]
pub struct Embedded {
    database: Arc<Database>,
    /// None only while it is being dropped.
    writer: Option<(mpsc::Sender<Write>, JoinHandle<()>)>,
    committed: broadcast::Sender<Committed>,
}

impl Drop for Embedded {
    /// Waits for the last commit: afterwards the file can be opened again.
    fn drop(&mut self) {
        if let Some((writes, thread)) = self.writer.take() {
            drop(writes);
            // It panics only on a bug, which it has reported itself.
            drop(thread.join());
        }
    }
}

impl Embedded {
    /// Opens the store in the file `path`, made if it does not exist; recovers after a crash. Its folder must exist.
    ///
    /// # Errors
    /// `InUse` if another process has it open, `Corrupt` if it is not such a file, `Unavailable` otherwise.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let database =
            Database::builder().set_cache_size(16 << 20).create(path).map_err(|cause| match cause {
                DatabaseError::DatabaseAlreadyOpen => {
                    let context = format!(
                        "store {shown} is in use by another process; stop that one, or choose another folder"
                    );
                    Error::new(ErrorKind::InUse, context)
                }
                DatabaseError::Storage(redb::StorageError::Io(cause)) if is_not_a_store(&cause) => {
                    Error::because(ErrorKind::Corrupt, format!("{shown} is not a store; move it away"), cause)
                }
                cause => {
                    Error::because(ErrorKind::Unavailable, format!("store {shown} cannot be opened"), cause)
                }
            })?;
        initialize(&database).map_err(|cause| match cause {
            InitError::Format(found) => {
                let context = format!(
                    "store {shown} has format {found}, this version knows {FORMAT}; use a newer orlop"
                );
                Error::new(ErrorKind::Corrupt, context)
            }
            InitError::Redb(cause) => {
                Error::because(ErrorKind::Corrupt, format!("store {shown} cannot be read"), cause)
            }
        })?;
        let database = Arc::new(database);
        let (sender, queue) = mpsc::channel(QUEUE_MAX);
        let (committed, _) = broadcast::channel(WATCH_EVENTS_MAX);
        let writer = Writer { database: Arc::clone(&database), committed: committed.clone() };
        let thread =
            std::thread::Builder::new().name("store".into()).spawn(move || writer.run(queue)).map_err(
                |cause| Error::because(ErrorKind::Unavailable, "store: cannot start its thread", cause),
            )?;
        Ok(Self { database, writer: Some((sender, thread)), committed })
    }

    async fn write(
        &self,
        kind: Kind,
        key: &str,
        replaces: Option<u64>,
        json: Option<Vec<u8>>,
    ) -> Result<u64> {
        let (answer, answered) = oneshot::channel();
        let write = Write { kind, key: key.to_owned(), replaces, json, answer };
        let refused =
            |what: &str| Error::new(ErrorKind::Unavailable, format!("{kind}/{key} not written: {what}"));
        let Some((writes, _)) = &self.writer else { return Err(refused("the store is closed")) };
        match timeout(OPERATION_TIMEOUT, writes.send(write)).await {
            Err(_) => return Err(refused("the store's disk is too slow")),
            Ok(Err(_)) => return Err(refused("the store has failed; restart its process")),
            Ok(Ok(())) => {}
        }
        let unknown =
            |what: &str| Error::new(ErrorKind::Unknown, format!("{kind}/{key} may be written: {what}"));
        match timeout(OPERATION_TIMEOUT, answered).await {
            Err(_) => Err(unknown("the store's disk is too slow")),
            Ok(Err(_)) => Err(unknown("the store has failed; restart its process")),
            Ok(Ok(result)) => result,
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        what: String,
        read: impl FnOnce(&Database) -> std::result::Result<T, redb::Error> + Send + 'static,
    ) -> Result<T> {
        let database = Arc::clone(&self.database);
        let reading = tokio::task::spawn_blocking(move || read(&database));
        match timeout(OPERATION_TIMEOUT, reading).await {
            Ok(Ok(Ok(found))) => Ok(found),
            Ok(Ok(Err(cause))) => {
                Err(Error::because(ErrorKind::Unavailable, format!("{what} not read"), cause))
            }
            Ok(Err(cause)) => Err(Error::because(ErrorKind::Unavailable, format!("{what} not read"), cause)),
            Err(_) => Err(Error::new(
                ErrorKind::Unavailable,
                format!("{what} not read: the store's disk is too slow"),
            )),
        }
    }
}

impl Store for Embedded {
    fn get<'a>(&'a self, kind: Kind, key: &'a str) -> StoreFuture<'a, Result<Option<Stored<Value>>>> {
        Box::pin(async move {
            let wanted = key.to_owned();
            let found = self
                .read(format!("{kind}/{key}"), move |database| {
                    let table = database.begin_read()?.open_table(OBJECTS)?;
                    let found = table.get((kind.as_str(), wanted.as_str()))?;
                    Ok(found.map(|entry| (entry.value().0, entry.value().1.to_vec())))
                })
                .await?;
            found.map(|(revision, json)| decode(kind, key, revision, &json)).transpose()
        })
    }

    fn list(&self, kind: Kind) -> StoreFuture<'_, Result<Vec<Stored<Value>>>> {
        Box::pin(async move {
            let (_, entries) = self.read(kind.to_string(), move |database| entries(database, kind)).await?;
            entries.into_iter().map(|(key, revision, json)| decode(kind, &key, revision, &json)).collect()
        })
    }

    fn put<'a>(
        &'a self,
        kind: Kind,
        key: &'a str,
        expect: Expect,
        value: Value,
    ) -> StoreFuture<'a, Result<u64>> {
        let replaces = match expect {
            Expect::Absent => None,
            Expect::Revision(revision) => Some(revision),
        };
        Box::pin(self.write(kind, key, replaces, Some(value.to_string().into_bytes())))
    }

    fn delete<'a>(&'a self, kind: Kind, key: &'a str, revision: u64) -> StoreFuture<'a, Result<()>> {
        Box::pin(async move { self.write(kind, key, Some(revision), None).await.map(|_| ()) })
    }

    fn watch(&self, kind: Kind) -> Events {
        // Invariant 2: subscribed here, before the list is read.
        let committed = self.committed.subscribe();
        let (sender, events) = mpsc::channel(WATCH_EVENTS_MAX);
        let database = Arc::downgrade(&self.database);
        tokio::spawn(async move {
            // Ends with its reader (`Gone`) or with the store.
            let Gone = watch(kind, database, committed, sender).await;
        });
        events
    }
}

/// The reader of a watch, or its store, has gone.
struct Gone;

async fn watch(
    kind: Kind,
    database: std::sync::Weak<Database>,
    mut committed: broadcast::Receiver<Committed>,
    sender: mpsc::Sender<Event>,
) -> Gone {
    loop {
        let Some(database) = database.upgrade() else { return Gone };
        let listed = tokio::task::spawn_blocking(move || entries(&database, kind)).await;
        let Ok(Ok((listed_to, entries))) = listed else {
            tracing::error!(%kind, "a watch ends: the store cannot be read");
            return Gone;
        };
        let items =
            entries.iter().filter_map(|(key, revision, json)| decode(kind, key, *revision, json).ok());
        if sender.send(Event::Relist { items: items.collect() }).await.is_err() {
            return Gone;
        }
        loop {
            let change = tokio::select! {
                change = committed.recv() => change,
                () = sender.closed() => return Gone,
            };
            let event = match change {
                Ok(change) if change.kind != kind || change.revision <= listed_to => continue,
                Ok(Committed { key, revision, json: Some(json), .. }) => {
                    match decode(kind, &key, revision, &json) {
                        Ok(item) => Event::Put { item },
                        Err(_) => continue,
                    }
                }
                Ok(Committed { key, json: None, .. }) => Event::Delete { key },
                Err(broadcast::error::RecvError::Lagged(_)) => break,
                Err(broadcast::error::RecvError::Closed) => return Gone,
            };
            if sender.send(event).await.is_err() {
                return Gone;
            }
        }
    }
}

type Entry = (String, u64, Vec<u8>);

/// The last revision, and all objects of a kind as of then.
fn entries(database: &Database, kind: Kind) -> std::result::Result<(u64, Vec<Entry>), redb::Error> {
    let transaction = database.begin_read()?;
    let revision = transaction.open_table(META)?.get("revision")?.map_or(0, |entry| entry.value());
    let table = transaction.open_table(OBJECTS)?;
    let mut found = Vec::new();
    for entry in table.range((kind.as_str(), "")..)? {
        let (key, value) = entry?;
        if key.value().0 != kind.as_str() {
            break;
        }
        let (revision, json) = value.value();
        found.push((key.value().1.to_owned(), revision, json.to_vec()));
    }
    Ok((revision, found))
}

enum InitError {
    Format(u64),
    Redb(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for InitError {
    fn from(cause: E) -> Self {
        Self::Redb(cause.into())
    }
}

fn initialize(database: &Database) -> std::result::Result<(), InitError> {
    let transaction = database.begin_write()?;
    {
        transaction.open_table(OBJECTS)?;
        let mut meta = transaction.open_table(META)?;
        let format = meta.get("format")?.map(|entry| entry.value());
        match format {
            Some(FORMAT) => {}
            Some(other) => return Err(InitError::Format(other)),
            None => {
                meta.insert("format", FORMAT)?;
            }
        }
    }
    Ok(transaction.commit()?)
}

/// What redb says of a file that it has not made.
fn is_not_a_store(cause: &std::io::Error) -> bool {
    matches!(cause.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof)
}

struct Writer {
    database: Arc<Database>,
    committed: broadcast::Sender<Committed>,
}

impl Writer {
    /// Until the store is dropped, or a commit fails: redb refuses everything after that, and so does the store.
    fn run(self, mut queue: mpsc::Receiver<Write>) {
        let mut batch = Vec::new();
        while queue.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
            if let Err(cause) = self.commit(&mut batch) {
                tracing::error!(%cause, "the store has failed; restart its process");
                for write in batch.drain(..) {
                    let context = format!("{}/{} may be written", write.kind, write.key);
                    let failure = Error::because(ErrorKind::Unknown, context, cause.to_string());
                    // Whoever asked may have gone.
                    drop(write.answer.send(Err(failure)));
                }
                return;
            }
        }
    }

    /// Applies the batch and answers it; on failure the whole batch is left to be answered.
    fn commit(&self, batch: &mut Vec<Write>) -> std::result::Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        let mut outcomes = Vec::with_capacity(batch.len());
        {
            let mut objects = transaction.open_table(OBJECTS)?;
            let mut meta = transaction.open_table(META)?;
            let mut revision = meta.get("revision")?.map_or(0, |entry| entry.value());
            for write in batch.iter() {
                let outcome = apply(&mut objects, write, revision + 1)?;
                revision += u64::from(outcome.is_ok());
                outcomes.push(outcome);
            }
            meta.insert("revision", revision)?;
        }
        if outcomes.iter().any(Result::is_ok) {
            transaction.commit()?;
        } else {
            transaction.abort()?;
        }
        for (write, outcome) in batch.drain(..).zip(outcomes) {
            if let Ok(revision) = outcome {
                let json = write.json.map(Arc::from);
                let change = Committed { kind: write.kind, key: write.key, revision, json };
                // Nobody watching is fine.
                drop(self.committed.send(change));
            }
            drop(write.answer.send(outcome));
        }
        Ok(())
    }
}

fn apply(
    objects: &mut ObjectsTable<'_>,
    write: &Write,
    revision: u64,
) -> std::result::Result<Result<u64>, redb::Error> {
    let path = (write.kind.as_str(), write.key.as_str());
    let present = objects.get(path)?.map(|entry| entry.value().0);
    match (present, write.replaces) {
        (None, Some(_)) => return Ok(Err(Error::not_found(write.kind, &write.key))),
        (present, replaces) if present != replaces => {
            return Ok(Err(Error::conflict(write.kind, &write.key)));
        }
        _ => {}
    }
    match &write.json {
        Some(json) => drop(objects.insert(path, (revision, json.as_slice()))?),
        None => drop(objects.remove(path)?),
    }
    Ok(Ok(revision))
}

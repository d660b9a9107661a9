//! The store with types: what everybody holds. Cheap to clone.

use crate::{
    Error, ErrorKind, Event, Events, Expect, Metrics, NUMBER_MAX, OBJECT_BYTES_MAX, Result, Store,
    StoreFuture,
};
use model::{Kind, Object, Stored};
use serde_json::Value;
use std::{collections::BTreeMap, fmt, marker::PhantomData, sync::Arc, time::Instant};

/// A typed and measured view of a [`Store`].
#[derive(Clone)]
pub struct Client {
    store: Arc<dyn Store>,
    metrics: Metrics,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// A client of `store`.
    pub fn new(store: impl Store) -> Self {
        Self { store: Arc::new(store), metrics: Metrics::default() }
    }

    /// What it has measured so far, shared by its clones.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The object, if there is one.
    pub async fn get<T: Object>(&self, key: &str) -> Result<Option<Stored<T>>> {
        self.get_raw(T::KIND, key).await?.map(parse).transpose()
    }

    /// All objects of a kind, ordered by key. Those that this version does not understand are an error.
    pub async fn list<T: Object>(&self) -> Result<Vec<Stored<T>>> {
        self.list_raw(T::KIND).await?.into_iter().map(parse).collect()
    }

    /// Creates the object; `Conflict` if there is one. Answers its revision.
    pub async fn create<T: Object>(&self, object: &T) -> Result<u64> {
        self.put(object, Expect::Absent).await
    }

    /// Replaces the object if it is still at `revision`. Answers its new revision.
    pub async fn replace<T: Object>(&self, object: &T, revision: u64) -> Result<u64> {
        self.put(object, Expect::Revision(revision)).await
    }

    async fn put<T: Object>(&self, object: &T, expect: Expect) -> Result<u64> {
        let key = object.key();
        let value = serde_json::to_value(object).map_err(|cause| {
            Error::because(ErrorKind::Invalid, format!("{}/{key} cannot be written as JSON", T::KIND), cause)
        })?;
        self.put_raw(T::KIND, &key, expect, value).await
    }

    /// Deletes the object if it is still at `revision`.
    pub async fn delete<T: Object>(&self, key: &str, revision: u64) -> Result<()> {
        self.delete_raw(T::KIND, key, revision).await
    }

    /// Everything of a kind, and then what changes.
    pub fn watch<T: Object>(&self) -> Watch<T> {
        Watch { events: self.watch_raw(T::KIND), object: PhantomData }
    }

    pub(crate) async fn get_raw(&self, kind: Kind, key: &str) -> Result<Option<Stored<Value>>> {
        check_key(kind, key)?;
        self.measure("get", self.store.get(kind, key)).await
    }

    pub(crate) async fn list_raw(&self, kind: Kind) -> Result<Vec<Stored<Value>>> {
        self.measure("list", self.store.list(kind)).await
    }

    pub(crate) async fn put_raw(&self, kind: Kind, key: &str, expect: Expect, value: Value) -> Result<u64> {
        check_key(kind, key)?;
        if let Expect::Revision(revision) = expect {
            check_revision(kind, key, revision)?;
        }
        crate::wire::check(kind, key, &value)?;
        check_numbers(kind, key, &value)?;
        let bytes = value.to_string().len();
        if bytes > OBJECT_BYTES_MAX {
            let context =
                format!("{kind}/{key} refused: {bytes} bytes exceed the limit of {OBJECT_BYTES_MAX}");
            return Err(Error::new(ErrorKind::Invalid, context));
        }
        self.measure("put", self.store.put(kind, key, expect, value)).await
    }

    pub(crate) async fn delete_raw(&self, kind: Kind, key: &str, revision: u64) -> Result<()> {
        check_key(kind, key)?;
        check_revision(kind, key, revision)?;
        self.measure("delete", self.store.delete(kind, key, revision)).await
    }

    pub(crate) fn watch_raw(&self, kind: Kind) -> Events {
        self.store.watch(kind)
    }

    async fn measure<T>(&self, name: &'static str, operation: StoreFuture<'_, Result<T>>) -> Result<T> {
        let start = Instant::now();
        let result = operation.await;
        self.metrics.record(name, start.elapsed(), &result);
        result
    }
}

/// Keys are names and UUIDs, and so never need quoting in a path.
fn check_key(kind: Kind, key: &str) -> Result<()> {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    if (1..=253).contains(&key.len()) && key.bytes().all(allowed) && !key.starts_with('.') {
        return Ok(());
    }
    let shown: String = key.chars().take(80).collect();
    Err(Error::new(ErrorKind::Invalid, format!("{shown:?} cannot be the key of one of the {kind}")))
}

/// Where there is nothing the stores say 0 themselves: a write that names it would create.
fn check_revision(kind: Kind, key: &str, revision: u64) -> Result<()> {
    if revision > 0 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Invalid, format!("{kind}/{key} refused: no object is ever at revision 0")))
}

/// Kubernetes would keep another number than a larger one, without a word.
fn check_numbers(kind: Kind, key: &str, value: &Value) -> Result<()> {
    match value {
        Value::Number(number) if number.as_u64().is_some_and(|number| number > NUMBER_MAX) => {
            let context = format!("{kind}/{key} refused: {number} exceeds the largest number, {NUMBER_MAX}");
            Err(Error::new(ErrorKind::Invalid, context))
        }
        Value::Array(items) => items.iter().try_for_each(|item| check_numbers(kind, key, item)),
        Value::Object(fields) => fields.values().try_for_each(|field| check_numbers(kind, key, field)),
        _ => Ok(()),
    }
}

fn parse<T: Object>(raw: Stored<Value>) -> Result<Stored<T>> {
    let value = serde_json::from_value(raw.value).map_err(|cause| {
        let context = format!("an object of {} in the store is not understood by this version", T::KIND);
        Error::because(ErrorKind::Corrupt, context, cause)
    })?;
    Ok(Stored { revision: raw.revision, value })
}

/// One message of a typed watch.
#[derive(Clone, Debug, PartialEq)]
pub enum Change<T> {
    /// Everything that there is; forget what was told before.
    Relist(Vec<Stored<T>>),
    /// An object was created or replaced.
    Put(Stored<T>),
    /// The object of this key was deleted.
    Delete(String),
}

impl<T: Object> Change<T> {
    /// The change as somebody sees it whom only those objects concern that `concerns` says: others are as if deleted.
    #[must_use]
    pub fn only(self, concerns: impl Fn(&T) -> bool) -> Self {
        match self {
            Self::Relist(items) => {
                Self::Relist(items.into_iter().filter(|item| concerns(&item.value)).collect())
            }
            Self::Put(item) if !concerns(&item.value) => Self::Delete(item.value.key()),
            other => other,
        }
    }

    /// Takes it into `objects`, by key; whether that makes them others than they were.
    pub fn apply(self, objects: &mut BTreeMap<String, Stored<T>>) -> bool {
        match self {
            Self::Relist(items) => {
                let new: BTreeMap<_, _> = items.into_iter().map(|item| (item.value.key(), item)).collect();
                let state = |(key, item): (&String, &Stored<T>)| (key.clone(), item.revision);
                let same = new.iter().map(state).eq(objects.iter().map(state));
                *objects = new;
                !same
            }
            Self::Put(item) => {
                let revision = item.revision;
                let before = objects.insert(item.value.key(), item);
                before.is_none_or(|before| before.revision != revision)
            }
            Self::Delete(key) => objects.remove(&key).is_some(),
        }
    }
}

/// A typed watch.
#[derive(Debug)]
pub struct Watch<T> {
    events: Events,
    object: PhantomData<T>,
}

impl<T: Object> Watch<T> {
    /// The next change; none once the store is closed. Objects that this version does not understand are left out and
    /// logged: absence is never an order (DESIGN section 4).
    pub async fn next(&mut self) -> Option<Change<T>> {
        loop {
            let change = match self.events.recv().await? {
                Event::Relist { items } => {
                    Some(Change::Relist(items.into_iter().filter_map(parse_or_log).collect()))
                }
                Event::Put { item } => parse_or_log(item).map(Change::Put),
                Event::Delete { key } => Some(Change::Delete(key)),
            };
            if change.is_some() {
                return change;
            }
        }
    }
}

fn parse_or_log<T: Object>(raw: Stored<Value>) -> Option<Stored<T>> {
    parse(raw).map_err(|error| tracing::error!(%error, "object left out of a watch")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::VolumeRecord;
    use uuid::Uuid;

    fn at(revision: u64, volume: u128, size_bytes: u64) -> Stored<VolumeRecord> {
        let value = VolumeRecord::new(Uuid::from_u128(volume), size_bytes, 4096, Vec::new());
        Stored { revision, value }
    }

    fn sizes(objects: &BTreeMap<String, Stored<VolumeRecord>>) -> Vec<u64> {
        objects.values().map(|item| item.value.size_bytes).collect()
    }

    #[test]
    fn changes_are_applied_and_tell_whether_they_are_any() {
        let mut objects = BTreeMap::new();
        assert!(!Change::Relist(Vec::new()).apply(&mut objects));
        assert!(Change::Relist(vec![at(1, 1, 10), at(2, 2, 20)]).apply(&mut objects));
        assert!(!Change::Relist(vec![at(2, 2, 20), at(1, 1, 10)]).apply(&mut objects));
        assert!(!Change::Put(at(2, 2, 20)).apply(&mut objects));
        assert!(Change::Put(at(3, 2, 30)).apply(&mut objects));
        assert!(Change::Put(at(4, 3, 40)).apply(&mut objects));
        assert_eq!(sizes(&objects), [10, 30, 40]);
        let key = at(1, 1, 10).value.key();
        assert!(Change::<VolumeRecord>::Delete(key.clone()).apply(&mut objects));
        assert!(!Change::<VolumeRecord>::Delete(key).apply(&mut objects));
        assert!(Change::Relist(vec![at(4, 3, 40)]).apply(&mut objects));
        assert_eq!(sizes(&objects), [40]);
    }

    /// An object that moves out of sight is gone for whom it concerned.
    #[test]
    fn what_concerns_nobody_here_is_as_if_deleted() {
        let small = |record: &VolumeRecord| record.size_bytes < 100;
        let mut objects = BTreeMap::new();
        assert!(Change::Relist(vec![at(1, 1, 10), at(2, 2, 200)]).only(small).apply(&mut objects));
        assert!(!Change::Put(at(3, 2, 300)).only(small).apply(&mut objects));
        assert!(Change::Put(at(4, 1, 400)).only(small).apply(&mut objects));
        assert_eq!(sizes(&objects), [0; 0]);
    }
}

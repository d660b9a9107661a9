//! The store in Kubernetes: what each operation asks of the API server.
//!
//! 1. A creation is two writes: the object, then its status, by the revision that the first gave. A volume's is three: its
//!    UUID is last, so that an object with a UUID and without status is never one that was just begun. Only the last
//!    makes it present, so that a failure before that is `Unavailable`: nothing can be seen of it, now or later.
//! 2. Who meets an object without status while creating goes on with it; of several the compare-and-swap chooses one.
//! 3. Spec and status are two writes where both change, the spec first. Once that is done every failure is `Unknown`.
//!    Where one of them changes it is one write: the wish of an operator and the report of an engine are that.
//! 4. Questions are answered from etcd by the majority: no `resourceVersion` is ever given to a get or a list.
//! 5. The conditions of what is replaced are as they were read, or as the writer of the object wrote them itself: a report
//!    that is one request stays one.
//! 6. No operation takes longer than `OPERATION_TIMEOUT`.

use crate::{
    GROUP, VERSION,
    condition::has_conditions,
    object::{Object, Parts, has_wish},
    server::{Server, Verb, WRITE},
};
use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use model::{Kind, Stored};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};
use store::{
    Error, ErrorKind, Events, Expect, Mandate, OPERATION_TIMEOUT, Result, Store, StoreFuture,
    backend::{self, as_question},
};
use tokio::time::Instant;

/// The store in Kubernetes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Kubernetes {
    pub(crate) server: Server,
    /// Of objects without a wish that were written from here, by key: the revision, and the conditions in it (invariant 5).
    written: Arc<Mutex<HashMap<String, (u64, Value)>>>,
}

/// Of so many objects the conditions are remembered.
const WRITTEN_MAX: usize = 1024;

/// The answer to a deletion: a status, or the object if it is not gone yet.
#[derive(Deserialize)]
struct Deleted {
    #[serde(default)]
    metadata: DeletedMetadata,
}

#[derive(Default, Deserialize)]
struct DeletedMetadata {
    #[serde(default)]
    finalizers: Vec<String>,
}

impl Kubernetes {
    /// The store behind the API server that the configuration names. Connects when it is first needed; must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// `Invalid` if the configuration cannot be used.
    pub fn new(config: &Config) -> Result<Self> {
        Ok(Self { server: Server::new(config)?, written: Arc::default() })
    }

    /// The same by a kubeconfig file and its current context.
    ///
    /// # Errors
    /// `Invalid` if the file cannot be used.
    pub async fn from_kubeconfig(path: &Path) -> Result<Self> {
        let unusable = |cause| {
            Error::because(ErrorKind::Invalid, format!("{} is no usable kubeconfig", path.display()), cause)
        };
        let file = Kubeconfig::read_from(path).map_err(unusable)?;
        let options = KubeConfigOptions::default();
        Self::new(&Config::from_custom_kubeconfig(file, &options).await.map_err(unusable)?)
    }

    /// The same by the service account of the pod in which this runs.
    ///
    /// # Errors
    /// `Invalid` if this does not run in a pod.
    pub fn in_cluster() -> Result<Self> {
        let config = Config::incluster().map_err(|cause| {
            Error::because(ErrorKind::Invalid, "this is no pod with a service account", cause)
        })?;
        Self::new(&config)
    }

    /// What the API server has under this name, present or not.
    async fn find(&self, kind: Kind, key: &str, deadline: Instant) -> Result<Option<Object>> {
        match self.server.ask(&Verb::Get, &path(kind, key), deadline).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(as_question(error)),
        }
    }

    async fn create(&self, kind: Kind, key: &str, parts: &Parts) -> Result<u64> {
        let deadline = Instant::now() + OPERATION_TIMEOUT;
        let beginning = Verb::Create(parts.beginning(kind, key));
        let begun = match self.server.ask(&beginning, &format!("{}?{WRITE}", folder(kind)), deadline).await {
            Err(error) if error.kind() == ErrorKind::Conflict => self.find(kind, key, deadline).await?,
            // Invariant 1.
            begun => Some(begun.map_err(as_question)?),
        };
        // None: it has just been deleted.
        let begun = begun.ok_or_else(|| Error::conflict(kind, key))?;
        // Who creates needs none: that is the API, and a node of its own reports.
        self.complete(kind, &begun, parts, (deadline, &Mandate::default())).await
    }

    /// Makes an object present that is not (invariant 2), by requests before the deadline and with the mandate.
    pub(crate) async fn complete(
        &self,
        kind: Kind,
        begun: &Object,
        parts: &Parts,
        (deadline, mandate): (Instant, &Mandate),
    ) -> Result<u64> {
        let key = &begun.metadata.name;
        let conflict = |error: Error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::Conflict => Error::conflict(kind, key),
            _ => error,
        };
        if begun.is_present(kind) {
            return Err(Error::conflict(kind, key));
        }
        let revision = begun.revision()?;
        mandate.ensure()?;
        // What is wished of a node that is not there yet stays: its engine knows nothing of it.
        if kind != Kind::Volume || begun.has_spec(parts) {
            return self.put_status(kind, key, parts, (revision, None), deadline).await.map_err(conflict);
        }
        // What its user wants is not ours to change: it may lack its UUID, nothing else.
        if !begun.lacks_uuid(parts) {
            return Err(Error::conflict(kind, key));
        }
        let written = self.put_status(kind, key, parts, (revision, None), deadline).await;
        // It is still absent, whatever became of this.
        let revision = written.map_err(as_question).map_err(conflict)?;
        mandate.ensure()?;
        self.put_spec(kind, key, parts, revision, deadline).await.map_err(conflict)
    }

    async fn replace(&self, kind: Kind, key: &str, parts: &Parts, revision: u64) -> Result<u64> {
        let deadline = Instant::now() + OPERATION_TIMEOUT;
        if has_wish(kind) {
            return self.replace_parts(kind, key, parts, revision, deadline).await;
        }
        let before = self.conditions_at(kind, key, revision, deadline).await?;
        match self.put_status(kind, key, parts, (revision, before.as_ref()), deadline).await {
            Err(error) => Err(self.refused(kind, key, error, deadline).await),
            written => written,
        }
    }

    /// The conditions of what is to be replaced (invariant 5).
    async fn conditions_at(
        &self,
        kind: Kind,
        key: &str,
        revision: u64,
        deadline: Instant,
    ) -> Result<Option<Value>> {
        if !has_conditions(kind) {
            return Ok(None);
        }
        if let Some((_, conditions)) = self.written().get(key).filter(|(written, _)| *written == revision) {
            return Ok(Some(conditions.clone()));
        }
        Ok(self.find(kind, key, deadline).await?.and_then(|found| found.conditions().cloned()))
    }

    fn written(&self) -> std::sync::MutexGuard<'_, HashMap<String, (u64, Value)>> {
        // Each entry is whole, whoever panicked.
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn replace_parts(
        &self,
        kind: Kind,
        key: &str,
        parts: &Parts,
        revision: u64,
        deadline: Instant,
    ) -> Result<u64> {
        let found = self.find(kind, key, deadline).await?;
        let found =
            found.filter(|found| found.is_present(kind)).ok_or_else(|| Error::not_found(kind, key))?;
        if found.revision()? != revision {
            return Err(Error::conflict(kind, key));
        }
        let before = found.conditions();
        if found.has_spec(parts) {
            return match self.put_status(kind, key, parts, (revision, before), deadline).await {
                Err(error) => Err(self.refused(kind, key, error, deadline).await),
                written => written,
            };
        }
        let written = match self.put_spec(kind, key, parts, revision, deadline).await {
            Err(error) => return Err(self.refused(kind, key, error, deadline).await),
            Ok(written) => written,
        };
        if found.has_status(parts) {
            return Ok(written);
        }
        // Invariant 3.
        self.put_status(kind, key, parts, (written, before), deadline).await.map_err(|error| {
            Error::because(
                ErrorKind::Unknown,
                format!("{kind}/{key} has its new spec, not its status"),
                error,
            )
        })
    }

    async fn put_spec(
        &self,
        kind: Kind,
        key: &str,
        parts: &Parts,
        revision: u64,
        deadline: Instant,
    ) -> Result<u64> {
        let verb = Verb::Merge(parts.spec_change(revision));
        let object: Object =
            self.server.ask(&verb, &format!("{}?{WRITE}", path(kind, key)), deadline).await?;
        object.revision()
    }

    /// Puts the status in the place of the one at this revision, with these conditions.
    async fn put_status(
        &self,
        kind: Kind,
        key: &str,
        parts: &Parts,
        (revision, before): (u64, Option<&Value>),
        deadline: Instant,
    ) -> Result<u64> {
        let verb = Verb::Replace(parts.status_change(kind, key, revision, before));
        let path = format!("{}/status?{WRITE}", path(kind, key));
        let object: Object = self.server.ask(&verb, &path, deadline).await?;
        let revision = object.revision()?;
        if has_conditions(kind)
            && !has_wish(kind)
            && let Some(conditions) = object.conditions()
        {
            let mut written = self.written();
            if written.len() >= WRITTEN_MAX {
                // What is forgotten costs one question.
                written.clear();
            }
            written.insert(key.to_owned(), (revision, conditions.clone()));
        }
        Ok(revision)
    }

    async fn remove(&self, kind: Kind, key: &str, revision: u64) -> Result<()> {
        let deadline = Instant::now() + OPERATION_TIMEOUT;
        self.written().remove(key);
        let options = json!({
            "apiVersion": "v1", "kind": "DeleteOptions",
            // The revision is never given twice: no UID is needed beside it.
            "preconditions": { "resourceVersion": revision.to_string() },
        });
        let deleted: Deleted = match self.server.ask(&Verb::Delete(options), &path(kind, key), deadline).await
        {
            Ok(deleted) => deleted,
            Err(error) => return Err(self.refused(kind, key, error, deadline).await),
        };
        let finalizers = deleted.metadata.finalizers;
        if finalizers.is_empty() {
            return Ok(());
        }
        let context = format!("{kind}/{key} goes when its finalizers are gone: {}", finalizers.join(", "));
        Err(Error::new(ErrorKind::Unknown, context))
    }

    /// Why a swap failed, in words of the store. Whether there is anything at all is asked only then.
    async fn refused(&self, kind: Kind, key: &str, error: Error, deadline: Instant) -> Error {
        match error.kind() {
            ErrorKind::NotFound => Error::not_found(kind, key),
            ErrorKind::Conflict => match self.find(kind, key, deadline).await {
                Ok(found) if !found.as_ref().is_some_and(|found| found.is_present(kind)) => {
                    Error::not_found(kind, key)
                }
                _ => Error::conflict(kind, key),
            },
            _ => error,
        }
    }
}

/// The path of all objects of a kind.
pub(crate) fn folder(kind: Kind) -> String {
    format!("/apis/{GROUP}/{VERSION}/{kind}")
}

/// The path of an object.
pub(crate) fn path(kind: Kind, key: &str) -> String {
    format!("{}/{key}", folder(kind))
}

impl Store for Kubernetes {
    fn get<'a>(&'a self, kind: Kind, key: &'a str) -> StoreFuture<'a, Result<Option<Stored<Value>>>> {
        Box::pin(async move {
            let found = self.find(kind, key, Instant::now() + OPERATION_TIMEOUT).await?;
            Ok(found.map(|object| object.stored(kind)).transpose()?.flatten())
        })
    }

    fn list(&self, kind: Kind) -> StoreFuture<'_, Result<Vec<Stored<Value>>>> {
        Box::pin(async move {
            let listing = self.server.list(&folder(kind), Instant::now() + OPERATION_TIMEOUT).await?;
            let items = listing.items.into_iter();
            items.filter_map(|object| object.stored(kind).transpose()).collect()
        })
    }

    fn put<'a>(
        &'a self,
        kind: Kind,
        key: &'a str,
        expect: Expect,
        value: Value,
    ) -> StoreFuture<'a, Result<u64>> {
        Box::pin(async move {
            let parts = Parts::of(kind, key, value)?;
            match expect {
                Expect::Absent => self.create(kind, key, &parts).await,
                Expect::Revision(revision) => self.replace(kind, key, &parts, revision).await,
            }
        })
    }

    fn delete<'a>(&'a self, kind: Kind, key: &'a str, revision: u64) -> StoreFuture<'a, Result<()>> {
        Box::pin(self.remove(kind, key, revision))
    }

    fn watch(&self, kind: Kind) -> Events {
        backend::watch(self.clone(), kind)
    }
}

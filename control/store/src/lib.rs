//! Where the nouns of `model` are kept: one trait that promises only what redb, etcd and Kubernetes all have.
//!
//! What it promises of each object, and all that anybody may rely on:
//! 1. A write names the revision that it replaces, or that there is none; else it is refused (`Conflict`, `NotFound`).
//! 2. A write that was answered `Ok` is durable; one answered `Unknown` may have happened, or may still: read it back.
//! 3. A `get` or `list` shows every write that was answered before it was asked.
//! 4. A watch begins with everything (`Relist`), then tells each change in order, and may begin again at any time; it
//!    may skip states of an object that were replaced meanwhile, never the last one.
//!
//! Nothing spans two objects. [`Embedded`] keeps them in a file of this process, [`Remote`] asks the process that has
//! it open, and [`routes`] is how that process answers; [`Etcd`] keeps them in an etcd, and the crate `k8s` in a
//! Kubernetes. Everything goes through a [`Client`], which adds types, checks and measures.

mod client;
mod embedded;
mod error;
mod etcd;
mod http;
mod mandate;
mod metrics;
mod remote;
mod server;
mod wire;

pub use client::{Change, Client, Watch};
pub use embedded::Embedded;
pub use error::{Error, ErrorKind, Result};
pub use etcd::Etcd;
pub use mandate::Mandate;
pub use metrics::Metrics;
pub use remote::Remote;
pub use server::routes;

use model::{Kind, Stored};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::mpsc;

/// What a back-end of another crate shares with those of this one.
pub mod backend {
    pub use crate::http::{ANSWER_BYTES_MAX, End, Lines, Reader, Told, Watched, as_question, watch};
}

/// A future of the store.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a write replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing: it creates.
    Absent,
    /// The object at this revision, which is never 0.
    Revision(u64),
}

impl Expect {
    /// The revision to be replaced; 0 if nothing is.
    pub(crate) const fn revision(self) -> u64 {
        match self {
            Self::Absent => 0,
            Self::Revision(revision) => revision,
        }
    }
}

/// One message of a watch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum Event {
    /// Everything that there is; forget what was told before. Always the first event, and a normal one later.
    Relist {
        /// The objects.
        items: Vec<Stored<Value>>,
    },
    /// An object was created or replaced.
    Put {
        /// The object.
        item: Stored<Value>,
    },
    /// An object was deleted.
    Delete {
        /// Its key.
        key: String,
    },
}

/// The events of a watch; it ends only when the store is closed. Dropping it ends the watch.
pub type Events = mpsc::Receiver<Event>;

/// A place where objects are kept as JSON under (kind, key). See the invariants of the crate.
pub trait Store: Send + Sync + 'static {
    /// The object, if there is one.
    fn get<'a>(&'a self, kind: Kind, key: &'a str) -> StoreFuture<'a, Result<Option<Stored<Value>>>>;

    /// All objects of the kind, ordered by key.
    fn list(&self, kind: Kind) -> StoreFuture<'_, Result<Vec<Stored<Value>>>>;

    /// Creates or replaces the object if it is as expected, and answers its new revision.
    fn put<'a>(
        &'a self,
        kind: Kind,
        key: &'a str,
        expect: Expect,
        value: Value,
    ) -> StoreFuture<'a, Result<u64>>;

    /// Deletes the object if it is still at this revision.
    fn delete<'a>(&'a self, kind: Kind, key: &'a str, revision: u64) -> StoreFuture<'a, Result<()>>;

    /// Everything of the kind, and then what changes.
    fn watch(&self, kind: Kind) -> Events;
}

/// The largest object, as JSON. Kubernetes allows 1.5 MiB.
pub const OBJECT_BYTES_MAX: usize = 1 << 20;

/// The largest number in an object: one in Kubernetes has 64 bits with a sign.
pub const NUMBER_MAX: u64 = i64::MAX.cast_unsigned();

/// How many events a watch holds for a slow reader before it begins again with a list.
const WATCH_EVENTS_MAX: usize = 1024;

/// How long an operation may take before its outcome is called unknown.
pub const OPERATION_TIMEOUT: Duration = Duration::from_secs(10);

/// How often an idle watch over HTTP says that it is alive; a client that hears nothing for three of them reconnects.
const WATCH_ALIVE_INTERVAL: Duration = Duration::from_secs(5);

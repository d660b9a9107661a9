//! The store of another process, over HTTP. `crate::wire` says what travels.
//!
//! 1. A write whose answer did not arrive is `Unknown`, unless the connection was never made.
//! 2. A watch that breaks, or is silent for three intervals, is made again, and begins with a `Relist`.

use crate::{
    Error, ErrorKind, Events, Expect, Result, Store, StoreFuture, WATCH_ALIVE_INTERVAL,
    http::{self, End, Lines, Reader, Server, Watched},
    wire::{Failure, Line, List, PREFIX, Revision},
};
use hyper::{Method, StatusCode};
use model::{Kind, Stored};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::Duration;
use tokio::time::timeout;

/// How long a request may take. Longer than the server's own limit, so that its answer, not silence, is the rule.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(12);

/// The store of the process at an address.
#[derive(Clone, Debug)]
pub struct Remote {
    server: Server,
}

impl Remote {
    /// A client of the store at `base`, such as `http://127.0.0.1:7070`. Connects when it is first needed.
    pub fn new(base: &str) -> Self {
        Self { server: Server::new("the store", base) }
    }

    /// Sends a request and understands the answer; every failure after the connection is `Unknown` (invariant 1).
    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&Value>) -> Result<T> {
        let unknown = |what: &str| self.server.error(ErrorKind::Unknown, format!("{what}; asked for {path}"));
        let path = format!("{PREFIX}/{path}");
        let exchange = self.server.exchange(method, &path, body.map(Value::to_string).unwrap_or_default());
        let (status, bytes) =
            timeout(REQUEST_TIMEOUT, exchange).await.map_err(|_| unknown("did not answer in time"))??;
        if status == StatusCode::OK {
            return serde_json::from_slice(&bytes)
                .map_err(|_| unknown("gave an answer that is not understood"));
        }
        let failure: Failure = serde_json::from_slice(&bytes)
            .map_err(|_| unknown(&format!("answered {status} without a reason")))?;
        Err(Error::new(failure.kind, failure.message))
    }

    async fn ask_read<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(Method::GET, path, None).await.map_err(http::as_question)
    }
}

impl Watched for Remote {
    async fn watch_once(&self, kind: Kind, reader: &mut Reader) -> Result<End> {
        let unavailable = |what: &str| self.server.error(ErrorKind::Unavailable, what);
        let patience = 3 * WATCH_ALIVE_INTERVAL;
        let path = format!("{PREFIX}/watch/{kind}");
        let opening = self.server.send(Method::GET, &path, String::new());
        let response = timeout(patience, opening).await.map_err(|_| unavailable("is silent"))??;
        if response.status() != StatusCode::OK {
            return Err(unavailable(&format!("answered {}", response.status())));
        }
        let mut lines = Lines::new(response.into_body());
        loop {
            let line = tokio::select! {
                line = timeout(patience, lines.next()) => line.map_err(|_| unavailable("is silent"))??,
                () = reader.gone() => return Ok(End::ReaderGone),
            };
            match serde_json::from_slice(&line) {
                Ok(Line::Alive { .. }) => {}
                Ok(Line::Event(event)) => {
                    // The server holds what there is no place for, and itself begins again when that is too much.
                    if let Err(end) = reader.tell(event).await {
                        return Ok(end);
                    }
                }
                Err(_) => return Err(unavailable("told something that is not understood")),
            }
        }
    }
}

impl Store for Remote {
    fn get<'a>(&'a self, kind: Kind, key: &'a str) -> StoreFuture<'a, Result<Option<Stored<Value>>>> {
        Box::pin(async move {
            match self.ask_read(&format!("{kind}/{key}")).await {
                Ok(stored) => Ok(Some(stored)),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    fn list(&self, kind: Kind) -> StoreFuture<'_, Result<Vec<Stored<Value>>>> {
        Box::pin(async move {
            let List { items } = self.ask_read(kind.as_str()).await?;
            Ok(items)
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
            let path = format!("{kind}/{key}?revision={}", expect.revision());
            let Revision { revision } = self.ask(Method::PUT, &path, Some(&value)).await?;
            Ok(revision)
        })
    }

    fn delete<'a>(&'a self, kind: Kind, key: &'a str, revision: u64) -> StoreFuture<'a, Result<()>> {
        Box::pin(async move {
            let path = format!("{kind}/{key}?revision={revision}");
            let Revision { .. } = self.ask(Method::DELETE, &path, None).await?;
            Ok(())
        })
    }

    fn watch(&self, kind: Kind) -> Events {
        // Invariant 2: each connection begins with a relist.
        http::watch(self.clone(), kind)
    }
}

//! The store of another process, over HTTP. `crate::wire` says what travels.
//!
//! 1. A write whose answer did not arrive is `Unknown`, unless the connection was never made.
//! 2. A watch that breaks, or is silent for three intervals, is made again, and begins with a `Relist`.

use crate::{
    Error, ErrorKind, Event, Events, Expect, Result, Store, StoreFuture, WATCH_ALIVE_INTERVAL,
    WATCH_EVENTS_MAX,
    wire::{Failure, Line, List, PREFIX, Revision},
};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use model::{Kind, Stored};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::Duration;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

/// How long a request may take. Longer than the server's own limit, so that its answer, not silence, is the rule.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(12);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The largest answer: a list of 100,000 objects of some 2 KiB.
const ANSWER_BYTES_MAX: usize = 256 << 20;
const RECONNECT_DELAY: Duration = Duration::from_millis(250);

/// The store of the process at an address.
#[derive(Clone, Debug)]
pub struct Remote {
    http: HttpClient<HttpConnector, Full<Bytes>>,
    /// `http://host:port`, without a path.
    base: String,
}

impl Remote {
    /// A client of the store at `base`, such as `http://127.0.0.1:7070`. Connects when it is first needed.
    pub fn new(base: &str) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let http = HttpClient::builder(TokioExecutor::new()).build(connector);
        Self { http, base: base.trim_end_matches('/').to_owned() }
    }

    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Response<Incoming>> {
        let Self { base, http } = self;
        let request = Request::builder()
            .method(method)
            .uri(format!("{base}{PREFIX}/{path}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body.map(Value::to_string).unwrap_or_default()))
            .map_err(|cause| {
                Error::because(ErrorKind::Invalid, format!("{base} is not the address of a store"), cause)
            })?;
        http.request(request).await.map_err(|cause| {
            if cause.is_connect() {
                Error::because(
                    ErrorKind::Unavailable,
                    format!("the store at {base} cannot be reached"),
                    cause,
                )
            } else {
                Error::because(ErrorKind::Unknown, format!("the store at {base} hung up"), cause)
            }
        })
    }

    /// Sends a request and understands the answer; every failure after the connection is `Unknown` (invariant 1).
    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&Value>) -> Result<T> {
        let unknown = |what: &str| {
            Error::new(ErrorKind::Unknown, format!("the store at {} {what}; asked for {path}", self.base))
        };
        let exchange = async {
            let response = self.send(method, path, body).await?;
            let status = response.status();
            let answer = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let bytes = answer.map_err(|_| unknown("broke off its answer"))?.to_bytes();
            if status == StatusCode::OK {
                return serde_json::from_slice(&bytes)
                    .map_err(|_| unknown("gave an answer that is not understood"));
            }
            let failure: Failure = serde_json::from_slice(&bytes)
                .map_err(|_| unknown(&format!("answered {status} without a reason")))?;
            Err(Error::new(failure.kind, failure.message))
        };
        timeout(REQUEST_TIMEOUT, exchange).await.unwrap_or_else(|_| Err(unknown("did not answer in time")))
    }

    /// A question changes nothing: what is unknown about it is only that there was no answer.
    async fn ask_read<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(Method::GET, path, None).await.map_err(|error| match error.kind() {
            ErrorKind::Unknown => Error::new(ErrorKind::Unavailable, error.to_string()),
            _ => error,
        })
    }

    /// One connection of a watch, until it breaks or its reader has gone.
    async fn watch_once(&self, kind: Kind, sender: &mpsc::Sender<Event>, reported: &mut bool) -> Result<()> {
        let silent = || Error::new(ErrorKind::Unavailable, format!("the store at {} is silent", self.base));
        let broken = |what: &str| Error::new(ErrorKind::Unavailable, format!("watch of {kind}: {what}"));
        let patience = 3 * WATCH_ALIVE_INTERVAL;
        let path = format!("watch/{kind}");
        let opening = self.send(Method::GET, &path, None);
        let response = timeout(patience, opening).await.map_err(|_| silent())??;
        if response.status() != StatusCode::OK {
            return Err(broken(&format!("the store at {} answered {}", self.base, response.status())));
        }
        let mut body = response.into_body();
        let mut unread = BytesMut::new();
        loop {
            let frame = tokio::select! {
                frame = timeout(patience, body.frame()) => frame.map_err(|_| silent())?,
                () = sender.closed() => return Ok(()),
            };
            let frame = frame.ok_or_else(|| broken("the store has closed it"))?;
            let data = frame.map_err(|_| broken("the connection broke"))?.into_data().unwrap_or_default();
            // Only new bytes are searched, so that a long line costs its length once.
            let mut searched = unread.len();
            unread.extend_from_slice(&data);
            while let Some(end) = unread[searched..].iter().position(|byte| *byte == b'\n') {
                let line = unread.split_to(searched + end + 1);
                searched = 0;
                match serde_json::from_slice(&line) {
                    Ok(Line::Alive { .. }) => {}
                    Ok(Line::Event(event)) => {
                        *reported = false;
                        if sender.send(event).await.is_err() {
                            return Ok(());
                        }
                    }
                    Err(_) => return Err(broken("a line is not understood")),
                }
            }
            if unread.len() > ANSWER_BYTES_MAX {
                return Err(broken("a line is too long"));
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
        let replaces = match expect {
            Expect::Absent => 0,
            Expect::Revision(revision) => revision,
        };
        Box::pin(async move {
            let path = format!("{kind}/{key}?revision={replaces}");
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
        let (sender, events) = mpsc::channel(WATCH_EVENTS_MAX);
        let remote = self.clone();
        tokio::spawn(async move {
            let mut reported = false;
            while !sender.is_closed() {
                // Invariant 2: each connection begins with a relist.
                match remote.watch_once(kind, &sender, &mut reported).await {
                    Ok(()) => return,
                    Err(error) if !reported => {
                        tracing::warn!(%kind, %error, "a watch broke; trying again");
                        reported = true;
                    }
                    Err(_) => {}
                }
                sleep(RECONNECT_DELAY).await;
            }
        });
        events
    }
}

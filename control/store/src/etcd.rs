//! The store in an etcd (3.4 or newer), by its JSON gateway: each object is one key, `/orlop/KIND/KEY`.
//!
//! Plain `http` only so far: etcd's TLS and users are refused when the store is configured, or by etcd itself.
//!
//! 1. The revision of an object is etcd's `mod_revision`, which grows over all keys and is given once.
//! 2. A write is one transaction that compares that revision. It is sent to the next endpoint only if it is certain
//!    that nothing was done; else it is `Unknown`.
//! 3. A question is answered by the majority (linearizable), so that a member which was cut off cannot give old data.
//! 4. No operation takes longer than `OPERATION_TIMEOUT`.

mod endpoint;
mod watch;
mod wire;

use crate::{
    Error, ErrorKind, Events, Expect, OPERATION_TIMEOUT, Result, Store, StoreFuture,
    http::{self, Server},
    wire::decode,
};
use endpoint::{Change, Endpoint, Listing, Span, Swap};
use hyper::Uri;
use model::{Kind, Stored};
use serde_json::Value;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tokio::time::{Instant, timeout_at};

/// Below which prefix the keys are, unless told otherwise.
const PREFIX: &str = "/orlop/";
const ENDPOINTS_MAX: usize = 9;
/// A question is asked twice at least: a list may meet a compaction, a kept connection a server that was restarted.
const ATTEMPTS_MIN: usize = 2;

/// The store in an etcd.
#[derive(Clone, Debug)]
pub struct Etcd {
    endpoints: Arc<[Endpoint]>,
    /// The endpoint to ask first: the last one that answered.
    first: Arc<AtomicUsize>,
    prefix: String,
}

impl Etcd {
    /// A client of the etcd at `endpoints`: `http://host:port`, several with commas between. Connects when needed.
    ///
    /// # Errors
    /// `Invalid` if one of them is no such address.
    pub fn new(endpoints: &str) -> Result<Self> {
        let endpoints = endpoints.split(',').map(parse_endpoint).collect::<Result<Vec<_>>>()?;
        if endpoints.len() > ENDPOINTS_MAX {
            let context = format!("{} endpoints of one etcd; name at most {ENDPOINTS_MAX}", endpoints.len());
            return Err(Error::new(ErrorKind::Invalid, context));
        }
        Ok(Self { endpoints: endpoints.into(), first: Arc::default(), prefix: PREFIX.to_owned() })
    }

    /// The same with its keys below `prefix`, for clusters that share one etcd.
    ///
    /// # Errors
    /// `Invalid` if it does not begin and end with `/`.
    pub fn with_prefix(self, prefix: &str) -> Result<Self> {
        if prefix.len() > 1 && prefix.starts_with('/') && prefix.ends_with('/') {
            return Ok(Self { prefix: prefix.to_owned(), ..self });
        }
        let context = format!("{prefix:?} cannot be a prefix in etcd; write one such as {PREFIX}");
        Err(Error::new(ErrorKind::Invalid, context))
    }

    /// The number of the endpoint to ask, and the endpoint.
    fn endpoint(&self) -> (usize, &Endpoint) {
        let number = self.first.load(Ordering::Relaxed);
        (number, &self.endpoints[number])
    }

    /// That endpoint has failed; who asks next asks the one after it. Many may say so, the first one is heard.
    fn leave(&self, number: usize) {
        let next = (number + 1) % self.endpoints.len();
        // Somebody else was faster.
        self.first.compare_exchange(number, next, Ordering::Relaxed, Ordering::Relaxed).ok();
    }

    /// The path of all objects of a kind; a key comes behind it.
    fn folder(&self, kind: Kind) -> String {
        format!("{}{kind}/", self.prefix)
    }

    fn stored(&self, kind: Kind, found: &wire::KeyValue) -> Result<Stored<Value>> {
        decode(kind, &self.key(kind, found)?, found.mod_revision, &found.value)
    }

    fn key(&self, kind: Kind, found: &wire::KeyValue) -> Result<String> {
        let path = String::from_utf8_lossy(&found.key);
        path.strip_prefix(&self.folder(kind)).map(str::to_owned).ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, format!("etcd answered with {path:?} when asked for {kind}"))
        })
    }

    /// What there is in the span, asked of one endpoint after the other.
    async fn read(&self, span: &Span) -> Result<Listing> {
        let attempts = self.endpoints.len().max(ATTEMPTS_MIN);
        let patience = OPERATION_TIMEOUT / u32::try_from(attempts).unwrap_or(u32::MAX);
        let mut failed = 0;
        loop {
            let (number, endpoint) = self.endpoint();
            let error = match endpoint.list(span, patience).await {
                Ok(listing) => return Ok(listing),
                Err(error) => error,
            };
            self.leave(number);
            failed += 1;
            if failed == attempts || error.kind() != ErrorKind::Unavailable {
                return Err(error);
            }
        }
    }

    /// Changes an object if it is at a revision (0: there is none). Answers the new revision.
    async fn write(&self, kind: Kind, key: &str, revision: u64, change: Change) -> Result<u64> {
        let path = format!("{}{key}", self.folder(kind));
        match self.swap(&path, revision, &change).await? {
            Swap::Done { revision } => Ok(revision),
            Swap::Refused { present: false } if revision != 0 => Err(Error::not_found(kind, key)),
            Swap::Refused { .. } => Err(Error::conflict(kind, key)),
        }
    }

    async fn swap(&self, path: &str, revision: u64, change: &Change) -> Result<Swap> {
        let deadline = Instant::now() + OPERATION_TIMEOUT;
        let mut failed = 0;
        loop {
            let (number, endpoint) = self.endpoint();
            let swapped = timeout_at(deadline, endpoint.swap(path, revision, change)).await;
            let error = match swapped {
                Ok(Ok(swap)) => return Ok(swap),
                Ok(Err(error)) => error,
                Err(_) => endpoint
                    .error(ErrorKind::Unknown, format!("did not answer in time; {path} may be written")),
            };
            self.leave(number);
            failed += 1;
            // Invariant 2: only what is `Unavailable` has certainly not happened.
            if failed == self.endpoints.len() || error.kind() != ErrorKind::Unavailable {
                return Err(error);
            }
        }
    }
}

fn parse_endpoint(text: &str) -> Result<Endpoint> {
    let text = text.trim();
    let address = text.parse::<Uri>().ok().filter(|uri| {
        let host =
            uri.authority().is_some_and(|host| !host.host().is_empty() && !host.as_str().contains('@'));
        uri.scheme_str() == Some("http") && host && uri.path_and_query().is_none_or(|path| path == "/")
    });
    if address.is_none() {
        let context =
            format!("{text:?} is not the address of an etcd; write http://HOST:PORT (TLS: not yet)");
        return Err(Error::new(ErrorKind::Invalid, context));
    }
    Ok(Endpoint::new(Server::new("etcd", text)))
}

impl Store for Etcd {
    fn get<'a>(&'a self, kind: Kind, key: &'a str) -> StoreFuture<'a, Result<Option<Stored<Value>>>> {
        Box::pin(async move {
            let found = self.read(&Span::of_key(&format!("{}{key}", self.folder(kind)))).await?;
            found.items.first().map(|item| self.stored(kind, item)).transpose()
        })
    }

    fn list(&self, kind: Kind) -> StoreFuture<'_, Result<Vec<Stored<Value>>>> {
        Box::pin(async move {
            let found = self.read(&Span::of_folder(&self.folder(kind))).await?;
            found.items.iter().map(|item| self.stored(kind, item)).collect()
        })
    }

    fn put<'a>(
        &'a self,
        kind: Kind,
        key: &'a str,
        expect: Expect,
        value: Value,
    ) -> StoreFuture<'a, Result<u64>> {
        Box::pin(self.write(kind, key, expect.revision(), Change::Put(value.to_string())))
    }

    fn delete<'a>(&'a self, kind: Kind, key: &'a str, revision: u64) -> StoreFuture<'a, Result<()>> {
        Box::pin(async move { self.write(kind, key, revision, Change::Delete).await.map(drop) })
    }

    fn watch(&self, kind: Kind) -> Events {
        http::watch(self.clone(), kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked() {
        assert_eq!(
            Etcd::new("http://127.0.0.1:2379, http://[::1]:2379/,http://a").unwrap().endpoints.len(),
            3
        );
        for bad in
            ["", "127.0.0.1:2379", "https://a:1", "http://a:1/v3", "http://", "http://a,", "http://a b"]
        {
            let error = Etcd::new(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{bad}: {error}");
        }
        assert!(Etcd::new(&["http://a"; 10].join(",")).is_err());
        for bad in ["", "/", "orlop/", "/orlop"] {
            assert!(Etcd::new("http://a").unwrap().with_prefix(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_endpoint_is_left_once() {
        let etcd = Etcd::new("http://a,http://b,http://c").unwrap();
        etcd.leave(0);
        etcd.leave(0);
        assert_eq!(etcd.endpoint().0, 1);
        etcd.leave(1);
        etcd.leave(2);
        assert_eq!(etcd.endpoint().0, 0);
    }
}

//! One endpoint of an etcd: what is asked of it, and what its refusals mean.
//!
//! 1. A list of several pages is one state of the store: all pages are read at the revision of the first.
//! 2. A refusal is `Invalid` or `Unavailable` only if etcd says it before it tries; everything else is `Unknown`.

use super::wire::{KeyValue, Range, Refusal, Txn, base64};
use crate::{
    Error, ErrorKind, Result,
    http::{ANSWER_BYTES_MAX, Lines, Server, as_question},
};
use hyper::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{fmt, time::Duration};
use tokio::time::timeout;

/// Keys in one answer. So many of the largest objects, in base64, are an answer that is still taken.
const PAGE_KEYS: usize = 128;

/// Some keys in order.
#[derive(Clone, Debug)]
pub(super) struct Span {
    from: String,
    /// The first key behind it; none: `from` alone.
    end: Option<String>,
}

impl Span {
    /// This key.
    pub(super) fn of_key(key: &str) -> Self {
        Self { from: key.to_owned(), end: None }
    }

    /// All keys that begin with `folder`, which ends with `/`.
    pub(super) fn of_folder(folder: &str) -> Self {
        // The character after the slash.
        let end = folder.strip_suffix('/').map(|name| format!("{name}0"));
        Self { from: folder.to_owned(), end }
    }

    /// As a part of a question.
    fn json(&self) -> Value {
        let mut question = json!({ "key": base64(&self.from) });
        if let Some(end) = &self.end {
            question["range_end"] = base64(end).into();
        }
        question
    }
}

/// What there was in a span at a revision.
pub(super) struct Listing {
    pub(super) revision: u64,
    pub(super) items: Vec<KeyValue>,
}

/// What a write does.
pub(super) enum Change {
    Put(String),
    Delete,
}

/// The answer to a write.
pub(super) enum Swap {
    /// It was done, and this is the revision since.
    Done { revision: u64 },
    /// The object was not as expected; nothing was done.
    Refused { present: bool },
}

/// One endpoint.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    server: Server,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.server.fmt(f)
    }
}

impl Endpoint {
    pub(super) fn new(server: Server) -> Self {
        Self { server }
    }

    pub(super) fn error(&self, kind: ErrorKind, what: impl fmt::Display) -> Error {
        self.server.error(kind, what)
    }

    /// What there is in the span, within a time.
    pub(super) async fn list(&self, span: &Span, patience: Duration) -> Result<Listing> {
        let silent = |_| self.error(ErrorKind::Unavailable, "did not answer in time");
        timeout(patience, self.list_pages(span)).await.map_err(silent)?.map_err(as_question)
    }

    async fn list_pages(&self, span: &Span) -> Result<Listing> {
        let mut question = span.json();
        question["limit"] = PAGE_KEYS.to_string().into();
        let Range { header, kvs: mut items, mut more } = self.ask("/v3/kv/range", &question).await?;
        // Invariant 1. The header of a later page tells a later revision.
        question["revision"] = header.revision.to_string().into();
        let mut bytes = bytes_of(&items);
        while let (true, Some(last)) = (more, items.last()) {
            question["key"] = base64([last.key.as_slice(), &[0]].concat()).into();
            let page: Range = self.ask("/v3/kv/range", &question).await?;
            bytes += bytes_of(&page.kvs);
            if bytes > ANSWER_BYTES_MAX {
                let what = format!("holds too much of one kind: more than {ANSWER_BYTES_MAX} bytes");
                return Err(self.error(ErrorKind::Corrupt, what));
            }
            items.extend(page.kvs);
            more = page.more;
        }
        Ok(Listing { revision: header.revision, items })
    }

    /// Changes a key if it is at the revision (0: not there).
    pub(super) async fn swap(&self, key: &str, revision: u64, change: &Change) -> Result<Swap> {
        let key = base64(key);
        let change = match change {
            Change::Put(value) => json!({ "request_put": { "key": key, "value": base64(value) } }),
            Change::Delete => json!({ "request_delete_range": { "key": key } }),
        };
        let question = json!({
            "compare": [{ "target": "MOD", "key": key, "mod_revision": revision.to_string() }],
            "success": [change],
            // In the same transaction: what was refused is told apart from what happened just afterwards.
            "failure": [{ "request_range": { "key": key, "keys_only": true } }],
        });
        let answer: Txn = self.ask("/v3/kv/txn", &question).await?;
        if answer.succeeded {
            return Ok(Swap::Done { revision: answer.header.revision });
        }
        let found = answer.responses.into_iter().find_map(|response| response.response_range);
        Ok(Swap::Refused { present: found.is_some_and(|found| !found.kvs.is_empty()) })
    }

    /// Opens a watch of the changes from `revision` on; the lines are [`super::wire::WatchLine`]s.
    pub(super) async fn watch(&self, span: &Span, revision: u64, patience: Duration) -> Result<Lines> {
        let mut request = span.json();
        request["start_revision"] = revision.to_string().into();
        // Else all that happened while the connection was slow is one line.
        request["fragment"] = true.into();
        request["progress_notify"] = true.into();
        let body = json!({ "create_request": request }).to_string();
        let opening = self.server.send(Method::POST, "/v3/watch", body);
        let silent = |_| self.error(ErrorKind::Unavailable, "is silent");
        let response = timeout(patience, opening).await.map_err(silent)??;
        if response.status() != StatusCode::OK {
            let status = response.status();
            return Err(self.error(ErrorKind::Unavailable, format!("refused to be watched with {status}")));
        }
        Ok(Lines::new(response.into_body()))
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str, question: &Value) -> Result<T> {
        let (status, bytes) = self.server.exchange(Method::POST, path, question.to_string()).await?;
        if status == StatusCode::OK {
            return serde_json::from_slice(&bytes)
                .map_err(|_| self.error(ErrorKind::Unknown, "gave an answer that is not understood"));
        }
        let (kind, reason) = refusal(status, &bytes);
        Err(self.error(kind, format!("refused with {status}: {reason}")))
    }
}

fn bytes_of(items: &[KeyValue]) -> usize {
    items.iter().map(|item| item.key.len() + item.value.len()).sum()
}

/// What a refusal means for a write (invariant 2).
fn refusal(status: StatusCode, body: &[u8]) -> (ErrorKind, String) {
    if status == StatusCode::NOT_FOUND {
        return (ErrorKind::Unavailable, "it has no /v3 gateway; is it an etcd of 3.4 or newer?".into());
    }
    let Ok(Refusal { code, message }) = serde_json::from_slice(body) else {
        return (ErrorKind::Unknown, "no reason given".into());
    };
    let kind = match code {
        // Invalid argument, such as a request that is too large.
        3 => ErrorKind::Invalid,
        // Permission denied; not implemented; unauthenticated.
        7 | 12 | 16 => ErrorKind::Unavailable,
        // Time-outs and lost leaders: the proposal may be on its way. And "database space exceeded", which is also said
        // of the write that filled the database, and that is kept.
        _ => ErrorKind::Unknown,
    };
    (kind, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_whether_something_may_have_happened() {
        let kind = |status, body: &str| refusal(StatusCode::from_u16(status).unwrap(), body.as_bytes()).0;
        let timed_out = r#"{"error":"x","message":"etcdserver: request timed out","code":14}"#;
        assert_eq!(kind(503, timed_out), ErrorKind::Unknown);
        let full = r#"{"error":"x","message":"etcdserver: mvcc: database space exceeded","code":8}"#;
        assert_eq!(kind(429, full), ErrorKind::Unknown);
        let users = r#"{"error":"x","message":"etcdserver: user name not found","code":16}"#;
        assert_eq!(kind(401, users), ErrorKind::Unavailable);
        let too_large = r#"{"error":"x","message":"etcdserver: request is too large","code":3}"#;
        assert_eq!(kind(400, too_large), ErrorKind::Invalid);
        assert_eq!(kind(404, "Not Found\n"), ErrorKind::Unavailable);
        assert_eq!(kind(502, "<html>"), ErrorKind::Unknown);
    }

    #[test]
    fn a_folder_is_not_its_neighbour() {
        let Span { from, end } = Span::of_folder("/orlop/volumes/");
        let end = end.unwrap();
        let within = |key: &str| from.as_str() <= key && key < end.as_str();
        assert!(within("/orlop/volumes/a") && within("/orlop/volumes/zz"));
        assert!(!within("/orlop/volumestatuses/a") && !within("/orlop/volumes") && !within("/orlop/pools/a"));
    }
}

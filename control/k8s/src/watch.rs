//! A watch of one kind over one connection after the other to the API server.
//!
//! 1. It tells the list as of revision R, then every change after R. An API server ends its watches after the time that
//!    it was given; the next one goes on where that has ended. When it cannot it begins again with a list: after a
//!    compaction, an error, a broken connection, or when its reader is further behind than its queue is long.
//! 2. Silence is no sign of life: a watch that has not ended in its time is dead. A machine that is gone is noticed
//!    sooner, by the kernel (`server`, invariant 5).
//! 3. What becomes absent (`lib`, invariant 2) is told as deleted.

use crate::{
    kubernetes::{Kubernetes, folder},
    object::Object,
};
use model::Kind;
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;
use store::{
    Error, ErrorKind, Event, OPERATION_TIMEOUT, Result,
    backend::{End, Reader, Watched},
};
use tokio::time::{Instant, timeout_at};

/// How long one watch lasts. Opening the next costs the API server one request, and no list.
const WATCH_LASTS: Duration = Duration::from_secs(60);
/// A watch that ends sooner has not been one.
const WATCH_LASTS_MIN: Duration = Duration::from_secs(1);

/// One line of a watch.
#[derive(Debug, Deserialize)]
struct Line {
    #[serde(rename = "type")]
    what: String,
    object: Value,
}

/// How one connection has ended.
enum Ended {
    /// In its time; the next one begins after this revision.
    InTime(String),
    /// With a reason.
    With(End),
}

impl Watched for Kubernetes {
    async fn watch_once(&self, kind: Kind, reader: &mut Reader) -> Result<End> {
        // Not before: a reader that is far behind would be told everything again and again.
        if let Err(end) = reader.caught_up().await {
            return Ok(end);
        }
        let listing = self.server.list(&folder(kind), Instant::now() + OPERATION_TIMEOUT).await?;
        let items = listing.items.into_iter();
        let items = items.filter_map(|object| object.stored(kind).map_err(log).ok().flatten()).collect();
        if let Err(end) = reader.tell(Event::Relist { items }).await {
            return Ok(end);
        }
        let mut revision = listing.revision;
        loop {
            match self.follow(kind, revision, reader).await? {
                Ended::InTime(next) => revision = next,
                Ended::With(end) => return Ok(end),
            }
        }
    }
}

impl Kubernetes {
    /// Tells what changes after `revision`, over one connection.
    async fn follow(&self, kind: Kind, mut revision: String, reader: &mut Reader) -> Result<Ended> {
        let begun = Instant::now();
        let deadline = begun + OPERATION_TIMEOUT;
        let opened = self.server.watch(&folder(kind), &revision, WATCH_LASTS, deadline).await?;
        let Some(mut lines) = opened else { return Ok(Ended::With(End::Relist)) };
        let deadline = deadline + WATCH_LASTS;
        loop {
            let line = tokio::select! {
                line = timeout_at(deadline, lines.next_or_end()) => line.map_err(|_| self.dead("is silent"))??,
                () = reader.gone() => return Ok(Ended::With(End::ReaderGone)),
            };
            let Some(line) = line else {
                return if begun.elapsed() < WATCH_LASTS_MIN {
                    Err(self.dead("ended the watch"))
                } else {
                    Ok(Ended::InTime(revision))
                };
            };
            let line: Line = serde_json::from_slice(&line)
                .map_err(|_| self.dead("told something that is not understood"))?;
            if line.what == "ERROR" {
                return self.failed(kind, &line.object);
            }
            // Also of a bookmark, which says nothing else.
            if let Some(next) = line.object["metadata"]["resourceVersion"].as_str() {
                next.clone_into(&mut revision);
            }
            let Some(event) = event(kind, line) else { continue };
            if let Err(end) = reader.try_tell(event) {
                return Ok(Ended::With(end));
            }
        }
    }

    fn dead(&self, what: &str) -> Error {
        self.server.error(ErrorKind::Unavailable, what)
    }

    fn failed(&self, kind: Kind, status: &Value) -> Result<Ended> {
        if status["code"] == 410 {
            tracing::debug!(%kind, message = %status["message"], "a watch begins again");
            return Ok(Ended::With(End::Relist));
        }
        Err(self.dead(&format!("ended the watch: {}", status["message"])))
    }
}

/// The event to be told; none if nobody can see a change.
fn event(kind: Kind, line: Line) -> Option<Event> {
    if line.what == "BOOKMARK" {
        return None;
    }
    let understood = |cause| Error::because(ErrorKind::Corrupt, format!("one of the {kind}"), cause);
    let object: Object = serde_json::from_value(line.object).map_err(understood).map_err(log).ok()?;
    let key = object.metadata.name.clone();
    match (line.what.as_str(), object.is_present(kind)) {
        ("ADDED" | "MODIFIED", true) => {
            object.stored(kind).map_err(log).ok().flatten().map(|item| Event::Put { item })
        }
        // Invariant 3.
        ("MODIFIED", false) | ("DELETED", true) => Some(Event::Delete { key }),
        _ => None,
    }
}

fn log(error: Error) -> Error {
    tracing::error!(%error, "object left out of a watch");
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Stored;
    use serde_json::json;

    fn told(kind: Kind, line: Value) -> Option<Event> {
        event(kind, serde_json::from_value(line).unwrap())
    }

    #[test]
    fn what_is_absent_is_not_seen() {
        let begun = json!({ "metadata": { "name": "n1", "resourceVersion": "5" } });
        let mut whole = begun.clone();
        whole["status"] = json!({ "replaces": 4, "name": "n1" });
        let line = |what: &str, object: &Value| json!({ "type": what, "object": object });
        assert_eq!(told(Kind::Node, line("ADDED", &begun)), None);
        let item = Stored { revision: 5, value: json!({ "name": "n1" }) };
        assert_eq!(told(Kind::Node, line("MODIFIED", &whole)), Some(Event::Put { item }));
        let gone = Some(Event::Delete { key: "n1".into() });
        assert_eq!(told(Kind::Node, line("MODIFIED", &begun)), gone);
        assert_eq!(told(Kind::Node, line("DELETED", &whole)), gone);
        assert_eq!(told(Kind::Node, line("DELETED", &begun)), None);
        assert_eq!(told(Kind::Volume, line("ADDED", &whole)), None, "it has no UUID");
        assert_eq!(told(Kind::Node, line("BOOKMARK", &json!({}))), None);
    }
}

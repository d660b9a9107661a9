//! A watch of one kind over one connection to an etcd.
//!
//! 1. It tells the list as of revision R, then every change from R + 1 on. When it cannot go on it begins again with a
//!    list: after a compaction, a broken connection, or when its reader is further behind than its queue is long.
//! 2. Silence is no sign of life, neither of the process nor of the majority behind it: the endpoint has to answer a
//!    question every `WATCH_ALIVE_INTERVAL` that nothing was heard.

use super::{
    Etcd,
    endpoint::{Endpoint, Span},
    wire::{WatchEvent, WatchLine},
};
use crate::{
    Error, ErrorKind, Event, OPERATION_TIMEOUT, Result, WATCH_ALIVE_INTERVAL,
    http::{End, Lines, Reader, Watched},
};
use model::Kind;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// etcd says once in ten minutes that nothing has happened. If it does not, the connection of the watch has died.
const SILENCE_MAX: Duration = Duration::from_secs(25 * 60);

impl Watched for Etcd {
    async fn watch_once(&self, kind: Kind, reader: &mut Reader) -> Result<End> {
        // Not before: a reader that is far behind would be told everything again and again.
        if let Err(end) = reader.caught_up().await {
            return Ok(end);
        }
        let (number, endpoint) = self.endpoint();
        let result = self.list_and_follow(endpoint, kind, reader).await;
        if result.is_err() {
            self.leave(number);
        }
        result
    }
}

impl Etcd {
    async fn list_and_follow(&self, endpoint: &Endpoint, kind: Kind, reader: &mut Reader) -> Result<End> {
        let span = Span::of_folder(&self.folder(kind));
        let listing = endpoint.list(&span, OPERATION_TIMEOUT).await?;
        let items = listing.items.iter().filter_map(|item| self.stored(kind, item).map_err(log).ok());
        if let Err(end) = reader.tell(Event::Relist { items: items.collect() }).await {
            return Ok(end);
        }
        let mut lines = endpoint.watch(&span, listing.revision + 1, OPERATION_TIMEOUT).await?;
        loop {
            let line = tokio::select! {
                line = next(endpoint, &mut lines) => line?,
                () = reader.gone() => return Ok(End::ReaderGone),
            };
            let Some(result) = line.result else {
                return Err(endpoint.error(ErrorKind::Unavailable, "ended the watch"));
            };
            for event in &result.events {
                let Some(event) = self.event(kind, event) else { continue };
                if let Err(end) = reader.try_tell(event) {
                    return Ok(end);
                }
            }
            if result.canceled {
                if result.compact_revision > 0 {
                    tracing::debug!(%kind, compacted = result.compact_revision, "a watch begins again");
                    return Ok(End::Relist);
                }
                let reason = format!("ended the watch: {}", result.cancel_reason);
                return Err(endpoint.error(ErrorKind::Unavailable, reason));
            }
        }
    }

    /// The event to be told; none if it is of something that nobody understands.
    fn event(&self, kind: Kind, event: &WatchEvent) -> Option<Event> {
        let told = if event.what == "DELETE" {
            self.key(kind, &event.kv).map(|key| Event::Delete { key })
        } else {
            self.stored(kind, &event.kv).map(|item| Event::Put { item })
        };
        told.map_err(log).ok()
    }
}

/// The next line, with the endpoint known to be alive meanwhile (invariant 2).
async fn next(endpoint: &Endpoint, lines: &mut Lines) -> Result<WatchLine> {
    let begun = Instant::now();
    loop {
        if let Ok(line) = timeout(WATCH_ALIVE_INTERVAL, lines.next()).await {
            return serde_json::from_slice(&line?).map_err(|_| {
                endpoint.error(ErrorKind::Unavailable, "told something that is not understood")
            });
        }
        // Any key will do: what counts is that the majority answers.
        endpoint.list(&Span::of_key("/"), OPERATION_TIMEOUT).await?;
        if begun.elapsed() > SILENCE_MAX {
            return Err(endpoint.error(ErrorKind::Unavailable, "has forgotten the watch"));
        }
    }
}

fn log(error: Error) -> Error {
    tracing::error!(%error, "object left out of a watch");
    error
}

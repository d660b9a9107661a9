//! What the clients over HTTP/1.1 share: a server to ask, answers with a bound, lines of a stream, and watches that
//! begin again. Back-ends of other crates find the last three in [`crate::backend`].
//!
//! 1. A failure before the connection was made is `Unavailable`, each one after it is `Unknown`.
//! 2. No more than `ANSWER_BYTES_MAX` of an answer, or of a line, is ever held.
//! 3. A watch that breaks is made again until its reader has gone.

use crate::{Error, ErrorKind, Event, Events, Result, WATCH_ALIVE_INTERVAL, WATCH_EVENTS_MAX};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Incoming},
    header,
};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use model::Kind;
use std::{fmt, time::Duration};
use tokio::{sync::mpsc, time::sleep};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The largest answer: a list of 100,000 objects of some 2 KiB.
pub const ANSWER_BYTES_MAX: usize = 256 << 20;
const RECONNECT_DELAY: Duration = Duration::from_millis(250);

/// A server, and what errors call it.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    http: HttpClient<HttpConnector, Full<Bytes>>,
    what: &'static str,
    /// `http://host:port`, without a path.
    base: String,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.what, self.base)
    }
}

impl Server {
    /// The server at `base`. Connects when it is first needed.
    pub(crate) fn new(what: &'static str, base: &str) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        // A watch may be silent for long: the kernel finds out when the machine at the other end is gone.
        connector.set_keepalive(Some(WATCH_ALIVE_INTERVAL));
        connector.set_keepalive_interval(Some(WATCH_ALIVE_INTERVAL));
        connector.set_keepalive_retries(Some(2));
        let http = HttpClient::builder(TokioExecutor::new()).build(connector);
        Self { http, what, base: base.trim_end_matches('/').to_owned() }
    }

    /// A failure of this server, in the middle of something.
    pub(crate) fn error(&self, kind: ErrorKind, what: impl fmt::Display) -> Error {
        Error::new(kind, format!("{self} {what}"))
    }

    /// Sends a request; the answer's body is still to be read.
    pub(crate) async fn send(&self, method: Method, path: &str, body: String) -> Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body))
            .map_err(|cause| {
                let context = format!("{} is not the address of {}", self.base, self.what);
                Error::because(ErrorKind::Invalid, context, cause)
            })?;
        // Invariant 1.
        self.http.request(request).await.map_err(|cause| {
            if cause.is_connect() {
                Error::because(ErrorKind::Unavailable, format!("{self} cannot be reached"), cause)
            } else {
                Error::because(ErrorKind::Unknown, format!("{self} hung up"), cause)
            }
        })
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<(StatusCode, Bytes)> {
        let response = self.send(method, path, body).await?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let answer = answer.map_err(|cause| {
            Error::because(ErrorKind::Unknown, format!("{self} broke off its answer to {path}"), cause)
        })?;
        Ok((status, answer.to_bytes()))
    }
}

/// A question changes nothing: what is unknown about it is only that there was no answer.
pub fn as_question(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Unknown => Error::new(ErrorKind::Unavailable, error.to_string()),
        _ => error,
    }
}

/// The lines of a body that is read while it comes.
#[derive(Debug)]
pub struct Lines<B = Incoming> {
    body: B,
    unread: BytesMut,
    /// So much of `unread` is known to have no end of a line: a long one costs its length once.
    searched: usize,
}

impl<B: Body<Data = Bytes> + Unpin> Lines<B> {
    /// The lines of this body.
    pub fn new(body: B) -> Self {
        Self { body, unread: BytesMut::new(), searched: 0 }
    }

    /// The next line of a body that has no end. Nothing is lost when this is dropped and called again.
    pub async fn next(&mut self) -> Result<BytesMut> {
        self.next_or_end().await?.ok_or_else(|| broken("the store has closed it"))
    }

    /// The next line, or none if the body has ended in order. Nothing is lost when this is dropped and called again.
    pub async fn next_or_end(&mut self) -> Result<Option<BytesMut>> {
        loop {
            if let Some(end) = self.unread[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.unread.split_to(self.searched + end + 1);
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.unread.len();
            if self.searched > ANSWER_BYTES_MAX {
                return Err(broken("a line is too long"));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let data = frame.map_err(|_| broken("the connection broke"))?.into_data().unwrap_or_default();
            self.unread.extend_from_slice(&data);
        }
    }
}

fn broken(what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, what)
}

/// Why one connection of a watch ends when nothing has failed.
#[derive(Debug)]
pub enum End {
    /// Nobody reads it any more.
    ReaderGone,
    /// It has to begin again with a list.
    Relist,
}

/// Something that can be watched over one connection after the other.
pub trait Watched: Send + Sync + 'static {
    /// Tells everything of the kind and then what changes, until the connection breaks.
    fn watch_once(&self, kind: Kind, reader: &mut Reader) -> impl Future<Output = Result<End>> + Send;
}

/// Whether a reader was told, or why the connection ends.
pub type Told = std::result::Result<(), End>;

/// Who is told of the events of a watch.
#[derive(Debug)]
pub struct Reader {
    events: mpsc::Sender<Event>,
    /// The log has been told that the watch is broken.
    warned: bool,
}

impl Reader {
    /// Tells it, as soon as there is place.
    pub async fn tell(&mut self, event: Event) -> Told {
        self.warned = false;
        self.events.send(event).await.map_err(|_| End::ReaderGone)
    }

    /// Tells it if there is place now; a reader for whom there is none has to begin again.
    pub fn try_tell(&mut self, event: Event) -> Told {
        self.events.try_send(event).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => End::Relist,
            mpsc::error::TrySendError::Closed(_) => End::ReaderGone,
        })
    }

    /// Waits until it has read all that it was told.
    pub async fn caught_up(&self) -> Told {
        let all = self.events.reserve_many(WATCH_EVENTS_MAX).await;
        all.map(drop).map_err(|_| End::ReaderGone)
    }

    /// Waits until it has gone.
    pub async fn gone(&self) {
        self.events.closed().await;
    }
}

/// Watches a kind over as many connections as it takes.
pub fn watch(watched: impl Watched, kind: Kind) -> Events {
    let (sender, events) = mpsc::channel(WATCH_EVENTS_MAX);
    tokio::spawn(async move {
        let mut reader = Reader { events: sender, warned: false };
        // Invariant 3.
        while !reader.events.is_closed() {
            match watched.watch_once(kind, &mut reader).await {
                Ok(End::ReaderGone) => return,
                Ok(End::Relist) => {}
                Err(error) => {
                    if !reader.warned {
                        tracing::warn!(%kind, %error, "a watch broke; trying again");
                        reader.warned = true;
                    }
                    sleep(RECONNECT_DELAY).await;
                }
            }
        }
    });
    events
}

//! The API server: what is asked of it, and what its refusals mean.
//!
//! 1. A failure before the connection was made is `Unavailable`, each one after it is `Unknown`.
//! 2. A refusal is anything but `Unknown` only if the API server says it before it writes.
//! 3. No more than `ANSWER_BYTES_MAX` of an answer is ever held.
//! 4. A list of several pages is one state of the store: the API server reads all at the revision of the first.
//! 5. That the machine at the other end is gone is found out by the kernel, also while nothing is asked.

use crate::object::Object;
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::{
    client::legacy::{self, Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use std::{error, fmt, iter, time::Duration};
use store::{
    Error, ErrorKind, Result,
    backend::{ANSWER_BYTES_MAX, Lines, as_question},
};
use tokio::time::{Instant, timeout_at};
use tower::{BoxError, ServiceBuilder};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Objects in one answer. So many of the largest are an answer that is still taken.
const PAGE_OBJECTS: usize = 128;
/// Ends every path of a write: what is not understood is refused (invariant 5 of the crate).
pub(crate) const WRITE: &str = "fieldManager=orlop&fieldValidation=Strict";

/// An API server, and the right to ask it.
#[derive(Clone)]
pub(crate) struct Server {
    client: Client,
    url: String,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("url", &self.url).finish_non_exhaustive()
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the API server at {}", self.url)
    }
}

/// What is to be done at a path.
#[derive(Debug)]
pub(crate) enum Verb {
    /// Tell what is there.
    Get,
    /// Make this object.
    Create(Value),
    /// Put this object in its place.
    Replace(Value),
    /// Change these fields (RFC 7396).
    Merge(Value),
    /// Make the fields that we own these, whatever is there.
    Apply(Value),
    /// Delete it with these options.
    Delete(Value),
}

impl Verb {
    /// The method, the type of the body and the body.
    fn parts(&self) -> (Method, &'static str, Option<&Value>) {
        const JSON: &str = "application/json";
        match self {
            Self::Get => (Method::GET, JSON, None),
            Self::Create(body) => (Method::POST, JSON, Some(body)),
            Self::Replace(body) => (Method::PUT, JSON, Some(body)),
            Self::Merge(body) => (Method::PATCH, "application/merge-patch+json", Some(body)),
            // JSON is YAML, too.
            Self::Apply(body) => (Method::PATCH, "application/apply-patch+yaml", Some(body)),
            Self::Delete(body) => (Method::DELETE, JSON, Some(body)),
        }
    }
}

/// Objects of a kind at a revision.
#[derive(Debug)]
pub(crate) struct Listing<T = Object> {
    pub(crate) revision: String,
    pub(crate) items: Vec<T>,
}

#[derive(Deserialize)]
struct Page<T> {
    metadata: PageMetadata,
    items: Vec<T>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    resource_version: String,
    /// Empty: this was the last one.
    #[serde(default, rename = "continue")]
    next: String,
}

impl Server {
    /// The API server that the configuration names. Connects when it is first needed.
    pub(crate) fn new(config: &Config) -> Result<Self> {
        let unusable = |cause: kube::Error| {
            Error::because(ErrorKind::Invalid, "the configuration of the API server cannot be used", cause)
        };
        // The process may have chosen one before.
        drop(rustls::crypto::ring::default_provider().install_default());
        let https = config.rustls_https_connector_with_connector(connector()).map_err(unusable)?;
        let service = ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .option_layer(config.auth_layer().map_err(unusable)?)
            .layer(config.extra_headers_layer().map_err(unusable)?)
            .map_err(BoxError::from)
            .service(HttpClient::builder(TokioExecutor::new()).build::<_, Body>(https));
        Ok(Self { client: Client::new(service, "default"), url: config.cluster_url.to_string() })
    }

    /// A failure of this server, in the middle of something.
    pub(crate) fn error(&self, kind: ErrorKind, what: impl fmt::Display) -> Error {
        Error::new(kind, format!("{self} {what}"))
    }

    /// Does it, and understands the answer.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        verb: &Verb,
        path: &str,
        deadline: Instant,
    ) -> Result<T> {
        let (status, answer) = self.exchange(verb, path, deadline).await?;
        self.understand(status, &answer)
    }

    /// What is at a path, as text.
    pub(crate) async fn text(&self, path: &str, deadline: Instant) -> Result<String> {
        let (status, answer) = self.exchange(&Verb::Get, path, deadline).await?;
        if !status.is_success() {
            return Err(self.refused(status, &answer));
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Everything below a path.
    pub(crate) async fn list(&self, path: &str, deadline: Instant) -> Result<Listing> {
        self.select(path, "", deadline).await
    }

    /// What is below a path and meets the selector, a part of the query.
    pub(crate) async fn select<T: DeserializeOwned>(
        &self,
        path: &str,
        selector: &str,
        deadline: Instant,
    ) -> Result<Listing<T>> {
        loop {
            if let Some(listing) = self.pages(path, selector, deadline).await.map_err(as_question)? {
                return Ok(listing);
            }
        }
    }

    /// All pages; none if the revision of the first was forgotten meanwhile.
    async fn pages<T: DeserializeOwned>(
        &self,
        path: &str,
        selector: &str,
        deadline: Instant,
    ) -> Result<Option<Listing<T>>> {
        let mut listing = Listing { revision: String::new(), items: Vec::new() };
        let (mut next, mut bytes) = (String::new(), 0);
        loop {
            let page = format!("{path}?{selector}&limit={PAGE_OBJECTS}&continue={next}");
            let (status, answer) = self.exchange(&Verb::Get, &page, deadline).await?;
            if status == StatusCode::GONE {
                return Ok(None);
            }
            bytes += answer.len();
            if bytes > ANSWER_BYTES_MAX {
                let what = format!("holds too much of one kind: more than {ANSWER_BYTES_MAX} bytes");
                return Err(self.error(ErrorKind::Corrupt, what));
            }
            let page: Page<T> = self.understand(status, &answer)?;
            listing.items.extend(page.items);
            listing.revision = page.metadata.resource_version;
            next = page.metadata.next;
            if next.is_empty() {
                return Ok(Some(listing));
            }
        }
    }

    /// Opens a watch of what changes after `revision`, for so long; none if that is forgotten.
    pub(crate) async fn watch(
        &self,
        path: &str,
        revision: &str,
        lasts: Duration,
        deadline: Instant,
    ) -> Result<Option<Lines<Body>>> {
        let path = format!(
            "{path}?watch=1&allowWatchBookmarks=true&timeoutSeconds={}&resourceVersion={revision}",
            lasts.as_secs()
        );
        let opening = timeout_at(deadline, self.send(&Verb::Get, &path)).await;
        let response = opening.map_err(|_| self.error(ErrorKind::Unavailable, "is silent"))??;
        let status = response.status();
        match status {
            StatusCode::OK => Ok(Some(Lines::new(response.into_body()))),
            StatusCode::GONE => Ok(None),
            _ => {
                let answer = timeout_at(deadline, self.read(response)).await;
                let answer = answer.map_err(|_| self.error(ErrorKind::Unavailable, "is silent"))??;
                Err(as_question(self.refused(status, &answer)))
            }
        }
    }

    async fn exchange(&self, verb: &Verb, path: &str, deadline: Instant) -> Result<(StatusCode, Bytes)> {
        let exchange = async {
            let response = self.send(verb, path).await?;
            Ok((response.status(), self.read(response).await?))
        };
        let silent = |_| self.error(ErrorKind::Unknown, format!("did not answer in time; asked for {path}"));
        timeout_at(deadline, exchange).await.map_err(silent)?
    }

    async fn send(&self, verb: &Verb, path: &str) -> Result<Response<Body>> {
        let (method, content, body) = verb.parts();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, content)
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("orlop/", env!("CARGO_PKG_VERSION")))
            .body(Body::from(body.map(Value::to_string).unwrap_or_default().into_bytes()))
            .map_err(|cause| Error::because(ErrorKind::Invalid, format!("{path} is no path"), cause))?;
        // Invariant 1.
        self.client.send(request).await.map_err(|cause| {
            if never_sent(&cause) {
                Error::because(ErrorKind::Unavailable, format!("{self} cannot be reached"), cause)
            } else {
                Error::because(ErrorKind::Unknown, format!("{self} hung up"), cause)
            }
        })
    }

    async fn read(&self, response: Response<Body>) -> Result<Bytes> {
        let answer = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let broken =
            |cause| Error::because(ErrorKind::Unknown, format!("{self} broke off its answer"), cause);
        Ok(answer.map_err(broken)?.to_bytes())
    }

    fn understand<T: DeserializeOwned>(&self, status: StatusCode, answer: &[u8]) -> Result<T> {
        if !status.is_success() {
            return Err(self.refused(status, answer));
        }
        serde_json::from_slice(answer)
            .map_err(|_| self.error(ErrorKind::Unknown, "gave an answer that is not understood"))
    }

    fn refused(&self, status: StatusCode, answer: &[u8]) -> Error {
        let (kind, reason) = refusal(status, answer);
        self.error(kind, format!("refused with {status}: {reason}"))
    }
}

fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_nodelay(true);
    // Invariant 5.
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE));
    connector.set_keepalive_retries(Some(2));
    connector
}

/// Whether the request never left: there was no connection, or no credentials to send with it.
fn never_sent(failure: &kube::Error) -> bool {
    let first: &(dyn error::Error + 'static) = failure;
    let mut causes = iter::successors(Some(first), |cause| cause.source());
    matches!(failure, kube::Error::Auth(_))
        || causes.any(|cause| cause.downcast_ref::<legacy::Error>().is_some_and(legacy::Error::is_connect))
}

/// Why a request was refused.
#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    message: String,
    #[serde(default)]
    details: Details,
}

#[derive(Default, Deserialize)]
struct Details {
    /// Of the object that the refusal is about.
    #[serde(default)]
    name: String,
}

/// What a refusal means for a write (invariant 2).
fn refusal(status: StatusCode, answer: &[u8]) -> (ErrorKind, String) {
    let Status { message, details } = serde_json::from_slice(answer).unwrap_or_default();
    match status.as_u16() {
        404 if !details.name.is_empty() => (ErrorKind::NotFound, message),
        404 => (
            ErrorKind::Unavailable,
            "it does not know this kind; apply the definitions in deploy/crds".into(),
        ),
        409 => (ErrorKind::Conflict, message),
        400 | 413 | 422 => (ErrorKind::Invalid, message),
        401 => (ErrorKind::Unavailable, "it does not take these credentials; give others".into()),
        403 => (ErrorKind::Unavailable, format!("{message}; grant this right by a ClusterRole")),
        429 => (ErrorKind::Unavailable, format!("it has too much to do; {message}")),
        // Also what etcd says of a proposal that may be on its way.
        _ => (ErrorKind::Unknown, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_whether_something_may_have_happened() {
        let kind = |status, answer: &str| refusal(StatusCode::from_u16(status).unwrap(), answer.as_bytes()).0;
        let missing = r#"{"kind":"Status","message":"nodes.orlop.io \"n1\" not found","reason":"NotFound",
            "details":{"name":"n1","group":"orlop.io","kind":"nodes"},"code":404}"#;
        assert_eq!(kind(404, missing), ErrorKind::NotFound);
        assert_eq!(kind(404, "404 page not found\n"), ErrorKind::Unavailable);
        assert_eq!(kind(409, "{}"), ErrorKind::Conflict);
        assert_eq!(kind(422, "{}"), ErrorKind::Invalid);
        assert_eq!(kind(403, "{}"), ErrorKind::Unavailable);
        assert_eq!(kind(429, "Too many requests"), ErrorKind::Unavailable);
        let timed_out = r#"{"message":"etcdserver: request timed out","code":500}"#;
        assert_eq!(kind(500, timed_out), ErrorKind::Unknown);
        assert_eq!(kind(503, "<html>"), ErrorKind::Unknown);
    }
}

//! The API from the side of those who call it: the commands and the container storage interface.
//!
//! 1. A request that changes something names what it wishes, so that it can be sent again when its answer was lost.

use crate::{
    AttachVolume, Capacity, CreateVolume, DiskList, NodeList, PoolList, ResizeVolume, Room, UpdateNode,
    VolumeList,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, Uri, header};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use model::{Disk, Node, NodeView, Pool, VolumeView};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{fmt, time::Duration};
use uuid::Uuid;

/// An answer larger than this is not one of ours.
const ANSWER_MAX_BYTES: usize = 64 << 20;
/// How long a wish may take to come true before its answer says what is missing.
pub const WAIT: Duration = Duration::from_secs(60);
/// Longer than any wait.
const PATIENCE: Duration = Duration::from_secs(90);

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// What was asked makes no sense, and was not sent.
    Usage,
    /// The API did not answer: whether a wish was heard is not known.
    Unreachable,
    /// The API refused; the answer had this status.
    Refused(u16),
    /// The answer is not understood.
    Garbled,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What kind of failure it was.
    pub kind: ErrorKind,
    /// The problem's type as the API named it, such as `urn:orlop:problem:too-few-nodes`; else empty.
    pub problem: String,
    /// The object and the cause.
    pub detail: String,
    /// What to do; empty if nobody knows.
    pub hint: String,
}

impl Error {
    fn new(kind: ErrorKind, detail: impl Into<String>, hint: &str) -> Self {
        Self { kind, problem: String::new(), detail: detail.into(), hint: hint.into() }
    }

    /// Whether the API answered with this status.
    pub fn is(&self, status: u16) -> bool {
        self.kind == ErrorKind::Refused(status)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "; {}", self.hint) }
    }
}

impl std::error::Error for Error {}

/// A connection to the API.
#[derive(Clone, Debug)]
pub struct Client {
    base: String,
    http: HttpClient<HttpConnector, Full<Bytes>>,
}

impl Client {
    /// A client of the API at `base`, such as `http://127.0.0.1:7070`.
    pub fn new(base: &str) -> Result<Self, Error> {
        let trimmed = base.trim_end_matches('/');
        let usable = trimmed.parse::<Uri>().is_ok_and(|uri| {
            uri.scheme_str() == Some("http") && uri.host().is_some() && uri.query().is_none()
        });
        if !usable {
            let detail = format!("{base:?} is not the address of an API");
            return Err(Error::new(ErrorKind::Usage, detail, "write it as http://HOST:PORT"));
        }
        let http = HttpClient::builder(TokioExecutor::new()).build_http();
        Ok(Self { base: trimmed.to_owned(), http })
    }

    /// The address of the API.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// All nodes, by name.
    pub async fn nodes(&self) -> Result<Vec<Node>, Error> {
        Ok(self.get::<NodeList>("/api/v1/nodes").await?.items)
    }

    /// Whether the API can use its store.
    pub async fn health(&self) -> Result<(), Error> {
        self.exchange(Method::GET, "/healthz", None, None).await.map(drop)
    }

    /// One node, and what its drain waits for.
    pub async fn node(&self, name: &str) -> Result<NodeView, Error> {
        self.get(&path("node", name)?).await
    }

    /// Wishes something of a node; the answer says what is in its way.
    pub async fn update_node(&self, name: &str, wish: &UpdateNode) -> Result<NodeView, Error> {
        self.send(Method::PATCH, &path("node", name)?, None, Some(encode(wish)?)).await
    }

    /// Forgets a node that is gone for good.
    pub async fn delete_node(&self, name: &str) -> Result<(), Error> {
        self.exchange(Method::DELETE, &path("node", name)?, None, None).await.map(drop)
    }

    /// Gives the disk of a pool back; answers the pool while it is still there.
    pub async fn delete_pool(&self, uuid: Uuid) -> Result<Option<Pool>, Error> {
        let path = waiting(&path("pool", &uuid.to_string())?);
        let bytes = self.exchange(Method::DELETE, &path, None, None).await?;
        if bytes.is_empty() { Ok(None) } else { self.decode(&path, &bytes).map(Some) }
    }

    /// All pools, by node and name.
    pub async fn pools(&self) -> Result<Vec<Pool>, Error> {
        Ok(self.get::<PoolList>("/api/v1/pools").await?.items)
    }

    /// All disks, by node and device.
    pub async fn disks(&self) -> Result<Vec<Disk>, Error> {
        Ok(self.get::<DiskList>("/api/v1/disks").await?.items)
    }

    /// One disk.
    pub async fn disk(&self, name: &str) -> Result<Disk, Error> {
        self.get(&path("disk", name)?).await
    }

    /// How large a volume can be made now.
    pub async fn capacity(&self, room: &Room) -> Result<Capacity, Error> {
        let Room { copies, class, spread, on } = room;
        if let Some(node) = on {
            // A name, or a refusal.
            path("node", node)?;
        }
        let class = class.map(|class| format!("&class={class}"));
        let spread = spread.as_ref().map(|label| format!("&spread={label}"));
        let on = on.as_ref().map(|node| format!("&on={node}"));
        let others: String = [class, spread, on].into_iter().flatten().collect();
        let path = format!("/api/v1/capacity?copies={copies}{others}");
        self.get(&path).await
    }

    /// All volumes, by name.
    pub async fn volumes(&self) -> Result<Vec<VolumeView>, Error> {
        Ok(self.get::<VolumeList>("/api/v1/volumes").await?.items)
    }

    /// One volume.
    pub async fn volume(&self, name: &str) -> Result<VolumeView, Error> {
        self.get(&path("volume", name)?).await
    }

    /// Creates a volume, and waits until it can be attached.
    pub async fn create_volume(&self, wish: &CreateVolume) -> Result<VolumeView, Error> {
        path("volume", &wish.name)?;
        self.send(Method::POST, &waiting("/api/v1/volumes"), None, Some(encode(wish)?)).await
    }

    /// Deletes a volume and waits until it is gone: what is left of it, or nothing.
    pub async fn delete_volume(&self, name: &str) -> Result<Option<VolumeView>, Error> {
        let path = waiting(&path("volume", name)?);
        let bytes = self.exchange(Method::DELETE, &path, None, None).await?;
        if bytes.is_empty() { Ok(None) } else { self.decode(&path, &bytes).map(Some) }
    }

    /// Attaches a volume, if it is still at this revision, and waits for its device.
    pub async fn attach_volume(
        &self,
        name: &str,
        wish: &AttachVolume,
        revision: Option<u64>,
    ) -> Result<VolumeView, Error> {
        let path = waiting(&format!("{}/attach", path("volume", name)?));
        self.send(Method::POST, &path, revision, Some(encode(wish)?)).await
    }

    /// Detaches a volume, from one node or all, if it is still at this revision, and waits until its device is gone.
    pub async fn detach_volume(
        &self,
        name: &str,
        node: Option<&str>,
        revision: Option<u64>,
    ) -> Result<VolumeView, Error> {
        let mut path = waiting(&format!("{}/detach", path("volume", name)?));
        if let Some(node) = node {
            // A name, or a refusal.
            self::path("node", node)?;
            path = format!("{path}&node={node}");
        }
        self.send(Method::POST, &path, revision, None).await
    }

    /// Makes a volume larger, and waits until hosts see it.
    pub async fn resize_volume(&self, name: &str, wish: &ResizeVolume) -> Result<VolumeView, Error> {
        let path = waiting(&format!("{}/resize", path("volume", name)?));
        self.send(Method::POST, &path, None, Some(encode(wish)?)).await
    }

    /// Lets a volume open without the members that do not answer, whose record is from a copy.
    pub async fn recover_volume(&self, name: &str) -> Result<VolumeView, Error> {
        let path = format!("{}/recover", path("volume", name)?);
        self.send(Method::POST, &path, None, None).await
    }

    /// What is at `path`, such as `/metrics`, as it is.
    pub async fn text(&self, path: &str) -> Result<String, Error> {
        let bytes = self.exchange(Method::GET, path, None, None).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.send(Method::GET, path, None, None).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        revision: Option<u64>,
        body: Option<Bytes>,
    ) -> Result<T, Error> {
        let bytes = self.exchange(method, path, revision, body).await?;
        self.decode(path, &bytes)
    }

    fn decode<T: DeserializeOwned>(&self, path: &str, bytes: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(bytes).map_err(|error| {
            let detail = format!("{}{path} gave an answer that is not understood: {error}", self.base);
            Error::new(ErrorKind::Garbled, detail, "are the program and the controller of the same version?")
        })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        revision: Option<u64>,
        body: Option<Bytes>,
    ) -> Result<Bytes, Error> {
        let unreachable = |cause: String| {
            let detail = format!("the API at {} cannot be reached: {cause}", self.base);
            let hint = "start one with `orlop dev`, or name another with --api or ORLOP_API";
            Error::new(ErrorKind::Unreachable, detail, hint)
        };
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(revision) = revision {
            request = request.header(header::IF_MATCH, format!("\"{revision}\""));
        }
        let request = request.body(Full::new(body.unwrap_or_default())).map_err(|error| {
            Error::new(ErrorKind::Usage, format!("{path:?} is not a path of the API: {error}"), "")
        })?;
        let exchange = async {
            let response = self.http.request(request).await.map_err(|error| unreachable(deepest(&error)))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES).collect().await;
            let bytes = body.map_err(|error| unreachable(error.to_string()))?.to_bytes();
            if status.is_success() { Ok(bytes) } else { Err(refusal(status, &bytes)) }
        };
        tokio::time::timeout(PATIENCE, exchange)
            .await
            .map_err(|_| unreachable(format!("no answer within {} s", PATIENCE.as_secs())))?
    }
}

/// The path of one object of a kind, such as `volume`. A name that none can have is refused here, before it becomes a path.
fn path(noun: &str, name: &str) -> Result<String, Error> {
    let is_label =
        |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    let dotted = noun == "node";
    let possible = if dotted { name.split('.').all(is_label) } else { is_label(name) };
    if !possible {
        let detail = format!("{name:?} is not the name of a {noun}");
        let dots = if dotted { ", with dots between them" } else { "" };
        let hint = format!("names are lower-case letters, digits and hyphens{dots}");
        return Err(Error::new(ErrorKind::Usage, detail, &hint));
    }
    Ok(format!("/api/v1/{noun}s/{name}"))
}

/// The path of a request that is answered when its wish has come true, or patience ends.
fn waiting(path: &str) -> String {
    format!("{path}?wait={}s", WAIT.as_secs())
}

fn encode(body: &impl Serialize) -> Result<Bytes, Error> {
    serde_json::to_vec(body).map(Bytes::from).map_err(|error| {
        Error::new(ErrorKind::Usage, format!("cannot write the request as JSON: {error}"), "")
    })
}

/// The last cause of an error says what happened; those above it only where.
pub fn deepest(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// What the API said no to. The answer may be of something else that listens there: nothing in it has to be.
fn refusal(status: StatusCode, body: &[u8]) -> Error {
    #[derive(Default, Deserialize)]
    struct Said {
        #[serde(rename = "type")]
        problem: Option<String>,
        title: Option<String>,
        detail: Option<String>,
        hint: Option<String>,
    }
    let Said { problem, title, detail, hint } = serde_json::from_slice(body).unwrap_or_default();
    Error {
        kind: ErrorKind::Refused(status.as_u16()),
        problem: problem.unwrap_or_default(),
        detail: detail.or(title).unwrap_or_else(|| format!("the API answered {status}")),
        hint: hint.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_http_addresses_are_taken() {
        for (base, good) in [
            ("http://127.0.0.1:7070", true),
            ("http://localhost:7070/", true),
            ("127.0.0.1:7070", false),
            ("https://x", false),
            ("", false),
            ("http://x?y", false),
        ] {
            assert_eq!(Client::new(base).is_ok(), good, "{base}");
        }
    }

    #[test]
    fn names_of_nodes_have_dots() {
        assert_eq!(path("node", "node-1.lab").unwrap(), "/api/v1/nodes/node-1.lab");
        assert_eq!(path("volume", "a.b").unwrap_err().kind, ErrorKind::Usage);
    }

    #[test]
    fn names_that_are_no_names_never_become_paths() {
        for name in ["", "..", "a/b", "a b", "a?b", "caf\u{e9}"] {
            assert_eq!(path("volume", name).unwrap_err().kind, ErrorKind::Usage, "{name:?}");
            assert_eq!(path("node", name).unwrap_err().kind, ErrorKind::Usage, "{name:?}");
        }
        assert_eq!(path("volume", "data-1").unwrap(), "/api/v1/volumes/data-1");
        assert_eq!(waiting("/x"), "/x?wait=60s");
    }

    #[test]
    fn a_refusal_carries_what_the_api_said() {
        let body = br#"{"type":"urn:x","title":"Conflict","detail":"\"a\" exists","hint":"choose another"}"#;
        let error = refusal(StatusCode::CONFLICT, body);
        assert!(error.is(409) && error.problem == "urn:x");
        assert_eq!(error.to_string(), "\"a\" exists; choose another");
        assert_eq!(
            refusal(StatusCode::BAD_GATEWAY, b"<html>").to_string(),
            "the API answered 502 Bad Gateway"
        );
    }
}

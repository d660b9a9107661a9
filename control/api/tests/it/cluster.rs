//! A controller without its manager, and nodes that are only reports.

use api::{ApiConfig, Server, serve};
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request, body::Bytes};
use hyper_util::{client::legacy::Client as HttpClient, rt::TokioExecutor};
use model::{Disk, DiskClass, DiskState, Node, NodeSpec, NodeState, Pool, PoolState};
use serde_json::Value;
use std::net::SocketAddr;
use store::{Client, Embedded};
use tempfile::TempDir;
use uuid::Uuid;

pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) server: Server,
    _folder: TempDir,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Checks that it is a problem of this status whose line says `says`.
    pub(crate) fn is_problem(&self, status: u16, says: &str) {
        assert_eq!(self.status, status, "{:?}", self.body);
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let problem = self.json();
        let line = format!("{}; {}", problem["detail"].as_str().unwrap(), problem["hint"].as_str().unwrap());
        assert!(line.contains(says) && !line.contains('\n'), "wanted {says:?}, got {line:?}");
        assert_eq!(problem["status"], status);
    }
}

impl Cluster {
    pub(crate) async fn start(nodes: u128) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let client = Client::new(Embedded::open(&folder.path().join("store.redb")).unwrap());
        for index in 1..=nodes {
            client.create(&node(index)).await.unwrap();
            client.create(&pool(index)).await.unwrap();
        }
        let listen = "127.0.0.1:0".parse().unwrap();
        let server = serve(ApiConfig { listen, client: client.clone(), overcommit: 4 }).await.unwrap();
        Self { client, server, _folder: folder }
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        self.ask_if(method, path, body, None).await
    }

    pub(crate) async fn ask_if(
        &self,
        method: &str,
        path: &str,
        body: &str,
        if_match: Option<&str>,
    ) -> Answer {
        ask(self.server.address(), method, path, body, if_match).await
    }

    pub(crate) async fn create(&self, name: &str) -> Answer {
        let body = format!(r#"{{"name": {name:?}, "spec": {{"sizeBytes": 1073741824}}}}"#);
        self.ask("POST", "/api/v1/volumes", &body).await
    }
}

pub(crate) async fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
    if_match: Option<&str>,
) -> Answer {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://{address}{path}"))
        .header("content-type", "application/json");
    if let Some(tag) = if_match {
        request = request.header("if-match", tag);
    }
    let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap();
    let http: HttpClient<_, Full<Bytes>> = HttpClient::builder(TokioExecutor::new()).build_http();
    let response = http.request(request).await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer { status, headers, body: response.into_body().collect().await.unwrap().to_bytes() }
}

pub(crate) fn node(index: u128) -> Node {
    Node {
        name: format!("n{index}"),
        spec: NodeSpec::default(),
        state: NodeState::Ready,
        address: format!("127.0.0.1:{}", 4420 + index),
        metrics_address: None,
        pid: 4711,
        boot_id: Uuid::from_u128(1),
        version: "0.1.0".into(),
        heartbeat: 1,
        topology: std::collections::BTreeMap::new(),
    }
}

pub(crate) fn pool(index: u128) -> Pool {
    Pool {
        name: "disk0".into(),
        uuid: Uuid::from_u128(20 + index),
        node: format!("n{index}"),
        spec: model::PoolSpec::default(),
        uri: "mem://".into(),
        class: None,
        state: PoolState::Online,
        capacity_bytes: 4 << 30,
        used_bytes: 1 << 30,
        free_bytes: 3 << 30,
        incarnation: Uuid::from_u128(30 + index),
        boot_id: Uuid::from_u128(1),
        message: None,
    }
}

pub(crate) fn disk(name: &str, node: &str) -> Disk {
    Disk {
        name: name.into(),
        node: node.into(),
        device: "/dev/nvme0n1".into(),
        by_id: None,
        parent: None,
        state: DiskState::InUse,
        pool: None,
        class: DiskClass::Nvme,
        model: None,
        serial: None,
        size_bytes: 1 << 40,
        logical_block_bytes: 512,
        physical_block_bytes: 4096,
        partitions: Vec::new(),
        signatures: vec!["an xfs file system".into()],
        message: Some("/dev/nvme0n1 is mounted at /data: unmount it first, for good".into()),
    }
}

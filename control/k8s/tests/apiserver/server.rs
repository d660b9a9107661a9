//! A control plane of an etcd and an API server, each a process of its own, killed and waited for on any exit.

use crate::proxy::{Proxy, Requests};
use http_body_util::BodyExt;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use k8s::Kubernetes;
use kube::client::{Body, ConfigExt};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use store::Client;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tower::ServiceExt;

/// How long a program may take to begin: so many times a tenth of a second.
const PATIENCE: u32 = 1200;

/// What the token file knows: one who may do everything, and one who may do nothing.
const TOKENS: &str = "all,admin,1,system:masters\nnothing,outsider,2,people\n";

/// Who asks: the token.
pub(crate) const ADMIN: &str = "all";
/// Who has no rights.
pub(crate) const OUTSIDER: &str = "nothing";

/// The API server to be tested.
pub(crate) fn program() -> String {
    std::env::var("ORLOP_KUBE_APISERVER").unwrap_or_else(|_| "kube-apiserver".into())
}

/// The two programs, and where they keep what they know and say.
pub(crate) struct ControlPlane {
    // Before the folder: they end before it does.
    apiserver: Program,
    etcd: Program,
    folder: TempDir,
    etcd_address: SocketAddr,
    address: SocketAddr,
    more: &'static [&'static str],
}

/// A program that runs, or none.
#[derive(Default)]
pub(crate) struct Program(Option<Child>);

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Program {
    fn start(command: &mut Command, log: &Path) -> Self {
        let log = File::options().append(true).create(true).open(log).unwrap();
        let command = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self(Some(command.spawn().unwrap()))
    }

    /// `kill -9`, which also ends what is stopped; gone when this returns.
    fn kill(&mut self) {
        if let Some(mut child) = self.0.take() {
            // It may have ended by itself.
            drop(child.kill());
            drop(child.wait());
        }
    }

    fn has_ended(&mut self) -> bool {
        self.0.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some())
    }

    fn signal(&self, signal: Signal) {
        // Our child and not waited for: the number is not another's.
        kill_process(Pid::from_child(self.0.as_ref().unwrap()), signal).unwrap();
    }

    /// Whether all its threads are stopped.
    fn stands_still(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.0.as_ref().unwrap().id())).unwrap();
        threads.flatten().all(|thread| {
            // One that has just ended does nothing either.
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, fields)| fields.starts_with('T'))
        })
    }
}

impl ControlPlane {
    /// A control plane that knows the kinds of Orlop.
    pub(crate) async fn installed() -> Self {
        let plane = Self::start(&[]).await;
        plane.store().await.install().await.unwrap();
        plane
    }

    /// A control plane whose API server has more arguments.
    pub(crate) async fn start(more: &'static [&'static str]) -> Self {
        // Somebody may take a port that was free just now.
        for _ in 0..5 {
            // All are held until all are known: none is given twice.
            let ports: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
            let addresses: Vec<_> = ports.iter().map(|port| port.local_addr().unwrap()).collect();
            drop(ports);
            let folder = tempfile::tempdir().unwrap();
            let etcd = start_etcd(folder.path(), addresses[0], addresses[1]);
            make_secrets(folder.path());
            let apiserver = Program::default();
            let (etcd_address, address) = (addresses[0], addresses[2]);
            let mut plane = Self { apiserver, etcd, folder, etcd_address, address, more };
            plane.begin();
            if plane.answers().await {
                return plane;
            }
        }
        panic!("no control plane begins");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts the API server, on what etcd has.
    pub(crate) fn begin(&mut self) {
        let mut command = Command::new(program());
        command
            .arg(format!("--etcd-servers=http://{}", self.etcd_address))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            .arg(format!("--secure-port={}", self.address.port()))
            .args(["--endpoint-reconciler-type=none", "--service-cluster-ip-range=10.96.0.0/24"])
            .args(["--authorization-mode=RBAC", "--service-account-issuer=https://kubernetes.default.svc"]);
        for (flag, file) in [
            ("cert-dir", "certs"),
            ("token-auth-file", "tokens"),
            ("service-account-key-file", "accounts.key"),
            ("service-account-signing-key-file", "accounts.key"),
        ] {
            command.arg(format!("--{flag}={}", self.path(file).display()));
        }
        self.apiserver = Program::start(command.args(self.more), &self.path("apiserver.log"));
    }

    /// Waits until it answers; false if one of the two has ended instead.
    pub(crate) async fn answers(&mut self) -> bool {
        for _ in 0..PATIENCE {
            // It makes its certificate when it begins.
            if self.path("certs/apiserver.crt").exists()
                && self
                    .try_by_hand(Method::GET, "/readyz", "*/*", &Value::Null)
                    .await
                    .is_ok_and(|(status, _)| status == 200)
            {
                return true;
            }
            for (program, log) in [(&mut self.etcd, "etcd.log"), (&mut self.apiserver, "apiserver.log")] {
                if program.has_ended() {
                    println!(
                        "ended: {}",
                        fs::read_to_string(self.folder.path().join(log)).unwrap_or_default()
                    );
                    return false;
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
        panic!("it does not answer: {}", fs::read_to_string(self.path("apiserver.log")).unwrap_or_default());
    }

    pub(crate) fn kill(&mut self) {
        self.apiserver.kill();
    }

    /// Starts the kube-scheduler that lies beside the API server's program, configured as the documentation says, with
    /// the extender at `extender`.
    pub(crate) fn scheduler(&self, extender: SocketAddr) -> Program {
        let kubeconfig = self.path("scheduler.kubeconfig");
        fs::copy(self.kubeconfig(&self.url(), ADMIN), &kubeconfig).unwrap();
        let mut text = include_str!("../../../../docs/guides/scheduler.yaml").to_owned();
        for (documented, here) in [
            ("/etc/kubernetes/scheduler.conf", kubeconfig.display().to_string()),
            ("leaderElect: true", "leaderElect: false".into()),
            ("http://10.96.0.72:7072", format!("http://{extender}")),
        ] {
            assert!(text.contains(documented), "docs/guides/scheduler.yaml has no {documented}");
            text = text.replace(documented, &here);
        }
        let path = self.path("scheduler.yaml");
        fs::write(&path, text).unwrap();
        let mut command = Command::new(Path::new(&program()).with_file_name("kube-scheduler"));
        command.arg(format!("--config={}", path.display())).arg("--secure-port=0");
        Program::start(&mut command, &self.path("scheduler.log"))
    }

    /// What that one says.
    pub(crate) fn scheduler_log(&self) -> String {
        fs::read_to_string(self.path("scheduler.log")).unwrap_or_default()
    }

    /// SIGSTOP: it takes connections and answers nothing.
    pub(crate) fn stop(&self) {
        self.apiserver.signal(Signal::STOP);
        // On a busy machine a thread may answer something yet.
        while !self.apiserver.stands_still() {
            std::thread::yield_now();
        }
    }

    /// SIGCONT.
    pub(crate) fn go_on(&self) {
        self.apiserver.signal(Signal::CONT);
    }

    /// The file that says how to reach it as `token` does, at `url`.
    pub(crate) fn kubeconfig(&self, url: &str, token: &str) -> PathBuf {
        let authority = self.path("certs/apiserver.crt");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
            "clusters": [{ "name": "test", "cluster": { "server": url, "certificate-authority": authority } }],
            "users": [{ "name": "test", "user": { "token": token } }],
        });
        let path = self.path(&format!("{token}.kubeconfig"));
        // JSON is YAML, too.
        fs::write(&path, config.to_string()).unwrap();
        path
    }

    fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    async fn config(&self) -> Config {
        let file = Kubeconfig::read_from(self.kubeconfig(&self.url(), ADMIN)).unwrap();
        Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap()
    }

    /// The store in it.
    pub(crate) async fn store(&self) -> Kubernetes {
        self.store_as(ADMIN).await
    }

    /// The store as somebody else sees it.
    pub(crate) async fn store_as(&self, token: &str) -> Kubernetes {
        Kubernetes::from_kubeconfig(&self.kubeconfig(&self.url(), token)).await.unwrap()
    }

    pub(crate) async fn client(&self) -> Client {
        Client::new(self.store().await)
    }

    /// A client of it, and what stands between: the client speaks plain HTTP, so that the proxy understands it.
    pub(crate) async fn client_by_proxy(&self) -> (Client, Proxy) {
        let requests = Requests {
            watch: "GET /apis/orlop.io/v1alpha1/nodes?watch=1",
            // What a creation begins with is not seen: its answer is not one that anybody needs.
            write: &["PUT ", "PATCH ", "DELETE "],
        };
        let proxy = Proxy::start(self.behind_tls().await, requests).await;
        let path = self.kubeconfig(&format!("http://{}", proxy.address), ADMIN);
        (Client::new(Kubernetes::from_kubeconfig(&path).await.unwrap()), proxy)
    }

    /// A port that leads to the API server by TLS.
    async fn behind_tls(&self) -> SocketAddr {
        let config = self.config().await;
        let connector = config.rustls_https_connector().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (connector, url) = (connector.clone(), config.cluster_url.clone());
                tokio::spawn(async move {
                    let Ok(far) = connector.oneshot(url).await else { return };
                    // Either end may break.
                    drop(copy_bidirectional(&mut near, &mut TokioIo::new(far)).await);
                });
            }
        });
        address
    }

    /// What a person does with `kubectl`.
    pub(crate) async fn by_hand(&self, method: Method, path: &str, body: &Value) -> (StatusCode, Value) {
        self.by_hand_as(method, path, "application/json", body).await
    }

    /// The same, answered in this form.
    pub(crate) async fn by_hand_as(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: &Value,
    ) -> (StatusCode, Value) {
        self.try_by_hand(method, path, accept, body).await.unwrap()
    }

    async fn try_by_hand(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: &Value,
    ) -> kube::Result<(StatusCode, Value)> {
        let client = kube::Client::try_from(self.config().await)?;
        let content =
            if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = Request::builder().method(method).uri(path);
        let request = request.header("content-type", content).header("accept", accept);
        let response = client.send(request.body(Body::from(body.into_bytes())).unwrap()).await?;
        let status = response.status();
        let answer = response.into_body().collect().await?.to_bytes();
        Ok((status, serde_json::from_slice(&answer).unwrap_or_default()))
    }

    /// Makes etcd forget every state but the last.
    pub(crate) async fn compact(&self) {
        let range = self.ask_etcd("/v3/kv/range", &json!({ "key": "AA==", "limit": 1 })).await;
        let revision = &range["header"]["revision"];
        let compacted =
            self.ask_etcd("/v3/kv/compaction", &json!({ "revision": revision, "physical": true })).await;
        assert!(compacted["header"].is_object(), "{compacted}");
    }

    async fn ask_etcd(&self, path: &str, question: &Value) -> Value {
        let question = question.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{question}",
            question.len()
        );
        let mut connection = TcpStream::connect(self.etcd_address).await.unwrap();
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap()
    }
}

fn start_etcd(folder: &Path, client: SocketAddr, peer: SocketAddr) -> Program {
    let (client, peer) = (format!("http://{client}"), format!("http://{peer}"));
    let mut command = Command::new("etcd");
    command
        .args(["--name", "one", "--initial-cluster", &format!("one={peer}")])
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        // It is never killed before the test has ended.
        .args(["--unsafe-no-fsync", "--data-dir"])
        .arg(folder.join("etcd"));
    Program::start(&mut command, &folder.join("etcd.log"))
}

/// What an API server wants to be given before it begins.
fn make_secrets(folder: &Path) {
    fs::write(folder.join("tokens"), TOKENS).unwrap();
    let mut openssl = Command::new("openssl");
    openssl.args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out"]);
    assert!(openssl.arg(folder.join("accounts.key")).stderr(Stdio::null()).status().unwrap().success());
}

//! An etcd of one or more members, each a process of its own, killed and waited for on any exit.

use crate::proxy::{Proxy, Requests};
use model::Node;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use store::{Client, Etcd};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

/// How long an etcd may take to begin: so many times a tenth of a second.
const PATIENCE: u32 = 600;

/// The members, and where they keep what they know and say.
pub(crate) struct Cluster {
    folder: TempDir,
    members: Vec<Member>,
    more: &'static [&'static str],
}

struct Member {
    client: SocketAddr,
    peer: SocketAddr,
    /// None: not running.
    child: Option<Child>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Member {
    /// `kill -9`, which also ends what is stopped; gone when this returns.
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl Cluster {
    /// One member, ready.
    pub(crate) async fn one() -> Self {
        Self::start(1, &[]).await
    }

    /// So many members with more arguments, ready.
    pub(crate) async fn start(members: usize, more: &'static [&'static str]) -> Self {
        // Somebody may take a port that was free just now.
        for _ in 0..5 {
            // All are held until all are known: none is given twice.
            let ports: Vec<_> = (0..2 * members).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
            let addresses: Vec<_> = ports.iter().map(|port| port.local_addr().unwrap()).collect();
            drop(ports);
            let members =
                addresses.chunks(2).map(|pair| Member { client: pair[0], peer: pair[1], child: None });
            let mut cluster = Self { folder: tempfile::tempdir().unwrap(), members: members.collect(), more };
            for number in 0..cluster.members.len() {
                cluster.begin(number);
            }
            if cluster.answers().await {
                return cluster;
            }
        }
        panic!("etcd does not begin");
    }

    /// Starts a member on the data that it has.
    pub(crate) fn begin(&mut self, number: usize) {
        let initial = self.members.iter().enumerate();
        let initial: Vec<_> =
            initial.map(|(number, member)| format!("m{number}=http://{}", member.peer)).collect();
        let member = &self.members[number];
        let log = File::options().append(true).create(true).open(self.log(number)).unwrap();
        let (client, peer) = (format!("http://{}", member.client), format!("http://{}", member.peer));
        let child = Command::new("etcd")
            .args(["--name", &format!("m{number}"), "--initial-cluster", &initial.join(",")])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .arg("--data-dir")
            .arg(self.folder.path().join(format!("m{number}")))
            .args(self.more)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.members[number].child = Some(child);
    }

    fn log(&self, number: usize) -> std::path::PathBuf {
        self.folder.path().join(format!("m{number}.log"))
    }

    /// Waits until each member answers; false if one has ended instead.
    pub(crate) async fn answers(&mut self) -> bool {
        let addresses = self.members.iter().map(|member| member.client);
        let mut silent: Vec<_> = addresses.map(|address| client(&format!("http://{address}"))).collect();
        for _ in 0..PATIENCE {
            while let Some(client) = silent.last() {
                if client.get::<Node>("nothing").await.is_err() {
                    break;
                }
                silent.pop();
            }
            if silent.is_empty() {
                return true;
            }
            for number in 0..self.members.len() {
                let child = self.members[number].child.as_mut();
                if child.is_some_and(|child| child.try_wait().unwrap().is_some()) {
                    println!("etcd ended: {}", fs::read_to_string(self.log(number)).unwrap_or_default());
                    return false;
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
        panic!("etcd does not answer: {}", fs::read_to_string(self.log(0)).unwrap_or_default());
    }

    pub(crate) fn kill(&mut self, number: usize) {
        self.members[number].kill();
    }

    /// SIGSTOP: it takes connections and answers nothing.
    pub(crate) fn stop(&self, number: usize) {
        self.signal(number, Signal::STOP);
    }

    /// SIGCONT.
    pub(crate) fn go_on(&self, number: usize) {
        self.signal(number, Signal::CONT);
    }

    fn signal(&self, number: usize, signal: Signal) {
        // Our child and not waited for: the number is not another's.
        let child = self.members[number].child.as_ref().unwrap();
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// Where the first member listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.members[0].client
    }

    /// A client of all members, the first one first.
    pub(crate) fn client(&self) -> Client {
        let endpoints: Vec<_> =
            self.members.iter().map(|member| format!("http://{}", member.client)).collect();
        client(&endpoints.join(","))
    }

    /// A client of the first member, and what stands between.
    pub(crate) async fn client_by_proxy(&self) -> (Client, Proxy) {
        let requests = Requests { watch: "POST /v3/watch ", write: &["POST /v3/kv/txn "] };
        let proxy = Proxy::start(self.address(), requests).await;
        (client(&format!("http://{}", proxy.address)), proxy)
    }

    /// Makes it forget everything before the revision.
    pub(crate) async fn compact(&self, revision: u64) {
        let body = format!(r#"{{"revision":"{revision}","physical":true}}"#);
        let request = format!(
            "POST /v3/kv/compaction HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut connection = TcpStream::connect(self.address()).await.unwrap();
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

/// A client of these endpoints.
pub(crate) fn client(endpoints: &str) -> Client {
    Client::new(Etcd::new(endpoints).unwrap())
}

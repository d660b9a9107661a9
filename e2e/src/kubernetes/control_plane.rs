//! The head of a cluster: etcd, API server, controller manager and scheduler in a network namespace of their own, which
//! is also the wire between the nodes.
//!
//! 1. Nothing listens outside of the namespace but one port of loopback, the way of journeys to the API server.

use super::programs::built;
use super::{API_SERVICE, EXTENDER_SERVICE, HEAD, Site};
use crate::journey::free_port;
use crate::process::{Process, Running};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);
/// How long a noisy machine may take from etcd's start to an API server that answers.
const START: Duration = Duration::from_secs(180);

/// A running head.
pub(super) struct ControlPlane {
    running: Vec<(String, Running)>,
    /// For journeys: the administrator, from this machine's own network namespace.
    pub(super) kubeconfig: PathBuf,
}

impl ControlPlane {
    /// The names of its programs that are built.
    pub(super) const PROGRAMS: [&str; 4] =
        ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"];

    /// Starts it and waits until it answers.
    pub(super) fn start(site: &Site<'_>) -> Result<Self> {
        let port = free_port()?;
        identities(site)?;
        let kubeconfig = site.pki.kubeconfig("admin", &format!("https://127.0.0.1:{port}"))?;
        let namespace = site.head();
        // An address of its own: otherwise it has that of one of its ports, and another one when that node loses power; the
        // others would go on sending to the old one for half a minute.
        site.trip.sh(
            &format!(
                "ip netns add {namespace}\n\
                 ip -n {namespace} link set lo up\n\
                 ip -n {namespace} link add nodes address 02:00:00:00:00:fe type bridge\n\
                 ip -n {namespace} address add {HEAD}/24 dev nodes\n\
                 ip -n {namespace} link set nodes up\n\
                 nsenter --net=/run/netns/{namespace} sysctl -qw net.ipv4.ip_forward=1"
            ),
            LIMIT,
        )?;
        let mut control = Self { running: Vec::new(), kubeconfig };
        control.run(site, "etcd", etcd(site)?)?;
        control.run(site, "kube-apiserver", api_server(site)?)?;
        control.forward(site, port)?;
        control.wait_ready(site)?;
        control.run(site, "kube-controller-manager", controller_manager(site)?)?;
        control.run(site, "kube-scheduler", scheduler(site)?)?;
        Ok(control)
    }

    fn run(&mut self, site: &Site<'_>, name: &str, command: Command) -> Result<()> {
        self.running.push((name.to_owned(), site.start(name, command)?));
        Ok(())
    }

    /// Invariant 1: sockets have names in the file system, which namespaces of networks share.
    fn forward(&mut self, site: &Site<'_>, port: u16) -> Result<()> {
        let socket = site.folder.join("api.sock");
        let mut inner = site.inside(&site.head(), "socat");
        inner.arg(format!("UNIX-LISTEN:{},fork,unlink-early", socket.display())).arg("TCP:127.0.0.1:6443");
        self.run(site, "api-inner", inner)?;
        let mut outer = site.trip.command("socat");
        outer.arg(format!("TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork"));
        outer.arg(format!("UNIX-CONNECT:{}", socket.display()));
        self.run(site, "api-outer", outer)
    }

    fn wait_ready(&mut self, site: &Site<'_>) -> Result<()> {
        let begun = Instant::now();
        loop {
            let mut command = site.kubectl(&self.kubeconfig);
            command.args(["get", "--raw=/readyz"]);
            let outcome = site.trip.run(command, LIMIT)?;
            if outcome.code == Some(0) {
                return Ok(());
            }
            let alive = self.running.iter_mut().all(|(_, running)| running.runs());
            ensure!(
                alive && begun.elapsed() < START,
                "the API server is not ready after {:.0} s: {}",
                begun.elapsed().as_secs_f64(),
                outcome.output
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// One of its programs.
    pub(super) fn process(&self, name: &str) -> Option<Process> {
        self.running.iter().find(|(of, _)| of == name).map(|(_, running)| running.process)
    }

    /// Ends it; what it knew is gone with the run's folder.
    pub(super) fn stop(mut self, site: &Site<'_>) -> Result<()> {
        // The last first: the others would log that they lost their server.
        while let Some(running) = self.running.pop() {
            drop(running);
        }
        site.trip.sh(&format!("ip netns delete {}", site.head()), LIMIT)?;
        Ok(())
    }
}

/// Certificates of the head and of those that it lets in.
fn identities(site: &Site<'_>) -> Result<()> {
    let (pki, trip) = (&site.pki, site.trip);
    let names = format!(
        "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,\
         DNS:kubernetes.default.svc.cluster.local,IP:127.0.0.1,IP:{HEAD},IP:{API_SERVICE}"
    );
    pki.server(trip, "kube-apiserver", &names)?;
    for (name, subject) in [
        ("admin", "/O=system:masters/CN=admin"),
        ("apiserver-kubelet", "/O=system:masters/CN=apiserver-kubelet"),
        ("kube-controller-manager", "/CN=system:kube-controller-manager"),
        ("kube-scheduler", "/CN=system:kube-scheduler"),
        ("front-proxy", "/CN=front-proxy"),
    ] {
        pki.client(trip, name, subject)?;
    }
    Ok(())
}

fn etcd(site: &Site<'_>) -> Result<Command> {
    let data = site.folder.join("etcd");
    fs::create_dir_all(&data).context("make room for etcd")?;
    let mut command = site.inside(&site.head(), "etcd");
    command.arg(format!("--data-dir={}", data.display())).args([
        "--name=head",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=head=http://127.0.0.1:2380",
    ]);
    Ok(command)
}

fn api_server(site: &Site<'_>) -> Result<Command> {
    let file = |option: &str, name: &str| format!("--{option}={}", site.pki.file(name).display());
    let mut command = site.inside(&site.head(), built("kube-apiserver")?);
    command.args([
        file("tls-cert-file", "kube-apiserver.crt"),
        file("tls-private-key-file", "kube-apiserver.key"),
        file("client-ca-file", "ca.crt"),
        file("kubelet-client-certificate", "apiserver-kubelet.crt"),
        file("kubelet-client-key", "apiserver-kubelet.key"),
        file("service-account-key-file", "accounts.pub"),
        file("service-account-signing-key-file", "accounts.key"),
        file("requestheader-client-ca-file", "ca.crt"),
        file("proxy-client-cert-file", "front-proxy.crt"),
        file("proxy-client-key-file", "front-proxy.key"),
        format!("--advertise-address={HEAD}"),
    ]);
    command.args([
        "--etcd-servers=http://127.0.0.1:2379",
        "--bind-address=0.0.0.0",
        "--secure-port=6443",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--requestheader-allowed-names=front-proxy",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--enable-aggregator-routing=true",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--v=1",
    ]);
    Ok(command)
}

fn controller_manager(site: &Site<'_>) -> Result<Command> {
    let url = format!("https://{HEAD}:6443");
    let kubeconfig = site.pki.kubeconfig("kube-controller-manager", &url)?;
    let mut command = site.inside(&site.head(), built("kube-controller-manager")?);
    for option in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
        command.arg(format!("--{option}={}", kubeconfig.display()));
    }
    for (option, name) in [
        ("service-account-private-key-file", "accounts.key"),
        ("root-ca-file", "ca.crt"),
        ("cluster-signing-cert-file", "ca.crt"),
        ("cluster-signing-key-file", "ca.key"),
    ] {
        command.arg(format!("--{option}={}", site.pki.file(name).display()));
    }
    command.args([
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        "--allocate-node-cidrs=false",
        "--v=1",
    ]);
    Ok(command)
}

fn scheduler(site: &Site<'_>) -> Result<Command> {
    let url = format!("https://{HEAD}:6443");
    let kubeconfig = site.pki.kubeconfig("kube-scheduler", &url)?;
    let path = site.folder.join("scheduler.yaml");
    fs::write(&path, scheduler_configuration(&kubeconfig.display().to_string())?)?;
    let mut command = site.inside(&site.head(), built("kube-scheduler")?);
    command.arg(format!("--config={}", path.display())).args(["--bind-address=127.0.0.1", "--v=1"]);
    Ok(command)
}

/// What the documentation gives to a scheduler, in the lab's place.
fn scheduler_configuration(kubeconfig: &str) -> Result<String> {
    let mut text = include_str!("../../../docs/guides/scheduler.yaml").to_owned();
    ensure!(text.contains(&format!("http://{EXTENDER_SERVICE}:")), "the extender's address is another one");
    for (documented, here) in
        [("/etc/kubernetes/scheduler.conf", kubeconfig), ("leaderElect: true", "leaderElect: false")]
    {
        ensure!(text.contains(documented), "docs/guides/scheduler.yaml has no {documented}");
        text = text.replace(documented, here);
    }
    Ok(text)
}

//! A real Kubernetes on one machine: a head and a few nodes that live as long as a journey, made of the programs that
//! run everywhere else.
//!
//! 1. All of it is in namespaces of its own: no address, port, mount, host name or setting of this machine changes, but
//!    for one port of loopback, the way to the API server.
//! 2. Namespaces and cgroups are named by the run's id, files are in its folder, programs have it in their environment;
//!    what the pods start is known by its cgroup.
//! 3. There is no DNS and no proxy for services: only the API server has a service address.

pub(crate) mod chart;
mod control_plane;
mod held;
pub(crate) mod image;
mod node;
pub(crate) mod older;
mod pki;
pub(crate) mod programs;

use crate::guest::which;
use crate::journey::{Trip, need};
use crate::process::{Running, tail};
use anyhow::{Context, Result, ensure};
use control_plane::ControlPlane;
pub(crate) use held::Held;
pub(crate) use node::{Node, Residents};
use pki::Pki;
use programs::built;
use rustix::process::Signal;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The head's address on the wire between the nodes.
pub(crate) const HEAD: &str = "10.200.0.1";
/// Where pods find the API server: the first address of the services.
const API_SERVICE: &str = "10.96.0.1";
/// Where the scheduler looks for its extender, as docs/guides/scheduler.yaml says it; a journey makes it lead somewhere.
pub(crate) const EXTENDER_SERVICE: &str = "10.96.0.72";
const READY: Duration = Duration::from_secs(120);
/// What Debian brings, each by a file that tells that it is there.
const PACKAGES: [(&str, &str); 10] = [
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("etcd", "etcd-server"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("socat", "socat"),
    ("busybox", "busybox-static"),
    ("openssl", "openssl"),
];

/// What all parts of one cluster share.
struct Site<'a> {
    trip: &'a Trip,
    folder: PathBuf,
    pki: Pki,
    kubectl: PathBuf,
}

impl Site<'_> {
    /// The head's network namespace.
    fn head(&self) -> String {
        format!("{}-head", self.trip.id.0)
    }

    /// A command in a network namespace. `ip netns exec` would mount another /sys, which has no cgroups.
    fn inside(&self, namespace: &str, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.trip.command("nsenter");
        command.arg(format!("--net=/run/netns/{namespace}")).arg(program);
        direct(&mut command);
        command
    }

    /// Starts a program of the cluster; it logs to `log/NAME.log`.
    fn start(&self, name: &str, command: Command) -> Result<Running> {
        Running::start(command, &self.folder.join("log").join(format!("{name}.log")))
    }

    fn kubectl(&self, kubeconfig: &Path) -> Command {
        let mut command = self.trip.command(&self.kubectl);
        command.env("KUBECONFIG", kubeconfig).env("KUBECACHEDIR", self.folder.join("kubectl"));
        direct(&mut command);
        command
    }
}

/// No proxy of this machine's user knows the cluster's addresses.
fn direct(command: &mut Command) {
    command.env("NO_PROXY", "*").env("no_proxy", "*");
}

/// A running cluster.
pub(crate) struct Lab<'a> {
    site: Rc<Site<'a>>,
    control: Option<ControlPlane>,
    kubeconfig: PathBuf,
    nodes: Vec<Node<'a>>,
}

impl<'a> Lab<'a> {
    /// Starts a head and the nodes `node-1` to `node-N`, which have these images beside the basic ones, and waits until
    /// pods can be placed on all of them.
    pub(crate) fn start(trip: &'a Trip, nodes: u8, images: &[PathBuf]) -> Result<Self> {
        need(&PACKAGES)?;
        ensure!(
            fs::exists("/sys/fs/cgroup/memory/cgroup.procs")?,
            "this machine has no cgroups of version 1, and the nodes are made for these"
        );
        // Before the clock of any check runs: the first run of a machine builds for minutes.
        for program in ControlPlane::PROGRAMS.into_iter().chain([Node::PROGRAM]) {
            built(program)?;
        }
        let folder = trip.folder.join("cluster");
        fs::create_dir_all(folder.join("log"))?;
        let pki = Pki::new(trip, &folder.join("pki"))?;
        let images = [image::basic(trip, &folder)?, images.to_vec()].concat();
        let site = Rc::new(Site { trip, folder, pki, kubectl: built("kubectl")? });
        let control = ControlPlane::start(&site)?;
        trip.checked("etcd and the API server are ready");
        let kubeconfig = control.kubeconfig.clone();
        let mut lab = Self { site, control: Some(control), kubeconfig, nodes: Vec::new() };
        for number in 1..=nodes {
            lab.nodes.push(Node::boot(lab.site.clone(), number, &images)?);
            trip.checked(format!("node-{number} is booted, and has its images"));
        }
        lab.wait_ready()?;
        trip.checked(format!("all {nodes} nodes are ready"));
        Ok(lab)
    }

    fn wait_ready(&self) -> Result<()> {
        for node in &self.nodes {
            let object = format!("node/{}", node.name);
            self.kubectl(&["wait", "--for=create", &object, "--timeout=120s"], READY)?;
            self.kubectl(&["wait", "--for=condition=Ready", &object, "--timeout=120s"], READY)?;
        }
        // Pods are refused until their account is there.
        self.kubectl(&["wait", "--for=create", "serviceaccount/default", "--timeout=120s"], READY)?;
        Ok(())
    }

    /// Runs `kubectl ARGUMENTS` as the administrator; its output.
    pub(crate) fn kubectl(&self, arguments: &[&str], limit: Duration) -> Result<String> {
        let mut command = self.site.kubectl(&self.kubeconfig);
        command.args(arguments);
        self.site.trip.run(command, limit)?.success(&format!("kubectl {}", arguments.join(" ")))
    }

    /// Creates or changes objects, in YAML or JSON.
    pub(crate) fn apply(&self, objects: &str) -> Result<String> {
        let path = self.site.folder.join("objects.yaml");
        fs::write(&path, objects)?;
        self.kubectl(&["apply", "--filename", &path.display().to_string()], READY)
    }

    /// Waits until a field of an object, by its JSON path, has this value.
    pub(crate) fn wait_for(
        &self,
        object: &str,
        path: &str,
        value: &str,
        limit: Duration,
    ) -> Result<Duration> {
        let begun = Instant::now();
        let condition = format!("--for=jsonpath={{{path}}}={value}");
        let timeout = format!("--timeout={}s", limit.as_secs());
        if let Err(error) = self.kubectl(&["wait", &condition, object, &timeout], limit + READY) {
            // What the cluster thinks of it is the first thing that everybody asks for.
            let described = self.kubectl(&["describe", object], READY).unwrap_or_default();
            let said = self.kubectl(&["logs", "--all-containers", object], READY).unwrap_or_default();
            return Err(error.context(format!("{}\nit said:\n{}", tail(&described, 25), tail(&said, 10))));
        }
        Ok(begun.elapsed())
    }

    /// The API server stands still for so long, its connections open.
    pub(crate) fn pause_api_server(&self, pause: Duration) -> Result<()> {
        let server = self.control.as_ref().and_then(|control| control.process("kube-apiserver"));
        let server = server.context("there is no API server")?;
        ensure!(server.signal(Signal::STOP), "the API server has ended");
        std::thread::sleep(pause);
        ensure!(server.signal(Signal::CONT), "the API server has ended");
        Ok(())
    }

    /// A command in the network of the head: pods reach what listens there.
    pub(crate) fn at_head(&self, program: &str) -> Command {
        self.site.inside(&self.site.head(), program)
    }

    /// One of its nodes.
    pub(crate) fn node(&mut self, name: &str) -> Result<&mut Node<'a>> {
        let mut nodes = self.nodes.iter_mut();
        nodes.find(|node| node.name == name).with_context(|| format!("there is no node {name}"))
    }

    /// Ends all of it, pods included.
    pub(crate) fn stop(mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.power_off()?;
        }
        let control = self.control.take().context("it runs until here")?;
        control.stop(&self.site)
    }
}

impl Drop for Lab<'_> {
    fn drop(&mut self) {
        // Only after a failure: say what the programs said, then let the guard take what is left.
        if self.control.is_none() {
            return;
        }
        for entry in fs::read_dir(self.site.folder.join("log")).into_iter().flatten().flatten() {
            let text = fs::read(entry.path()).unwrap_or_default();
            println!("  {}:\n{}", entry.path().display(), last_words(&String::from_utf8_lossy(&text)));
        }
    }
}

/// The end of a program's log: more of it where something was wrong.
fn last_words(log: &str) -> String {
    let end = tail(log, 25);
    if end.lines().any(is_trouble) { end } else { tail(&end, 6) }
}

/// Whether a line of a log is a warning or worse, as tracing, klog, logrus (containerd) and zap (etcd) write them.
fn is_trouble(line: &str) -> bool {
    let klog = line.strip_prefix(['W', 'E', 'F']).and_then(|rest| rest.split_once(' '));
    let is_klog = klog.is_some_and(|(day, _)| day.len() == 4 && day.bytes().all(|b| b.is_ascii_digit()));
    let levels = [" WARN ", " ERROR ", "level=warn", "level=error", "level=fatal"];
    let zap = ["warn", "error", "fatal", "panic"].map(|level| format!("\"level\":\"{level}\""));
    is_klog
        || levels.iter().any(|level| line.contains(level))
        || zap.iter().any(|level| line.contains(level.as_str()))
}

/// The path of a program of this machine.
fn installed(program: &str) -> Result<PathBuf> {
    which(program).with_context(|| format!("{program} is installed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_of_all_programs_are_known() {
        for line in [
            "E1127 03:39:57.123456    1234 reflector.go:205] \"Failed to watch\"",
            "W1127 03:39:57.123456    1234 logging.go:55] grpc: addrConn.createTransport failed",
            "2026-11-27T03:39:57.123456Z  WARN orlop::node: disk is not used node=\"n1\"",
            "2026-11-27T03:39:57.123456Z ERROR orlop::node: the node ended",
            "time=\"2026-11-27T03:39:57Z\" level=warning msg=\"cleanup\"",
            "time=\"2026-11-27T03:39:57Z\" level=error msg=\"failed\"",
            r#"{"level":"warn","ts":"2026-11-27T03:39:57Z","msg":"apply request took too long"}"#,
        ] {
            assert!(is_trouble(line), "{line}");
        }
        for line in [
            "I1127 03:39:57.123456    1234 controller.go:1] ERRORS are counted",
            "2026-11-27T03:39:57.123456Z  INFO orlop: warned",
            r#"{"level":"info","msg":"ready"}"#,
            "EOF while reading",
            "E11 7",
            "booted",
        ] {
            assert!(!is_trouble(line), "{line}");
        }
    }

    #[test]
    fn a_log_with_trouble_at_its_end_is_told_at_length() {
        let quiet: Vec<String> = (0..100).map(|number| format!("I1127 {number}")).collect();
        assert_eq!(last_words(&quiet.join("\n")).lines().count(), 6);
        let with = |place: usize| {
            let mut lines = quiet.clone();
            lines[place] = "E1127 03:39:57.123456 it broke".into();
            last_words(&lines.join("\n"))
        };
        assert_eq!(
            (with(74).lines().count(), with(75).lines().count(), with(99).lines().count()),
            (6, 25, 25)
        );
        assert_eq!(last_words("E1127 alone"), "E1127 alone");
        assert_eq!(last_words(""), "");
    }
}

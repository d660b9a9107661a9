//! One node: network, mount and UTS namespaces held by one process, containerd and kubelet in them, and a disk that
//! outlives all of these.
//!
//! 1. A node's processes are those in its mount namespace and those in its cgroups; nothing else is signalled.
//! 2. Off means off: after `power_off` no process of the node lives, its wire is cut, and only its disk is left.

use super::programs::built;
use super::{API_SERVICE, HEAD, Site, installed};
use crate::guard::cgroups;
use crate::process::{self, Process, Running, tail};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);
const BOOT: &str = include_str!("../../kubernetes/boot-node.sh");

/// A node, on or off.
pub(crate) struct Node<'a> {
    site: Rc<Site<'a>>,
    /// `node-NUMBER`.
    pub(crate) name: String,
    number: u8,
    disk: PathBuf,
    /// Holds the namespaces: as long as it lives, the node is on.
    machine: Option<Running>,
    /// kubelet and containerd.
    programs: Vec<Running>,
}

impl<'a> Node<'a> {
    /// The name of its program that is built.
    pub(super) const PROGRAM: &'static str = "kubelet";

    /// A new node with an empty disk and these images.
    pub(super) fn boot(site: Rc<Site<'a>>, number: u8, images: &[PathBuf]) -> Result<Self> {
        let name = format!("node-{number}.lab");
        site.pki.client(site.trip, &name, &format!("/O=system:nodes/CN=system:node:{name}"))?;
        site.pki.kubeconfig(&name, &format!("https://{HEAD}:6443"))?;
        let disk = site.folder.join(&name);
        let mut node = Self { site, name, number, disk, machine: None, programs: Vec::new() };
        node.configure()?;
        node.power_on_with(images)?;
        Ok(node)
    }

    /// The namespace of its network, and the name of its cgroup in every hierarchy.
    fn id(&self) -> String {
        format!("{}-{}", self.site.trip.id.0, self.name)
    }

    /// The folder that is its disk.
    pub(crate) fn disk(&self) -> &Path {
        &self.disk
    }

    fn address(&self) -> String {
        format!("10.200.0.{}", 10 + self.number)
    }

    /// Boots a node that was off, with the disk that it had.
    pub(crate) fn power_on(&mut self) -> Result<()> {
        self.power_on_with(&[])
    }

    fn power_on_with(&mut self, images: &[PathBuf]) -> Result<()> {
        self.plug()?;
        let script = self.disk.join("boot-node.sh");
        fs::write(&script, BOOT)?;
        let mut command = self.site.inside(&self.id(), "unshare");
        command.args(["--mount", "--uts", "--propagation", "private", "bash"]);
        command.arg(script).arg(&self.name).arg(&self.disk).arg(self.id());
        let mut machine = self.site.start(&self.name, command)?;
        let begun = Instant::now();
        while !machine.output().contains("booted") {
            let end = tail(&machine.output(), 10);
            ensure!(machine.runs() && begun.elapsed() < LIMIT, "{} does not boot:\n{end}", self.name);
            std::thread::sleep(Duration::from_millis(10));
        }
        self.machine = Some(machine);
        self.start_containerd()?;
        for image in images {
            self.import(image)?;
        }
        self.start_kubelet()
    }

    /// Connects it to the head, which is the switch and the router of all nodes.
    fn plug(&self) -> Result<()> {
        let (id, head, number, address) = (self.id(), self.site.head(), self.number, self.address());
        // A machine that boots again has the address that it had.
        let mac = format!("02:00:00:00:00:{number:02x}");
        let dnat = format!("-d {API_SERVICE}/32 -p tcp --dport 443 -j DNAT --to-destination {HEAD}:6443");
        self.site.trip.sh(
            &format!(
                "ip netns add {id}\n\
                 ip -n {id} link set lo up\n\
                 ip -n {head} link add node{number} type veth peer name eth0 address {mac} netns {id}\n\
                 ip -n {head} link set node{number} master nodes up\n\
                 ip -n {id} address add {address}/24 dev eth0\n\
                 ip -n {id} link set eth0 up\n\
                 ip -n {id} route add default via {HEAD}\n\
                 ip -n {head} route replace 10.244.{number}.0/24 via {address}\n\
                 nsenter --net=/run/netns/{id} sysctl -qw net.ipv4.ip_forward=1\n\
                 nsenter --net=/run/netns/{id} iptables -t nat -A PREROUTING {dnat}\n\
                 nsenter --net=/run/netns/{id} iptables -t nat -A OUTPUT {dnat}"
            ),
            LIMIT,
        )?;
        Ok(())
    }

    /// A command in its namespaces.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let machine = self.machine.as_ref().with_context(|| format!("{} is off", self.name))?;
        let mut command = self.site.trip.command("nsenter");
        command.arg(format!("--target={}", machine.process.pid)).args(["--net", "--mount", "--uts"]);
        command.arg(program);
        super::direct(&mut command);
        Ok(command)
    }

    /// Runs a line of shell in its namespaces that has to succeed; its output.
    pub(crate) fn sh(&self, line: &str, limit: Duration) -> Result<String> {
        let mut command = self.command("bash")?;
        command.args(["-e", "-o", "pipefail", "-c", line]);
        self.site.trip.run(command, limit)?.success(&format!("{}: {line}", self.name))
    }

    /// Gives its containerd an image, from an archive.
    pub(crate) fn import(&self, archive: &Path) -> Result<()> {
        self.sh(&format!("ctr --namespace k8s.io images import {}", archive.display()), LIMIT)?;
        Ok(())
    }

    fn start_containerd(&mut self) -> Result<()> {
        let mut command = self.command(installed("containerd")?)?;
        command.arg("--config").arg(self.disk.join("containerd.toml"));
        self.programs.push(self.site.start(&format!("{}-containerd", self.name), command)?);
        self.sh("for try in {1..200}; do ctr version && exit; sleep 0.1; done; exit 1", LIMIT)?;
        Ok(())
    }

    fn start_kubelet(&mut self) -> Result<()> {
        let mut command = self.command(built(Self::PROGRAM)?)?;
        command.arg(format!("--config={}", self.disk.join("kubelet.json").display()));
        let kubeconfig = self.site.pki.file(&format!("{}.kubeconfig", self.name));
        command.arg(format!("--kubeconfig={}", kubeconfig.display()));
        command.arg(format!("--hostname-override={}", self.name));
        command.arg(format!("--node-ip={}", self.address()));
        command.args(["--root-dir=/var/lib/kubelet", "--cert-dir=/var/lib/kubelet/pki", "--v=2"]);
        self.programs.push(self.site.start(&format!("{}-kubelet", self.name), command)?);
        Ok(())
    }

    /// All its processes but the one that holds the namespaces (invariant 1).
    pub(crate) fn processes(&self) -> Vec<Process> {
        self.residents().map(|residents| residents.all().collect()).unwrap_or_default()
    }

    /// Those of its processes whose command line contains `text`.
    pub(crate) fn running(&self, text: &str) -> Vec<Process> {
        self.residents().map(|residents| residents.running(text)).unwrap_or_default()
    }

    /// What tells its processes from others, for as long as it is on.
    pub(crate) fn residents(&self) -> Result<Residents> {
        let machine = self.machine.as_ref().with_context(|| format!("{} is off", self.name))?.process;
        Ok(Residents { id: self.id(), machine, mounts: mounts_of(machine.pid) })
    }

    /// Stops or wakes everything that runs on it, pods included.
    pub(crate) fn signal(&self, signal: Signal) {
        for process in self.processes() {
            process.signal(signal);
        }
    }

    /// `kill -9` of everything that runs on it; its namespaces and mounts stay.
    pub(crate) fn kill(&mut self) -> Result<()> {
        let begun = Instant::now();
        // What was about to start while the others died is found the next time.
        while !self.processes().is_empty() {
            self.signal(Signal::KILL);
            ensure!(begun.elapsed() < LIMIT, "{}: {:?} do not die", self.name, self.processes());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.programs.clear();
        Ok(())
    }

    /// Starts containerd and kubelet again after `kill`.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.start_containerd()?;
        self.start_kubelet()
    }

    /// Cuts the power: everything is gone but what its disk has.
    pub(crate) fn power_off(&mut self) -> Result<()> {
        self.kill()?;
        let Some(machine) = self.machine.take() else { return Ok(()) };
        let process = machine.process;
        drop(machine);
        process.wait_end(LIMIT)?;
        let (id, head, number) = (self.id(), self.site.head(), self.number);
        self.site.trip.sh(&format!("ip -n {head} link delete node{number}\nip netns delete {id}"), LIMIT)?;
        let begun = Instant::now();
        loop {
            let left = cgroups(Path::new("/sys/fs/cgroup"), &id);
            let Some(first) = left.first() else { return Ok(()) };
            for cgroup in &left {
                // One that still has a zombie goes in the next round.
                fs::remove_dir(cgroup).ok();
            }
            if begun.elapsed() > LIMIT {
                bail!("{}: {} is still in use", self.name, first.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Writes what containerd, its network plugins and the kubelet are told, all of it on the node's disk.
    fn configure(&self) -> Result<()> {
        let networks = self.disk.join("networks");
        fs::create_dir_all(&networks)?;
        let subnet = format!("10.244.{}.0/24", self.number);
        let ipam = json!({
            "type": "host-local",
            "ranges": [[{ "subnet": subnet }]],
            "routes": [{ "dst": "0.0.0.0/0" }],
        });
        let bridge = json!({
            "type": "bridge", "bridge": "pods", "isGateway": true, "hairpinMode": true, "ipMasq": false, "ipam": ipam,
        });
        let ports = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
        let network = json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, ports] });
        fs::write(networks.join("10-pods.conflist"), network.to_string())?;
        fs::write(self.disk.join("containerd.toml"), containerd(&networks))?;
        let authority = self.site.pki.file("ca.crt");
        let resolver = self.disk.join("resolv.conf");
        fs::write(&resolver, "")?;
        let kubelet = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.address(),
            "healthzBindAddress": "127.0.0.1",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "authentication": {
                "anonymous": { "enabled": false },
                "webhook": { "enabled": true },
                "x509": { "clientCAFile": authority },
            },
            "authorization": { "mode": "Webhook" },
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", self.id()),
            "failCgroupV1": false,
            "failSwapOn": false,
            "oomScoreAdj": 0,
            "makeIPTablesUtilChains": false,
            "enforceNodeAllocatable": ["pods"],
            "evictionHard": { "memory.available": "100Mi", "nodefs.available": "1Gi", "imagefs.available": "1Gi" },
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "resolvConf": resolver,
            "nodeStatusUpdateFrequency": "4s",
            "syncFrequency": "10s",
            // What is killed on purpose is soon there again.
            "crashLoopBackOff": { "maxContainerRestartPeriod": "1s" },
            "featureGates": { "KubeletCrashLoopBackOffMax": true },
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        });
        fs::write(self.disk.join("kubelet.json"), kubelet.to_string())?;
        Ok(())
    }
}

/// Tells a node's processes from all others (invariant 1).
pub(crate) struct Residents {
    /// Part of the names of its cgroups.
    id: String,
    /// Holds the namespaces, and is none of them.
    machine: Process,
    mounts: Option<PathBuf>,
}

impl Residents {
    pub(super) fn all(&self) -> impl Iterator<Item = Process> {
        process::all().filter(|process| *process != self.machine && self.has(process))
    }

    fn has(&self, process: &Process) -> bool {
        let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).unwrap_or_default();
        cgroups.contains(&self.id) || (self.mounts.is_some() && mounts_of(process.pid) == self.mounts)
    }

    /// Those whose command line contains `text`.
    pub(crate) fn running(&self, text: &str) -> Vec<Process> {
        let line = |process: &Process| {
            let line = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
            String::from_utf8_lossy(&line).replace('\0', " ")
        };
        self.all().filter(|process| line(process).contains(text)).collect()
    }
}

/// The mount namespace of a process.
fn mounts_of(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()
}

/// What containerd is told; it finds its folders in the node's own /var/lib and /run.
fn containerd(networks: &Path) -> String {
    let pause = super::image::PAUSE;
    let networks = networks.display();
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{networks}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"#
    )
}

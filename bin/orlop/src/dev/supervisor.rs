//! The processes of a data folder: one controller, one per node and, if wished, a CSI plugin per node; started,
//! watched, started again, ended in order.
//!
//! Invariants:
//! 1. No process outlives this one: each asks the kernel to be killed with its parent, and dropping the supervisor kills
//!    what is left. The processes of an earlier run, which the same rule has killed, are waited for before new ones start.
//! 2. Plugins end before the nodes, whose volumes they use, and nodes before the controller, because they write their
//!    last records through it.

use super::folder::{Cluster, Folder, NodeEntry};
use super::ports::Reserved;
use crate::failure::{Failure, OrFail, Outcome};
use crate::process::Identity;
use crate::stores;
use api::client::Client;
use model::topology::ZONE_KEY;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

/// The name of the controller among the processes.
pub(crate) const CONTROLLER: &str = "controller";
/// In front of a node's name: its CSI plugin.
const PLUGIN: &str = "csi-";

/// How long starting and ending may take.
const START_PATIENCE: Duration = Duration::from_secs(30);
const STOP_PATIENCE: Duration = Duration::from_secs(20);
const CONTROLLER_STOP_PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);

/// What happened to a process.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its name.
    pub(crate) name: String,
    /// Which process it was: a later one of the same name may run already.
    pub(crate) identity: Identity,
    /// How it ended.
    pub(crate) status: ExitStatus,
}

/// The processes of one data folder.
#[derive(Debug)]
pub(crate) struct Supervisor {
    program: PathBuf,
    folder: Folder,
    cluster: Cluster,
    listen: SocketAddr,
    /// Held until the end: nodes come back to their ports.
    _reserved: Reserved,
    /// Devices wait for a node to be started again; without it a killed node stands for a dead machine.
    hold_devices: bool,
    /// Which disks of this machine the first node looks at: the others would find the same.
    disks_allow: Vec<String>,
    /// Where the sockets of the plugins are, if there are plugins.
    plugins: Option<PathBuf>,
    client: Client,
    running: BTreeMap<String, Identity>,
    ended_sender: mpsc::UnboundedSender<Ended>,
    ended: mpsc::UnboundedReceiver<Ended>,
}

impl Supervisor {
    /// Starts everything and waits until every node is ready.
    pub(crate) async fn start(
        folder: Folder,
        mut cluster: Cluster,
        listen: SocketAddr,
        hold_devices: bool,
        disks_allow: Vec<String>,
    ) -> Outcome<Self> {
        let program = std::env::current_exe().or_fail(|| "cannot find this program's own file".into())?;
        wait_for_earlier(&folder).await?;
        remove_leftovers(&cluster.run_id);
        let mut reserved = Reserved::default();
        let listen = reserved.listen(listen)?;
        reserved.assign(&mut cluster)?;
        folder.keep_cluster(&cluster)?;
        let client = Client::new(&format!("http://{listen}"))?;
        let (ended_sender, ended) = mpsc::unbounded_channel();
        let running = BTreeMap::new();
        let mut this = Self {
            program,
            folder,
            cluster,
            listen,
            _reserved: reserved,
            hold_devices,
            disks_allow,
            plugins: None,
            client,
            running,
            ended_sender,
            ended,
        };
        this.start_controller().await?;
        for node in this.cluster.nodes.clone() {
            this.start_node(&node)?;
        }
        this.wait_until_ready().await?;
        this.folder.keep();
        Ok(this)
    }

    /// Starts a CSI plugin for each node, with its socket in `folder`, and waits until they listen.
    pub(crate) async fn start_plugins(&mut self, folder: &Path) -> Outcome {
        let folder = std::path::absolute(folder).or_fail(|| format!("cannot use {}", folder.display()))?;
        self.plugins = Some(folder.clone());
        let deadline = Instant::now() + START_PATIENCE;
        for node in self.cluster.nodes.clone() {
            let socket = socket(&folder, &node.name);
            // One of an earlier run would look as if it listened already.
            let _gone = std::fs::remove_file(&socket);
            self.start_plugin(&node.name)?;
            while tokio::net::UnixStream::connect(&socket).await.is_err() {
                self.fail_if_ended()?;
                if Instant::now() > deadline {
                    return Err(self.start_failure(&format!("{PLUGIN}{}", node.name), "does not listen"));
                }
                sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// The API of the controller.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The data folder.
    pub(crate) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// The address of the store, if it is not the controller's own.
    fn store(&self) -> Outcome<Option<String>> {
        let Cluster { store, run_id, .. } = &self.cluster;
        store.as_ref().map(|address| stores::shared(address, run_id)).transpose()
    }

    /// The nodes, and on which ports they are.
    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The process of this name, if it runs.
    pub(crate) fn process(&self, name: &str) -> Option<Identity> {
        self.running.get(name).copied()
    }

    /// Waits until a process ends by itself or is killed.
    pub(crate) async fn next_ended(&mut self) -> Ended {
        loop {
            let ended = self.ended.recv().await.expect("this object holds a sender");
            if self.running.get(&ended.name) == Some(&ended.identity) {
                self.running.remove(&ended.name);
                return ended;
            }
        }
    }

    /// Starts the process of this name again.
    pub(crate) async fn start_again(&mut self, name: &str) -> Outcome {
        if name == CONTROLLER {
            return self.start_controller().await;
        }
        if let Some(node) = name.strip_prefix(PLUGIN) {
            return self.start_plugin(node);
        }
        let node = self.cluster.nodes.iter().find(|node| node.name == name).cloned();
        self.start_node(&node.ok_or_else(|| Failure::new(format!("there is no node {name:?}")))?)
    }

    /// Ends everything in order: plugins, nodes, the controller; kills what takes too long, and names it.
    pub(crate) async fn stop(mut self) -> Vec<String> {
        let others = self.running.keys().filter(|name| *name != CONTROLLER).cloned();
        let (plugins, nodes): (Vec<String>, Vec<String>) = others.partition(|name| name.starts_with(PLUGIN));
        let mut killed = self.end(&plugins, CONTROLLER_STOP_PATIENCE).await;
        killed.extend(self.end(&nodes, STOP_PATIENCE).await);
        killed.extend(self.end(&[CONTROLLER.to_owned()], CONTROLLER_STOP_PATIENCE).await);
        remove_leftovers(&self.cluster.run_id);
        killed
    }

    /// Asks processes to end, waits, kills the rest and returns their names.
    async fn end(&mut self, names: &[String], patience: Duration) -> Vec<String> {
        let identities: Vec<(String, Identity)> =
            names.iter().filter_map(|name| Some((name.clone(), self.process(name)?))).collect();
        for (_, identity) in &identities {
            identity.signal(Signal::TERM);
        }
        let deadline = Instant::now() + patience;
        while identities.iter().any(|(_, identity)| identity.is_alive()) && Instant::now() < deadline {
            sleep(POLL).await;
        }
        let mut killed = Vec::new();
        for (name, identity) in identities {
            if identity.signal(Signal::KILL) {
                killed.push(name.clone());
            }
            self.running.remove(&name);
        }
        killed
    }

    /// Kills what runs and waits until it is gone: I/O on its devices then fails at once, instead of waiting.
    pub(crate) fn kill(&self) {
        for identity in self.running.values() {
            identity.signal(Signal::KILL);
        }
        while self.running.values().any(|identity| identity.is_alive()) {
            std::thread::sleep(POLL);
        }
    }

    async fn start_controller(&mut self) -> Outcome {
        let store = match self.store()? {
            Some(address) => ["--store".into(), address.into()],
            None => ["--data".into(), self.folder.of(CONTROLLER)?.into_os_string()],
        };
        let arguments =
            [&["controller".into()][..], &store, &["--listen".into(), self.listen.to_string().into()]]
                .concat();
        self.spawn(CONTROLLER, &arguments)?;
        let deadline = Instant::now() + START_PATIENCE;
        while tokio::net::TcpStream::connect(self.listen).await.is_err() {
            self.fail_if_ended()?;
            if Instant::now() > deadline {
                return Err(self.start_failure(CONTROLLER, "does not listen"));
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    fn start_node(&mut self, node: &NodeEntry) -> Outcome {
        let data = self.folder.of(&node.name)?;
        let disk = format!("file://{}/disk?size={}", data.display(), self.cluster.disk_size_bytes);
        let local = |port| OsString::from(SocketAddr::from((Ipv4Addr::LOCALHOST, port)).to_string());
        let mut arguments = vec![
            "node".into(),
            "run".into(),
            "--name".into(),
            node.name.clone().into(),
            "--run-id".into(),
            self.cluster.run_id.clone().into(),
            "--data".into(),
            data.into_os_string(),
            "--disk".into(),
            disk.into(),
            "--listen".into(),
            local(node.port),
            "--metrics".into(),
            local(node.metrics_port),
            "--store".into(),
            self.store()?.unwrap_or_else(|| self.client.base().to_owned()).into(),
        ];
        arguments.extend(self.cluster.secret.iter().flat_map(|file| ["--secret".into(), file.into()]));
        let zone = self.cluster.zone(&node.name).map(|zone| format!("{ZONE_KEY}={zone}"));
        arguments.extend(zone.into_iter().flat_map(|label| ["--topology".into(), label.into()]));
        arguments.extend(self.hold_devices.then(|| "--hold-devices".into()));
        if self.cluster.nodes.first().is_some_and(|first| first.name == node.name) {
            let allowed = self.disks_allow.iter();
            arguments.extend(allowed.flat_map(|glob| ["--disks-allow".into(), glob.into()]));
        }
        self.spawn(&node.name, &arguments)
    }

    fn start_plugin(&mut self, node: &str) -> Outcome {
        let folder = self.plugins.as_ref().ok_or_else(|| Failure::new("there are no plugins"))?;
        let arguments = [
            "csi".into(),
            "--node".into(),
            node.into(),
            "--socket".into(),
            socket(folder, node).into_os_string(),
            "--api".into(),
            self.client.base().into(),
        ];
        self.spawn(&format!("{PLUGIN}{node}"), &arguments)
    }

    fn spawn(&mut self, name: &str, arguments: &[OsString]) -> Outcome {
        let log = self.folder.log(name)?;
        let open = OpenOptions::new().create(true).append(true).open(&log);
        let log = open.or_fail(|| format!("cannot open the log {}", log.display()))?;
        let log_too = log.try_clone().or_fail(|| "cannot share a log".into())?;
        let mut command = std::process::Command::new(&self.program);
        command.args(arguments).arg("--parent").arg(std::process::id().to_string());
        command.stdin(Stdio::null()).stdout(log).stderr(log_too);
        // Ctrl-C in the terminal is for the supervisor, which then ends its processes in order.
        command.process_group(0);
        let mut command = tokio::process::Command::from(command);
        let mut child = command.kill_on_drop(true).spawn().or_fail(|| format!("cannot start {name}"))?;
        let identity = child.id().and_then(Identity::of);
        let identity = identity.ok_or_else(|| self.start_failure(name, "ended at once"))?;
        self.running.insert(name.to_owned(), identity);
        self.folder.keep_processes(&self.running)?;
        let (sender, name) = (self.ended_sender.clone(), name.to_owned());
        tokio::spawn(async move {
            let status = child.wait().await.expect("a child of this process can be waited for");
            // The supervisor may be gone; then nobody asks.
            let _unheard = sender.send(Ended { name, identity, status });
        });
        Ok(())
    }

    /// Waits until the API shows every node of this run as ready.
    async fn wait_until_ready(&mut self) -> Outcome {
        let deadline = Instant::now() + START_PATIENCE;
        for node in self.cluster.nodes.clone() {
            while !self.is_ready(&node.name).await? {
                self.fail_if_ended()?;
                if Instant::now() > deadline {
                    return Err(self.start_failure(&node.name, "is not ready"));
                }
                sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// Whether the process of this node, not an earlier one, has said that it is ready and what its pools are.
    pub(crate) async fn is_ready(&self, name: &str) -> Outcome<bool> {
        let Some(process) = self.process(name) else { return Ok(false) };
        let nodes = self.client.nodes().await?;
        let ready = nodes.iter().any(|node| {
            node.name == name && node.pid == process.pid && node.state == model::NodeState::Ready
        });
        Ok(ready && self.client.pools().await?.iter().any(|pool| pool.node == name))
    }

    fn fail_if_ended(&mut self) -> Outcome {
        while let Ok(ended) = self.ended.try_recv() {
            if self.running.get(&ended.name) == Some(&ended.identity) {
                self.running.remove(&ended.name);
                return Err(self.start_failure(&ended.name, &format!("ended ({})", ended.status)));
            }
        }
        Ok(())
    }

    /// A failure to start, with the last thing that the process said.
    fn start_failure(&self, name: &str, what: &str) -> Failure {
        let log = self.folder.path().join("log").join(format!("{name}.log"));
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let said = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        Failure::new(format!("{name} {what}: {said}")).hint(format!("see {}", log.display()))
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if self.running.is_empty() {
            return;
        }
        self.kill();
        remove_leftovers(&self.cluster.run_id);
    }
}

/// Where the plugin of a node listens.
fn socket(folder: &Path, node: &str) -> PathBuf {
    folder.join(node).join("csi.sock")
}

/// Removes mounts and block devices whose processes are gone: they only give errors.
pub(crate) fn remove_leftovers(run_id: &str) {
    match frontend::cleanup(run_id) {
        Ok(removed) if removed.is_empty() => {}
        Ok(removed) => eprintln!("orlop: removed what was left behind: {}", removed.join(", ")),
        Err(error) => eprintln!("orlop: {error}"),
    }
}

/// Waits until the processes of an earlier run are gone, and helps those that are not on their way.
async fn wait_for_earlier(folder: &Folder) -> Outcome {
    let deadline = Instant::now() + START_PATIENCE;
    for (name, identity) in folder.processes()? {
        while identity.is_alive() {
            identity.signal(Signal::KILL);
            if Instant::now() > deadline {
                return Err(Failure::new(format!(
                    "{name} of an earlier run (pid {}) does not end",
                    identity.pid
                ))
                .hint("it waits for a disk; look at `dmesg`, and restart the machine if need be"));
            }
            sleep(POLL).await;
        }
    }
    Ok(())
}

//! `orlop dev` as a journey drives it: started, asked, its nodes killed, ended.

use crate::journey::{Trip, free_port};
use crate::process::{Process, Running, tail, with_argument};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long one command of `orlop` may take: it waits by itself for up to a minute.
const COMMAND: Duration = Duration::from_secs(90);
/// How long a cluster may take to start or to end.
const START: Duration = Duration::from_secs(60);

/// A running `orlop dev` with its data in the trip's folder.
pub(crate) struct Cluster<'a> {
    trip: &'a Trip,
    /// Host and port.
    api: String,
    data: PathBuf,
    dev: Option<Running>,
}

/// One node, as `orlop node list` shows it.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) process: Option<Process>,
}

impl<'a> Cluster<'a> {
    /// Starts three nodes with new disks and waits until they are ready.
    pub(crate) fn start(trip: &'a Trip, disk_size: &str) -> Result<Self> {
        Self::start_with(trip, disk_size, &[])
    }

    /// The same with more options of `orlop dev`.
    pub(crate) fn start_with(trip: &'a Trip, disk_size: &str, options: &[&str]) -> Result<Self> {
        let port = free_port()?;
        let data = trip.folder.join("data");
        let mut cluster = Self { trip, api: format!("127.0.0.1:{port}"), data, dev: None };
        let took = cluster.launch(&[&["--nodes", "3", "--disk-size", disk_size], options].concat())?;
        trip.checked(format!("orlop dev: three nodes ready after {:.1} s", took.as_secs_f64()));
        Ok(cluster)
    }

    /// Starts `orlop dev` on the trip's data and waits until its nodes are ready; how long that took.
    pub(crate) fn launch(&mut self, arguments: &[&str]) -> Result<Duration> {
        let mut command = self.trip.command(self.trip.orlop()?);
        command.args(["dev", "--listen", &self.api]).args(arguments).arg("--data").arg(&self.data);
        let begun = Instant::now();
        self.dev = Some(self.trip.start(command)?);
        loop {
            let nodes = self.nodes().unwrap_or_default();
            if nodes.len() == 3 && nodes.iter().all(|node| node.state == "Ready" && node.process.is_some()) {
                return Ok(begun.elapsed());
            }
            let dev = self.dev()?;
            let end = tail(&dev.output(), 10);
            ensure!(dev.runs(), "orlop dev ended:\n{end}");
            ensure!(begun.elapsed() < START, "three nodes are not ready after {} s:\n{end}", START.as_secs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The process in the foreground.
    pub(crate) fn dev(&mut self) -> Result<&mut Running> {
        self.dev.as_mut().context("orlop dev runs")
    }

    /// The address of its API.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.api)
    }

    /// All processes of this cluster: those that name its data folder.
    pub(crate) fn processes(&self) -> Vec<(Process, String)> {
        with_argument(&self.data.display().to_string())
    }

    /// The controller's process.
    pub(crate) fn controller(&self) -> Result<Process> {
        let is_controller = |(_, command): &&(Process, String)| command.contains(" controller ");
        // Not by the folder: its records may be elsewhere.
        let all = with_argument(&self.api);
        Ok(all.iter().find(is_controller).with_context(|| format!("no controller among {all:?}"))?.0)
    }

    /// Runs `orlop ARGUMENTS` against this cluster; its output.
    pub(crate) fn orlop(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.command()?;
        command.args(arguments);
        self.trip.run(command, COMMAND)?.success(&format!("orlop {}", arguments.join(" ")))
    }

    /// The same with `-o json`.
    pub(crate) fn json(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.orlop(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&output)
            .with_context(|| format!("orlop {} printed {output}", arguments.join(" ")))
    }

    fn command(&self) -> Result<Command> {
        let mut command = self.trip.command(self.trip.orlop()?);
        command.env("ORLOP_API", self.url());
        Ok(command)
    }

    /// All nodes, by name.
    pub(crate) fn nodes(&self) -> Result<Vec<Node>> {
        let list = self.json(&["node", "list"])?;
        let text = |node: &Value, field: &str| node[field].as_str().unwrap_or_default().to_owned();
        let node = |node: &Value| Node {
            name: text(node, "name"),
            state: text(node, "state"),
            process: node["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).and_then(Process::of),
        };
        Ok(list.as_array().context("a list of nodes")?.iter().map(node).collect())
    }

    /// `kill -9` of a node's engine; returns once it is dead.
    pub(crate) fn kill(&self, name: &str) -> Result<()> {
        let nodes = self.nodes()?;
        let node = nodes.iter().find(|node| node.name == name).with_context(|| format!("no node {name}"))?;
        let process = node.process.with_context(|| format!("{name} has no process"))?;
        ensure!(process.signal(Signal::KILL), "{name} (pid {}) had ended", process.pid);
        process.wait_end(Duration::from_secs(10))
    }

    /// Creates and attaches a volume with three copies; the path of its device.
    pub(crate) fn volume(&self, name: &str, size: &str) -> Result<String> {
        self.orlop(&["volume", "create", name, "--size", size, "--copies", "3"])?;
        self.attach(name, None)
    }

    /// Attaches a volume; the path of its device.
    pub(crate) fn attach(&self, name: &str, node: Option<&str>) -> Result<String> {
        let place: &[&str] = if let Some(node) = node { &["--node", node] } else { &[] };
        let device = self.orlop(&[&["volume", "attach", name], place].concat())?.trim().to_owned();
        ensure!(device.starts_with("/dev/"), "volume attach {name} printed {device:?}, not a device");
        Ok(device)
    }

    /// Attaches a volume on a node, whoever has it; the path of its device.
    pub(crate) fn take(&self, name: &str, node: &str) -> Result<String> {
        let device = self.orlop(&["volume", "attach", name, "--node", node, "--move"])?.trim().to_owned();
        ensure!(device.starts_with("/dev/"), "volume attach {name} --move printed {device:?}, not a device");
        Ok(device)
    }

    /// What the API says of a volume's status.
    pub(crate) fn status(&self, name: &str) -> Result<Value> {
        Ok(self.json(&["volume", "get", name])?["status"].clone())
    }

    /// The node that runs the volume's nexus.
    pub(crate) fn owner(&self, name: &str) -> Result<String> {
        let status = self.status(name)?;
        Ok(status["owner"]
            .as_str()
            .with_context(|| format!("volume {name} has no owner: {status}"))?
            .to_owned())
    }

    /// Waits until all three copies are in sync; how long that took.
    pub(crate) fn in_sync(&self, name: &str, limit: Duration) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            let status = self.status(name)?;
            let members = status["members"].as_array().map_or(&[][..], Vec::as_slice);
            let all = members.len() == 3
                && members.iter().all(|member| member["state"] == "InSync" && member["reachable"] != false);
            if all && self.nodes()?.iter().all(|node| node.state == "Ready") {
                return Ok(begun.elapsed());
            }
            ensure!(
                begun.elapsed() < limit,
                "volume {name} is not in sync after {} s: {status}",
                limit.as_secs()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until every node has a process that says it is ready.
    pub(crate) fn ready(&self, limit: Duration) -> Result<()> {
        let begun = Instant::now();
        loop {
            let nodes = self.nodes()?;
            if nodes.iter().all(|node| node.state == "Ready" && node.process.is_some()) {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < limit,
                "not all nodes are ready after {} s: {nodes:?}",
                limit.as_secs()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Detaches and deletes a volume.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        self.orlop(&["volume", "detach", name])?;
        self.orlop(&["volume", "delete", name])?;
        Ok(())
    }

    /// Ctrl-C, a clean end, and that is all.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.end()
    }

    /// Ctrl-C, and a clean end.
    pub(crate) fn end(&mut self) -> Result<()> {
        let dev = self.dev.take().context("it runs until here")?;
        ensure!(dev.process.signal(Signal::INT), "orlop dev had ended:\n{}", tail(&dev.output(), 10));
        let output = dev.wait(START)?.success("orlop dev after Ctrl-C")?;
        ensure!(!output.contains("panicked"), "a panic:\n{output}");
        self.complaints()?;
        Ok(())
    }

    /// What the processes logged as an error of the program itself: a panic anywhere is a failure, whatever else held.
    fn complaints(&self) -> Result<()> {
        for entry in std::fs::read_dir(self.data.join("log"))? {
            let path = entry?.path();
            let text = std::fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())?;
            if let Some(line) = text.lines().find(|line| line.contains("panicked at")) {
                bail!("{}: {line}", path.display());
            }
        }
        Ok(())
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        // Only after a failure: say what the processes said, then let the guard take what is left.
        let Some(dev) = &self.dev else { return };
        println!("  orlop dev said:\n{}", indented(&tail(&dev.output(), 15)));
        for entry in std::fs::read_dir(self.data.join("log")).into_iter().flatten().flatten() {
            let text = std::fs::read(entry.path()).unwrap_or_default();
            println!(
                "  {}:\n{}",
                entry.path().display(),
                indented(&tail(&String::from_utf8_lossy(&text), 12))
            );
        }
    }
}

fn indented(text: &str) -> String {
    text.lines().fold(String::new(), |all, line| all + "    " + line + "\n")
}

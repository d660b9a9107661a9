//! `orlop dev` as a case uses it: started in the run's folder, asked, ended before its folder goes.

use super::bed::{Bed, Killed};
use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// How long a cluster may take to start or to end.
const START: Duration = Duration::from_secs(60);
/// How long one command may take: it waits by itself for up to a minute.
const COMMAND: Duration = Duration::from_secs(90);

/// A running cluster; ended when dropped.
pub(crate) struct Cluster<'a> {
    bed: &'a Bed,
    dev: Killed,
    api: String,
    data: PathBuf,
}

/// One node.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) pid: u32,
    is_ready: bool,
}

impl<'a> Cluster<'a> {
    /// Starts `nodes` nodes with new disks and waits until they are ready.
    pub(crate) fn start(bed: &'a Bed, nodes: usize, disk_bytes: u64) -> Result<Self> {
        let data = bed.new_path("data", "d");
        let log = bed.new_path("dev", "log");
        let mut command = bed.orlop(&["dev", "--listen", "127.0.0.1:0"]);
        command.args(["--nodes", &nodes.to_string(), "--disk-size", &disk_bytes.to_string()]);
        command.arg("--data").arg(&data);
        let out = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let dev = Killed(command.spawn().context("start orlop dev")?);
        let mut cluster = Self { bed, dev, api: String::new(), data };
        let begun = Instant::now();
        loop {
            let said = fs::read_to_string(&log)?;
            let api = said.lines().find_map(|line| line.strip_prefix("API on ")?.split(' ').next());
            api.unwrap_or_default().clone_into(&mut cluster.api);
            let ready = |list: &[Node]| list.len() == nodes && list.iter().all(|node| node.is_ready);
            if !cluster.api.is_empty() && cluster.nodes().is_ok_and(|list| ready(&list)) {
                return Ok(cluster);
            }
            ensure!(matches!(cluster.dev.0.try_wait(), Ok(None)), "orlop dev ended: {}", said.trim());
            ensure!(begun.elapsed() < START, "the nodes are not ready after {} s: {said}", START.as_secs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs `orlop ARGUMENTS` against this cluster; its output.
    pub(crate) fn orlop(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.bed.orlop(arguments);
        command.env("ORLOP_API", &self.api);
        self.bed.run(command, COMMAND)
    }

    /// The same with `-o json`.
    fn json(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.orlop(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&output)
            .with_context(|| format!("orlop {} printed {output}", arguments.join(" ")))
    }

    /// All nodes, by name.
    pub(crate) fn nodes(&self) -> Result<Vec<Node>> {
        let list = self.json(&["node", "list"])?;
        let text = |node: &Value, field: &str| node[field].as_str().unwrap_or_default().to_owned();
        let node = |node: &Value| Node {
            name: text(node, "name"),
            address: text(node, "address"),
            pid: node["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
            is_ready: node["state"] == "Ready",
        };
        Ok(list.as_array().context("a list of nodes")?.iter().map(node).collect())
    }

    /// Creates a volume and attaches it; its device, which is a path for root and else a URI.
    pub(crate) fn volume(&self, name: &str, bytes: u64, copies: u32) -> Result<String> {
        let (size, copies) = (bytes.to_string(), copies.to_string());
        self.orlop(&["volume", "create", name, "--size", &size, "--copies", &copies])?;
        Ok(self.orlop(&["volume", "attach", name])?.trim().to_owned())
    }

    /// Detaches a volume and deletes it.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        self.orlop(&["volume", "detach", name])?;
        self.orlop(&["volume", "delete", name])?;
        Ok(())
    }

    /// What the API says of a volume's status.
    pub(crate) fn status(&self, name: &str) -> Result<Value> {
        Ok(self.json(&["volume", "get", name])?["status"].take())
    }

    /// The node that runs the volume's nexus.
    pub(crate) fn owner(&self, name: &str) -> Result<Node> {
        let status = self.status(name)?;
        let owner = status["owner"].as_str().with_context(|| format!("volume {name} has no owner"))?;
        let nodes = self.nodes()?;
        nodes.into_iter().find(|node| node.name == owner).with_context(|| format!("there is no node {owner}"))
    }

    /// The volume as its owner's target serves it, without FUSE and loop device.
    pub(crate) fn target_of(&self, name: &str) -> Result<String> {
        let address = self.owner(name)?.address;
        Ok(format!("nvme+tcp://{address}/nqn.2026-11.io.orlop:volume:{name}"))
    }

    /// Waits until every copy is in sync; how long that took.
    pub(crate) fn in_sync(&self, name: &str, limit: Duration) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            let status = self.status(name)?;
            let members = status["members"].as_array().map_or(&[][..], Vec::as_slice);
            let well = |member: &Value| member["state"] == "InSync" && member["reachable"] != false;
            if !members.is_empty() && members.iter().all(well) {
                return Ok(begun.elapsed());
            }
            ensure!(begun.elapsed() < limit, "volume {name} is not in sync after {limit:?}: {status}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// One figure of a node's `/metrics`: the first line of `metric` that has all of `labels`, such as `volume="x"`.
    pub(crate) fn metric(&self, node: &str, metric: &str, labels: &[&str]) -> Result<f64> {
        let list = self.json(&["node", "list"])?;
        let nodes = list.as_array().context("a list of nodes")?;
        let address = nodes
            .iter()
            .find(|entry| entry["name"] == node)
            .and_then(|entry| entry["metricsAddress"].as_str());
        let text = get(address.with_context(|| format!("{node} has no metrics"))?, "/metrics")?;
        figure(&text, metric, labels)
            .with_context(|| format!("{node} has no {metric} of {}", labels.join(", ")))
    }

    /// Ctrl-C, and a clean end.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.end();
        let log = self.data.join("log");
        for entry in fs::read_dir(&log).into_iter().flatten().flatten() {
            let text = fs::read(entry.path()).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let panic = text.lines().find(|line| line.contains("panicked at"));
            ensure!(panic.is_none(), "{}: {}", entry.path().display(), panic.unwrap_or_default());
        }
        // The next case needs the room.
        fs::remove_dir_all(&self.data).context("remove the cluster's folder")
    }

    fn end(&mut self) {
        let running = matches!(self.dev.0.try_wait(), Ok(None));
        if let Some(pid) = i32::try_from(self.dev.0.id()).ok().and_then(Pid::from_raw).filter(|_| running) {
            // It is our child and not reaped yet: the number is its own.
            kill_process(pid, Signal::INT).ok();
            let begun = Instant::now();
            while begun.elapsed() < START && matches!(self.dev.0.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

/// The value in the first line of `metric` that has all of `labels`.
fn figure(text: &str, metric: &str, labels: &[&str]) -> Option<f64> {
    let mut lines = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(metric));
    let line = lines.find(|line| labels.iter().all(|label| line.contains(label)))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// A small HTTP client: one request, the body of the answer.
fn get(address: &str, path: &str) -> Result<String> {
    use std::io::{Read, Write};
    let mut stream =
        std::net::TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) =
        text.split_once("\r\n\r\n").with_context(|| format!("{address} gave half an answer"))?;
    ensure!(head.contains(" 200 "), "{address}{path}: {}", head.lines().next().unwrap_or_default());
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_that_of_its_metric_and_labels() {
        let text = "# TYPE orlop_io histogram\n\
                    orlop_io_sum{volume=\"a\",operation=\"read\"} 1.5\n\
                    orlop_io_sum{volume=\"a\",operation=\"write\"} 2.5\n\
                    orlop_io_sum_of_all{volume=\"a\"} 9\n";
        let of = |metric: &str, labels: &[&str]| figure(text, metric, labels);
        assert_eq!(of("orlop_io_sum", &["volume=\"a\"", "operation=\"write\""]), Some(2.5));
        assert_eq!(of("orlop_io_sum", &["volume=\"b\""]), None);
        assert_eq!(of("orlop_io", &[]), None);
        assert_eq!(of("orlop_io_sum_of_all", &[]), Some(9.0));
    }
}

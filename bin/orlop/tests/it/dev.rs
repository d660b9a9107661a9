//! `orlop dev` as its users meet it: three real processes, commands against them, bad input, a clean end.

use crate::program::{Run, finish, orlop, refused};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running `orlop dev`, killed when dropped.
struct Dev {
    child: Child,
    api: String,
    said: BufReader<std::process::ChildStdout>,
}

impl Dev {
    /// Starts it on a free port and waits until it says what to type next.
    fn start(data: &Path) -> Self {
        let data = data.to_str().expect("the folder's name is text");
        let mut command = orlop(&["dev", "--data", data, "--disk-size", "256MiB", "--listen", "127.0.0.1:0"]);
        if Path::new(data).join("cluster.json").exists() {
            command = orlop(&["dev", "--data", data, "--listen", "127.0.0.1:0"]);
        }
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the binary starts");
        let mut said = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut api = String::new();
        for line in said.by_ref().lines() {
            let line = line.expect("output is UTF-8");
            if let Some(rest) = line.strip_prefix("API on ") {
                rest.split(' ').next().unwrap_or_default().clone_into(&mut api);
            }
            if line.starts_with("Ctrl-C") {
                break;
            }
        }
        assert!(!api.is_empty(), "it did not start: {:?}", child.try_wait());
        Self { child, api, said }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = orlop(arguments);
        command.env("ORLOP_API", &self.api);
        command
    }

    fn run(&self, arguments: &[&str]) -> Run {
        finish(&mut self.command(arguments))
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let run = self.run(&[arguments, &["-o", "json"]].concat());
        assert_eq!(run.code, 0, "{arguments:?}: {run:?}");
        serde_json::from_str(&run.stdout).expect("it printed JSON")
    }

    fn refused(&self, arguments: &[&str], code: i32, parts: &[&str]) {
        refused(&[arguments, &["--api", &self.api]].concat(), code, parts);
    }

    /// The pids of its nodes.
    fn pids(&self) -> Vec<i32> {
        let nodes = self.json(&["node", "list"]);
        let pid = |node: &serde_json::Value| node["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        nodes.as_array().expect("a list").iter().filter_map(pid).collect()
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("it runs");
    }

    /// Ctrl-C; what it still said.
    fn stop(mut self) -> String {
        self.signal(Signal::INT);
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).expect("output is UTF-8");
        assert!(self.child.wait().expect("it ends").success(), "{rest}");
        rest
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.starts_with(" Z")))
}

#[test]
fn volumes_live_on_when_dev_is_started_again() {
    let temp = tempfile::tempdir().unwrap();
    let dev = Dev::start(temp.path());
    let nodes = dev.json(&["node", "list"]);
    assert_eq!(nodes.as_array().map(Vec::len), Some(3), "{nodes}");
    assert!(nodes[0]["name"] == "node-1" && nodes[0]["state"] == "Ready", "{nodes}");
    assert_eq!(dev.json(&["pool", "list"]).as_array().map(Vec::len), Some(3));
    assert_eq!(dev.run(&["volume", "create", "data", "--size", "64MiB"]).code, 0);
    let volume = dev.json(&["volume", "get", "data"]);
    assert_eq!(volume["spec"]["copies"], 3, "{volume}");
    assert_eq!(volume["status"]["members"].as_array().map(Vec::len), Some(3), "{volume}");
    assert!(dev.run(&["volume", "list"]).stdout.contains("data"));
    assert!(dev.run(&["volume", "get", "data", "-o", "yaml"]).stdout.contains("name: data"));

    // Bad input, each with its one line.
    dev.refused(&["volume", "get", "missing"], 4, &["volume \"missing\""]);
    dev.refused(&["volume", "attach", "missing"], 4, &["volume \"missing\""]);
    dev.refused(&["volume", "delete", "missing"], 4, &["volume \"missing\""]);
    dev.refused(&["volume", "attach", "data", "--node", "node-9"], 4, &["node \"node-9\""]);
    dev.refused(&["volume", "create", "data", "--size", "1MiB"], 5, &["exists already"]);
    dev.refused(&["volume", "create", "wide", "--size", "1MiB", "--copies", "5"], 5, &["5 copies", "3 can"]);
    dev.refused(&["volume", "create", "huge", "--size", "1TiB"], 5, &["volume \"huge\"", "; "]);
    dev.refused(&["volume", "resize", "data", "--size", "1MiB"], 5, &["cannot shrink"]);
    dev.refused(&["volume", "create", "UPPER", "--size", "1MiB"], 1, &["UPPER"]);
    dev.refused(&["bench", "data", "--seconds", "1"], 1, &["volume \"data\" has no device", "attach"]);
    // A block device as root, a target otherwise: both are measured by the volume's name.
    assert_eq!(dev.run(&["volume", "attach", "data"]).code, 0);
    let report = dev.json(&["bench", "data", "--rw", "randwrite", "--fill", "--seconds", "1"]);
    assert!(report["ios"].as_f64() > Some(0.0), "{report}");
    assert_eq!(dev.run(&["volume", "detach", "data"]).code, 0);
    let data = temp.path().to_str().unwrap();
    refused(
        &["dev", "--data", data, "--listen", "127.0.0.1:0"],
        5,
        &["is in use by another orlop", "--data"],
    );
    let disk = format!("file://{data}/node-1/disk");
    refused(&["check", &disk], 1, &["node-1/disk"]);
    let elsewhere = temp.path().join("elsewhere");
    let address = dev.api.trim_start_matches("http://");
    let other = ["dev", "--data", elsewhere.to_str().unwrap(), "--listen", address];
    refused(&other, 5, &["the port is in use", "--listen"]);
    assert_eq!(dev.json(&["volume", "list"]).as_array().map(Vec::len), Some(1), "nothing was changed");

    let pids = dev.pids();
    assert!(dev.stop().contains("orlop dev: ended"));
    assert!(pids.iter().all(|pid| !is_alive(*pid)), "{pids:?}");
    let checked = crate::program::run(&["check", &disk, "-o", "json"]);
    assert_eq!(checked.code, 0, "{checked:?}");
    let report: serde_json::Value = serde_json::from_str(&checked.stdout).unwrap();
    assert!(report["clean"] == true && report["replicas"][0]["volumeName"] == "data", "{report}");
    refused(&["dev", "--data", data, "--nodes", "4"], 1, &["has 3 nodes", "leave --nodes out"]);
    refused(&["dev", "--data", data, "--disk-size", "1GiB"], 1, &["has disks of 256 MiB"]);

    let again = Dev::start(temp.path());
    assert_eq!(again.json(&["volume", "get", "data"])["spec"]["sizeBytes"], 64 << 20);
    assert_eq!(again.run(&["volume", "delete", "data"]).code, 0);
    assert_eq!(again.run(&["volume", "list"]).stdout, "no volumes\n");
    again.stop();
}

#[test]
fn killing_dev_leaves_no_orphans_and_a_killed_node_comes_back() {
    let temp = tempfile::tempdir().unwrap();
    let dev = Dev::start(temp.path());
    let pids = dev.pids();
    assert_eq!(pids.len(), 3);
    kill_process(Pid::from_raw(pids[0]).unwrap(), Signal::KILL).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while dev.pids().iter().any(|pid| *pid == pids[0] || !is_alive(*pid)) {
        assert!(Instant::now() < deadline, "node-1 does not come back");
        std::thread::sleep(Duration::from_millis(100));
    }
    let pids = dev.pids();
    dev.signal(Signal::KILL);
    while pids.iter().any(|pid| is_alive(*pid)) {
        assert!(Instant::now() < deadline, "orphans: {pids:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(dev);
    Dev::start(temp.path()).stop();
}

#[test]
fn what_is_not_a_pool_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("file");
    std::fs::write(&file, vec![7; 1 << 20]).unwrap();
    let uri = format!("file://{}", file.display());
    refused(&["check", &uri], 1, &[&uri, "pool"]);
    refused(&["check", "file:///does/not/exist"], 1, &["/does/not/exist"]);
    refused(&["check", "nonsense"], 2, &["nonsense"]);
    let data = temp.path().join("data");
    let data = data.to_str().unwrap();
    refused(
        &["dev", "--data", data, "--disk-size", "1MiB"],
        1,
        &["a disk of 1 MiB is not possible", "64 MiB"],
    );
}

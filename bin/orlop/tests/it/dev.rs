//! `orlop dev` as its users meet it: three real processes, commands against them, a clean end.

use crate::cluster::{Dev, is_alive};
use rustix::process::{Pid, Signal, kill_process};
use std::time::{Duration, Instant};

#[test]
fn volumes_live_on_when_dev_is_started_again() {
    let temp = tempfile::tempdir().unwrap();
    let dev = Dev::start(temp.path());
    let nodes = dev.json(&["node", "list"]);
    assert_eq!(nodes.as_array().map(Vec::len), Some(3), "{nodes}");
    assert!(nodes[0]["name"] == "node-1" && nodes[0]["state"] == "Ready", "{nodes}");
    assert_eq!(dev.json(&["pool", "list"]).as_array().map(Vec::len), Some(3));
    assert_eq!(dev.json(&["disk", "list"]).as_array().map(Vec::len), Some(0), "nobody has named any");
    assert_eq!(dev.run(&["volume", "create", "data", "--size", "64MiB"]).code, 0);
    let volume = dev.json(&["volume", "get", "data"]);
    assert_eq!(volume["spec"]["copies"], 3, "{volume}");
    assert_eq!(volume["status"]["members"].as_array().map(Vec::len), Some(3), "{volume}");
    assert!(dev.run(&["volume", "list"]).stdout.contains("data"));
    assert!(dev.run(&["volume", "get", "data", "-o", "yaml"]).stdout.contains("name: data"));

    // A block device as root, a target otherwise: both are measured by the volume's name.
    assert_eq!(dev.run(&["volume", "attach", "data"]).code, 0);
    let report = dev.json(&["bench", "data", "--rw", "randwrite", "--fill", "--seconds", "1"]);
    assert!(report["ios"].as_f64() > Some(0.0), "{report}");
    assert_eq!(dev.run(&["volume", "detach", "data"]).code, 0);
    let disk = format!("file://{}/node-1/disk", temp.path().display());
    let pids = dev.pids();
    assert!(dev.stop().contains("orlop dev: ended"));
    assert!(pids.iter().all(|pid| !is_alive(*pid)), "{pids:?}");
    let checked = crate::program::run(&["check", &disk, "-o", "json"]);
    assert_eq!(checked.code, 0, "{checked:?}");
    let report: serde_json::Value = serde_json::from_str(&checked.stdout).unwrap();
    assert!(report["clean"] == true && report["replicas"][0]["volumeName"] == "data", "{report}");

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

/// All nodes end at once, and each has copies of volumes that another one is still closing.
#[test]
fn a_cluster_that_ends_in_order_owes_nothing_when_it_starts() {
    let temp = tempfile::tempdir().unwrap();
    let dev = Dev::start(temp.path());
    let volumes = ["one", "two", "three"];
    for (index, volume) in volumes.into_iter().enumerate() {
        assert_eq!(dev.run(&["volume", "create", volume, "--size", "16MiB"]).code, 0);
        let node = format!("node-{}", index + 1);
        assert_eq!(dev.run(&["volume", "attach", volume, "--node", &node]).code, 0);
        let target = dev.json(&["volume", "get", volume])["status"]["target"].as_str().unwrap().to_owned();
        let written = dev.run(&["bench", &target, "--rw", "write", "--seconds", "1"]);
        assert_eq!(written.code, 0, "{written:?}");
    }
    let log = |node: u32| std::fs::read_to_string(temp.path().join(format!("log/node-{node}.log"))).unwrap();
    let before = [1, 2, 3].map(|node| log(node).len());
    dev.stop();
    for (node, before) in [1, 2, 3].into_iter().zip(before) {
        let said = &log(node)[before..];
        for trouble in ["ERROR", "stale", "fenced", "not closed", "in use"] {
            assert!(!said.contains(trouble), "node-{node} did not end in order: {said}");
        }
    }
    let dev = Dev::start(temp.path());
    for volume in volumes {
        let status = dev.wait_for(volume, "attached again", |status| status["state"] == "Attached");
        let member = |m: &serde_json::Value| m["state"] == "InSync" && m["rebuilt"].is_null();
        assert!(status["members"].as_array().unwrap().iter().all(member), "{status}");
    }
    dev.stop();
}

/// A copy that nobody can destroy, because its disk is gone, must not keep its volume from going.
#[test]
fn a_volume_whose_disk_is_gone_can_be_deleted() {
    let temp = tempfile::tempdir().unwrap();
    let options = ["--nodes", "2", "--disk-size", "64MiB"];
    let dev = Dev::start_with(temp.path(), &options);
    assert_eq!(dev.run(&["volume", "create", "data", "--size", "16MiB", "--copies", "2"]).code, 0);
    dev.stop();
    std::fs::remove_file(temp.path().join("node-2/disk")).unwrap();
    let dev = Dev::start_with(temp.path(), &options);
    let deleted = dev.run(&["volume", "delete", "data"]);
    assert_eq!(deleted.code, 0, "{deleted:?}");
    assert_eq!(dev.run(&["volume", "list"]).stdout, "no volumes\n");
    assert_eq!(dev.run(&["volume", "create", "data", "--size", "16MiB", "--copies", "2"]).code, 0);
    dev.stop();
}

//! Copies that are lost for good, with real processes: a disk that was replaced, a node that does not come back.

use crate::cluster::Dev;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a copy may be away here; a minute in real life.
const REPLACE_AFTER_SECONDS: u32 = 8;

fn members(status: &Value) -> Vec<&Value> {
    status["members"].as_array().into_iter().flatten().filter(|member| member["state"] != "Removed").collect()
}

/// The nodes of the copies that are in sync and there.
fn in_sync(status: &Value) -> Vec<&str> {
    let good = |member: &&&Value| member["state"] == "InSync" && member["present"] == true;
    let mut nodes: Vec<&str> =
        members(status).iter().filter(good).filter_map(|member| member["node"].as_str()).collect();
    nodes.sort_unstable();
    nodes
}

/// Three copies in sync on these nodes, and no other copy.
fn is_whole(status: &Value, nodes: &[&str]) -> bool {
    in_sync(status) == nodes && members(status).len() == nodes.len()
}

/// Writes stamped blocks everywhere, or compares everything with them.
fn fill(dev: &Dev, target: &str) {
    let run = dev.run(&["bench", target, "--rw", "write", "--fill", "--verify", "--seconds", "1"]);
    assert_eq!(run.code, 0, "{run:?}");
}

fn kill(dev: &Dev, node: &str) {
    let nodes = dev.json(&["node", "list"]);
    let found = nodes.as_array().expect("a list").iter().find(|found| found["name"] == node).expect(node);
    let pid = found["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    kill_process(pid.expect("a pid"), Signal::KILL).expect("it runs");
}

fn pools<'a>(list: &'a Value, node: &str, state: &str) -> Vec<&'a Value> {
    let is_it = |pool: &&Value| pool["node"] == node && pool["state"] == state;
    list.as_array().expect("a list").iter().filter(is_it).collect()
}

/// All copies, read from the disks with no node running, pass the check.
fn check(data: &Path, nodes: &[&str], copies: usize) {
    for node in nodes {
        let disk = format!("file://{}/{node}/disk", data.display());
        let checked = crate::program::run(&["check", &disk, "-o", "json"]);
        assert_eq!(checked.code, 0, "{checked:?}");
        let report: Value = serde_json::from_str(&checked.stdout).expect("it printed JSON");
        assert_eq!(report["replicas"].as_array().map(Vec::len), Some(copies), "{node}: {report}");
    }
}

/// In three nodes with three copies there is no other node to go to.
#[test]
fn a_disk_that_was_replaced_gets_its_copy_again() {
    let temp = tempfile::tempdir().unwrap();
    let options = ["--nodes", "3", "--disk-size", "128MiB"];
    let dev = Dev::start_hasty(temp.path(), &options, REPLACE_AFTER_SECONDS);
    for volume in ["closed", "used"] {
        assert_eq!(dev.run(&["volume", "create", volume, "--size", "16MiB"]).code, 0);
        assert_eq!(dev.run(&["volume", "attach", volume, "--node", "node-1"]).code, 0);
        let target = dev.json(&["volume", "get", volume])["status"]["target"].as_str().unwrap().to_owned();
        fill(&dev, &target);
    }
    assert_eq!(dev.run(&["volume", "detach", "closed"]).code, 0);
    dev.wait_for("closed", "closed", |status| status["owner"].is_null());
    let old = dev.json(&["pool", "list"]);
    let old = pools(&old, "node-2", "Online")[0]["uuid"].clone();

    // The disk goes, and the node starts with a blank one.
    let disk = temp.path().join("node-2/disk");
    let kept = temp.path().join("node-2/old-disk");
    std::fs::rename(&disk, &kept).unwrap();
    kill(&dev, "node-2");
    let lost = dev.wait_for("closed", "said to have lost a copy", |status| {
        status["state"] == "Degraded"
            && status["message"].as_str().unwrap_or_default().contains("is gone from node node-2")
    });
    let lost_member = members(&lost).into_iter().find(|member| member["node"] == "node-2").unwrap();
    assert!(lost_member["state"] == "InSync" && lost_member["present"] == false, "nobody looked: {lost}");
    let shown = dev.run(&["volume", "get", "closed"]).stdout;
    assert!(shown.contains("2/3 in sync") && shown.contains("InSync (not there)"), "{shown}");
    let listed = dev.run(&["volume", "list"]).stdout;
    assert!(listed.lines().any(|line| line.starts_with("closed") && line.contains("2/3")), "{listed}");
    // What is gone is said before what is there.
    let deadline = Instant::now() + Duration::from_secs(30);
    let now = loop {
        let now = dev.json(&["pool", "list"]);
        if !pools(&now, "node-2", "Online").is_empty() {
            break now;
        }
        assert!(Instant::now() < deadline, "{now}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(pools(&now, "node-2", "Gone")[0]["uuid"], old, "{now}");
    let fresh = pools(&now, "node-2", "Online")[0]["uuid"].clone();
    assert_ne!(fresh, old);

    let all = ["node-1", "node-2", "node-3"];
    for volume in ["closed", "used"] {
        let status = dev.wait_for(volume, "whole again", |status| is_whole(status, &all));
        let member = members(&status).into_iter().find(|member| member["node"] == "node-2").unwrap();
        assert_eq!(member["pool"], fresh, "{status}");
    }
    dev.wait_for("closed", "closed", |status| status["owner"].is_null() && status["state"] == "Available");
    assert_eq!(dev.run(&["pool", "delete", old.as_str().unwrap()]).code, 0, "its disk is gone");
    assert!(pools(&dev.json(&["pool", "list"]), "node-2", "Gone").is_empty());
    dev.stop();
    check(temp.path(), &all, 2);

    // The old disk is back, and the new one is not: its copies are not named, or to be destroyed; never in sync.
    std::fs::rename(&disk, temp.path().join("node-2/new-disk")).unwrap();
    std::fs::rename(&kept, &disk).unwrap();
    let dev = Dev::start_hasty(temp.path(), &options, REPLACE_AFTER_SECONDS);
    for volume in ["closed", "used"] {
        let status = dev.wait_for(volume, "whole again", |status| is_whole(status, &all));
        let member = members(&status).into_iter().find(|member| member["node"] == "node-2").unwrap();
        assert_eq!(member["pool"], old, "{status}");
        let replica = |status: &Value| {
            let of = members(status).into_iter().find(|member| member["node"] == "node-2").unwrap();
            of["replica"].clone()
        };
        assert_ne!(replica(&status), replica(&lost), "a replica never comes back to life");
    }
    dev.stop();
}

/// The node is dead for good: it is killed, and cannot start because its disk is something else.
#[test]
fn a_node_that_is_dead_for_good_is_replaced_by_a_spare_one() {
    let temp = tempfile::tempdir().unwrap();
    let options = ["--nodes", "4", "--disk-size", "128MiB"];
    let dev = Dev::start_hasty(temp.path(), &options, REPLACE_AFTER_SECONDS);
    let created = dev.run(&["volume", "create", "data", "--size", "32MiB"]);
    assert_eq!(created.code, 0, "{created:?}");
    let first = dev.json(&["volume", "get", "data"])["status"].take();
    let nodes: Vec<String> = in_sync(&first).into_iter().map(str::to_owned).collect();
    let all = ["node-1", "node-2", "node-3", "node-4"];
    let spare = all.into_iter().find(|node| !nodes.iter().any(|known| known == node)).unwrap();
    let (owner, dead) = (nodes[0].as_str(), nodes[2].as_str());
    assert_eq!(dev.run(&["volume", "attach", "data", "--node", owner]).code, 0);
    let target = dev.json(&["volume", "get", "data"])["status"]["target"].as_str().unwrap().to_owned();
    fill(&dev, &target);

    let disk = temp.path().join(dead).join("disk");
    let kept = temp.path().join(dead).join("kept");
    std::fs::rename(&disk, &kept).unwrap();
    std::fs::create_dir(&disk).unwrap();
    kill(&dev, dead);
    // Writing goes on.
    fill(&dev, &target);
    let mut healed = [owner, nodes[1].as_str(), spare];
    healed.sort_unstable();
    let status = dev.wait_for("data", "rebuilt on the spare node", |status| is_whole(status, &healed));
    assert!(status["state"] == "Attached" && status["message"].is_null(), "{status}");
    let read = dev.run(&["bench", &target, "--rw", "randread", "--seconds", "1"]);
    assert_eq!(read.code, 0, "{read:?}");

    // It comes back after all: its copy was given up, and its space is free again.
    std::fs::remove_dir(&disk).unwrap();
    std::fs::rename(&kept, &disk).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let list = dev.json(&["pool", "list"]);
        let online = pools(&list, dead, "Online");
        let ready = dev.json(&["node", "list"]);
        let ready =
            ready.as_array().unwrap().iter().any(|node| node["name"] == dead && node["state"] == "Ready");
        if ready && online.first().is_some_and(|pool| pool["usedBytes"].as_u64() < Some(1 << 20)) {
            break;
        }
        assert!(Instant::now() < deadline, "{dead} still has its copy: {list}");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(is_whole(&dev.json(&["volume", "get", "data"])["status"].take(), &healed));
    dev.wait_for("data", "rid of the copy that is destroyed", |status| {
        status["members"].as_array().is_some_and(|members| members.len() == healed.len())
    });
    dev.stop();
    check(temp.path(), &healed, 1);
}

/// A pool and a node go when no volume needs them, and not before.
#[test]
fn a_disk_is_given_back_and_a_node_forgotten() {
    let temp = tempfile::tempdir().unwrap();
    let options = ["--nodes", "4", "--disk-size", "128MiB"];
    let dev = Dev::start_hasty(temp.path(), &options, REPLACE_AFTER_SECONDS);
    assert_eq!(dev.run(&["volume", "create", "data", "--size", "32MiB"]).code, 0);
    let status = dev.wait_for("data", "made", |status| in_sync(status).len() == 3);
    let nodes: Vec<String> = in_sync(&status).into_iter().map(str::to_owned).collect();
    let all = ["node-1", "node-2", "node-3", "node-4"];
    let spare = all.into_iter().find(|node| !nodes.iter().any(|known| known == node)).unwrap();
    let called = |node: &str| {
        let list = dev.json(&["pool", "list"]);
        let name = pools(&list, node, "Online")[0]["name"].as_str().unwrap().to_owned();
        format!("{node}/{name}")
    };

    dev.refused(&["pool", "delete", &called(&nodes[0])], 5, &["has copies of volume data", "--evacuate"]);
    dev.refused(&["pool", "delete", "node-1/none"], 4, &["no pool \"node-1/none\"", "orlop pool list"]);
    dev.refused(&["node", "delete", spare], 5, &[spare, "is Ready", "end its engine"]);
    let given = called(spare);
    let deleted = dev.run(&["pool", "delete", &given]);
    assert!(deleted.code == 0 && deleted.stdout.contains("its disk is blank"), "{deleted:?}");
    assert_eq!(dev.json(&["pool", "list"]).as_array().map(Vec::len), Some(3));
    let disk = temp.path().join(spare).join("disk");
    assert!(std::fs::read(&disk).unwrap()[..1 << 20].iter().all(|byte| *byte == 0), "it is blank");
    // It is named in what this node is told: its next start takes it again.
    kill(&dev, spare);
    let deadline = Instant::now() + Duration::from_secs(30);
    while pools(&dev.json(&["pool", "list"]), spare, "Online").is_empty() {
        assert!(Instant::now() < deadline, "no new pool on {spare}");
        std::thread::sleep(Duration::from_millis(50));
    }

    let dead = nodes[2].as_str();
    let (disk, kept) = (temp.path().join(dead).join("disk"), temp.path().join(dead).join("kept"));
    std::fs::rename(&disk, &kept).unwrap();
    std::fs::create_dir(&disk).unwrap();
    kill(&dev, dead);
    let state = |node: &str| {
        let list = dev.json(&["node", "list"]);
        list.as_array()
            .unwrap()
            .iter()
            .find(|known| known["name"] == node)
            .map(|known| known["state"].clone())
    };
    while state(dead) != Some("NotReady".into()) {
        assert!(Instant::now() < deadline + Duration::from_secs(30), "{dead} is still ready");
        std::thread::sleep(Duration::from_millis(50));
    }
    dev.refused(&["node", "delete", dead], 5, &["has copies of volume data"]);
    let mut healed = [nodes[0].as_str(), nodes[1].as_str(), spare];
    healed.sort_unstable();
    dev.wait_for("data", "whole on the others", |status| is_whole(status, &healed));
    let forgotten = dev.run(&["node", "delete", dead]);
    assert!(forgotten.code == 0 && forgotten.stdout.contains("is forgotten"), "{forgotten:?}");
    assert_eq!(state(dead), None);
    assert!(dev.json(&["pool", "list"]).as_array().unwrap().iter().all(|pool| pool["node"] != dead));
    // Its record still names the copy there, and nobody waits for that.
    assert_eq!(dev.run(&["volume", "delete", "data"]).code, 0);

    std::fs::remove_dir(&disk).unwrap();
    std::fs::rename(&kept, &disk).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while state(dead) != Some("Ready".into()) {
        assert!(Instant::now() < deadline, "{dead} does not come back");
        std::thread::sleep(Duration::from_millis(100));
    }
    dev.stop();
    check(temp.path(), &[dead], 1);
}

//! A node is taken out of service and put back, with real processes.

use crate::cluster::Dev;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::time::{Duration, Instant};

fn node(dev: &Dev, name: &str) -> Value {
    dev.json(&["node", "get", name])
}

/// The nodes of the copies that are in sync and there, and of no other.
fn copies(status: &Value) -> Vec<String> {
    let members = status["members"].as_array().into_iter().flatten();
    let name = |member: &Value| member["node"].as_str().unwrap_or_default().to_owned();
    let mut nodes: Vec<String> = members.filter(|member| member["state"] != "Removed").map(name).collect();
    nodes.sort_unstable();
    nodes
}

fn status(dev: &Dev, volume: &str) -> Value {
    dev.json(&["volume", "get", volume])["status"].take()
}

fn create(dev: &Dev, volume: &str, copies: &str) {
    let created = dev.run(&["volume", "create", volume, "--size", "32MiB", "--copies", copies]);
    assert_eq!(created.code, 0, "{created:?}");
}

fn fill(dev: &Dev, volume: &str) {
    let target = status(dev, volume)["target"].as_str().expect("it is attached").to_owned();
    let run = dev.run(&["bench", &target, "--rw", "write", "--fill", "--verify", "--seconds", "1"]);
    assert_eq!(run.code, 0, "{run:?}");
}

/// Four nodes in two zones: each zone has one copy, also when a node is emptied, whose copy stays in its zone.
#[test]
fn copies_are_kept_in_different_zones() {
    let temp = tempfile::tempdir().unwrap();
    let dev = Dev::start_with(temp.path(), &["--nodes", "4", "--zones", "2", "--disk-size", "128MiB"]);
    let zone = |name: &str| {
        let zone = node(&dev, name)["topology"]["topology.kubernetes.io/zone"].take();
        zone.as_str().expect("a node is in a zone").to_owned()
    };
    assert_eq!(
        (zone("node-1"), zone("node-2"), zone("node-3")),
        ("zone-1".into(), "zone-2".into(), "zone-1".into())
    );
    let create = ["volume", "create", "apart", "--size", "32MiB", "--spread", "zone", "--copies"];
    let words = [
        "3 copies need as many zones (topology.kubernetes.io/zone), 2 have a node that can take one: zone-1, zone-2",
    ];
    dev.refused(&[&create[..], &["3"]].concat(), 5, &words);
    let created = dev.run(&[&create[..], &["2"]].concat());
    assert_eq!(created.code, 0, "{created:?}");
    let before = copies(&status(&dev, "apart"));
    assert_eq!(before.len(), 2, "{before:?}");
    assert_ne!(zone(&before[0]), zone(&before[1]));

    let left = before[0].as_str();
    let drained = dev.run(&["node", "drain", left, "--evacuate", "--timeout", "60s"]);
    assert_eq!(drained.code, 0, "{drained:?}");
    let after = copies(&status(&dev, "apart"));
    let new = after.iter().find(|node| !before.contains(node)).expect("a copy has moved");
    assert!(after.len() == 2 && !after.contains(&before[0]), "{after:?}");
    assert_eq!(zone(new), zone(left), "the other zone has one");
    let other = before[1].as_str();
    let waits = dev.run(&["node", "drain", new, "--evacuate", "--timeout", "3s"]);
    assert!(waits.code == 1 && waits.stderr.contains("(a copy is in: "), "{waits:?}");
    assert!(copies(&status(&dev, "apart")).iter().any(|node| node == other));
    dev.stop();
}

/// One of four nodes is emptied while a volume on it is used, and is put back.
#[test]
fn an_evacuated_node_ends_without_copies() {
    let temp = tempfile::tempdir().unwrap();
    let dev = Dev::start_with(temp.path(), &["--nodes", "4", "--disk-size", "128MiB"]);
    create(&dev, "closed", "3");
    create(&dev, "used", "3");
    create(&dev, "single", "1");
    let before = copies(&status(&dev, "used"));
    let leaving = before[0].as_str();
    let elsewhere = before[1].as_str();
    assert_eq!(dev.run(&["volume", "attach", "used", "--node", elsewhere]).code, 0);
    fill(&dev, "used");

    let drained = dev.run(&["node", "drain", leaving, "--evacuate", "--timeout", "60s"]);
    assert_eq!(drained.code, 0, "{drained:?}");
    assert_eq!(drained.stdout, format!("node {leaving:?} is evacuated: nothing is left on it\n"));
    assert!(drained.stderr.contains("waits for volume \"used\" (copy): "), "{drained:?}");
    let left = node(&dev, leaving);
    assert_eq!(
        (&left["copies"], &left["waitsFor"]),
        (&Value::Array(vec![]), &Value::Array(vec![])),
        "{left}"
    );
    for (volume, wanted) in [("closed", 3), ("used", 3), ("single", 1)] {
        let status = status(&dev, volume);
        assert_eq!(copies(&status).len(), wanted, "{status}");
        assert!(!copies(&status).iter().any(|node| node == leaving), "{status}");
        assert!(status["state"] == "Available" || status["state"] == "Attached", "{status}");
    }
    fill(&dev, "used");

    // Nothing new is placed on it, before and after its engine has been killed.
    dev.refused(
        &["volume", "create", "late", "--size", "16MiB", "--copies", "4"],
        5,
        &[&format!("3 can take one (cordoned: {leaving})"), "uncordon one"],
    );
    let pid = left["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    kill_process(pid.expect("a pid"), Signal::KILL).expect("it runs");
    let deadline = Instant::now() + Duration::from_secs(60);
    let again = loop {
        let again = node(&dev, leaving);
        if again["pid"] != left["pid"] && again["state"] == "Ready" {
            break again;
        }
        assert!(Instant::now() < deadline, "{again}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(again["spec"]["scheduling"], "Evacuated", "an engine that starts takes no wish back");

    let back = dev.run(&["node", "uncordon", leaving]);
    assert_eq!((back.code, back.stdout), (0, format!("node {leaving:?} is uncordoned\n")));
    create(&dev, "late", "4");
    dev.stop();
}

/// With as many nodes as copies there is nowhere to go: that is said, other volumes go on, and nothing is lost.
#[test]
fn a_drain_that_cannot_end_says_what_it_waits_for() {
    let temp = tempfile::tempdir().unwrap();
    let dev = Dev::start(temp.path());
    create(&dev, "wide", "3");
    create(&dev, "pair", "2");
    let leaving = copies(&status(&dev, "pair")).remove(0);
    let leaving = leaving.as_str();
    let stuck = dev.run(&["node", "drain", leaving, "--evacuate", "--timeout", "5s"]);
    assert_eq!((stuck.code, stuck.stdout.as_str()), (1, ""), "{stuck:?}");
    let last = stuck.stderr.lines().last().unwrap();
    assert!(last.starts_with(&format!("orlop: node {leaving:?} is not evacuated after 5 s: ")), "{last}");
    let says = format!(
        "volume \"wide\" (copy): copy on {leaving} is to leave; no place for a new copy: 1 copy needs as many nodes, \
         0 can take one"
    );
    assert!(last.contains(&says), "{last}");
    // The other volume had somewhere to go.
    let deadline = Instant::now() + Duration::from_secs(60);
    while node(&dev, leaving)["copies"] != serde_json::json!(["wide"]) {
        assert!(Instant::now() < deadline, "{}", node(&dev, leaving));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(copies(&status(&dev, "pair")).len(), 2);
    let wide = status(&dev, "wide");
    assert_eq!((copies(&wide).len(), &wide["state"]), (3, &Value::from("Available")), "{wide}");
    let shown = dev.run(&["node", "get", leaving]);
    assert!(
        shown.stdout.contains("Evacuated") && shown.stdout.contains("no place for a new copy"),
        "{shown:?}"
    );

    // Where it comes back, the copies stay: a node may be away if none of them is the last one in sync.
    let drained = dev.run(&["node", "drain", leaving, "--timeout", "20s"]);
    assert_eq!(
        (drained.code, drained.stdout),
        (0, format!("node {leaving:?} is drained: it may be away; copies that stay on it: 1\n")),
        "{}",
        drained.stderr
    );
    let listed = dev.run(&["node", "list"]).stdout;
    assert!(listed.lines().any(|line| line.starts_with(leaving) && line.contains("Drained")), "{listed}");
    dev.wait_for("wide", "quiet again", |status| status["message"].is_null());

    // Who uses a device there decides.
    assert_eq!(dev.run(&["volume", "attach", "wide", "--node", leaving]).code, 0);
    let held = dev.run(&["node", "drain", leaving, "--timeout", "0"]);
    assert!(
        held.code == 1 && held.stderr.contains("volume \"wide\" (attachment): it is attached there"),
        "{held:?}"
    );
    assert_eq!(status(&dev, "wide")["state"], "Attached");
    assert_eq!(dev.run(&["volume", "detach", "wide"]).code, 0);
    assert_eq!(dev.run(&["node", "drain", leaving, "--timeout", "20s"]).code, 0);

    // Two at once: neither counts on the other.
    let other = ["node-1", "node-2", "node-3"].into_iter().find(|node| *node != leaving).unwrap();
    let third =
        ["node-1", "node-2", "node-3"].into_iter().find(|node| *node != leaving && *node != other).unwrap();
    assert_eq!(dev.run(&["node", "drain", other, "--timeout", "20s"]).code, 0);
    let last = dev.run(&["node", "drain", third, "--timeout", "0"]);
    assert!(
        last.code == 1 && last.stderr.contains("(copy): no other copy that is in sync stays"),
        "{last:?}"
    );
    for name in [leaving, other, third] {
        assert_eq!(dev.run(&["node", "uncordon", name]).code, 0);
    }
    assert_eq!(
        dev.run(&["node", "cordon", third]).stdout,
        format!("node {third:?} is cordoned: nothing new is placed on it\n")
    );
    dev.refused(&["node", "drain", "node-9"], 4, &["there is no node \"node-9\""]);
    dev.refused(&["node", "drain", "node-1", "--timeout", "soon"], 2, &["use one such as 30s"]);
    dev.stop();
}

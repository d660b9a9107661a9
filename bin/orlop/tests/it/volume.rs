//! One volume over its life: it grows, and `volume get` says in one line why it is not as wished.

use crate::cluster::Dev;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::time::{Duration, Instant};

fn message(status: &Value) -> &str {
    status["message"].as_str().unwrap_or_default()
}

/// The line after `why` in the table for people.
fn why(dev: &Dev, volume: &str) -> String {
    let shown = dev.run(&["volume", "get", volume]).stdout;
    let line = shown.lines().find_map(|line| line.strip_prefix("why")).unwrap_or_default();
    line.trim().to_owned()
}

/// The size of the device, as who uses it sees it.
fn device_bytes(status: &Value) -> u64 {
    let device = status["device"].as_str().expect("it is attached");
    match device.strip_prefix("/dev/") {
        Some(name) => {
            let sectors = std::fs::read_to_string(format!("/sys/class/block/{name}/size"));
            512 * sectors.expect("it is there").trim().parse::<u64>().expect("it is a number")
        }
        // Without root the device is the target's.
        None => status["sizeBytes"].as_u64().expect("it is a number"),
    }
}

#[test]
fn a_volume_grows_while_it_is_used_and_never_shrinks() {
    let temp = tempfile::tempdir().unwrap();
    let dev = Dev::start(temp.path());
    assert_eq!(dev.run(&["volume", "create", "data", "--size", "16MiB"]).code, 0);
    assert_eq!(dev.run(&["volume", "resize", "data", "--size", "24MiB"]).code, 0, "attached nowhere");
    assert_eq!(dev.run(&["volume", "attach", "data"]).code, 0);
    let before = dev.json(&["volume", "get", "data"])["status"].take();
    assert_eq!((before["sizeBytes"].as_u64(), device_bytes(&before)), (Some(24 << 20), 24 << 20));

    let grown = dev.run(&["volume", "resize", "data", "--size", "32MiB"]);
    assert_eq!((grown.code, grown.stdout.as_str()), (0, "volume \"data\" has 32 MiB\n"), "{grown:?}");
    let after = dev.json(&["volume", "get", "data"])["status"].take();
    assert_eq!(
        (after["device"].clone(), after["epoch"].clone()),
        (before["device"].clone(), before["epoch"].clone())
    );
    let deadline = Instant::now() + Duration::from_secs(10);
    while device_bytes(&after) != 32 << 20 {
        assert!(Instant::now() < deadline, "the device has {} bytes", device_bytes(&after));
        std::thread::sleep(Duration::from_millis(20));
    }
    let target = after["target"].as_str().unwrap();
    let written = dev.run(&["bench", target, "--rw", "write", "--block-size", "1MiB", "--seconds", "1"]);
    assert_eq!(written.code, 0, "{written:?}");

    for size in ["31MiB", "1MiB"] {
        dev.refused(&["volume", "resize", "data", "--size", size], 5, &["cannot shrink from 32 MiB"]);
    }
    let same = dev.run(&["volume", "resize", "data", "--size", "32MiB"]);
    assert_eq!(same.code, 0, "what is so already is no error: {same:?}");
    dev.stop();

    let dev = Dev::start(temp.path());
    let status = dev.wait_for("data", "attached", |status| status["device"].is_string());
    assert_eq!((status["sizeBytes"].as_u64(), device_bytes(&status)), (Some(32 << 20), 32 << 20));
    dev.stop();
}

/// Its owner has no copy of its own: each read goes to another node, also beyond what the size was at the beginning.
#[test]
fn what_a_volume_grew_by_is_read_from_other_nodes() {
    let temp = tempfile::tempdir().unwrap();
    let dev = Dev::start(temp.path());
    assert_eq!(dev.run(&["volume", "create", "data", "--size", "16MiB", "--copies", "1"]).code, 0);
    let created = dev.json(&["volume", "get", "data"])["status"].take();
    let holder = created["members"][0]["node"].as_str().unwrap();
    let owner = ["node-1", "node-2"].into_iter().find(|node| *node != holder).unwrap();
    assert_eq!(dev.run(&["volume", "attach", "data", "--node", owner]).code, 0);
    assert_eq!(dev.run(&["volume", "resize", "data", "--size", "32MiB"]).code, 0);
    let target = dev.json(&["volume", "get", "data"])["status"]["target"].take();
    for rw in ["write", "read"] {
        let arguments =
            ["bench", target.as_str().unwrap(), "--rw", rw, "--block-size", "1MiB", "--seconds", "1"];
        let done = dev.run(&arguments);
        assert_eq!(done.code, 0, "{done:?}");
    }
    dev.stop();
}

/// A node that is stopped is one that hangs: the process is there, and answers nothing.
#[test]
fn a_volume_says_why_it_is_not_placed_attached_or_in_sync() {
    let temp = tempfile::tempdir().unwrap();
    let dev = Dev::start(temp.path());
    let pids = dev.pids();
    let signal = |node: usize, signal| kill_process(Pid::from_raw(pids[node - 1]).unwrap(), signal).unwrap();
    assert_eq!(dev.run(&["volume", "create", "data", "--size", "16MiB"]).code, 0);
    assert_eq!(dev.run(&["volume", "attach", "data", "--node", "node-1"]).code, 0);

    // Not in sync: a copy is away.
    signal(3, Signal::STOP);
    // Its nexus notices first, then the manager.
    let said = "2 of 3 copies in sync: node node-3 is NotReady";
    let status = dev.wait_for("data", "said to miss node-3", |status| message(status).starts_with(said));
    assert_eq!(status["state"], "Degraded", "{status}");
    assert_eq!(why(&dev, "data"), message(&status));

    // Not placed: there is no node for it, or the node that was to have it hangs.
    let refused = ["volume", "create", "late", "--size", "16MiB"];
    dev.refused(
        &refused,
        5,
        &["volume \"late\": 3 copies need as many nodes, 2 can take one (NotReady: node-3)"],
    );
    signal(2, Signal::STOP);
    let mut creating = dev.command(&["volume", "create", "late", "--size", "16MiB", "--copies", "2"]);
    let mut creating = creating.stdout(std::process::Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let says = loop {
        // Before it is there, there is nothing to be asked.
        let shown = dev.run(&["volume", "get", "late"]);
        if shown.code == 0 && shown.stdout.contains("node node-2 is NotReady") {
            break why(&dev, "late");
        }
        assert!(Instant::now() < deadline, "{shown:?}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(says.contains("node node-2 is NotReady"), "{says}");

    // Not attached: the node that is to have the device hangs.
    signal(2, Signal::CONT);
    signal(3, Signal::CONT);
    assert!(creating.wait().unwrap().success(), "it is made as soon as its node answers");
    let in_sync = |status: &Value| status["state"] == "Attached" && status["message"].is_null();
    dev.wait_for("data", "in sync again", in_sync);
    signal(1, Signal::STOP);
    let lost = |status: &Value| message(status).contains("node-1");
    let status = dev.wait_for("data", "said to be lost", lost);
    assert!(status["state"] == "Stalled" || status["state"] == "Attaching", "{status}");
    assert_eq!(why(&dev, "data"), message(&status));
    let elsewhere = ["volume", "attach", "late", "--node", "node-1"];
    dev.refused(&elsewhere, 5, &["node-1", "NotReady", "; "]);
    signal(1, Signal::CONT);
    dev.wait_for("data", "in sync again", in_sync);
    dev.stop();
}

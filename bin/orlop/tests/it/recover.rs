//! A record that the store has lost, with real processes: it is made again from what the nodes keep of it (I12).

use crate::cluster::Dev;
use model::{Volume, VolumeRecord};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use store::{Client, Remote};

static PATTERN: [u8; 1 << 20] = [0xa5; 1 << 20];

/// Deletes the record of the volume from the store, as no program of Orlop does; answers what it was.
fn lose_record(dev: &Dev, volume: &str) -> VolumeRecord {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = Client::new(Remote::new(&dev.api));
        let volume =
            client.get::<Volume>(volume).await.expect("the store answers").expect("it is there").value;
        let key = volume.uuid.to_string();
        let record =
            client.get::<VolumeRecord>(&key).await.expect("the store answers").expect("it has a record");
        client.delete::<VolumeRecord>(&key, record.revision).await.expect("it is as it was");
        record.value
    })
}

fn replicas(status: &Value) -> Vec<&Value> {
    let mut replicas: Vec<&Value> =
        status["members"].as_array().into_iter().flatten().map(|member| &member["replica"]).collect();
    replicas.sort_unstable_by_key(ToString::to_string);
    replicas
}

/// The block device of the volume, where there is one: without root it is the target's.
fn device(dev: &Dev, node: &str) -> Option<File> {
    let attached = dev.run(&["volume", "attach", "data", "--node", node]);
    assert_eq!(attached.code, 0, "{attached:?}");
    let path = attached.stdout.trim();
    let options = File::options().read(true).write(true).clone();
    path.starts_with("/dev/").then(|| options.open(path).expect("it is a device"))
}

fn detach(dev: &Dev) {
    let detached = dev.run(&["volume", "detach", "data"]);
    assert_eq!(detached.code, 0, "{detached:?}");
}

fn epoch(status: &Value) -> u64 {
    status["epoch"].as_u64().unwrap_or_default()
}

/// Ends the node for good: its disk is something that cannot be opened.
fn end(dev: &Dev, data: &Path, node: &str) {
    let disk = data.join(node).join("disk");
    std::fs::rename(&disk, data.join(node).join("kept")).expect("it is there");
    std::fs::create_dir(&disk).expect("nothing is there");
    let nodes = dev.json(&["node", "list"]);
    let found = nodes.as_array().expect("a list").iter().find(|found| found["name"] == node).expect(node);
    let pid = found["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    kill_process(pid.expect("a pid"), Signal::KILL).expect("it runs");
}

#[test]
fn a_record_that_was_lost_is_back_with_all_that_was_written() {
    let temp = tempfile::tempdir().unwrap();
    let dev = Dev::start_with(temp.path(), &["--disk-size", "128MiB"]);
    assert_eq!(dev.run(&["volume", "create", "data", "--size", "16MiB"]).code, 0);
    if let Some(device) = device(&dev, "node-1") {
        device.write_all_at(&PATTERN, 3 << 20).unwrap();
        device.sync_all().unwrap();
    }
    detach(&dev);
    let before =
        dev.wait_for("data", "closed", |status| status["owner"].is_null() && status["state"] == "Available");
    let lost = lose_record(&dev, "data");
    let after = dev.wait_for("data", "back, confirmed and closed", |status| {
        status["state"] == "Available" && status["owner"].is_null() && epoch(status) > lost.epoch
    });
    assert_eq!(replicas(&after), replicas(&before), "nothing was made over the copies");
    dev.refused(&["volume", "recover", "data", "--yes"], 5, &["\"data\" is not from a copy"]);
    if let Some(device) = device(&dev, "node-2") {
        let mut read = vec![0; PATTERN.len()];
        device.read_exact_at(&mut read, 3 << 20).unwrap();
        assert!(read == PATTERN, "what was written and flushed is not there");
    }
    detach(&dev);
    dev.stop();
}

#[test]
fn a_record_from_a_copy_waits_for_its_members_or_the_explicit_word() {
    let temp = tempfile::tempdir().unwrap();
    let dev = Dev::start_with(temp.path(), &["--disk-size", "128MiB"]);
    assert_eq!(dev.run(&["volume", "create", "data", "--size", "16MiB"]).code, 0);
    dev.wait_for("data", "closed", |status| status["owner"].is_null() && status["state"] == "Available");
    end(&dev, temp.path(), "node-3");
    dev.wait_for("data", "without a copy", |status| status["state"] == "Degraded");
    // What the other copies have missed so far is in the record; now that is lost.
    let lost = lose_record(&dev, "data");
    let waits = dev.wait_for("data", "held back", |status| {
        let says = status["message"].as_str().unwrap_or_default();
        says.starts_with("its record is from a copy") && says.contains("node-3")
    });
    assert!(waits["state"] == "Stalled" && epoch(&waits) > lost.epoch, "{waits}");
    let says = ["its copies on node-3 are not there", "would be lost; nothing was changed", "--yes"];
    dev.refused(&["volume", "recover", "data"], 2, &says);
    let word = dev.run(&["volume", "recover", "data", "--yes"]);
    assert_eq!(word.code, 0, "{word:?}");
    dev.wait_for("data", "open without node-3", |status| {
        status["state"] == "Degraded" && epoch(status) > epoch(&waits)
    });
    device(&dev, "node-1");
    detach(&dev);
    dev.stop();
}

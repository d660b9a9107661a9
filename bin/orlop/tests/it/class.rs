//! What an operator says of a disk, with a real node beside a cluster: its pool is of that class, from each start on.

use crate::cluster::Dev;
use crate::program::{orlop, refused};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

/// A node that is told its disk itself; ended when dropped.
struct Alone(Child);

impl Alone {
    fn start(dev: &Dev, folder: &Path, said: &str) -> Self {
        let disk = format!("file://{}/disk?size=64MiB{said}", folder.display());
        let mut command = orlop(&["node", "run", "--name", "alone", "--run-id", "class", "--disk", &disk]);
        command.args(["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--store", &dev.api]);
        Self(command.arg("--data").arg(folder).spawn().expect("the binary starts"))
    }

    fn stop(mut self) {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, Signal::TERM).expect("it runs");
        assert!(self.0.wait().expect("it ends").success());
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _has_ended = self.0.kill();
        let _is_reaped = self.0.wait();
    }
}

/// The pool of that node, as soon as it is open and of this class.
fn pool(dev: &Dev, class: &Value) -> Value {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let pools = dev.json(&["pool", "list"]);
        let is_it =
            |pool: &&Value| pool["node"] == "alone" && pool["state"] == "Online" && pool["class"] == *class;
        if let Some(found) = pools.as_array().expect("a list").iter().find(is_it) {
            return found.clone();
        }
        assert!(Instant::now() < deadline, "no pool of alone is of class {class}: {pools}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_pool_is_of_the_class_that_is_said_at_each_start() {
    let temp = tempfile::tempdir().unwrap();
    let dev = Dev::start_with(&temp.path().join("dev"), &["--nodes", "1", "--disk-size", "64MiB"]);
    let folder = temp.path().join("alone");
    std::fs::create_dir(&folder).unwrap();

    let node = Alone::start(&dev, &folder, "&class=ssd");
    let first = pool(&dev, &"SSD".into());
    let uri = format!("file://{}/disk?size=64MiB", folder.display());
    assert_eq!(first["uri"], uri, "what is said of it is no matter of the device");
    let create = ["volume", "create", "fast", "--size", "4MiB", "--copies", "1", "--class", "ssd"];
    let created = dev.run(&create);
    assert_eq!(created.code, 0, "{created:?}");
    let placed = dev.json(&["volume", "get", "fast"])["status"].take();
    assert_eq!(placed["members"][0]["pool"], first["uuid"], "{placed}");
    node.stop();

    // Its copy stays where it is, and the next one is not placed there.
    let node = Alone::start(&dev, &folder, "&class=hdd");
    assert_eq!(pool(&dev, &"HDD".into())["uuid"], first["uuid"]);
    let status = dev.wait_for("fast", "available", |status| status["state"] == "Available");
    assert_eq!(status["members"][0]["pool"], first["uuid"], "{status}");
    let words = ["1 copy needs as many nodes with disks of class SSD, 0 can take one"];
    let another = ["volume", "create", "another", "--size", "4MiB", "--copies", "1", "--class", "ssd"];
    dev.refused(&another, 5, &words);
    node.stop();

    let node = Alone::start(&dev, &folder, "");
    assert_eq!(pool(&dev, &Value::Null)["uuid"], first["uuid"], "of a file nothing is known");
    node.stop();
    dev.stop();
}

#[test]
fn a_class_that_is_none_is_refused_before_anybody_is_asked() {
    let node = |disk| {
        ["node", "run", "--name", "n1", "--run-id", "x", "--data", "none", "--disk", disk]
            .into_iter()
            .chain(["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--store", "http://127.0.0.1:1"])
            .collect::<Vec<_>>()
    };
    for (disk, says) in [
        ("disk:///dev/vdb?class=fast", "\"fast\" is not a class: NVMe, SSD or HDD"),
        ("mem://?size=1GiB&class=ssd", "only a disk or a file has a class: remove class=ssd"),
    ] {
        refused(&node(disk), 2, &[&format!("--disk disk {disk:?}: "), says]);
    }
}

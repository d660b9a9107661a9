//! `orlop dev --csi`: a plugin for each node, there again after a kill, gone with the cluster. What plugins do is tried
//! by the journeys, which may mount.

use crate::cluster::Dev;
use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

#[test]
fn every_node_has_a_plugin_while_dev_runs() {
    let temp = tempfile::tempdir().unwrap();
    let (data, folder) = (temp.path().join("data"), temp.path().join("csi"));
    // A socket that an earlier run has left behind.
    std::fs::create_dir_all(folder.join("node-1")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(folder.join("node-1/csi.sock")).unwrap());
    let dev = Dev::start_with(&data, &["--disk-size", "256MiB", "--csi", folder.to_str().unwrap()]);
    let socket = |node: u32| folder.join(format!("node-{node}/csi.sock"));
    for node in [1, 2, 3] {
        UnixStream::connect(socket(node)).unwrap();
    }
    let pid = || {
        let processes = std::fs::read_to_string(data.join("processes.json")).unwrap();
        let processes: serde_json::Value = serde_json::from_str(&processes).unwrap();
        processes["csi-node-2"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap()
    };
    let before = pid();
    kill_process(Pid::from_raw(before).unwrap(), Signal::KILL).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while pid() == before || UnixStream::connect(socket(2)).is_err() {
        assert!(Instant::now() < deadline, "the plugin of node-2 does not come back");
        std::thread::sleep(Duration::from_millis(50));
    }
    dev.stop();
    assert!([1, 2, 3].iter().all(|node| !socket(*node).exists()), "a socket is left");
}

//! `orlop dev --csi`: a plugin for each node, there again after a kill, gone with the cluster; and how one is probed. What
//! plugins do is tried by the journeys, which may mount.

use crate::cluster::Dev;
use crate::program::{orlop, refused, run};
use csi::client::Plugin;
use csi::v1::ListVolumesRequest;
use rustix::process::{Pid, Signal, kill_process};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

#[test]
fn every_node_has_a_plugin_while_dev_runs() {
    let temp = tempfile::tempdir().unwrap();
    let (data, folder) = (temp.path().join("data"), temp.path().join("csi"));
    // A socket that an earlier run has left behind.
    std::fs::create_dir_all(folder.join("node-1")).unwrap();
    drop(UnixListener::bind(folder.join("node-1/csi.sock")).unwrap());
    let dev = Dev::start_with(&data, &["--disk-size", "256MiB", "--csi", folder.to_str().unwrap()]);
    let socket = |node: u32| folder.join(format!("node-{node}/csi.sock"));
    for node in [1, 2, 3] {
        UnixStream::connect(socket(node)).unwrap();
        let probe = run(&["probe", &url(&socket(node))]);
        assert!(probe.code == 0 && probe.stdout.ends_with("is ready\n"), "{probe:?}");
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

#[test]
fn a_plugin_that_waits_for_its_api_answers_a_probe() {
    let temp = tempfile::tempdir().unwrap();
    let socket = temp.path().join("csi.sock");
    refused(&["probe", &url(&socket)], 1, &["no CSI plugin answers at", "csi.sock: No such file"]);
    // Connections are taken by the kernel, and nobody reads them.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let api = format!("http://{}", silent.local_addr().unwrap());
    let parent = std::process::id().to_string();
    let mut plugin = orlop(&[
        "csi",
        "--node=node-1",
        "--api",
        &api,
        "--socket",
        socket.to_str().unwrap(),
        "--parent",
        &parent,
    ])
    .spawn()
    .unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while UnixStream::connect(&socket).is_err() {
        assert!(Instant::now() < deadline, "the plugin does not listen");
        std::thread::sleep(Duration::from_millis(50));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let client = runtime.block_on(Plugin::connect(&socket)).unwrap();
    let calls = [(); 8].map(|()| {
        let mut client = client.clone();
        runtime.spawn(async move { client.controller.list_volumes(ListVolumesRequest::default()).await })
    });
    let probe = run(&["probe", &url(&socket)]);
    assert!(probe.code == 0 && probe.stdout.contains("answers, and is not ready"), "{probe:?}");
    assert!(calls.iter().all(|call| !call.is_finished()), "the calls are still under way");
    plugin.kill().unwrap();
    plugin.wait().unwrap();
    assert!(socket.exists(), "what a killed plugin leaves");
    refused(&["probe", &url(&socket)], 1, &["no CSI plugin answers at", "csi.sock: Connection refused"]);
}

#[test]
fn a_socket_that_says_nothing_or_nonsense_is_no_plugin() {
    let temp = tempfile::tempdir().unwrap();
    let socket = temp.path().join("csi.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    // As a plugin that is stopped: it is connected to, and that is all.
    refused(
        &["probe", &url(&socket)],
        1,
        &["no CSI plugin answers at", "csi.sock: nothing was said within 8 s"],
    );
    let server = std::thread::spawn(move || {
        // The first is the one from above.
        for connection in listener.incoming().take(2) {
            let _asker_may_be_gone = connection.unwrap().write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    refused(&["probe", &url(&socket)], 1, &["no CSI plugin answers at", "csi.sock: "]);
    server.join().unwrap();
}

fn url(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}

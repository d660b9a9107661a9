//! A cluster with a secret: its nodes reach each other, a host reaches a volume with the key that was made for it, and
//! nobody else reaches anything.

use crate::cluster::Dev;
use crate::program::{finish, orlop, refused, run};
use nvmf::Key;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;

const TOOL: &str = "nqn.2026-11.io.orlop:tool";

/// A file that only its owner reads.
fn keep(path: &Path, text: &str) -> String {
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.create_new(true).write(true).mode(0o600).open(path).expect("it can be made");
    writeln!(file, "{text}").expect("it can be written");
    path.to_str().expect("the path is text").to_owned()
}

#[test]
fn a_cluster_with_a_secret_lets_in_only_who_has_a_key() {
    let temp = tempfile::tempdir().unwrap();
    let secret = keep(&temp.path().join("secret"), &Key::new([0x5E; nvmf::KEY_LEN]).reveal());
    let data = temp.path().join("data");
    let dev = Dev::start_with(&data, &["--disk-size", "256MiB", "--secret", &secret]);
    assert_eq!(dev.run(&["volume", "create", "data", "--size", "16MiB"]).code, 0);
    assert_eq!(dev.run(&["volume", "attach", "data"]).code, 0);
    // Two of the three copies are reached by the targets of other nodes.
    let status = dev.wait_for("data", "attached", |status| status["state"] == "Attached");
    let nodes = dev.json(&["node", "list"]);
    let owner = nodes.as_array().unwrap().iter().find(|node| node["name"] == status["owner"]).unwrap();
    let address = owner["address"].as_str().unwrap();
    let uri = format!("nvme+tcp://{address}/nqn.2026-11.io.orlop:volume:data");

    let probe = run(&["probe", &format!("nvme+tcp://{address}")]);
    assert_eq!((probe.code, probe.stdout.matches("authentication required").count()), (0, 3), "{probe:?}");

    let bench = ["bench", &uri, "--rw", "randread", "--depth", "4", "--seconds", "1"];
    refused(&bench, 1, &["asks for a key", "the key that was made for this host's name"]);
    let key_of = |host| {
        let made = dev.run(&["volume", "key", "data", "--secret", &secret, "--host", host]);
        assert_eq!((made.code, made.stderr.as_str()), (0, ""), "{made:?}");
        assert!(made.stdout.starts_with("DHHC-1:01:"), "{made:?}");
        made.stdout.trim().to_owned()
    };
    let other = keep(&temp.path().join("other"), &key_of("nqn.2026-11.io.orlop:other"));
    for wrong in [&other, &secret] {
        refused(&[&bench[..], &["--key", wrong]].concat(), 1, &["does not accept this host's key"]);
    }
    let key = keep(&temp.path().join("key"), &key_of(TOOL));
    let measured = run(&[&bench[..], &["--key", &key]].concat());
    assert_eq!(measured.code, 0, "{measured:?}");

    // The folder remembers where the secret is.
    dev.stop();
    let dev = Dev::start(&data);
    dev.wait_for("data", "attached", |status| status["state"] == "Attached");
    let nodes = dev.json(&["node", "list"]);
    for node in nodes.as_array().unwrap() {
        let probe = run(&["probe", &format!("nvme+tcp://{}", node["address"].as_str().unwrap())]);
        assert_eq!(probe.code, 0, "{probe:?}");
    }
    dev.stop();
    for log in std::fs::read_dir(data.join("log")).unwrap() {
        let log = std::fs::read_to_string(log.unwrap().path()).unwrap();
        assert!(!log.contains("DHHC-1"), "a key is in no log");
    }
}

#[test]
fn an_open_target_is_found_and_a_bad_secret_is_refused() {
    let mut command = orlop(&["bench", "mem://?size=8MiB", "--serve", "127.0.0.1:0"]);
    let mut target = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut uri = String::new();
    BufReader::new(target.stdout.take().unwrap()).read_line(&mut uri).unwrap();
    let probe = run(&["probe", uri.trim()]);
    assert_eq!(probe.code, 1, "{probe:?}");
    assert!(probe.stderr.contains("answers who has no key"), "{probe:?}");
    drop(target.stdin.take());
    assert!(target.wait().unwrap().success());

    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("data");
    let bad = keep(&temp.path().join("bad"), "a password");
    let dev = |secret: &str| {
        finish(orlop(&["dev", "--listen", "127.0.0.1:0", "--secret", secret, "--data"]).arg(&data))
    };
    let failed = dev(&bad);
    assert_eq!(failed.code, 2, "{failed:?}");
    assert!(failed.stderr.contains("openssl rand") && !failed.stderr.contains("a password"), "{failed:?}");
    let missing = dev(temp.path().join("missing").to_str().unwrap());
    assert_eq!(missing.code, 1, "{missing:?}");
}

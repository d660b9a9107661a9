//! `orlop support bundle`: all that answers is in it, what does not is named, and no secret is.

use crate::cluster::Dev;
use crate::program::{finish, orlop, refused};
use nvmf::Key;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// The files of a bundle, by their names in its folder.
fn files(path: &Path) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut archive = tar::Archive::new(std::fs::File::open(path).expect("it was made"));
    for entry in archive.entries().expect("it is a tar") {
        let mut entry = entry.expect("it is a tar");
        let path = entry.path().expect("a name").display().to_string();
        let name = path.strip_prefix("orlop-support/").expect("all is in one folder").to_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text).expect("it is text");
        assert!(files.insert(name, text).is_none(), "{path} is there twice");
    }
    files
}

#[test]
fn a_bundle_has_what_answers_and_no_secret() {
    let temp = tempfile::tempdir().unwrap();
    let key = Key::new([0x5E; nvmf::KEY_LEN]).reveal();
    let secret = temp.path().join("secret");
    let mut options = OpenOptions::new();
    writeln!(options.create_new(true).write(true).mode(0o600).open(&secret).unwrap(), "{key}").unwrap();
    let data = temp.path().join("data");
    let secret = secret.to_str().unwrap();
    let dev = Dev::start_with(&data, &["--disk-size", "256MiB", "--secret", secret]);
    assert_eq!(dev.run(&["volume", "create", "data", "--size", "16MiB"]).code, 0);
    // Where nobody should write a secret, and somebody may.
    let logs = data.join("log");
    let mut log = OpenOptions::new().append(true).open(logs.join("node-1.log")).unwrap();
    writeln!(log, "a line with {key}\nAuthorization: Bearer planted-token\npassword=\"planted password\"")
        .unwrap();
    std::fs::write(logs.join("other.txt"), "planted text").unwrap();

    let file = temp.path().join("bundle.tar");
    let path = file.to_str().unwrap();
    let mut command =
        dev.command(&["support", "bundle", "--file", path, "--logs", logs.to_str().unwrap(), "-o", "json"]);
    let made = finish(command.env("ORLOP_TOKEN", "planted-environment"));
    assert_eq!((made.code, made.stderr.as_str()), (0, ""), "{made:?}");
    let report: serde_json::Value = serde_json::from_str(&made.stdout).unwrap();
    assert_eq!(report["missing"], serde_json::json!([]), "{report}");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    let files = files(&file);
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    assert_eq!(report["files"], serde_json::json!(names));
    let expected = [
        "about.json",
        "controller-version.txt",
        "logs/controller.log",
        "logs/node-1.log",
        "logs/node-2.log",
        "logs/node-3.log",
        "metrics/controller.txt",
        "metrics/node-1.txt",
        "metrics/node-2.txt",
        "metrics/node-3.txt",
        "missing.txt",
        "objects/disks.json",
        "objects/nodes.json",
        "objects/pools.json",
        "objects/volumes.json",
        "preflight.json",
    ];
    assert_eq!(names, expected);
    assert_eq!(files["missing.txt"], "nothing\n");
    assert_eq!(files["controller-version.txt"].trim(), env!("CARGO_PKG_VERSION"));
    let json = |name: &str| serde_json::from_str::<serde_json::Value>(&files[name]).unwrap();
    assert_eq!(json("objects/volumes.json")["items"][0]["name"], "data");
    assert_eq!(
        json("objects/volumes.json")["items"],
        dev.json(&["volume", "list"]),
        "nothing else is removed"
    );
    assert_eq!(json("objects/nodes.json")["items"].as_array().unwrap().len(), 3);
    assert!(!json("preflight.json").as_array().unwrap().is_empty());
    assert!(files["metrics/node-1.txt"].contains("orlop_pool_capacity_bytes"));
    assert!(files["metrics/controller.txt"].contains("orlop_volumes"));
    assert!(files["logs/node-1.log"].contains("a line with [removed]"), "{}", files["logs/node-1.log"]);
    let bare = key.rsplit(':').find(|part| !part.is_empty()).unwrap();
    for (name, text) in &files {
        for planted in ["planted", "DHHC-1", bare] {
            assert!(!text.contains(planted), "{planted} is in {name}");
        }
    }

    // It is not made over another one, and can go to standard output.
    dev.refused(&["support", "bundle", "--file", path], 5, &["bundle.tar", "--file"]);
    let other = temp.path().join("other.tar");
    let out = std::fs::File::create(&other).unwrap();
    let mut piped = dev.command(&["support", "bundle", "--file", "-"]);
    assert!(piped.stdout(out).status().unwrap().success());
    let piped = self::files(&other);
    assert!(piped.contains_key("objects/volumes.json") && piped["missing.txt"].starts_with("logs: "));
    dev.stop();
}

#[test]
fn what_does_not_answer_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let mut command = orlop(&["support", "bundle", "--api", "http://127.0.0.1:1", "--logs", "absent"]);
    let made = finish(command.current_dir(temp.path()));
    assert_eq!((made.code, made.stderr.as_str()), (0, ""), "{made:?}");
    assert!(
        made.stdout.starts_with("orlop-support.tar: 3 files\nmissing: controller-version.txt: "),
        "{made:?}"
    );
    let files = files(&temp.path().join("orlop-support.tar"));
    assert_eq!(files.keys().collect::<Vec<_>>(), ["about.json", "missing.txt", "preflight.json"]);
    let missing = &files["missing.txt"];
    for what in ["objects/nodes.json", "objects/volumes.json", "metrics/controller.txt", "logs"] {
        assert!(missing.lines().any(|line| line.starts_with(&format!("{what}: "))), "{what}: {missing}");
    }
    refused(&["support", "bundle", "--file", "/absent/x.tar"], 1, &["/absent/x.tar", "--file"]);
    refused(&["support", "bundle", "--api", "nonsense"], 2, &["nonsense"]);
}

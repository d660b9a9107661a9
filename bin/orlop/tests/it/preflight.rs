//! What a machine does not allow: asked for, and said by whoever meets it.

use crate::program::{Run, finish, orlop, run};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A user without rights and without other processes: what a user locks in memory counts over all of them.
fn nobody() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    (1 << 30) + (std::process::id() << 4) + NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A folder that everybody may use, with a copy of the program: where it was built may be closed to others.
fn open_folder() -> tempfile::TempDir {
    let temp = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(temp.path(), std::fs::Permissions::from_mode(0o777)).expect("it is ours");
    std::fs::copy(env!("CARGO_BIN_EXE_orlop"), temp.path().join("orlop")).expect("it can be copied");
    temp
}

/// The program as a user without rights, after `limits` of the shell.
fn as_nobody(folder: &Path, limits: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{limits}; exec ./orlop \"$@\""), "sh"]).args(arguments);
    command.current_dir(folder).env_remove("ORLOP_API").stdin(Stdio::null());
    if rustix::process::geteuid().is_root() {
        let user = nobody();
        command.uid(user).gid(user);
    }
    command
}

fn features(run: &Run) -> Vec<Value> {
    let list: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:?}"));
    list.as_array().expect("a list").clone()
}

fn feature<'a>(features: &'a [Value], name: &str) -> &'a Value {
    let found = features.iter().find(|feature| feature["feature"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {features:?}"))
}

#[test]
fn what_a_machine_allows_is_shown() {
    let shown = run(&["preflight", "-o", "json"]);
    let found = features(&shown);
    let expected = [
        "kernel for FUSE restarts",
        "io_uring",
        "open files",
        "FUSE",
        "loop devices",
        "root",
        "NVMe/TCP devices",
    ];
    for name in expected {
        let feature = feature(&found, name);
        let remedy = feature["remedy"].as_str().expect("text");
        assert_eq!(feature["ok"].as_bool(), Some(remedy.is_empty()), "{feature}");
        assert!(feature["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{feature}");
    }
    let missing = found.iter().any(|feature| feature["ok"] == false && feature["need"] == "Required");
    assert_eq!(shown.code, i32::from(missing), "{shown:?}");
    let table = run(&["preflight"]).stdout;
    assert!(table.starts_with("FEATURE ") && table.lines().count() == found.len() + 1, "{table}");

    let nowhere = run(&["preflight", "--data", "/nowhere", "-o", "json"]);
    let folder = feature(&features(&nowhere), "direct I/O").clone();
    assert!(folder["ok"] == false && folder["detail"].as_str().unwrap().contains("/nowhere"), "{folder}");
}

#[test]
fn a_user_without_rights_is_told_what_is_missing_and_can_go_on() {
    let folder = open_folder();
    let shown = finish(&mut as_nobody(folder.path(), ":", &["preflight", "-o", "json"]));
    assert_eq!((shown.code, shown.stderr.as_str()), (0, ""), "{shown:?}");
    let found = features(&shown);
    let root = feature(&found, "root");
    assert!(root["ok"] == false && root["need"] == "Attach", "{root}");
    assert!(root["remedy"].as_str().unwrap().contains("run as root"), "{root}");
}

/// Newer kernels count the rings themselves as locked memory: with too little there are threads instead.
#[test]
fn with_little_locked_memory_it_works_and_preflight_says_what_is_missing() {
    let folder = open_folder();
    let bench = ["bench", "mem://?size=1MiB", "--depth", "1", "--seconds", "1"];
    for kib in [64, 1024] {
        let limit = format!("ulimit -l {kib}");
        let ran = finish(&mut as_nobody(folder.path(), &limit, &bench));
        assert_eq!(ran.code, 0, "{kib} KiB: {ran:?}");
        let shown = finish(&mut as_nobody(folder.path(), &limit, &["preflight", "-o", "json"]));
        assert_eq!(shown.code, 0, "{kib} KiB: {shown:?}");
        let found = features(&shown);
        let ring = feature(&found, "io_uring");
        let less = if ring["ok"] == true { feature(&found, "registered memory") } else { ring };
        assert!(less["ok"] == false && less["need"] == "Helpful", "{kib} KiB: {less}");
        assert!(less["remedy"].as_str().unwrap().contains("ulimit -Hl"), "{kib} KiB: {less}");
    }
}

#[test]
fn what_is_needed_and_missing_is_a_failure() {
    let folder = open_folder();
    let shown = finish(&mut as_nobody(folder.path(), "ulimit -n 64", &["preflight"]));
    assert_eq!(shown.code, 1, "{shown:?}");
    assert_eq!(shown.stderr, "orlop: this machine cannot run nodes: open files; the remedies are above\n");
    let line = shown.stdout.lines().find(|line| line.starts_with("open files")).expect("a line");
    assert!(line.contains("nodes cannot run") && line.contains("at most 64 files"), "{line}");
}

/// `dev` says it at its start, and `volume attach` why it prints no path.
#[test]
fn a_cluster_without_block_devices_says_why() {
    let folder = open_folder();
    let data = folder.path().join("data");
    let arguments =
        ["dev", "--listen", "127.0.0.1:0", "--nodes", "1", "--disk-size", "64MiB", "--data", "data"];
    let mut command = as_nobody(folder.path(), ":", &arguments);
    let mut dev = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut api = String::new();
    for line in BufReader::new(dev.stdout.as_mut().unwrap()).lines() {
        let line = line.unwrap();
        if let Some(rest) = line.strip_prefix("API on ") {
            rest.split(' ').next().unwrap().clone_into(&mut api);
        }
        if line.starts_with("Ctrl-C") {
            break;
        }
    }
    let ask = |arguments: &[&str]| finish(orlop(arguments).env("ORLOP_API", &api));
    let created = ask(&["volume", "create", "data", "--size", "16MiB", "--copies", "1"]);
    let attached = ask(&["volume", "attach", "data"]);
    kill_process(Pid::from_raw(i32::try_from(dev.id()).unwrap()).unwrap(), Signal::INT).unwrap();
    let mut said = String::new();
    dev.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(dev.wait().unwrap().success(), "{said}");
    assert!(data.join("cluster.json").exists());

    assert_eq!((created.code, attached.code), (0, 0), "{created:?} {attached:?}");
    assert!(attached.stdout.starts_with("nvme+tcp://"), "{attached:?}");
    assert_eq!(attached.stderr.lines().count(), 1, "{attached:?}");
    for part in ["node-1 does not run as root", "\"data\" is no block device", "`orlop preflight`"] {
        assert!(attached.stderr.contains(part), "{part:?} is not in {:?}", attached.stderr);
    }
    let lines: Vec<_> = said.lines().filter(|line| line.starts_with("orlop dev: root: ")).collect();
    assert!(lines.len() == 1 && lines[0].contains("; run as root"), "{said}");
    assert!(said.lines().all(|line| line.starts_with("orlop dev: ")), "{said}");
}

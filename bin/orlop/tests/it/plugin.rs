//! `kubectl orlop`: what kubectl is told, with a kubectl that writes it down.

use crate::program::{Run, finish};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

/// The plugin, in a folder with a kubectl that keeps its arguments and its input, prints, and exits with 7.
struct Plugin(tempfile::TempDir);

impl Plugin {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        symlink(env!("CARGO_BIN_EXE_orlop"), folder.path().join("kubectl-orlop")).expect("a link");
        let plugin = Self(folder);
        plugin.script(
            "kubectl",
            "printf '%s\\n' \"$@\" >\"$RECORD\"; cat >\"$RECORD.input\"; echo answered; exit 7",
        );
        plugin
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn script(&self, name: &str, body: &str) {
        let path = self.path(name);
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("it can be written");
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("it is ours");
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path("kubectl-orlop"));
        let path =
            std::env::join_paths([self.0.path(), Path::new("/usr/bin"), Path::new("/bin")]).expect("paths");
        command.args(arguments).env("PATH", path).env("RECORD", self.path("record"));
        command.env_remove("ORLOP_NAMESPACE").stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Run {
        finish(&mut self.command(arguments))
    }

    /// What kubectl was told, if it was called.
    fn told(&self) -> Option<String> {
        let told = std::fs::read_to_string(self.path("record")).ok()?;
        std::fs::remove_file(self.path("record")).expect("it is ours");
        Some(told.trim_end().replace('\n', " "))
    }
}

#[test]
fn a_command_is_handed_over_as_it_is() {
    let plugin = Plugin::new();
    let exec = |namespace: &str, rest: &str| {
        let target = "deployment/orlop-controller --container=controller -- orlop";
        Some(format!("--namespace {namespace} exec --stdin {target} {rest}"))
    };
    let run = plugin.run(&["volume", "list", "-o", "json"]);
    assert_eq!((run.code, run.stdout.as_str(), run.stderr.as_str()), (7, "answered\n", ""));
    assert_eq!(plugin.told(), exec("orlop", "volume list -o json"));
    for arguments in [&["--namespace", "other", "node", "list"][..], &["node", "list", "-n", "other"]] {
        assert_eq!(plugin.run(arguments).code, 7);
        assert_eq!(plugin.told(), exec("other", "node list"));
    }
    let mut command = plugin.command(&["pool", "list"]);
    assert_eq!(finish(command.env("ORLOP_NAMESPACE", "storage")).code, 7);
    assert_eq!(plugin.told(), exec("storage", "pool list"));

    let input = plugin.path("input");
    std::fs::write(&input, "from here").unwrap();
    let key = ["volume", "key", "data", "--host", "nqn.2026-11.io.orlop:tool", "--secret", "/dev/stdin"];
    let mut command = plugin.command(&key);
    assert_eq!(finish(command.stdin(std::fs::File::open(input).unwrap())).code, 7);
    assert_eq!(plugin.told(), exec("orlop", &key.join(" ")));
    assert_eq!(std::fs::read_to_string(plugin.path("record.input")).unwrap(), "from here");
    assert_eq!(plugin.run(&["support", "bundle", "--file", "-"]).code, 7);
    assert_eq!(plugin.told(), exec("orlop", "support bundle --file -"));
}

#[test]
fn what_is_wrong_is_said_without_kubectl() {
    let plugin = Plugin::new();
    let help = plugin.run(&["--help"]);
    assert!(help.code == 0 && help.stdout.contains("Usage: kubectl orlop [OPTIONS] <COMMAND>"), "{help:?}");
    assert!(!help.stdout.contains("demo") && !help.stdout.contains("  check"), "{help:?}");
    let help = plugin.run(&["volume", "create", "--help"]);
    assert!(help.stdout.contains("Usage: kubectl orlop volume create"), "{help:?}");
    assert!(help.stdout.contains("  kubectl orlop volume create data --size 1GiB"), "{help:?}");
    for (arguments, part) in [
        (&["volume", "creat"][..], "creat"),
        (&["dev"], "dev"),
        (&["volume", "list", "--namespace"], "--namespace"),
        (&["support", "bundle"], "--file - >"),
        (&["disk", "partition", "/dev/sda"], "orlop-node"),
    ] {
        let run = plugin.run(arguments);
        assert_eq!((run.code, run.stdout.as_str(), run.stderr.lines().count()), (2, "", 1), "{run:?}");
        assert!(run.stderr.contains(part), "{run:?}");
    }
    assert_eq!(plugin.told(), None);
    std::fs::remove_file(plugin.path("kubectl")).unwrap();
    let mut command = plugin.command(&["volume", "list"]);
    let run = finish(command.env("PATH", plugin.0.path()));
    assert!(run.code == 1 && run.stderr.contains("cannot run kubectl"), "{run:?}");
}

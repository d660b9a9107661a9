//! A running `orlop dev` as the tests drive it.

use crate::program::{Run, finish, orlop, refused};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running `orlop dev`, ended when dropped.
pub(crate) struct Dev {
    child: Child,
    /// The address of its API.
    pub(crate) api: String,
    said: BufReader<std::process::ChildStdout>,
}

impl Dev {
    /// Starts three nodes on free ports, or those that the folder has, and waits until it says what to type next.
    pub(crate) fn start(data: &Path) -> Self {
        Self::start_with(data, &["--disk-size", "256MiB"])
    }

    /// The same; a new cluster gets `options`.
    pub(crate) fn start_with(data: &Path, options: &[&str]) -> Self {
        Self::start_as(orlop(&["dev", "--listen", "127.0.0.1:0", "--data"]), data, options)
    }

    /// The same; a copy that has been away for so many seconds is replaced.
    pub(crate) fn start_hasty(data: &Path, options: &[&str], replace_after_seconds: u32) -> Self {
        let mut command = orlop(&["dev", "--listen", "127.0.0.1:0", "--data"]);
        command.env("ORLOP_REPLACE_AFTER_SECONDS", replace_after_seconds.to_string());
        Self::start_as(command, data, options)
    }

    fn start_as(mut command: Command, data: &Path, options: &[&str]) -> Self {
        let options = if data.join("cluster.json").exists() { &[] } else { options };
        let mut child =
            command.arg(data).args(options).stdout(Stdio::piped()).spawn().expect("the binary starts");
        let mut said = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut api = String::new();
        for line in said.by_ref().lines() {
            let line = line.expect("output is UTF-8");
            if let Some(rest) = line.strip_prefix("API on ") {
                rest.split(' ').next().unwrap_or_default().clone_into(&mut api);
            }
            if line.starts_with("Ctrl-C") {
                break;
            }
        }
        assert!(!api.is_empty(), "it did not start: {:?}", child.try_wait());
        Self { child, api, said }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = orlop(arguments);
        command.env("ORLOP_API", &self.api);
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Run {
        finish(&mut self.command(arguments))
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let run = self.run(&[arguments, &["-o", "json"]].concat());
        assert_eq!(run.code, 0, "{arguments:?}: {run:?}");
        serde_json::from_str(&run.stdout).expect("it printed JSON")
    }

    pub(crate) fn refused(&self, arguments: &[&str], code: i32, parts: &[&str]) {
        refused(&[arguments, &["--api", &self.api]].concat(), code, parts);
    }

    /// What users wish of volumes, as the store has it: what a refused command must not change.
    pub(crate) fn wishes(&self) -> serde_json::Value {
        let volumes = self.json(&["volume", "list"]);
        let wish = |volume: &serde_json::Value| {
            let intent = &volume["intent"];
            serde_json::json!([
                volume["name"],
                volume["uuid"],
                volume["spec"],
                intent["members"],
                intent["attach"],
                intent["attachSerial"],
                intent["deleting"]
            ])
        };
        volumes.as_array().expect("a list").iter().map(wish).collect()
    }

    /// Waits until `volume get` shows what is looked for.
    ///
    /// # Panics
    /// When it does not within a minute.
    pub(crate) fn wait_for(
        &self,
        volume: &str,
        what: &str,
        is_so: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let status = self.json(&["volume", "get", volume])["status"].take();
            if is_so(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{volume} is never {what}: {status}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The pids of its nodes.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let nodes = self.json(&["node", "list"]);
        let pid = |node: &serde_json::Value| node["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        nodes.as_array().expect("a list").iter().filter_map(pid).collect()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("it runs");
    }

    /// Ctrl-C; what it still said.
    pub(crate) fn stop(mut self) -> String {
        self.signal(Signal::INT);
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).expect("output is UTF-8");
        assert!(self.child.wait().expect("it ends").success(), "{rest}");
        rest
    }
}

impl Drop for Dev {
    /// After a failure: an end in order takes mounts and loop devices along, which a kill would leave.
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.signal(Signal::TERM);
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

/// Whether the process runs: a zombie does not.
pub(crate) fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.starts_with(" Z")))
}

//! Processes, named by pid and start time so that a number used again is never signalled, and commands with a
//! time-out whose whole process group ends with them.
//!
//! 1. A signal goes through a pidfd that was checked against the start time after it was opened.
//! 2. Every command runs in its own process group, in the folder of its run, with the run's id in its environment:
//!    `guard` finds by that id what a journey forgot.

use anyhow::{Context, Result, bail};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// One process of this machine, for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    /// The process number.
    pub(crate) pid: i32,
    /// Field 22 of `/proc/PID/stat`. # Units: clock ticks since boot.
    pub(crate) start_ticks: u64,
}

impl Process {
    /// The process that has this number now.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything, also blanks and parentheses.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        if matches!(fields.first(), Some(&"Z" | &"X")) {
            return None;
        }
        Some(Self { pid, start_ticks: fields.get(19)?.parse().ok()? })
    }

    /// Whether it still runs (a zombie does not).
    pub(crate) fn lives(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends a signal; `false` when the process had ended.
    pub(crate) fn signal(self, signal: Signal) -> bool {
        let Some(pid) = rustix::process::Pid::from_raw(self.pid) else { return false };
        let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
        // The pidfd is bound now: only now does the start time say that it is the one meant.
        self.lives() && pidfd_send_signal(&fd, signal).is_ok()
    }

    /// Waits until it has ended.
    /// # Errors  When it still lives after `limit`.
    pub(crate) fn wait_end(self, limit: Duration) -> Result<()> {
        let start = Instant::now();
        while self.lives() {
            if start.elapsed() > limit {
                bail!("process {} still lives after {} s", self.pid, limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

/// The living processes but this one.
pub(crate) fn all() -> impl Iterator<Item = Process> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
    pids.filter(move |pid| *pid != own).filter_map(Process::of)
}

/// The living processes whose command line contains `text`, with that line; this one is not among them.
pub(crate) fn with_argument(text: &str) -> Vec<(Process, String)> {
    let mut found = Vec::new();
    // Taken before the line is read: a number used again in between gives a process that is not signalled.
    for process in all() {
        let line = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(text) {
            found.push((process, line));
        }
    }
    found
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Exit code; 128 + signal for one that was killed; `None` when its time was over and it was killed for that.
    pub(crate) code: Option<i32>,
    /// Standard output and error as they came.
    pub(crate) output: String,
    /// How long it ran.
    pub(crate) elapsed: Duration,
}

impl Outcome {
    /// The output of a command that had to succeed.
    pub(crate) fn success(self, what: &str) -> Result<String> {
        match self.code {
            Some(0) => Ok(self.output),
            Some(code) => {
                bail!("{what}: exit code {code}; the end of its output:\n{}", tail(&self.output, 30))
            }
            None => bail!(
                "{what}: not done after {} s; the end of its output:\n{}",
                self.elapsed.as_secs(),
                tail(&self.output, 30)
            ),
        }
    }
}

/// The last `lines` lines.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A command that runs beside the journey, its output going to a file.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    /// The process, to be signalled.
    pub(crate) process: Process,
    log: std::path::PathBuf,
    started: Instant,
}

impl Running {
    /// Starts a command in its own process group, output to `log`.
    pub(crate) fn start(mut command: Command, log: &Path) -> Result<Self> {
        let out = File::create(log).with_context(|| format!("create {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).process_group(0);
        let child = command.spawn().with_context(|| format!("start {}", command.get_program().display()))?;
        let pid = i32::try_from(child.id()).context("a pid fits an i32")?;
        let process = Process::of(pid).unwrap_or(Process { pid, start_ticks: 0 });
        Ok(Self { child, process, log: log.to_owned(), started: Instant::now() })
    }

    /// What it has printed so far.
    pub(crate) fn output(&self) -> String {
        let mut bytes = Vec::new();
        if let Ok(mut file) = File::open(&self.log) {
            // A log that cannot be read shows as one that ends early.
            file.read_to_end(&mut bytes).ok();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether it has not ended yet.
    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end, at most `limit` from now; then kills its process group.
    pub(crate) fn wait(mut self, limit: Duration) -> Result<Outcome> {
        let begun = Instant::now();
        let code = loop {
            if let Some(status) = self.child.try_wait()? {
                break Some(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
            }
            if begun.elapsed() > limit {
                self.kill_group();
                self.child.wait()?;
                break None;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        Ok(Outcome { code, output: self.output(), elapsed: self.started.elapsed() })
    }

    fn kill_group(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.process.pid) {
            // It is our child and not reaped yet: the number cannot belong to another group.
            rustix::process::kill_process_group(pid, Signal::KILL).ok();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.runs() {
            self.kill_group();
            self.child.wait().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_past_its_limit_ends_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 600 & echo child $!; wait"]);
        let outcome = Running::start(command, &folder.path().join("log"))
            .unwrap()
            .wait(Duration::from_millis(300))
            .unwrap();
        assert_eq!(outcome.code, None);
        let child: i32 = outcome.output.trim().strip_prefix("child ").unwrap().parse().unwrap();
        if let Some(child) = Process::of(child) {
            child.wait_end(Duration::from_secs(10)).unwrap();
        }
    }

    #[test]
    fn a_number_used_again_is_not_signalled() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let process = Process::of(i32::try_from(child.id()).unwrap()).unwrap();
        let stranger = Process { start_ticks: process.start_ticks + 1, ..process };
        assert!(!stranger.signal(Signal::KILL) && process.lives());
        assert!(process.signal(Signal::KILL));
        child.wait().unwrap();
        assert!(!process.lives());
    }
}

//! The test bed: a new folder on a real disk, the program under test, and how long to measure.

use super::guard::Guard;
use super::machine::Machine;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::cell::Cell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// How long one command of `orlop` may take beyond what it measures: it waits by itself for up to a minute.
const PATIENCE: Duration = Duration::from_secs(90);
/// The name of a device that `orlop bench --serve` serves, and how it is called.
const SERVE: [&str; 3] = ["--fill", "--serve", "127.0.0.1:0"];

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) rounds: u32,
    /// Of one measurement.
    pub(crate) seconds: u32,
    /// Of a look at something that does nothing.
    pub(crate) idle_seconds: u32,
    /// Bytes of a volume and of the file beside it.
    pub(crate) size: u64,
    /// Volumes that do nothing.
    pub(crate) volumes: u32,
}

impl Pace {
    pub(crate) const FULL: Self =
        Self { rounds: 5, seconds: 4, idle_seconds: 20, size: 1 << 30, volumes: 20 };
    /// To see that the harness works: the figures mean nothing.
    pub(crate) const QUICK: Self =
        Self { rounds: 1, seconds: 1, idle_seconds: 1, size: 64 << 20, volumes: 3 };
}

/// One run.
pub(crate) struct Bed {
    pub(crate) folder: PathBuf,
    pub(crate) pace: Pace,
    pub(crate) is_root: bool,
    orlop: PathBuf,
    guard: Option<Guard>,
    files: Cell<u32>,
}

impl Bed {
    /// A new folder in `parent`, guarded.
    pub(crate) fn new(parent: &Path, orlop: PathBuf, pace: Pace) -> Result<(Self, Machine)> {
        let machine = Machine::of(parent)?;
        let (guard, folder) = Guard::start(parent)?;
        let is_root = rustix::process::geteuid().is_root();
        Ok((Self { folder, pace, is_root, orlop, guard: Some(guard), files: Cell::new(0) }, machine))
    }

    /// Removes the folder.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.guard.take().map_or(Ok(()), Guard::finish)
    }

    /// The numbers of the rounds, said as they begin.
    pub(crate) fn rounds(&self, what: &str) -> impl Iterator<Item = u32> {
        let (what, rounds) = (what.to_owned(), self.pace.rounds);
        (1..=rounds).inspect(move |round| eprintln!("bench: {what}, round {round} of {rounds}"))
    }

    /// The path of a new file in the folder.
    pub(crate) fn new_path(&self, stem: &str, extension: &str) -> PathBuf {
        self.files.set(self.files.get() + 1);
        self.folder.join(format!("{stem}-{}.{extension}", self.files.get()))
    }

    /// Runs a command to its end, at most for `limit`; what it printed on standard output.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub(crate) fn run(&self, mut command: Command, limit: Duration) -> Result<String> {
        let program = command.get_program().display().to_string();
        let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
        let shown = format!("{program} {}", arguments.join(" "));
        let (output, errors) = (self.new_path("command", "out"), self.new_path("command", "err"));
        command.stdin(Stdio::null()).stdout(File::create(&output)?).stderr(File::create(&errors)?);
        let mut child = Killed(command.spawn().with_context(|| format!("cannot start `{shown}`"))?);
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = child.0.try_wait()? {
                break status;
            }
            ensure!(begun.elapsed() < limit, "`{shown}` is not done after {} s", limit.as_secs());
            std::thread::sleep(Duration::from_millis(5));
        };
        let read = |path: &Path| -> Result<String> {
            let bytes = std::fs::read(path)?;
            std::fs::remove_file(path)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let (output, errors) = (read(&output)?, read(&errors)?);
        if !status.success() {
            let said = if errors.trim().is_empty() { &output } else { &errors };
            bail!("`{shown}` ended with {status}: {}", said.trim());
        }
        Ok(output)
    }

    /// `orlop ARGUMENTS`, not yet started.
    pub(crate) fn orlop(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.orlop);
        command.args(arguments).env_remove("ORLOP_API");
        command
    }

    /// Runs `orlop bench TARGET` for the time of a round; its report.
    pub(crate) fn orlop_bench(&self, target: &str, rw: &str, depth: u32, more: &[&str]) -> Result<Report> {
        let (depth, seconds) = (depth.to_string(), self.pace.seconds.to_string());
        let mut command =
            self.orlop(&["bench", target, "--rw", rw, "--depth", &depth, "--seconds", &seconds]);
        command.args(["-o", "json"]).args(more);
        let text = self.run(command, PATIENCE + Duration::from_secs(self.pace.seconds.into()))?;
        Report::read(&text)
    }

    /// Serves a device of `orlop bench` over NVMe/TCP.
    pub(crate) fn serve(&self, device: &str) -> Result<Served> {
        let mut command = self.orlop(&["bench", device]);
        command.args(SERVE).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = Killed(command.spawn().context("start a target")?);
        let mut output = std::io::BufReader::new(child.0.stdout.take().context("its output was asked for")?);
        let mut uri = String::new();
        std::io::BufRead::read_line(&mut output, &mut uri)?;
        ensure!(uri.starts_with("nvme+tcp://"), "the target did not start: it said {uri:?}");
        let input = child.0.stdin.take();
        Ok(Served { uri: uri.trim().to_owned(), pid: child.0.id(), _input: input, _child: child })
    }
}

/// A target in a process of its own; it ends when this is dropped, or when this process dies.
pub(crate) struct Served {
    pub(crate) uri: String,
    pub(crate) pid: u32,
    _input: Option<ChildStdin>,
    _child: Killed,
}

/// A child that ends with its owner.
pub(crate) struct Killed(pub(crate) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.0.kill().ok();
            self.0.wait().ok();
        }
    }
}

/// What `orlop bench -o json` says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Report {
    pub(crate) ios: f64,
    pub(crate) iops: f64,
    pub(crate) megabytes_per_second: f64,
    pub(crate) mean_us: f64,
}

impl Report {
    fn read(text: &str) -> Result<Self> {
        let report: Value = serde_json::from_str(text).context("the report of orlop bench is not JSON")?;
        let number = |value: &Value, name: &str| {
            value.as_f64().with_context(|| format!("the report of orlop bench has no {name}"))
        };
        Ok(Self {
            ios: number(&report["ios"], "ios")?,
            iops: number(&report["iops"], "iops")?,
            megabytes_per_second: number(&report["megabytesPerSecond"], "megabytesPerSecond")?,
            mean_us: number(&report["latencyMicroseconds"]["mean"], "mean latency")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_and_half_of_one_is_not() {
        let text =
            r#"{"ios": 10, "iops": 5.5, "megabytesPerSecond": 1.5, "latencyMicroseconds": {"mean": 2.5}}"#;
        let expected = Report { ios: 10.0, iops: 5.5, megabytes_per_second: 1.5, mean_us: 2.5 };
        assert_eq!(Report::read(text).unwrap(), expected);
        assert!(Report::read(r#"{"ios": 10}"#).unwrap_err().to_string().contains("no iops"));
    }
}

//! What a run leaves on the machine, removed on any exit, also Ctrl-C and `kill -9` of the harness.
//!
//! 1. The guard is a process of its own, in a process group of its own, that holds one end of a pipe: it acts when the
//!    harness ends, however that is.
//! 2. It touches only what carries the name of the run's folder, which is never used twice: processes by their command
//!    line, mounts by their place, loop devices by their file.

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How the guard's process is called: `xtask bench-guard FOLDER`.
pub(crate) const COMMAND: &str = "bench-guard";
/// What the folders of runs are called.
const PREFIX: &str = "orlop-bench-";
/// `orlop dev` takes its devices down when it is asked to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// The guard, seen from the harness.
#[derive(Debug)]
pub(crate) struct Guard {
    child: Child,
}

impl Guard {
    /// Makes a new folder in `parent` and starts its guard.
    pub(crate) fn start(parent: &Path) -> Result<(Self, PathBuf)> {
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        let folder = parent.join(format!("{PREFIX}{}", uuid.get(..8).context("the kernel's uuid is short")?));
        fs::create_dir(&folder).with_context(|| format!("create {}", folder.display()))?;
        let folder = folder.canonicalize()?;
        let child = Command::new(std::env::current_exe()?)
            .arg(COMMAND)
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .context("start the guard")?;
        Ok((Self { child }, folder))
    }

    /// Lets it act now.
    ///
    /// # Errors
    /// When there was something to remove but the folder: a case did not clean up after itself.
    pub(crate) fn finish(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let status = self.child.wait()?;
        ensure!(status.success(), "something stayed until the guard removed it");
        Ok(())
    }
}

/// The body of the guard's process.
pub(crate) fn guard(folder: &Path) -> Result<()> {
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    ensure!(name.starts_with(PREFIX), "{} is not the folder of a run", folder.display());
    // The harness never writes: this returns when its end of the pipe is closed.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    let was_clean = remove(name);
    fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    ensure!(was_clean, "bench: removed what a run had left behind ({name})");
    Ok(())
}

/// Ends and removes what carries `name`; whether there was nothing.
fn remove(name: &str) -> bool {
    let mut was_clean = true;
    for signal in [Signal::TERM, Signal::KILL] {
        was_clean &= processes(name).is_empty();
        signal_all(name, signal);
        let begun = Instant::now();
        while !processes(name).is_empty() && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    for device in loops(name) {
        was_clean = false;
        Command::new("losetup").arg("--detach").arg(device).status().ok();
    }
    for point in mounts(name) {
        was_clean = false;
        rustix::mount::unmount(&point, rustix::mount::UnmountFlags::DETACH).ok();
    }
    was_clean
}

fn signal_all(name: &str, signal: Signal) {
    for pid in processes(name) {
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        // The handle keeps to one process; that it is one of the run is asked again after it was taken.
        if carries(pid, name) {
            pidfd_send_signal(&handle, signal).ok();
        }
    }
}

/// The living processes whose command line has the name; neither this one nor the harness's children of other runs.
fn processes(name: &str) -> Vec<Pid> {
    let own = rustix::process::getpid();
    let pids = entries("/proc").into_iter().filter_map(|entry| entry.parse().ok().and_then(Pid::from_raw));
    pids.filter(|pid| *pid != own && carries(*pid, name)).collect()
}

/// A zombie has no command line and is none.
fn carries(pid: Pid, name: &str) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).contains(name)
}

fn loops(name: &str) -> Vec<PathBuf> {
    let file = |device: &str| fs::read_to_string(format!("/sys/block/{device}/loop/backing_file"));
    let devices = entries("/sys/block").into_iter().filter(|device| device.starts_with("loop"));
    devices
        .filter(|device| file(device).is_ok_and(|file| file.contains(name)))
        .map(|device| Path::new("/dev").join(device))
        .collect()
}

/// Mount points, the last first.
fn mounts(name: &str) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).filter(|point| point.contains(name));
    let mut points: Vec<PathBuf> = points.map(PathBuf::from).collect();
    points.reverse();
    points
}

fn entries(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_carries_the_name_ends_and_nothing_else() {
        let start = |name: &str| Command::new("sleep").arg0(name).arg("600").spawn().unwrap();
        let (mut ours, mut other) = (start("orlop-bench-test-1a"), start("orlop-bench-test-2b"));
        // Until the program has begun the kernel shows no command line.
        let begun = |child: &Child| {
            fs::read(format!("/proc/{}/cmdline", child.id())).is_ok_and(|line| !line.is_empty())
        };
        while !(begun(&ours) && begun(&other)) {
            std::thread::yield_now();
        }
        assert!(!remove("orlop-bench-test-1a"), "there was something to remove");
        assert!(!ours.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none(), "another run's process lives");
        signal_all("orlop-bench-test-2b", Signal::KILL);
        other.wait().unwrap();
    }

    #[test]
    fn only_folders_of_runs_are_removed() {
        assert!(guard(Path::new("/etc")).unwrap_err().to_string().contains("not the folder of a run"));
    }
}

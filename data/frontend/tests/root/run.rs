//! What a test needs: a run id, a folder, a server process, commands, and a guard that removes everything.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use uuid::Uuid;

/// Nanoseconds since the machine was started.
pub(crate) fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let (seconds, nanos) = (time.tv_sec.cast_unsigned(), time.tv_nsec.cast_unsigned());
    seconds * 1_000_000_000 + nanos
}

#[expect(clippy::disallowed_methods, reason = "a test of real processes waits in real time")]
pub(crate) fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

/// Waits until `condition` holds; panics with `what` after `limit`.
pub(crate) fn wait_for(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let start = now();
    while !condition() {
        let waited = Duration::from_nanos(now() - start);
        assert!(waited < limit, "{what} did not happen within {limit:?}");
        pause(Duration::from_millis(10));
    }
    Duration::from_nanos(now() - start)
}

/// Says what these tests miss on this machine.
pub(crate) fn preflight() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("not root".into());
    }
    for path in ["/dev/fuse", "/dev/loop-control"] {
        std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|error| format!("{path} is not usable: {error}"))?;
    }
    for program in ["mkfs.ext4", "e2fsck", "resize2fs", "fio", "blkdiscard", "losetup"] {
        let found =
            std::env::split_paths("/usr/sbin:/usr/bin:/sbin:/bin").any(|dir| dir.join(program).exists());
        if !found {
            return Err(format!("{program} is not installed: apt-get install -y e2fsprogs fio util-linux"));
        }
    }
    Ok(())
}

/// Runs a command and returns what it printed; panics if it fails.
pub(crate) fn sh(program: &str, arguments: &[&str]) -> String {
    let (code, text) = try_sh(program, arguments);
    assert_eq!(code, Some(0), "{program} {arguments:?}: {text}");
    text
}

pub(crate) fn try_sh(program: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// One test's run: whatever it made is gone when this is.
pub(crate) struct Run {
    pub(crate) id: String,
    pub(crate) dir: TempDir,
    pub(crate) volume: Uuid,
    mounts: Vec<PathBuf>,
}

impl Run {
    pub(crate) fn new(name: &str) -> Self {
        let id = format!("t{}.{name}", std::process::id());
        let dir = TempDir::with_prefix("orlop-root-").expect("a temporary folder");
        Self { id, dir, volume: Uuid::from_u128(u128::from(now())), mounts: Vec::new() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A device URI for a file of this run.
    pub(crate) fn disk(&self, size: &str) -> String {
        format!("file://{}?size={size}", self.path("disk").display())
    }

    /// The same, where every write takes a while before it is executed: at any moment some are under way.
    pub(crate) fn slow_disk(&self, size: &str) -> String {
        let disk = self.disk(size).replace('?', "%3F");
        format!("fault://?of={disk}&rule=delay:20,on:write")
    }

    /// Starts a server process; `more` are further `key=value` arguments.
    pub(crate) fn serve(&self, device: &str, more: &[&str]) -> Server {
        let mut server = self.start(device, more);
        let ready = server.line();
        server.device = ready.strip_prefix("ready ").unwrap_or_else(|| panic!("{ready}")).to_string();
        server
    }

    /// Starts a server process that is expected to refuse; returns what it says.
    pub(crate) fn refused(&self, device: &str, more: &[&str]) -> String {
        self.start(device, more).line()
    }

    /// Starts a server process whose answer is not waited for.
    pub(crate) fn start(&self, device: &str, more: &[&str]) -> Server {
        let mut child = Command::new(std::env::current_exe().expect("this program has a path"))
            .arg("serve")
            .args([
                format!("device={device}"),
                format!("state={}", self.dir.path().display()),
                format!("run={}", self.id),
                format!("uuid={}", self.volume),
            ])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Server { child, output, device: String::new() }
    }

    /// Mounts `device` at a folder of this run.
    pub(crate) fn mount(&mut self, device: &str) -> PathBuf {
        let point = self.path(&format!("mnt{}", self.mounts.len()));
        std::fs::create_dir(&point).expect("a folder");
        sh("mount", &[device, path(&point)]);
        self.mounts.push(point.clone());
        point
    }

    /// Asserts that nothing of this run is left on the machine.
    pub(crate) fn assert_nothing_left(&self) {
        self.assert_servers_only();
        assert_eq!(processes_of(&self.id), Vec::<u32>::new());
    }

    /// Asserts that nothing of this run is left but server processes.
    pub(crate) fn assert_servers_only(&self) {
        assert_eq!(frontend::fuse::attached_loops(&self.id), []);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("readable");
        let left: Vec<_> = mounts
            .lines()
            .filter(|line| line.contains(&self.id) || line.contains(path(self.dir.path())))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

pub(crate) fn path(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// Processes other than this one that carry the run id in their command line.
pub(crate) fn processes_of(run_id: &str) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").expect("readable");
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != std::process::id())
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(run_id)
        })
        .collect()
}

pub(crate) fn kill(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    // It may have ended by itself.
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap_or_default();
}

impl Drop for Run {
    fn drop(&mut self) {
        for pid in processes_of(&self.id) {
            kill(pid);
        }
        for point in &self.mounts {
            rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH).unwrap_or_default();
        }
        let problem = match frontend::fuse::cleanup(&self.id) {
            Ok(removed) if removed.is_empty() => return,
            Ok(removed) => format!("guard of {} removed {removed:?}", self.id),
            Err(error) => format!("guard of {}: {error}", self.id),
        };
        // A test that failed may leave things behind, one that went well may not.
        assert!(std::thread::panicking(), "{problem}");
        eprintln!("{problem}");
    }
}

/// A server process; killed when it goes.
pub(crate) struct Server {
    child: Child,
    output: BufReader<ChildStdout>,
    pub(crate) device: String,
}

impl Server {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the server speaks UTF-8");
        line.trim_end().to_string()
    }

    /// Sends a command and returns the answer.
    pub(crate) fn ask(&mut self, command: &str) -> String {
        let input = self.child.stdin.as_mut().expect("piped");
        writeln!(input, "{command}").expect("the server listens");
        self.line()
    }

    /// Sends a command that must succeed.
    pub(crate) fn tell(&mut self, command: &str) -> String {
        let answer = self.ask(command);
        answer.strip_prefix("ok ").unwrap_or_else(|| panic!("{command}: {answer}")).to_string()
    }

    /// One of its counters.
    pub(crate) fn counter(&mut self, name: &str) -> u64 {
        let counters = self.ask("counters");
        let value = counters.split(' ').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name} in {counters:?}"))
    }

    /// `kill -9`; panics if the process is not gone after `limit`.
    pub(crate) fn kill_within(mut self, limit: Duration) {
        self.child.kill().expect("it runs");
        wait_for("the end of the server", limit, || self.child.try_wait().expect("our child").is_some());
    }

    /// `kill -9`, and waits until the process is gone.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it was our child");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

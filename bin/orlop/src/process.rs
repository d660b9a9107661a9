//! Processes by identity: a pid alone may be somebody else's tomorrow, a pid with its start time is not.

use crate::failure::{Failure, OrFail, Outcome};
use rustix::process::{
    Pid, PidfdFlags, Resource, Signal, getrlimit, pidfd_open, pidfd_send_signal, setrlimit,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// One process of this machine, of this boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Its pid.
    pub(crate) pid: u32,
    /// When it started, in clock ticks since boot.
    pub(crate) start_ticks: u64,
}

impl Identity {
    /// The identity of the process that has this pid now; none if there is none, or only its zombie.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        start_ticks(&stat).map(|start_ticks| Self { pid, start_ticks })
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends `signal` to this process and to no other; false if it is gone.
    pub(crate) fn signal(self, signal: Signal) -> bool {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return false };
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
        // The handle keeps to one process; that it is the right one is asked after it was taken.
        self.is_alive() && pidfd_send_signal(handle, signal).is_ok()
    }
}

/// Field 22 of `/proc/PID/stat`, unless the process is a zombie. The second field is a name that may contain anything,
/// also spaces and parentheses; it ends at the last parenthesis.
fn start_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// A random UUID, from the kernel.
pub(crate) fn random_uuid() -> Outcome<Uuid> {
    kernel_uuid("uuid")
}

/// The machine's boot.
pub(crate) fn boot_id() -> Outcome<Uuid> {
    kernel_uuid("boot_id")
}

fn kernel_uuid(name: &str) -> Outcome<Uuid> {
    let source = format!("/proc/sys/kernel/random/{name}");
    let text = std::fs::read_to_string(&source).or_fail(|| format!("cannot read {source}"))?;
    text.trim().parse().or_fail(|| format!("cannot understand {source}"))
}

/// Logs of this process go to standard error, which the supervisor keeps in a file; `ORLOP_LOG` says how much.
pub(crate) fn log_to_stderr() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("ORLOP_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
}

/// Raises the limit on open files as far as it may be: a node with many volumes and connections needs them.
pub(crate) fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // With fewer everything works until they are used up; `orlop preflight` says so.
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit on open files stays");
    }
}

/// Makes the kernel kill this process when its parent, which must be `parent`, dies.
pub(crate) fn die_with(parent: u32) -> Outcome {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .or_fail(|| "cannot ask for the parent's death signal".into())?;
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
    if now == Some(parent) {
        Ok(())
    } else {
        Err(Failure::new(format!("the parent process {parent} is gone")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_stat_may_contain_anything() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(start_ticks(&format!("12 (a) R (b c) {tail}")), Some(4711));
        assert_eq!(start_ticks(&format!("12 (a) {}", tail.replacen('S', "Z", 1))), None);
        assert_eq!(start_ticks("nonsense"), None);
    }

    #[test]
    fn a_child_is_alive_until_it_is_killed_and_another_start_time_is_never_hit() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let identity = Identity::of(child.id()).unwrap();
        let stranger = Identity { start_ticks: identity.start_ticks + 1, ..identity };
        assert!(!stranger.is_alive() && !stranger.signal(Signal::KILL));
        assert!(identity.is_alive() && identity.signal(Signal::KILL));
        child.wait().unwrap();
        assert!(!identity.is_alive() && !identity.signal(Signal::KILL));
    }
}

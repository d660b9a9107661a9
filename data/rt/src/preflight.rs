//! What this kernel or container forbids, found out before anything depends on it.
//!
//! Nothing here changes the system. Each [`Finding`] names one feature, what was found, and what to do.

use crate::{Errno, os};
use rustix::fs::{Mode, OFlags};
use rustix::process::Resource;
use std::fs;
use std::io;
use std::path::Path;

/// What depends on a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Without it nothing works.
    Required,
    /// Without it everything works, slower or with less.
    Helpful,
    /// Without it volumes cannot be attached to this machine as devices over FUSE; the rest works.
    Attach,
}

/// One feature of this machine and whether it can be used here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// A short name, the same on every machine.
    pub feature: &'static str,
    /// Whether it can be used.
    pub ok: bool,
    /// What depends on it.
    pub need: Need,
    /// What was found.
    pub detail: String,
    /// What to do where it cannot be used; empty where it can.
    pub remedy: String,
}

impl Finding {
    fn new(feature: &'static str, need: Need, outcome: Result<String, (String, String)>) -> Self {
        let ok = outcome.is_ok();
        let (detail, remedy) = outcome.map_or_else(|problem| problem, |detail| (detail, String::new()));
        Self { feature, ok, need, detail, remedy }
    }
}

/// A problem and its remedy.
fn problem<T>(detail: impl Into<String>, remedy: impl Into<String>) -> Result<T, (String, String)> {
    Err((detail.into(), remedy.into()))
}

/// Memory that a reactor likes to register.
const REGISTERED_BYTES: usize = 16 << 20;
/// Open files that a node with many volumes and connections needs.
const OPEN_FILES: u64 = 4096;
/// Open files without which not even a small node starts.
const OPEN_FILES_MIN: u64 = 256;

/// Checks this machine; takes a few milliseconds and may touch devices, so not on a reactor.
pub fn check() -> Vec<Finding> {
    let mut findings = vec![
        Finding::new(
            "kernel for io_uring",
            Need::Helpful,
            kernel_at_least((6, 1), "single-issuer io_uring rings"),
        ),
        Finding::new(
            "kernel for FUSE restarts",
            Need::Helpful,
            kernel_at_least((6, 9), "an engine that restarts under a mounted volume"),
        ),
    ];
    let ring = os::probe(os::Config::default().entries, REGISTERED_BYTES);
    // Where it is forbidden there is a slower way; any other error ends the program.
    let has_other_way = ring.as_ref().err().is_none_or(os::is_forbidden);
    findings.push(Finding::new(
        "io_uring",
        if has_other_way { Need::Helpful } else { Need::Required },
        ring.as_ref().map(|_| "works".into()).map_err(why_no_ring),
    ));
    if let Ok(probe) = &ring {
        findings.push(Finding::new("io_uring operations", Need::Helpful, operations(&probe.missing)));
        findings.push(Finding::new("registered memory", Need::Helpful, registered(probe.registered_bytes)));
        findings.push(Finding::new("multishot receive", Need::Helpful, multishot(&probe.multishot)));
    }
    let open_files = rustix::process::getrlimit(Resource::Nofile).maximum;
    let few = open_files.is_some_and(|limit| limit < OPEN_FILES_MIN);
    let need = if few { Need::Required } else { Need::Helpful };
    findings.push(Finding::new("open files", need, enough_files(open_files)));
    findings.push(Finding::new(
        "FUSE",
        Need::Attach,
        device("/dev/fuse", "load the fuse module, and give the container /dev/fuse"),
    ));
    findings.push(Finding::new(
        "loop devices",
        Need::Attach,
        device(
            "/dev/loop-control",
            "load the loop module, and give the container /dev/loop-control and /dev/loop*",
        ),
    ));
    findings.push(Finding::new("root", Need::Attach, may_mount()));
    findings
}

/// Whether `folder` can hold disks as files: direct I/O is possible there.
pub fn check_folder(folder: &Path) -> Finding {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::DIRECT | OFlags::CLOEXEC;
    let outcome = match rustix::fs::open(folder, flags, Mode::from_raw_mode(0o600)) {
        Ok(_) => Ok(format!("files in {} can be opened past the page cache", folder.display())),
        Err(error) => problem(
            format!("a file in {} cannot be opened with O_DIRECT: {error}", folder.display()),
            "use a folder on ext4, xfs or another file system with direct I/O, and check its permissions",
        ),
    };
    Finding::new("direct I/O", Need::Helpful, outcome)
}

fn kernel_at_least(wanted: (u32, u32), what: &str) -> Result<String, (String, String)> {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    match parse_release(&release) {
        Some(found) if found < wanted => problem(
            format!("this is Linux {release}; {what} needs {}.{}", wanted.0, wanted.1),
            format!("use a kernel from {}.{} on", wanted.0, wanted.1),
        ),
        _ => Ok(format!("Linux {release}")),
    }
}

/// Major and minor version of `6.12.3-amd64`.
fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn why_no_ring(error: &io::Error) -> (String, String) {
    let sysctl = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let filtered = status_field("Seccomp:").is_some_and(|mode| mode != "0");
    explain_no_ring(error, sysctl.trim(), filtered)
}

fn explain_no_ring(error: &io::Error, sysctl: &str, filtered: bool) -> (String, String) {
    let slow = "disks and sockets go through slow threads";
    match (error.raw_os_error(), sysctl) {
        (Some(libc::EPERM), "2") => (
            format!("forbidden for everybody by the sysctl kernel.io_uring_disabled=2; {slow}"),
            "sysctl -w kernel.io_uring_disabled=0, and the same in /etc/sysctl.d".into(),
        ),
        (Some(libc::EPERM), "1") => (
            format!("forbidden for this user by the sysctl kernel.io_uring_disabled=1; {slow}"),
            "run with CAP_SYS_ADMIN or in the group named by kernel.io_uring_group, or set the sysctl to 0"
                .into(),
        ),
        (Some(libc::EPERM | libc::ENOSYS | libc::EACCES), _) if filtered => (
            format!("forbidden by this container's seccomp filter; {slow}"),
            "allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile, or run with \
             seccompProfile: Unconfined"
                .into(),
        ),
        (Some(libc::ENOSYS), _) => {
            (format!("this kernel was built without it; {slow}"), "use a kernel with CONFIG_IO_URING".into())
        }
        (Some(libc::EINVAL), _) => {
            (format!("this kernel's is too old; {slow}"), "use a kernel from 6.1 on".into())
        }
        (Some(libc::ENOMEM), _) => (
            format!("too little memory may be locked; {slow}"),
            "raise the hard limit on locked memory (LimitMEMLOCK=, ulimit -Hl) or give CAP_IPC_LOCK".into(),
        ),
        _ if !os::is_forbidden(error) => {
            (format!("does not work: {error}; no engine starts"), "look into the kernel's log".into())
        }
        _ => (format!("does not work: {error}; {slow}"), "look for a security module that denies it".into()),
    }
}

fn operations(missing: &[&str]) -> Result<String, (String, String)> {
    if missing.is_empty() {
        return Ok("all that are used are there".into());
    }
    problem(format!("missing: {}", missing.join(", ")), "use a kernel from 6.1 on")
}

fn registered(bytes: usize) -> Result<String, (String, String)> {
    let limit = rustix::process::getrlimit(Resource::Memlock).maximum;
    let limit = limit.map_or("unlimited".into(), |limit| format!("{} KiB", limit >> 10));
    let detail = format!(
        "{} of {} MiB can be registered now; hard limit on locked memory: {limit}",
        bytes >> 20,
        REGISTERED_BYTES >> 20
    );
    if bytes >= REGISTERED_BYTES {
        return Ok(detail);
    }
    problem(
        format!("{detail}; the rest is used unregistered, a little slower"),
        "raise the hard limit on locked memory (LimitMEMLOCK=, ulimit -Hl) or give CAP_IPC_LOCK",
    )
}

fn multishot(tried: &io::Result<()>) -> Result<String, (String, String)> {
    match tried {
        Ok(()) => Ok("works".into()),
        Err(error) => problem(
            format!("does not work: {error}; connections receive one by one, a little slower"),
            "use a kernel from 6.1 on, and let it lock a MiB of memory (ulimit -l)",
        ),
    }
}

/// Judges the hard limit: a node raises its own to it.
fn enough_files(limit: Option<u64>) -> Result<String, (String, String)> {
    match limit {
        Some(limit) if limit < OPEN_FILES => problem(
            format!("at most {limit} files can be open"),
            format!("raise the hard limit on open files to {OPEN_FILES} (LimitNOFILE=, ulimit -Hn)"),
        ),
        Some(limit) => Ok(format!("up to {limit}")),
        None => Ok("unlimited".into()),
    }
}

fn device(path: &str, remedy: &str) -> Result<String, (String, String)> {
    match rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(_) => Ok(format!("{path} opens")),
        Err(error @ (Errno::ACCESS | Errno::PERM)) => problem(
            format!("{path} may not be opened: {error}"),
            "run as root, or give this user (or container) the device",
        ),
        Err(error) => problem(format!("{path} cannot be opened: {error}"), remedy),
    }
}

/// Bit of the capability to mount.
const CAP_SYS_ADMIN: u32 = 21;

/// An engine makes block devices only as root.
fn may_mount() -> Result<String, (String, String)> {
    if !rustix::process::geteuid().is_root() {
        return problem("this process does not run as root", "run as root, or reach volumes over NVMe/TCP");
    }
    let effective = status_field("CapEff:").and_then(|hex| u64::from_str_radix(&hex, 16).ok()).unwrap_or(0);
    if effective >> CAP_SYS_ADMIN & 1 == 1 {
        return Ok("this process runs as root and may mount".into());
    }
    problem(
        "this process runs as root without CAP_SYS_ADMIN",
        "give the container CAP_SYS_ADMIN (privileged)",
    )
}

fn status_field(name: &str) -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_understood() {
        assert_eq!(parse_release("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(parse_release("5.15.0-1-amd64"), Some((5, 15)));
        assert_eq!(parse_release("7.0"), Some((7, 0)));
        assert_eq!(parse_release("odd"), None);
    }

    #[test]
    fn what_forbids_io_uring_is_named() {
        let explain = |errno, sysctl, filtered| {
            explain_no_ring(&io::Error::from_raw_os_error(errno), sysctl, filtered).0
        };
        assert!(explain(libc::EPERM, "2", true).contains("io_uring_disabled=2"));
        assert!(explain(libc::EPERM, "1", false).contains("for this user"));
        assert!(explain(libc::EPERM, "0", true).contains("seccomp"));
        assert!(explain(libc::ENOSYS, "", true).contains("seccomp"));
        assert!(explain(libc::ENOSYS, "", false).contains("without it"));
        assert!(explain(libc::EINVAL, "0", false).contains("too old"));
        assert!(explain(libc::ENOMEM, "0", false).contains("locked; disks and sockets"));
        assert!(explain(libc::EMFILE, "0", false).contains("no engine starts"));
    }

    #[test]
    fn a_kernel_without_multishot_receive_is_helped_not_refused() {
        let missing = Err(io::Error::from_raw_os_error(libc::EINVAL));
        let finding = Finding::new("multishot receive", Need::Helpful, multishot(&missing));
        assert!(!finding.ok && finding.detail.contains("one by one"), "{finding:?}");
    }

    #[test]
    fn every_feature_is_judged_once_and_problems_have_remedies() {
        let findings = check();
        let mut names: Vec<_> = findings.iter().map(|finding| finding.feature).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), findings.len());
        assert!(findings.iter().all(|finding| finding.ok == finding.remedy.is_empty()), "{findings:#?}");
    }

    #[test]
    fn few_open_files_are_a_problem() {
        assert!(enough_files(None).is_ok() && enough_files(Some(OPEN_FILES)).is_ok());
        let (detail, remedy) = enough_files(Some(64)).unwrap_err();
        assert!(detail.contains("64") && remedy.contains("ulimit"), "{detail}; {remedy}");
    }

    #[test]
    fn a_folder_that_is_none_has_no_direct_io() {
        let finding = check_folder(Path::new("/nowhere"));
        assert!(!finding.ok && finding.detail.contains("/nowhere"), "{finding:?}");
    }
}

//! The machine that the figures belong to.

use anyhow::{Result, bail};
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

/// What a reader must know to judge a figure.
#[derive(Debug)]
pub(crate) struct Machine {
    date: String,
    cpu: String,
    cores: usize,
    memory_gib: u64,
    kernel: String,
    disk: String,
    file_system: String,
    fio: String,
}

impl Machine {
    /// This machine, with the file system of `folder`.
    pub(crate) fn of(folder: &Path) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let file_system = file_system_of(&mounts, &folder.canonicalize()?).unwrap_or_default();
        if matches!(file_system.as_str(), "tmpfs" | "ramfs" | "overlay") {
            bail!(
                "{} is on {file_system}, which is no disk: give a folder of a real file system with --data",
                folder.display()
            );
        }
        let field = |path: &str, name: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(name)).map(str::to_owned);
            line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned())).unwrap_or_default()
        };
        let memory = field("/proc/meminfo", "MemTotal");
        let memory_kib: u64 = memory.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(Self {
            date: output("date", &["-u", "+%F"]),
            cpu: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: memory_kib >> 20,
            kernel: output("uname", &["-sr"]),
            disk: disk_of(folder)?,
            file_system,
            fio: output("fio", &["--version"]),
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { date, cpu, cores, memory_gib, kernel, disk, file_system, fio } = self;
        write!(f, "{date}: {cpu}, {cores} cores, {memory_gib} GiB, {kernel}; {file_system} on {disk}; {fio}")
    }
}

/// The type of the file system that `path` is on: that of the longest mount point above it, the last one mounted there.
fn file_system_of(mounts: &str, path: &Path) -> Option<String> {
    let mut best: Option<(usize, &str)> = None;
    for line in mounts.lines() {
        // ID PARENT MAJOR:MINOR ROOT POINT OPTIONS ... - TYPE SOURCE OPTIONS
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (Some(point), Some(kind)) = (left.split(' ').nth(4), right.split(' ').next()) else { continue };
        if path.starts_with(point) && best.is_none_or(|(len, _)| point.len() >= len) {
            best = Some((point.len(), kind));
        }
    }
    best.map(|(_, kind)| kind.to_owned())
}

/// The disk under a folder, with what sysfs says of it.
fn disk_of(folder: &Path) -> Result<String> {
    let number = fs::metadata(folder)?.dev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let Ok(link) = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")) else {
        return Ok(format!("device {major}:{minor}"));
    };
    // A partition has no queue; the disk that it is part of has.
    let disk = if link.join("queue").exists() { link.as_path() } else { link.parent().unwrap_or(&link) };
    let read = |name: &str| fs::read_to_string(disk.join(name)).unwrap_or_default().trim().to_owned();
    let name = disk.file_name().unwrap_or_default().display().to_string();
    let model = read("device/model");
    let kind = if read("queue/rotational") == "1" { "rotational" } else { "not rotational" };
    let cache = read("queue/write_cache");
    Ok(format!(
        "{name} ({}{kind}, {cache})",
        if model.is_empty() { String::new() } else { format!("{model}, ") }
    ))
}

/// The first line that a command prints; empty when there is none.
fn output(program: &str, arguments: &[&str]) -> String {
    let output =
        Command::new(program).args(arguments).output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_counts() {
        let mounts = "21 1 254:0 / / rw - ext4 /dev/vda rw\n\
                      30 21 0:30 / /tmp rw shared:1 - tmpfs tmpfs rw\n\
                      31 30 8:1 / /tmp/disk rw - xfs /dev/sda1 rw";
        let of = |path: &str| file_system_of(mounts, Path::new(path));
        assert_eq!(of("/tmp/disk/x").as_deref(), Some("xfs"));
        assert_eq!(of("/tmp/diskless").as_deref(), Some("tmpfs"));
        assert_eq!(of("/var/tmp").as_deref(), Some("ext4"));
        assert_eq!(file_system_of("", Path::new("/")), None);
    }
}

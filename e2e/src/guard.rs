//! What a run may leave on the machine, found by the run's id, and removed on any exit.
//!
//! 1. Everything that a run makes carries its id: the folder's name, and through it mounts, loops and command lines;
//!    the environment of its processes; the names of namespaces and cgroups, and through them what runs in containers
//!    and the loops over what only containers see. Nothing without the id is touched, but for loops that were made while
//!    the run lasted and whose file's mount is gone: whose they were cannot be seen any more. Of a run and the one beside
//!    it they belong to the first, which ends last.
//! 2. The guard is a process of its own that holds one end of a pipe: it acts when the harness ends, however it ends.
//! 3. Whoever holds something is ended before what it holds: processes, FUSE connections, file systems, loops, FUSE
//!    mounts, namespaces, cgroups, the folder.

use crate::process::{self, Process};
use anyhow::{Context, Result};
use rustix::fs::{major, minor};
use rustix::mount::UnmountFlags;
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The file of the run's folder with the loops that were dead when it began; one that is beside another run has none.
const DEAD_BEFORE: &str = "loops-of-before";
/// What the kernel calls the file below a device of Orlop when its mount is gone.
const DEAD: &str = "/volume";

/// The variable by which the processes of a run are known.
pub(crate) const RUN_VARIABLE: &str = "ORLOP_E2E_RUN";

/// The id of one run, never used twice: `orlop-e2e-` and eight hexadecimal digits.
#[derive(Clone, Debug)]
pub(crate) struct RunId(pub(crate) String);

impl RunId {
    /// A new id, from the kernel's random numbers.
    pub(crate) fn random() -> Result<Self> {
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        Ok(Self(format!("orlop-e2e-{}", uuid.get(..8).context("the kernel's uuid is short")?)))
    }

    /// The folder that holds all files of the run; on a real disk, since tmpfs has no direct I/O everywhere.
    pub(crate) fn folder(&self) -> PathBuf {
        Path::new("/var/tmp").join(&self.0)
    }
}

/// One mount of a run.
#[derive(Debug)]
struct Mount {
    point: PathBuf,
    /// The number of its FUSE connection.
    fuse: Option<String>,
}

/// What carries a run's id right now.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    processes: Vec<(Process, String)>,
    mounts: Vec<Mount>,
    loops: Vec<PathBuf>,
    namespaces: Vec<String>,
    cgroups: Vec<PathBuf>,
}

impl Leftovers {
    /// Finds all that carries `id`, except the processes in `spared` and this one.
    pub(crate) fn find(id: &RunId, spared: &[i32]) -> Self {
        let processes = processes(id, spared);
        Self {
            mounts: mounts(id),
            loops: loops(id, &processes),
            processes,
            namespaces: entries("/run/netns").into_iter().filter(|name| name.contains(&id.0)).collect(),
            cgroups: cgroups(Path::new("/sys/fs/cgroup"), &id.0),
        }
    }

    /// Whether the machine is clean.
    pub(crate) fn is_empty(&self) -> bool {
        self.processes.is_empty()
            && self.mounts.is_empty()
            && self.loops.is_empty()
            && self.namespaces.is_empty()
            && self.cgroups.is_empty()
    }

    /// Removes it all, in the order of invariant 3. What could not be removed is found by looking again.
    pub(crate) fn remove(&self) {
        for (process, _) in &self.processes {
            process.signal(Signal::KILL);
        }
        for mount in &self.mounts {
            if let Some(connection) = &mount.fuse {
                // Gone already when its server was the last holder.
                fs::write(format!("/sys/fs/fuse/connections/{connection}/abort"), "1").ok();
            }
        }
        for (process, _) in &self.processes {
            process.wait_end(Duration::from_secs(5)).ok();
        }
        let unmount = |mount: &Mount| rustix::mount::unmount(&mount.point, UnmountFlags::DETACH).ok();
        for mount in self.mounts.iter().rev().filter(|mount| mount.fuse.is_none()) {
            unmount(mount);
        }
        for device in &self.loops {
            Command::new("losetup").arg("--detach").arg(device).status().ok();
        }
        for mount in self.mounts.iter().rev().filter(|mount| mount.fuse.is_some()) {
            unmount(mount);
        }
        for name in &self.namespaces {
            Command::new("ip").args(["netns", "delete", name]).status().ok();
        }
        for cgroup in &self.cgroups {
            fs::remove_dir(cgroup).ok();
        }
    }
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (process, command) in &self.processes {
            write!(f, "process {} ({command}); ", process.pid)?;
        }
        for mount in &self.mounts {
            write!(f, "mount {}; ", mount.point.display())?;
        }
        for device in &self.loops {
            write!(f, "loop {}; ", device.display())?;
        }
        for name in &self.namespaces {
            write!(f, "namespace {name}; ")?;
        }
        for cgroup in &self.cgroups {
            write!(f, "cgroup {}; ", cgroup.display())?;
        }
        Ok(())
    }
}

/// The guard's process, seen from the harness.
#[derive(Debug)]
pub(crate) struct Guard {
    child: Child,
}

impl Guard {
    /// Makes the run's folder and starts its guard. A run beside another one leaves what has died to that.
    pub(crate) fn start(id: &RunId, is_beside: bool) -> Result<Self> {
        use std::os::unix::process::CommandExt;
        fs::create_dir(id.folder()).with_context(|| format!("create {}", id.folder().display()))?;
        if !is_beside {
            let before: Vec<String> = dead_loops().map(|one| one.device.display().to_string()).collect();
            fs::write(id.folder().join(DEAD_BEFORE), before.join("\n"))
                .context("write down the loops of before")?;
        }
        // A process group of its own: Ctrl-C ends the harness and leaves the guard to do its work.
        let child = Command::new(std::env::current_exe()?)
            .args(["guard", &id.0])
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("start the guard")?;
        Ok(Self { child })
    }

    /// Its process number: the guard is no leftover.
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(0)
    }

    /// Lets it act now; `true` when there was nothing to remove but the folder.
    pub(crate) fn finish(mut self) -> Result<bool> {
        drop(self.child.stdin.take());
        Ok(self.child.wait()?.success())
    }
}

/// The body of the guard's process: waits for the harness to end, then cleans up.
/// Returns whether there was nothing to clean but the folder.
pub(crate) fn guard(id: &RunId) -> Result<bool> {
    // The harness never writes: this returns when its end of the pipe is closed.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    let mut was_clean = true;
    // A killed server frees what it held a moment later, and what was busy goes in the next round.
    for _ in 0..5 {
        let leftovers = Leftovers::find(id, &[]);
        if leftovers.is_empty() {
            break;
        }
        eprintln!("guard of {}: removing {leftovers}", id.0);
        was_clean = false;
        leftovers.remove();
        std::thread::sleep(Duration::from_millis(200));
    }
    let rest = Leftovers::find(id, &[]);
    anyhow::ensure!(rest.is_empty(), "these resist: {rest}");
    fs::remove_dir_all(id.folder()).with_context(|| format!("remove {}", id.folder().display()))?;
    Ok(was_clean)
}

/// Processes whose environment, command line, folder, program or cgroup carries the id.
fn processes(id: &RunId, spared: &[i32]) -> Vec<(Process, String)> {
    let variable = format!("{RUN_VARIABLE}={}", id.0);
    let holds = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    let mut found = Vec::new();
    // Each is taken before the rest is read, so that a number used again in between does not match by accident.
    for process in process::all().filter(|process| !spared.contains(&process.pid)) {
        let pid = process.pid;
        let file = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let command = file("cmdline");
        let carries = holds(&file("environ"), &variable)
            || holds(&command, &id.0)
            || holds(&file("cgroup"), &id.0)
            || ["cwd", "exe"].iter().any(|name| link(name).starts_with(id.folder()));
        if carries {
            let shown: String =
                String::from_utf8_lossy(&command).replace('\0', " ").chars().take(80).collect();
            found.push((process, shown));
        }
    }
    found
}

/// Mounts whose point or source carries the id, in the order in which they were made.
fn mounts(id: &RunId) -> Vec<Mount> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found = Vec::new();
    for line in table.lines().filter(|line| line.contains(&id.0)) {
        // ID PARENT MAJOR:MINOR ROOT POINT OPTIONS ... - TYPE SOURCE OPTIONS
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut fields = left.split(' ').skip(2);
        let (Some(device), Some(point)) = (fields.next(), fields.nth(1)) else { continue };
        let is_fuse = right.starts_with("fuse");
        let fuse = device.split_once(':').filter(|_| is_fuse).map(|(_, minor)| minor.to_owned());
        found.push(Mount { point: PathBuf::from(point.replace("\\040", " ")), fuse });
    }
    found
}

/// One loop device, and what it is over.
struct Loop {
    device: PathBuf,
    /// The file system of its file, as `MAJOR:MINOR`, and the file's number in it.
    place: (String, u64),
    file: String,
}

impl Loop {
    /// Whether its file's mount is gone, and was not yet when there were those of `before`; they are not known to a run
    /// beside another one.
    fn has_died_since(&self, before: Option<&str>) -> bool {
        let was_dead = |before: &str| before.lines().any(|line| Path::new(line) == self.device);
        self.file == DEAD && before.is_some_and(|before| !was_dead(before))
    }
}

/// Loop devices whose file carries the id, or is in a file system that only this run's processes have mounted, or is
/// one of these devices, or has died since the run began; those on top first.
fn loops(id: &RunId, processes: &[(Process, String)]) -> Vec<PathBuf> {
    let ours = file_systems("self");
    let theirs: BTreeSet<String> =
        processes.iter().flat_map(|(process, _)| file_systems(&process.pid.to_string())).collect();
    let before = fs::read_to_string(id.folder().join(DEAD_BEFORE)).ok();
    let is_known = |candidate: &Loop| {
        let file_system = &candidate.place.0;
        candidate.file.contains(&id.0)
            || (theirs.contains(file_system) && !ours.contains(file_system))
            || candidate.has_died_since(before.as_deref())
    };
    let (mut found, mut rest): (Vec<Loop>, Vec<Loop>) = all_loops().into_iter().partition(is_known);
    // The kubelet puts a loop of its own over each device that a pod gets.
    let mut next = 0;
    while next < found.len() {
        let node = fs::metadata(&found[next].device).ok();
        let place = node.map(|node| (format!("{}:{}", major(node.dev()), minor(node.dev())), node.ino()));
        let (above, others): (Vec<Loop>, _) =
            rest.into_iter().partition(|candidate| Some(&candidate.place) == place.as_ref());
        found.extend(above);
        rest = others;
        next += 1;
    }
    found.into_iter().rev().map(|found| found.device).collect()
}

/// The numbers of the file systems that a process has mounted.
fn file_systems(process: &str) -> BTreeSet<String> {
    let table = fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap_or_default();
    table.lines().filter_map(|line| line.split(' ').nth(2)).map(str::to_owned).collect()
}

/// All loop devices that have a file.
fn all_loops() -> Vec<Loop> {
    let columns = "NAME,BACK-MAJ:MIN,BACK-INO,BACK-FILE";
    let list =
        Command::new("losetup").args(["--list", "--noheadings", "--raw", "--output", columns]).output();
    let list = list.map(|list| String::from_utf8_lossy(&list.stdout).into_owned()).unwrap_or_default();
    list.lines().filter_map(parse_loop).collect()
}

/// Those whose file's mount is gone.
fn dead_loops() -> impl Iterator<Item = Loop> {
    all_loops().into_iter().filter(|one| one.file == DEAD)
}

/// A line of `losetup --raw`, which pads numbers with blanks written as `\x20`, and leaves out what it may not ask.
fn parse_loop(line: &str) -> Option<Loop> {
    let mut fields = line.splitn(4, ' ');
    let device = fields.next()?.into();
    let file_system = fields.next()?.replace("\\x20", "");
    let inode = fields.next()?.parse().unwrap_or(0);
    Some(Loop { device, place: (file_system, inode), file: fields.next()?.to_owned() })
}

/// Where this machine has its cgroups of version 2, alone or beside the older ones.
pub(crate) fn cgroup_root() -> Option<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = table.lines().find(|line| line.contains(" - cgroup2 "))?;
    Some(PathBuf::from(line.split(' ').nth(4)?))
}

/// Cgroups whose path contains `id`, the innermost first.
pub(crate) fn cgroups(folder: &Path, id: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(cgroups(&entry.path(), id));
            if entry.path().to_string_lossy().contains(id) {
                found.push(entry.path());
            }
        }
    }
    found
}

/// The names in a folder; none if it is not there.
fn entries(folder: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use super::parse_loop;

    #[test]
    fn loops_are_read_with_their_places() {
        let found = parse_loop(r"/dev/loop3 \x20\x20\x200:42\x20 2 /a file").unwrap();
        assert_eq!((found.place, found.file.as_str()), (("0:42".to_owned(), 2), "/a file"));
        // One whose file is of a namespace that is gone.
        assert_eq!(parse_loop("/dev/loop0   /volume").unwrap().file, "/volume");
    }

    /// A node of the run beside had lost power, and its loop was taken for a leftover.
    #[test]
    fn what_has_died_belongs_to_the_first_of_two_runs() {
        let of = |line: &str| parse_loop(line).unwrap();
        let dead = of("/dev/loop2 0:57 2 /volume");
        assert!(dead.has_died_since(Some("")));
        assert!(dead.has_died_since(Some("/dev/loop20\n/dev/loop1")));
        assert!(!dead.has_died_since(Some("/dev/loop1\n/dev/loop2")), "it was dead before");
        assert!(!dead.has_died_since(None), "a run beside another one");
        assert!(!of("/dev/loop2 0:57 2 /var/lib/volume").has_died_since(Some("")), "it is alive");
    }
}

//! As root: the volume as an ext4 file system, and programs that write files to it.
//!
//! Invariants:
//! 1. Nothing is written below a mount point when the file system is not there: what is written lies in a folder that was
//!    made right after mounting, and that nobody makes again.

use super::ledger::{Ledger, sum};
use super::load::{Load, Shared, WRITERS, contents};
use super::thread::Stop;
use super::tree::{self, Copied};
use crate::failure::{Failure, OrFail, Outcome};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// How many files become durable together while a tree is copied.
const BATCH: usize = 256;

/// A file system, mounted until dropped.
#[derive(Debug)]
pub(super) struct Mounted {
    path: PathBuf,
}

impl Mounted {
    /// Mounts the ext4 file system of `device` on `path`.
    pub(super) fn new(device: &str, path: &Path) -> Outcome<Self> {
        fs::create_dir_all(path).or_fail(|| format!("cannot make {}", path.display()))?;
        mount(device, path, "ext4", MountFlags::NOATIME, None)
            .or_fail(|| format!("cannot mount {device} on {}", path.display()))?;
        Ok(Self { path: path.to_owned() })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts it in order.
    pub(super) fn unmount(self) -> Outcome {
        let path = &self.path;
        unmount(path, UnmountFlags::empty()).or_fail(|| format!("cannot unmount {}", path.display()))?;
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // After an orderly unmount there is nothing here, and that is fine.
        let _gone = unmount(&self.path, UnmountFlags::DETACH);
        let _gone = fs::remove_dir(&self.path);
    }
}

/// Makes an empty ext4 file system.
pub(super) fn make_file_system(device: &str) -> Outcome {
    tool("mkfs.ext4", &["-q", "-F", device], &[0]).map(|_| ())
}

/// Repairs what a journal replay repairs, then checks that nothing else is wrong.
pub(super) fn check_file_system(device: &str) -> Outcome {
    tool("e2fsck", &["-p", device], &[0, 1])?;
    tool("e2fsck", &["-f", "-n", device], &[0]).map(|_| ())
}

/// Runs a program of e2fsprogs.
fn tool(name: &str, arguments: &[&str], good: &[i32]) -> Outcome<i32> {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(name).args(arguments).env("PATH", format!("{path}:/usr/sbin:/sbin")).output();
    let output = output.map_err(|error| {
        Failure::new(format!("cannot run {name}: {error}"))
            .hint("install e2fsprogs, or run the demo without root")
    })?;
    match output.status.code() {
        Some(code) if good.contains(&code) => Ok(code),
        code => {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            let code = code.map_or("a signal".into(), |code| format!("code {code}"));
            Err(Failure::new(format!("{name} {} ended with {code}: {}", arguments.join(" "), said.trim())))
        }
    }
}

/// Copies a tree to the file system; files count once they are durable.
pub(super) fn copy_tree(
    from: &Path,
    to: &Path,
    want_bytes: u64,
    ledger: &Ledger,
    stop: &Stop,
) -> Outcome<Copied> {
    let tree = to.join("tree");
    fs::create_dir(&tree).or_fail(|| format!("cannot make {}", tree.display()))?;
    let mut batch: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    let copied = tree::copy(from, want_bytes, |name, bytes| {
        stop.check()?;
        write(&tree, name, &bytes)?;
        batch.push((name.to_owned(), bytes));
        if batch.len() >= BATCH { settle(to, &mut batch, ledger) } else { Ok(()) }
    })?;
    settle(to, &mut batch, ledger)?;
    Ok(copied)
}

/// Writes the file `name` below `root`, which has to be there (invariant 1).
fn write(root: &Path, name: &Path, bytes: &[u8]) -> Outcome {
    let path = root.join(name);
    let write = || {
        make_folders(root, path.parent().unwrap_or(root))?;
        File::create(&path)?.write_all(bytes)
    };
    write().or_fail(|| format!("cannot write {}", path.display()))
}

/// Makes `folder` and what is missing above it, but not `root`.
fn make_folders(root: &Path, folder: &Path) -> std::io::Result<()> {
    if folder == root {
        return Ok(());
    }
    match fs::create_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            make_folders(root, folder.parent().unwrap_or(root))?;
            fs::create_dir(folder)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

/// Makes everything on the file system durable, then enters the files into the ledger.
fn settle(mount: &Path, batch: &mut Vec<(PathBuf, Vec<u8>)>, ledger: &Ledger) -> Outcome {
    let sync = || rustix::fs::syncfs(File::open(mount)?).map_err(std::io::Error::from);
    sync().or_fail(|| format!("cannot sync {}", mount.display()))?;
    for (name, bytes) in batch.drain(..) {
        let name = format!("tree/{}", name.to_string_lossy());
        ledger.acknowledge(name, sum(&bytes), bytes.len() as u64);
    }
    Ok(())
}

/// Starts writers of files below `mount`/`prefix`.
pub(super) fn start_load(mount: &Path, prefix: &str, ledger: &Arc<Ledger>) -> Outcome<Load> {
    let shared = Shared::new(prefix, ledger);
    let folder = mount.join(prefix);
    fs::create_dir(&folder).or_fail(|| format!("cannot make {}", folder.display()))?;
    let threads = (0..WRITERS).map(|writer| {
        let (shared, folder) = (Arc::clone(&shared), folder.join(writer.to_string()));
        std::thread::spawn(move || {
            write_files(&shared, &folder, writer).map_err(|error| format!("{}: {error}", folder.display()))
        })
    });
    Ok(Load { threads: threads.collect(), shared })
}

/// One writer: a new file each time, durable with its name before it counts.
fn write_files(shared: &Shared, folder: &Path, writer: usize) -> std::io::Result<()> {
    fs::create_dir(folder)?;
    for number in 0.. {
        if !shared.goes_on() {
            break;
        }
        let bytes = contents(writer, number);
        let began = shared.begin();
        let written = write_durably(folder, &number.to_string(), &bytes);
        shared.end(began);
        written?;
        let name = format!("{}/{writer}/{number}", shared.prefix);
        shared.ledger.acknowledge(name, sum(&bytes), bytes.len() as u64);
        if number == 0 {
            shared.first_acknowledged();
        }
    }
    Ok(())
}

fn write_durably(folder: &Path, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(folder.join(name))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    File::open(folder)?.sync_all()
}

/// Reads every promised file and compares its SHA-256; how many there were.
pub(super) fn verify(mount: &Path, ledger: &Ledger, stop: &Stop) -> Outcome<usize> {
    let promises = ledger.promises();
    for (name, promise) in &promises {
        stop.check()?;
        let path = mount.join(name);
        let bytes = fs::read(&path).map_err(|error| {
            Failure::new(format!("{} was acknowledged and cannot be read: {error}", path.display()))
        })?;
        if bytes.len() as u64 != promise.len || sum(&bytes) != promise.sum {
            return Err(Failure::new(format!("{} was acknowledged and is different now", path.display())));
        }
    }
    Ok(promises.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_go_into_a_folder_that_is_there_and_nowhere_else() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("tree");
        let name = Path::new("deep/below/it");
        // The mount is gone: what is left is the bare folder under it.
        assert!(write(&root, name, b"1").is_err());
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
        fs::create_dir(&root).unwrap();
        write(&root, name, b"2").unwrap();
        write(&root, Path::new("beside"), b"3").unwrap();
        assert_eq!(fs::read(root.join(name)).unwrap(), b"2");
    }

    #[test]
    fn a_copy_that_is_told_to_stop_writes_no_further_file() {
        let temp = tempfile::tempdir().unwrap();
        let (from, to) = (temp.path().join("from"), temp.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("file"), b"1").unwrap();
        let stop = Stop::default();
        stop.set();
        assert!(copy_tree(&from, &to, 1, &Ledger::default(), &stop).is_err());
        assert_eq!(fs::read_dir(to.join("tree")).unwrap().count(), 0);
    }
}

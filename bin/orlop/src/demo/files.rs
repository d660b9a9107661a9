//! As root: the volume as an ext4 file system, and programs that write files to it.

use super::ledger::{Ledger, sum};
use super::load::{Load, Shared, WRITERS, contents};
use super::tree::{self, Copied};
use crate::failure::{Failure, OrFail, Outcome};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::fs::{self, File};
use std::io::Write;
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
pub(super) fn copy_tree(from: &Path, to: &Path, want_bytes: u64, ledger: &Ledger) -> Outcome<Copied> {
    let mut batch: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    let copied = tree::copy(from, want_bytes, |name, bytes| {
        write(&to.join("tree").join(name), &bytes)?;
        batch.push((name.to_owned(), bytes));
        if batch.len() >= BATCH { settle(to, &mut batch, ledger) } else { Ok(()) }
    })?;
    settle(to, &mut batch, ledger)?;
    Ok(copied)
}

fn write(path: &Path, bytes: &[u8]) -> Outcome {
    let write = || {
        fs::create_dir_all(path.parent().unwrap_or(path))?;
        File::create(path)?.write_all(bytes)
    };
    write().or_fail(|| format!("cannot write {}", path.display()))
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
pub(super) fn start_load(mount: &Path, prefix: &str, ledger: &Arc<Ledger>) -> Load {
    let shared = Shared::new(prefix, ledger);
    let folder = mount.join(prefix);
    let threads = (0..WRITERS).map(|writer| {
        let (shared, folder) = (Arc::clone(&shared), folder.join(writer.to_string()));
        std::thread::spawn(move || {
            write_files(&shared, &folder, writer).map_err(|error| format!("{}: {error}", folder.display()))
        })
    });
    Load { threads: threads.collect(), shared }
}

/// One writer: a new file each time, durable with its name before it counts.
fn write_files(shared: &Shared, folder: &Path, writer: usize) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
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
pub(super) fn verify(mount: &Path, ledger: &Ledger) -> Outcome<usize> {
    let promises = ledger.promises();
    for (name, promise) in &promises {
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

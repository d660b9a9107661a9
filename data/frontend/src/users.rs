//! Who uses a block device: asked before it is taken away. Everything here blocks, and opening or closing the device may do
//! I/O on the volume under it.

use crate::fuse::loopdev::over;
use crate::mounts::mounts;
use crate::{Error, ErrorKind};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::fs::Metadata;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A block device of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlockDevice {
    /// Such as `/dev/loop3`.
    pub(crate) path: PathBuf,
    /// Its number in the mount table.
    pub(crate) number: (u32, u32),
}

impl BlockDevice {
    /// Takes the exclusive claim, which a mounted device refuses, in whichever namespace, so that nobody mounts it while
    /// the descriptor is open.
    ///
    /// # Errors
    /// `InUse`, with the mount point where it can be seen.
    pub(crate) fn claim(&self) -> Result<OwnedFd, Error> {
        let open = |mode| rustix::fs::open(&self.path, mode | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty());
        let device = match open(OFlags::RDWR) {
            // A read-only device cannot be opened for writing.
            Err(Errno::ACCESS | Errno::ROFS | Errno::PERM) => open(OFlags::RDONLY),
            result => result,
        };
        match device {
            Ok(device) => Ok(device),
            Err(Errno::BUSY) => Err(Error::new(ErrorKind::InUse, self.say_mounted())),
            Err(error) => Err(Error::os(format_args!("cannot open {}", self.path.display()), error)),
        }
    }

    fn say_mounted(&self) -> String {
        let path = self.path.display();
        let mounted = mounts().unwrap_or_default();
        match mounted.iter().find(|mount| mount.device == self.number) {
            Some(mount) => {
                let point = mount.point.display();
                format!("{path} is mounted at {point}: unmount {point} first")
            }
            None => {
                format!(
                    "{path} is claimed by the system (mounted in a container, swap, RAID, LVM): release it first"
                )
            }
        }
    }

    /// Who has it open, other than this process: `name (pid)`, and loop devices over it.
    pub(crate) fn openers(&self) -> Vec<String> {
        let own = std::process::id().to_string();
        let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
        let programs = processes
            .flatten()
            .filter(|entry| {
                entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok() && name != own)
            })
            .filter(|entry| self.is_open_in(&entry.path()))
            .map(|entry| {
                let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                format!("{} ({})", name.trim(), entry.file_name().display())
            });
        let loops = over(self).into_iter().map(|path| format!("{} (a loop device)", path.display()));
        programs.chain(loops).collect()
    }

    fn is_open_in(&self, process: &Path) -> bool {
        let Ok(descriptors) = std::fs::read_dir(process.join("fd")) else { return false };
        descriptors.flatten().map(|entry| entry.path()).any(|fd| self.is_open_as(&fd))
    }

    /// In a container it may have another name. What is not in a folder of devices is not looked at: that may wait for a
    /// server that is gone.
    fn is_open_as(&self, fd: &Path) -> bool {
        let Ok(target) = std::fs::read_link(fd) else { return false };
        let (major, minor) = self.number;
        let is_it = |found: Metadata| {
            found.file_type().is_block_device() && found.rdev() == rustix::fs::makedev(major, minor)
        };
        target == self.path || (target.starts_with("/dev") && std::fs::metadata(fd).is_ok_and(is_it))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_device_over_it_has_it_open() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        let losetup = |words: &[&str], path: &Path| {
            let output = std::process::Command::new("losetup").args(words).arg(path).output().ok()?;
            output.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
        };
        let make = |path: &Path| losetup(&["--find", "--show"], path);
        let Some(path) = make(image.path()) else {
            println!("not root, or no loop devices: not tried");
            return;
        };
        let rdev = std::fs::metadata(&path).unwrap().rdev();
        let device =
            BlockDevice { number: (rustix::fs::major(rdev), rustix::fs::minor(rdev)), path: path.clone() };
        let before = device.openers();
        let over = make(&path).unwrap();
        let during = device.openers();
        losetup(&["--detach"], &over).unwrap();
        losetup(&["--detach"], &path).unwrap();
        // A program that looks at every new device may have it open, too.
        let said = format!("{} (a loop device)", over.display());
        assert!(!before.contains(&said) && during.contains(&said), "{before:?} {during:?}");
    }
}

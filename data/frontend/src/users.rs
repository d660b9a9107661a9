//! Who uses a block device: asked before it is taken away. Everything here blocks, and opening or closing the device may do
//! I/O on the volume under it.

use crate::mounts::mounts;
use crate::{Error, ErrorKind};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
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

    /// Processes that have it open, other than this one: `name (pid)`.
    pub(crate) fn openers(&self) -> Vec<String> {
        let own = std::process::id().to_string();
        let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
        processes
            .flatten()
            .filter(|entry| {
                entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok() && name != own)
            })
            .filter(|entry| self.is_open_in(&entry.path()))
            .map(|entry| {
                let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                format!("{} ({})", name.trim(), entry.file_name().display())
            })
            .collect()
    }

    fn is_open_in(&self, process: &Path) -> bool {
        let Ok(descriptors) = std::fs::read_dir(process.join("fd")) else { return false };
        descriptors
            .flatten()
            .any(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target == self.path))
    }
}

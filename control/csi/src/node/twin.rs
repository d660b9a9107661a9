//! The same file system, mounted from another device of this machine: what the kernel itself says, so that it does not
//! matter in which container that was done.
//!
//! 1. xfs and btrfs know their file systems by a UUID. A volume that another node of the same kernel still has mounted, or a
//!    copy of a device, has the UUID of what is mounted. xfs refuses the second one with a bare EINVAL; btrfs refuses it, or
//!    gives it another UUID, or, in old kernels, shows the other device in its place. So btrfs is asked for before it is
//!    mounted, and xfs when it has refused.
//! 2. What may hang is not waited for: a device with I/O in flight is not read, and another one has a second. A thread that
//!    hangs all the same is the only one of its device, because it is in flight itself, and it ends with the device.

use crate::filesystem::Filesystem;
use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

/// How long a device may take that should answer at once.
const PATIENCE: Duration = Duration::from_secs(1);

/// Other devices from which a file system is mounted, or may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Twins {
    /// Their names in the kernel; none if the device is gone.
    pub(super) devices: Vec<String>,
    /// Whether they have the same UUID; else they do not say.
    pub(super) is_certain: bool,
}

/// Where the kernel tells what it has mounted.
pub(super) struct Kernel<'a> {
    sys: &'a Path,
    dev: &'a Path,
}

impl Kernel<'static> {
    /// The one of this machine.
    pub(super) fn of_machine() -> Self {
        Self { sys: Path::new("/sys"), dev: Path::new("/dev") }
    }
}

impl Kernel<'_> {
    /// Where else the file system of the device with this name is mounted.
    pub(super) fn twins(&self, filesystem: Filesystem, own: &str) -> io::Result<Option<Twins>> {
        match filesystem {
            Filesystem::Ext4 => Ok(None),
            Filesystem::Xfs => self.xfs_twins(own),
            Filesystem::Btrfs => self.btrfs_twins(own),
        }
    }

    /// A btrfs that is mounted has a folder of its UUID, with its devices.
    fn btrfs_twins(&self, own: &str) -> io::Result<Option<Twins>> {
        let uuid = read_uuid(&self.device(own), Filesystem::Btrfs)?;
        let devices = match names(&self.sys.join("fs/btrfs").join(hyphenated(uuid)).join("devices")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            devices => devices?,
        };
        let is_own = devices.iter().any(|device| device == own);
        Ok((!is_own).then_some(Twins { devices, is_certain: true }))
    }

    /// An xfs that is mounted has a folder of its device's name; the UUID is on the device.
    fn xfs_twins(&self, own: &str) -> io::Result<Option<Twins>> {
        let uuid = read_uuid(&self.device(own), Filesystem::Xfs)?;
        let (mut same, mut silent) = (Vec::new(), Vec::new());
        let mounted = names(&self.sys.join("fs/xfs"))?;
        for name in mounted.into_iter().filter(|name| name != own && name != "stats") {
            match self.uuid_in_time(&name) {
                Some(other) if other == uuid => same.push(name),
                Some(_) => {}
                None => silent.push(name),
            }
        }
        let is_certain = !same.is_empty();
        let devices = if is_certain { same } else { silent };
        Ok((!devices.is_empty()).then_some(Twins { devices, is_certain }))
    }

    /// The UUID of a device with an xfs, if it answers (invariant 2).
    fn uuid_in_time(&self, name: &str) -> Option<[u8; 16]> {
        let in_flight = fs::read_to_string(self.sys.join("class/block").join(name).join("inflight")).ok()?;
        if in_flight.split_whitespace().any(|count| count != "0") {
            return None;
        }
        let (device, (sender, receiver)) = (self.device(name), mpsc::channel());
        let reader = move || drop(sender.send(read_uuid(&device, Filesystem::Xfs)));
        thread::Builder::new().name("xfs-uuid".into()).spawn(reader).ok()?;
        receiver.recv_timeout(PATIENCE).ok()?.ok()
    }

    /// The kernel has `!` for the slash of a few old names.
    fn device(&self, name: &str) -> PathBuf {
        self.dev.join(name.replace('!', "/"))
    }
}

/// The UUID in the superblock.
fn read_uuid(device: &Path, filesystem: Filesystem) -> io::Result<[u8; 16]> {
    let offset = if filesystem == Filesystem::Xfs { 32 } else { 0x1_0020 };
    let mut uuid = [0; 16];
    File::open(device)?.read_exact_at(&mut uuid, offset)?;
    Ok(uuid)
}

/// As the kernel names a folder by it.
fn hyphenated(uuid: [u8; 16]) -> String {
    let mut text = format!("{:032x}", u128::from_be_bytes(uuid));
    for at in [20, 16, 12, 8] {
        text.insert(at, '-');
    }
    text
}

fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests;

//! Loop devices: making one over a served file, recognising our own, growing and releasing them. Everything here blocks,
//! and opening or closing a loop device may do I/O on the volume under it. So devices are looked for in sysfs, which
//! opens none; only one that may be ours is opened, to read the mark that decides.
//!
//! # Spec
//! `include/uapi/linux/loop.h`.
#![expect(unsafe_code, reason = "the ioctls of the loop driver")]

use super::mark::Mark;
use super::serve::FILE_NAME;
use crate::users::BlockDevice;
use crate::{Error, ErrorKind};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use zerocopy::{FromZeros, Immutable, IntoBytes, KnownLayout};

/// Major number of loop devices.
const LOOP_MAJOR: u32 = 7;
/// Where the kubelet binds raw block volumes.
const KUBELET_FOLDER: &str = "/volumeDevices/";
/// Another program may take the free device first; then the next is tried.
const TRIES: usize = 32;

const LOOP_CLR_FD: libc::Ioctl = 0x4c01;
const LOOP_SET_STATUS64: libc::Ioctl = 0x4c04;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4c07;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;

const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;
const DIRECT_IO: u32 = 16;

#[derive(FromZeros, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[derive(FromZeros, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = {
    assert!(size_of::<LoopInfo>() == 232);
    assert!(size_of::<LoopConfig>() == 304);
};

/// Calls `ioctl` with a number.
fn ioctl_number(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: libc::c_ulong) -> Result<u32, Errno> {
    // SAFETY: the requests used with this function take a number, or nothing, and touch no memory of ours.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) };
    result_of(result)
}

/// Calls `ioctl` with a pointer to a structure that the request knows.
fn ioctl_struct<T>(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: &mut T) -> Result<u32, Errno> {
    // SAFETY: every caller passes the structure that the kernel's header names for the request; it is plain data of
    // which all bit patterns are valid, and the kernel keeps no pointer to it.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    result_of(result)
}

fn result_of(result: libc::c_int) -> Result<u32, Errno> {
    u32::try_from(result).map_err(|_| {
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        Errno::from_raw_os_error(errno)
    })
}

/// A loop device by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LoopDevice {
    pub(crate) number: u32,
}

/// Where the file under a loop device is, as the driver shows it; none where it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Backing(Option<PathBuf>);

impl Backing {
    fn read(text: &str) -> Self {
        let path = text.trim_end_matches('\n');
        // The kernel's word for a file whose name has been forgotten.
        Self(Some(path.strip_suffix(" (deleted)").unwrap_or(path).into()))
    }

    /// Whether it is the volume that is served in the folder `dir`, for sure.
    pub(crate) fn is_in(&self, dir: &Path) -> bool {
        self.0.as_ref().is_some_and(|path| *path == dir.join(FILE_NAME))
    }

    /// Whether it may be a file that a front-end serves: its mark says whether it is.
    fn may_be_ours(&self) -> bool {
        self.0.as_ref().is_none_or(|path| path.file_name().is_some_and(|name| name == FILE_NAME))
    }

    /// Whether it may be the block device called `name`, also where the kubelet has bound it.
    fn may_be_device(&self, name: &OsStr) -> bool {
        let Some(path) = &self.0 else { return false };
        path.file_name() == Some(name) || path.to_string_lossy().contains(KUBELET_FOLDER)
    }

    /// Whether it may be the volume that is served in the folder `dir`: not at another place, nor another volume. Where its
    /// mount is gone there is no telling.
    pub(crate) fn may_be_in(&self, dir: &Path) -> bool {
        let folder =
            self.0.as_ref().and_then(|path| path.parent()).filter(|folder| folder.file_name().is_some());
        self.may_be_ours() && folder.is_none_or(|folder| folder == dir)
    }
}

/// How a loop device is made.
pub(crate) struct Setup<'a> {
    pub(crate) mark: &'a Mark,
    pub(crate) block_size: u32,
    pub(crate) read_only: bool,
}

impl LoopDevice {
    pub(crate) fn path(self) -> PathBuf {
        PathBuf::from(format!("/dev/loop{}", self.number))
    }

    fn sysfs(self, attribute: &str) -> PathBuf {
        PathBuf::from(format!("/sys/block/loop{}/{attribute}", self.number))
    }

    /// Its number in the mount table.
    pub(crate) const fn device_number(self) -> (u32, u32) {
        (LOOP_MAJOR, self.number)
    }

    fn open(self, flags: OFlags) -> Result<OwnedFd, Errno> {
        rustix::fs::open(self.path(), flags | OFlags::CLOEXEC, Mode::empty())
    }

    fn io_error(self, doing: &str, error: Errno) -> Error {
        Error::os(format_args!("cannot {doing} {}", self.path().display()), error)
    }

    /// Makes a loop device with direct I/O over the file at `path`.
    pub(crate) fn make(path: &Path, setup: &Setup<'_>) -> Result<Self, Error> {
        let mode = if setup.read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let control = rustix::fs::open("/dev/loop-control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| {
                Error::os("cannot open /dev/loop-control (are loop devices allowed here?)", error)
            })?;
        let file = rustix::fs::open(path, mode | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| Error::os(format_args!("cannot open {}", path.display()), error))?;
        for _ in 0..TRIES {
            let number = ioctl_number(as_fd(&control), LOOP_CTL_GET_FREE, 0)
                .map_err(|error| Error::os("cannot get a free loop device", error))?;
            let device = Self { number };
            device.make_node()?;
            match device.configure(&file, setup) {
                Ok(()) => return device.checked(),
                Err(Errno::BUSY) => {}
                Err(error) => return Err(device.io_error("set up", error)),
            }
        }
        Err(Error::new(ErrorKind::InUse, "every free loop device was taken by another program: try again"))
    }

    /// Makes the node in `/dev` where nothing does that by itself.
    fn make_node(self) -> Result<(), Error> {
        let path = self.path();
        if path.exists() {
            return Ok(());
        }
        let device = rustix::fs::makedev(LOOP_MAJOR, self.number);
        match rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::BlockDevice,
            Mode::from_raw_mode(0o660),
            device,
        ) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(self.io_error("make", error)),
        }
    }

    fn configure(self, file: &OwnedFd, setup: &Setup<'_>) -> Result<(), Errno> {
        let mut config = LoopConfig::new_zeroed();
        config.fd = u32::try_from(file.as_raw_fd()).expect("descriptors are not negative");
        config.block_size = setup.block_size;
        config.info.flags = DIRECT_IO | if setup.read_only { READ_ONLY } else { 0 };
        let mark = setup.mark.to_string();
        // The last byte stays zero: `Mark` is shorter.
        config.info.file_name[..mark.len()].copy_from_slice(mark.as_bytes());
        let device = self.open(OFlags::RDWR)?;
        ioctl_struct(as_fd(&device), LOOP_CONFIGURE, &mut config).map(drop)
    }

    /// Reads back that direct I/O is on: the driver falls back to the page cache without a word.
    fn checked(self) -> Result<Self, Error> {
        let direct = std::fs::read_to_string(self.sysfs("loop/dio")).unwrap_or_default();
        if direct.trim() == "1" {
            return Ok(self);
        }
        let error = Error::new(
            ErrorKind::Unsupported,
            format!(
                "{} would go through the page cache: this kernel refuses direct I/O on it",
                self.path().display()
            ),
        );
        self.clear().map_err(|errno| self.io_error("release", errno))?;
        Err(error)
    }

    /// Its mark, if it is one of ours.
    pub(crate) fn mark(self) -> Option<Mark> {
        // Looking before opening: what is unbound or somebody else's must stay untouched, and one whose file hangs would
        // hold this up.
        if !self.backing()?.may_be_ours() {
            return None;
        }
        let device = self.open(OFlags::RDONLY).ok()?;
        let mut info = LoopInfo::new_zeroed();
        ioctl_struct(as_fd(&device), LOOP_GET_STATUS64, &mut info).ok()?;
        let end = info.file_name.iter().position(|byte| *byte == 0)?;
        Mark::read(std::str::from_utf8(&info.file_name[..end]).ok()?)
    }

    /// The file under it, if there is one.
    pub(crate) fn backing(self) -> Option<Backing> {
        if !self.is_bound() {
            return None;
        }
        Some(match std::fs::read_to_string(self.sysfs("loop/backing_file")) {
            Ok(text) => Backing::read(&text),
            // A path that sysfs cannot show.
            Err(_) => Backing(None),
        })
    }

    /// Whether there is a file under it.
    pub(crate) fn is_bound(self) -> bool {
        self.sysfs("loop").exists()
    }

    /// Takes over the size that the file has now; returns it in bytes.
    pub(crate) fn grow(self) -> Result<u64, Error> {
        let device = self.open(OFlags::RDONLY).map_err(|error| self.io_error("open", error))?;
        ioctl_number(as_fd(&device), LOOP_SET_CAPACITY, 0).map_err(|error| self.io_error("grow", error))?;
        self.size_bytes()
    }

    /// Its size.
    pub(crate) fn size_bytes(self) -> Result<u64, Error> {
        let path = self.sysfs("size");
        let text = std::fs::read_to_string(&path)
            .map_err(|error| Error::os(format_args!("cannot read {}", path.display()), error))?;
        let sectors = text.trim().parse::<u64>().ok().and_then(|sectors| sectors.checked_mul(512));
        sectors
            .ok_or_else(|| Error::new(ErrorKind::Io, format!("{} holds no size: {text:?}", path.display())))
    }

    /// Takes the exclusive claim, which a mounted device refuses, so that nobody mounts it from now on; and writes back
    /// what its page cache holds.
    pub(crate) fn claim(self) -> Result<Claim, Error> {
        let claim = self.claim_dead()?;
        rustix::fs::fsync(&claim.device).map_err(|error| self.io_error("flush", error))?;
        Ok(claim)
    }

    /// Lets go of the file unless somebody has the device open; returns who has.
    pub(crate) fn release(self) -> Result<Vec<String>, Error> {
        // Claimed first: from now on nobody can mount it.
        let claim = self.claim()?;
        let openers = self.users().openers();
        if openers.is_empty() {
            claim.release()?;
        }
        Ok(openers)
    }

    /// As [`Self::release`], for a device that nobody serves: who has it open gets nothing but errors.
    pub(crate) fn release_dead(self) -> Result<Vec<String>, Error> {
        self.claim_dead()?.release()?;
        Ok(Vec::new())
    }

    /// As [`Self::claim`], for a device that nobody serves: there is nothing to write back to.
    pub(crate) fn claim_dead(self) -> Result<Claim, Error> {
        Ok(Claim { device: self.users().claim()?, of: self })
    }

    /// Who uses it.
    fn users(self) -> BlockDevice {
        BlockDevice { path: self.path(), number: self.device_number() }
    }

    /// Asks the driver to let go of the file, without looking at who uses the device.
    pub(crate) fn clear(self) -> Result<(), Errno> {
        let device = self.open(OFlags::RDONLY)?;
        match ioctl_number(as_fd(&device), LOOP_CLR_FD, 0) {
            // Somebody was faster.
            Ok(_) | Err(Errno::NXIO) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The exclusive claim on a loop device.
pub(crate) struct Claim {
    device: OwnedFd,
    of: LoopDevice,
}

impl Claim {
    /// Lets the driver release the file as soon as nobody has the device open, and gives up the claim.
    pub(crate) fn release(self) -> Result<(), Error> {
        match ioctl_number(as_fd(&self.device), LOOP_CLR_FD, 0) {
            Ok(_) | Err(Errno::NXIO) => Ok(()),
            Err(error) => Err(self.of.io_error("release", error)),
        }
    }
}

/// Takes back a release that others prevent by keeping the device open.
pub(crate) fn keep(device: LoopDevice) -> Result<(), Error> {
    let opened = device.open(OFlags::RDONLY).map_err(|error| device.io_error("open", error))?;
    let mut info = LoopInfo::new_zeroed();
    ioctl_struct(as_fd(&opened), LOOP_GET_STATUS64, &mut info)
        .map_err(|error| device.io_error("inspect", error))?;
    info.flags &= !AUTOCLEAR;
    ioctl_struct(as_fd(&opened), LOOP_SET_STATUS64, &mut info)
        .map(drop)
        .map_err(|error| device.io_error("keep", error))
}

fn as_fd(fd: &OwnedFd) -> BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(fd)
}

/// All loop devices of this machine that are in use.
pub(crate) fn bound() -> Vec<LoopDevice> {
    let Ok(devices) = std::fs::read_dir("/sys/block") else { return Vec::new() };
    let mut loops: Vec<LoopDevice> = devices
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("loop")?.parse().ok())
        .map(|number| LoopDevice { number })
        .filter(|device| device.is_bound())
        .collect();
    loops.sort_unstable();
    loops
}

/// The loop devices over a block device, such as the kubelet's over a raw block volume. Like the others, only those that may
/// be so are opened.
pub(crate) fn over(device: &BlockDevice) -> Vec<PathBuf> {
    let Some(name) = device.path.file_name() else { return Vec::new() };
    let wanted = rustix::fs::makedev(device.number.0, device.number.1);
    let is_over = |found: &LoopDevice| {
        let mut info = LoopInfo::new_zeroed();
        let opened = found.open(OFlags::RDONLY);
        let told = opened.and_then(|fd| ioctl_struct(as_fd(&fd), LOOP_GET_STATUS64, &mut info));
        told.is_ok() && info.rdevice == wanted
    };
    let may_be = |found: &LoopDevice| found.backing().is_some_and(|backing| backing.may_be_device(name));
    bound().into_iter().filter(may_be).filter(is_over).map(LoopDevice::path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_follow_the_number() {
        let device = LoopDevice { number: 12 };
        assert_eq!(device.path(), Path::new("/dev/loop12"));
        assert_eq!(device.device_number(), (7, 12));
    }

    #[test]
    fn looking_for_loops_needs_no_rights() {
        for device in bound() {
            assert!(device.backing().is_some());
        }
    }

    #[test]
    fn only_what_may_be_ours_is_looked_into() {
        let dir = Path::new("/data/node-1/fuse/0193");
        for (text, ours, here) in [
            ("/data/node-1/fuse/0193/volume\n", true, true),
            ("/data/node-1/fuse/0193/volume (deleted)\n", true, true),
            ("/volume\n", true, true),
            ("/data/node-2/fuse/0193/volume\n", true, false),
            ("/data/node-1/fuse/0194/volume\n", true, false),
            ("/var/lib/image.raw\n", false, false),
            ("/data/node-1/fuse/0193/volume2\n", false, false),
            ("", false, false),
        ] {
            let backing = Backing::read(text);
            assert_eq!((backing.may_be_ours(), backing.may_be_in(dir)), (ours, here), "{text:?}");
            assert_eq!(backing.is_in(dir), here && text.starts_with("/data/"), "{text:?}");
        }
        for (text, may_be) in [
            ("/dev/nvme1n1\n", true),
            ("/nvme1n1 (deleted)\n", true),
            ("/dev/nvme1n10\n", false),
            ("/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/pvc-1/dev/0193\n", true),
            ("/data/volume\n", false),
        ] {
            assert_eq!(Backing::read(text).may_be_device(OsStr::new("nvme1n1")), may_be, "{text:?}");
        }
        assert!(Backing(None).may_be_ours() && Backing(None).may_be_in(dir), "what is not shown");
        assert!(!Backing(None).is_in(dir));
    }
}

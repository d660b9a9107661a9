//! Mounting without libfuse. Everything here blocks.

use crate::Error;
use crate::mounts::Mount;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// File system type in the mount table: FUSE with our subtype.
const FS_TYPE: &str = "fuse.orlop";

/// Opens `/dev/fuse`: one descriptor is one connection to the kernel.
pub(crate) fn open_fuse() -> Result<OwnedFd, Error> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::open("/dev/fuse", flags, Mode::empty())
        .map_err(|error| Error::os("cannot open /dev/fuse (is FUSE in this kernel and container?)", error))
}

/// Mounts the file system that is served over `fuse` at `dir`.
pub(crate) fn mount(fuse: &OwnedFd, source: &str, dir: &Path, read_only: bool) -> Result<(), Error> {
    let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions,max_read=1048576",
        fuse.as_raw_fd(),
        owner.0,
        owner.1
    );
    let options = CString::new(options).expect("numbers and names");
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
    if read_only {
        flags |= MountFlags::RDONLY;
    }
    rustix::mount::mount(source, dir, FS_TYPE, flags, options.as_c_str())
        .map_err(|error| Error::os(format_args!("cannot mount {}", dir.display()), error))
}

/// Unmounts `dir`; `Ok` also if nothing is mounted there.
pub(crate) fn unmount(dir: &Path) -> Result<(), Errno> {
    match rustix::mount::unmount(dir, UnmountFlags::NOFOLLOW) {
        Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        result => result,
    }
}

/// Ends the connection of the FUSE mount at `dir`, so that everything that waits for it fails with `EIO`, and takes the
/// mount out of the tree, now or when its last user goes.
pub(crate) fn abort(dir: &Path) -> Result<(), Errno> {
    // Forcing ends the connection even where the mount is busy; then it is detached.
    match rustix::mount::unmount(dir, UnmountFlags::NOFOLLOW | UnmountFlags::FORCE) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(_) => rustix::mount::unmount(dir, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH),
    }
}

/// Whether a mount was made by [`mount`].
pub(crate) fn is_ours(mount: &Mount) -> bool {
    mount.fs_type == FS_TYPE
}

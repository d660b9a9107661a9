//! Mounting without libfuse, and reading what is mounted. Everything here blocks.

use crate::Error;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::{CString, OsString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

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

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) device: (u32, u32),
    pub(crate) point: PathBuf,
    pub(crate) fs_type: String,
    pub(crate) source: String,
}

impl Mount {
    /// Whether it was made by [`mount`].
    pub(crate) fn is_ours(&self) -> bool {
        self.fs_type == FS_TYPE
    }
}

/// Everything mounted in this process's namespace, in the order of mounting.
pub(crate) fn mounts() -> Result<Vec<Mount>, Error> {
    let table = std::fs::read("/proc/self/mountinfo")
        .map_err(|error| Error::os("cannot read /proc/self/mountinfo", error))?;
    Ok(table.split(|byte| *byte == b'\n').filter_map(mount_line).collect())
}

/// # Spec
/// proc(5), `/proc/pid/mountinfo`.
fn mount_line(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let end = fields.iter().position(|field| *field == b"-")?;
    let (major, minor) = std::str::from_utf8(fields.get(2)?).ok()?.split_once(':')?;
    Some(Mount {
        device: (major.parse().ok()?, minor.parse().ok()?),
        point: PathBuf::from(OsString::from_vec(unescape(fields.get(4)?))),
        fs_type: String::from_utf8_lossy(fields.get(end + 1)?).into_owned(),
        source: String::from_utf8_lossy(&unescape(fields.get(end + 2)?)).into_owned(),
    })
}

/// Undoes `\ooo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal =
            tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            bytes.push(byte);
            rest = &tail[3..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_mount_table_are_read() {
        let line =
            b"36 35 98:0 /root /mnt/a\\040b rw,noatime master:1 shared:2 - ext4 /dev/loop\\0543 rw,errors=x";
        let expected = Mount {
            device: (98, 0),
            point: "/mnt/a b".into(),
            fs_type: "ext4".into(),
            source: "/dev/loop,3".into(),
        };
        assert_eq!(mount_line(line), Some(expected));
        for line in [&b""[..], b"36 35", b"36 35 98:0 / /mnt rw", b"36 35 98 / /mnt rw - ext4 x y"] {
            assert_eq!(mount_line(line), None);
        }
    }

    #[test]
    fn this_machine_has_mounts() {
        assert!(mounts().unwrap().iter().any(|mount| mount.point == Path::new("/proc")));
    }
}

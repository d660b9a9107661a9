//! The steps of a node, each of them whole or repeatable: stage, publish and their opposites, growing.
//!
//! 1. Before something is done the table of mounts says whether it is done already.
//! 2. What is mounted at a path and is not of this volume is never touched by stage, publish or expand; but what is left at
//!    a staging path of a device that is gone for good is taken away: the kubelet stages once, and the volume has another
//!    device by now.
//! 3. A file system that is mounted from one device is not mounted from another (`twin`).
//! 4. Nothing below a mount point is ever removed: only the mount, and the empty folder or file under it.

use super::{
    device::Device,
    mounts::{Mount, Mounts, block_device},
    options, read_only, tool,
    twin::{Kernel, Twins},
};
use crate::{
    capability::{Access, Kind},
    filesystem::Filesystem,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};
use std::{ffi::CString, fs, io, path::Path};
use tonic::Status;

pub(super) fn failed(what: &str, path: &Path, error: impl Into<io::Error>) -> Status {
    Status::internal(format!("cannot {what} {}: {}", path.display(), error.into()))
}

pub(super) fn mounts() -> Result<Mounts, Status> {
    Mounts::read().map_err(|error| failed("read", Path::new("/proc/self/mountinfo"), error))
}

fn other_there(path: &Path, mount: &Mount) -> Status {
    let (path, kind) = (path.display(), &mount.filesystem);
    Status::already_exists(format!("{path} has another mount on it ({kind}); unmount that first"))
}

/// Mounts the file system of the device at `staging`, made first if there is none. A block device is used as it is.
pub(super) fn stage(device: &Device, staging: &Path, access: &Access) -> Result<(), Status> {
    let Kind::Mount { filesystem: wanted, flags, mkfs_options } = &access.kind else { return Ok(()) };
    let mounts = without_dead(mounts()?, staging)?;
    let is_wanted = |mount: &Mount| wanted.is_none_or(|wanted| wanted.name() == mount.filesystem);
    if let Some(there) = mounts.at(staging) {
        let ours = there.is_of(device.number) && is_wanted(there);
        return if ours { Ok(()) } else { Err(other_there(staging, there)) };
    }
    // Mounted elsewhere: it is not formatted and not checked under those who use it.
    let is_read_only = read_only::is_read_only(device.number);
    let filesystem = match mounts.of(device.number).next() {
        Some(elsewhere) => elsewhere.filesystem.clone(),
        None if is_read_only => device.find(*wanted)?.name().to_owned(),
        None => device.prepare(*wanted, mkfs_options)?.name().to_owned(),
    };
    // Kernels of old would show the other device at this path; those of today would let the two go apart.
    if filesystem == Filesystem::Btrfs.name() {
        refuse_twins(device, Filesystem::Btrfs)?;
    }
    mount_filesystem(device, staging, &filesystem, access, flags)
}

/// Mounts a device that is ready for it.
fn mount_filesystem(
    device: &Device,
    staging: &Path,
    filesystem: &str,
    access: &Access,
    flags: &[String],
) -> Result<(), Status> {
    fs::create_dir_all(staging).map_err(|error| failed("make", staging, error))?;
    let is_read_only = read_only::is_read_only(device.number);
    let (mut mount_flags, data) = options::split(flags.iter().map(String::as_str));
    let read_only = access.read_only || is_read_only || mount_flags.contains(MountFlags::RDONLY);
    mount_flags.set(MountFlags::RDONLY, read_only);
    let data =
        CString::new(data).map_err(|_| crate::refusal::invalid("a mount flag contains a zero byte"))?;
    let (path, volume) = (&device.of.path, &device.of.volume);
    let Err(error) = mount(path, staging, filesystem, mount_flags, data.as_c_str()) else { return Ok(()) };
    let why = io::Error::from(error);
    // Without its journal a file system is what nobody has ever seen; with it somebody would have to write.
    if is_read_only && matches!(why.kind(), io::ErrorKind::ReadOnlyFilesystem) {
        return Err(Status::failed_precondition(format!(
            "volume {volume:?}: its {filesystem} was not unmounted in order, and who only reads cannot replay the \
             journal: mount it once with a ReadWriteOnce claim"
        )));
    }
    let (shown, data) = (path.display(), data.to_string_lossy());
    let what = format!("cannot mount {shown} as {filesystem} on {} ({data:?}): {why}", staging.display());
    if error != rustix::io::Errno::INVAL {
        return Err(Status::internal(what));
    }
    // That is all that xfs says of a UUID that is mounted already.
    if filesystem == Filesystem::Xfs.name() {
        refuse_twins(device, Filesystem::Xfs)?;
    }
    Err(Status::invalid_argument(what))
}

/// Refuses a device whose file system is mounted from another one: it waits until that is gone.
fn refuse_twins(device: &Device, filesystem: Filesystem) -> Result<(), Status> {
    let (path, volume, filesystem_name) = (&device.of.path, &device.of.volume, filesystem.name());
    let own = read_only::name_of(device.number);
    let own = own.ok_or_else(|| failed("find in /sys", path, io::Error::from(io::ErrorKind::NotFound)))?;
    let found = Kernel::of_machine().twins(filesystem, &own);
    let Some(Twins { devices, is_certain }) = found.map_err(|error| failed("compare", path, error))? else {
        return Ok(());
    };
    let mounts = mounts()?;
    let places: Vec<String> = devices
        .iter()
        .map(|name| {
            let there = Path::new("/dev").join(name);
            let at = mounts.of_path(&there).map(|mount| format!("mounted at {}", mount.point.display()));
            let at = at.unwrap_or_else(|| "mounted where this plugin does not see it".to_owned());
            format!("{} ({at})", there.display())
        })
        .collect();
    let places = if places.is_empty() { "a device that is gone".to_owned() } else { places.join(", ") };
    Err(Status::unavailable(if is_certain {
        format!(
            "volume {volume:?}: its {filesystem_name} is mounted on this machine already, from {places}; it is mounted from \
             {} when that mount is gone",
            path.display()
        )
    } else {
        format!(
            "volume {volume:?}: the kernel refuses its {filesystem_name}: either by its mount options, or because it is \
             mounted on this machine already, from {places}, which does not answer; it is mounted from {} when that \
             mount is gone",
            path.display()
        )
    }))
}

/// The mounts when none at a path is dead.
fn without_dead(mounts: Mounts, path: &Path) -> Result<Mounts, Status> {
    if !mounts.at(path).is_some_and(Mount::is_dead) {
        return Ok(mounts);
    }
    tracing::warn!(path = %path.display(), "what is mounted there is of a device that is gone: it is taken away");
    take_away(path)?;
    self::mounts()
}

/// Shows the staged file system, or the device, at `target`.
pub(super) fn publish(
    device: &Device,
    staging: &Path,
    target: &Path,
    access: &Access,
    read_only: bool,
) -> Result<(), Status> {
    let mut mounts = mounts()?;
    // Nobody stages it again while a pod is there that has it.
    if matches!(access.kind, Kind::Mount { .. }) && mounts.at(staging).is_some_and(Mount::is_dead) {
        stage(device, staging, access)?;
        mounts = self::mounts()?;
    }
    if access.single_writer {
        let mut elsewhere = mounts.of(device.number).filter(|mount| {
            [staging, target]
                .iter()
                .all(|path| fs::canonicalize(path).map_or(true, |path| path != mount.point))
        });
        if let Some(elsewhere) = elsewhere.next().or_else(|| mounts.beside(target, device.number)) {
            let (volume, there) = (&device.of.volume, elsewhere.point.display());
            return Err(Status::failed_precondition(format!(
                "volume {volume:?} is published at {there}, and is to have a single writer"
            )));
        }
    }
    let read_only = read_only || access.read_only;
    match access.kind {
        Kind::Block => publish_block(&mounts, device, staging, target, read_only),
        Kind::Mount { .. } => publish_mount(&mounts, device, staging, target, read_only),
    }
}

fn publish_block(
    mounts: &Mounts,
    device: &Device,
    staging: &Path,
    target: &Path,
    read_only: bool,
) -> Result<(), Status> {
    let path = if read_only { read_only::make(device, staging)? } else { device.of.path.clone() };
    let Some(there) = mounts.at(target) else { return mount_device(&path, target) };
    match block_device(target) {
        Some(number) if block_device(&path) == Some(number) => Ok(()),
        Some(number) if is_shown(device, number)? => {
            let now = if read_only { "for writing" } else { "read only" };
            let why = format!("{} is published {now} already; unpublish it first", target.display());
            Err(Status::already_exists(why))
        }
        _ => Err(other_there(target, there)),
    }
}

/// Whether this is the number of the device, or of a read-only one over it.
pub(super) fn is_shown(device: &Device, number: u64) -> Result<bool, Status> {
    let is_over =
        || Ok(read_only::over(&device.of.path)?.iter().any(|path| block_device(path) == Some(number)));
    if number == device.number { Ok(true) } else { is_over() }
}

/// Shows a block device at `target`, where a file is made for it.
pub(super) fn mount_device(path: &Path, target: &Path) -> Result<(), Status> {
    make_parent(target)?;
    fs::File::options()
        .create(true)
        .append(true)
        .open(target)
        .map_err(|error| failed("make the file", target, error))?;
    mount_bind(path, target).map_err(|error| failed("bind the device to", target, error))
}

fn publish_mount(
    mounts: &Mounts,
    device: &Device,
    staging: &Path,
    target: &Path,
    read_only: bool,
) -> Result<(), Status> {
    let staged = mounts.at(staging).filter(|mount| mount.is_of(device.number)).ok_or_else(|| {
        let volume = &device.of.volume;
        Status::failed_precondition(format!("volume {volume:?} is not staged at {}", staging.display()))
    })?;
    match mounts.at(target) {
        Some(there) if !there.is_of(device.number) => return Err(other_there(target, there)),
        Some(there) if there.is_read_only() && !read_only && !staged.is_read_only() => {
            let why = format!("{} is published read only already; unpublish it first", target.display());
            return Err(Status::already_exists(why));
        }
        Some(_) => {}
        None => {
            fs::create_dir_all(target).map_err(|error| failed("make", target, error))?;
            mount_bind(staging, target).map_err(|error| failed("mount", target, error))?;
        }
    }
    if !read_only {
        return Ok(());
    }
    // A bind cannot be made read only in the same step; a plugin that was killed before this one repeats it.
    let (flags, _) = options::split([staged.options.as_str()]);
    let flags = MountFlags::BIND | MountFlags::RDONLY | flags;
    mount_remount(target, flags, "").map_err(|error| failed("make read only", target, error))
}

fn make_parent(target: &Path) -> Result<(), Status> {
    target
        .parent()
        .map_or(Ok(()), |parent| fs::create_dir_all(parent).map_err(|error| failed("make", parent, error)))
}

/// Takes away whatever is mounted at a path.
pub(super) fn take_away(path: &Path) -> Result<(), Status> {
    // One that was begun twice may lie over the other.
    while mounts()?.at(path).is_some() {
        unmount(path, UnmountFlags::NOFOLLOW).map_err(|error| {
            if error == rustix::io::Errno::BUSY {
                let why = format!("{} is in use: a program has a file open on it", path.display());
                return Status::failed_precondition(why);
            }
            failed("unmount", path, error)
        })?;
    }
    Ok(())
}

/// Undoes what `stage` and the publishes of a stage have left there.
pub(super) fn unstage(staging: &Path) -> Result<(), Status> {
    // What is in a file system is its user's.
    if mounts()?.at(staging).is_none() {
        read_only::remove(staging)?;
    }
    take_away(staging)
}

/// Takes away what is mounted at a path, and the empty folder or file that was made for it.
pub(super) fn unpublish(target: &Path) -> Result<(), Status> {
    take_away(target)?;
    let removed = match fs::symlink_metadata(target) {
        Ok(found) if found.is_dir() => fs::remove_dir(target),
        Ok(_) => fs::remove_file(target),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", target, error)),
        _ => Ok(()),
    }
}

/// Makes the file system, or the read-only device, as large as the device; the device itself is so already.
pub(super) fn expand(device: &Device, paths: &[&Path]) -> Result<(), Status> {
    let mounts = mounts()?;
    let mut paths = paths.iter().copied().filter(|path| !path.as_os_str().is_empty());
    for number in paths.clone().filter_map(block_device) {
        if is_shown(device, number)? {
            return read_only::grow(device);
        }
    }
    let mounted = paths.find_map(|path| mounts.at(path).filter(|mount| mount.is_of(device.number)));
    let volume = &device.of.volume;
    let mounted =
        mounted.ok_or_else(|| Status::not_found(format!("volume {volume:?} is not mounted at that path")))?;
    let Some(filesystem) = Filesystem::parse(&mounted.filesystem)? else { return Ok(()) };
    // It is as large as its writer has made it.
    if read_only::is_read_only(device.number) {
        return Ok(());
    }
    if filesystem == Filesystem::Ext4 && !device.can_grow()? {
        return Ok(());
    }
    tool::run(&filesystem.grow(&device.of.path, &mounted.point), 0, filesystem.package()).map_err(|status| {
        if !status.message().contains("Permission denied to resize") {
            return status;
        }
        let volume = &device.of.volume;
        Status::failed_precondition(format!(
            "volume {volume:?}: ext4 grows under its users only for a plugin with CAP_SYS_RESOURCE, which this one \
             lacks; it grows when it is staged the next time"
        ))
    })
}

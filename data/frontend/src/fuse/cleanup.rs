//! Finding and removing what runs left behind: for guards, and before a volume is attached again. Everything here blocks.

use super::attach::{mount_dir, whole_path};
use super::loopdev::{self, LoopDevice};
use super::mark::Mark;
use super::mount;
use crate::mounts::{Mount, mounts};
use crate::{Error, ErrorKind};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// A loop device that carries our mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedLoop {
    /// Such as `/dev/loop3`.
    pub device: PathBuf,
    /// The run that made it.
    pub run_id: String,
    /// The volume under it.
    pub volume: Uuid,
}

/// The loop devices that the run `run_id` made and that still exist. Blocks: not for the reactor's thread.
pub fn attached_loops(run_id: &str) -> Vec<AttachedLoop> {
    ours(|mark| mark.run_id == run_id)
        .into_iter()
        .map(|(device, mark)| AttachedLoop {
            device: device.path(),
            run_id: mark.run_id,
            volume: mark.volume,
        })
        .collect()
}

/// Whether the volume has a block device from an earlier attachment with this `state_dir`. Blocks, but asks nobody who may
/// have to wait for a server: the kernel tells a loop device's mark only when it knows the size of the file, for which,
/// just after it has grown, it asks the server.
pub fn has_device(state_dir: &Path, volume: Uuid) -> bool {
    let Ok(state_dir) = whole_path(state_dir) else { return false };
    let dir = mount_dir(&state_dir, volume);
    loopdev::bound().into_iter().filter_map(LoopDevice::backing).any(|backing| backing.is_in(&dir))
}

fn ours(wanted: impl Fn(&Mark) -> bool) -> Vec<(LoopDevice, Mark)> {
    let marked = |device: LoopDevice| device.mark().map(|mark| (device, mark));
    loopdev::bound().into_iter().filter_map(marked).filter(|(_, mark)| wanted(mark)).collect()
}

fn our_mounts(wanted: impl Fn(&Mark) -> bool) -> Result<Vec<Mount>, Error> {
    let mounted = mounts()?;
    let marked =
        |mount: &Mount| mount::is_ours(mount) && Mark::read(&mount.source).is_some_and(|mark| wanted(&mark));
    Ok(mounted.into_iter().filter(marked).collect())
}

/// Removes everything that the run `run_id` left behind, in use or not: the guard's last resort after the processes of
/// the run are gone. I/O on its devices fails with `EIO` first, so nothing here can hang. Returns what was removed.
///
/// Blocks: not for the reactor's thread.
pub fn cleanup(run_id: &str) -> Result<Vec<String>, Error> {
    let mut removed = Vec::new();
    // The loop devices are looked for while their file systems still answer.
    let loops = ours(|mark| mark.run_id == run_id);
    for mounted in our_mounts(|mark| mark.run_id == run_id)? {
        mount::abort(&mounted.point)
            .map_err(|error| Error::os(format_args!("cannot unmount {}", mounted.point.display()), error))?;
        // An empty folder is left where somebody works in it; that is not ours to insist on.
        if std::fs::remove_dir(&mounted.point).is_err() {
            tracing::debug!(folder = %mounted.point.display(), "a mount's folder stays behind");
        }
        removed.push(format!("mount {}", mounted.point.display()));
    }
    for (device, _) in loops {
        for mounted in mounts()?.into_iter().rev().filter(|mount| mount.device == device.device_number()) {
            unmount_lazily(&mounted.point)?;
            removed.push(format!("mount {}", mounted.point.display()));
        }
        device
            .clear()
            .map_err(|error| Error::os(format_args!("cannot release {}", device.path().display()), error))?;
        removed.push(device.path().display().to_string());
    }
    Ok(removed)
}

fn unmount_lazily(point: &Path) -> Result<(), Error> {
    match rustix::mount::unmount(point, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(Error::os(format_args!("cannot unmount {}", point.display()), error)),
    }
}

/// Removes what an earlier attachment of `volume` at `dir` left behind, if nobody uses it. What another engine on this
/// machine has of the volume is not ours: its nexus is fenced, and flushing its device could wait for an engine that died.
pub(crate) fn clear_leftovers(volume: Uuid, dir: &Path) -> Result<(), Error> {
    let here = |device: &LoopDevice| device.backing().is_some_and(|backing| backing.may_be_in(dir));
    let ours = |device: &LoopDevice| device.mark().is_some_and(|mark| mark.volume == volume);
    for device in loopdev::bound().into_iter().filter(here).filter(ours) {
        let claim = device.claim().or_else(|error| match error.kind() {
            ErrorKind::InUse => Err(error),
            // It cannot be flushed: nobody serves it any more.
            _ => device.claim_dead(),
        })?;
        claim.release()?;
    }
    // Whether or not the table of mounts has it: a dead mount would make the folder unusable.
    mount::abort(dir).map_err(|error| Error::os(format_args!("cannot unmount {}", dir.display()), error))
}

//! A block device that a pod may read and not write: a read-only loop device over the volume's device.
//!
//! A mount can be made read only, but what a mount shows of a block device can be written all the same: so the device
//! itself has to refuse. It asks the volume's device with direct I/O, so that nothing is in memory twice.
//!
//! 1. It belongs to the stage: all read-only publishes of a stage share it, and it goes with the stage. Until then
//!    publishing and unpublishing only bind it and take the bind away, and none of them has to know of the others.
//! 2. Nothing is remembered: the kernel says which loop devices are read only and lie over which device. The stage has a
//!    bind of the volume's device in it from before the first one is made, so that unstage finds them without asking
//!    anybody, also when the plugin was killed in between or has been started anew in another container.
//! 3. A loop device is let go only if it is read only and what lies under it is that very device.

use super::{
    device::Device,
    mounting::{failed, mount_device, mounts, take_away},
    mounts::block_device,
    tool,
};
use std::{
    fs, io,
    os::linux::fs::MetadataExt,
    path::{Path, PathBuf},
};
use tonic::Status;

/// What brings `losetup`.
const PACKAGE: &str = "mount";
/// The bind of the volume's device in the staging folder.
const BIND: &str = "orlop-device";

/// Whether the device with this number refuses writes by itself.
pub(super) fn is_read_only(number: u64) -> bool {
    let path = format!("/sys/dev/block/{}:{}/ro", rustix::fs::major(number), rustix::fs::minor(number));
    fs::read_to_string(path).is_ok_and(|text| text.trim() == "1")
}

/// The read-only device of a volume: the one that there is, else a new one. A device that is read only is its own.
pub(super) fn make(device: &Device, staging: &Path) -> Result<PathBuf, Status> {
    let path = &device.of.path;
    if is_read_only(device.number) {
        return Ok(path.clone());
    }
    keep_bind(device, staging)?;
    if let Some(there) = over(path)?.into_iter().next() {
        return Ok(there);
    }
    let sysfs = format!("{}/queue/logical_block_size", sysfs(device.number));
    let block_size = fs::read_to_string(&sysfs).map_err(|error| failed("read", Path::new(&sysfs), error))?;
    let words = ["losetup", "--find", "--read-only", "--direct-io=on", "--sector-size", block_size.trim()];
    tool::run(&words_of(&words, path), 0, PACKAGE)?;
    let made = over(path)?.into_iter().next();
    made.ok_or_else(|| {
        Status::unavailable(format!("the read-only device over {} has gone again; try again", path.display()))
    })
}

/// The read-only devices over a volume's device, which may be at more than one path.
pub(super) fn over(device: &Path) -> Result<Vec<PathBuf>, Status> {
    let lies_under = fs::metadata(device).map_err(|error| failed("look at", device, error))?;
    let (inode, number) = (lies_under.st_ino(), lies_under.st_dev());
    let wanted = format!("{inode} {}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    let name = name_of(lies_under.st_rdev());
    let mut found = Vec::new();
    for candidate in
        candidates(name.as_deref()).map_err(|error| failed("read", Path::new("/sys/block"), error))?
    {
        let words = ["losetup", "--list", "--noheadings", "--output", "BACK-INO,BACK-MAJ:MIN"];
        // One that has gone since is not there.
        let Ok(said) = tool::ask(&words_of(&words, &candidate), PACKAGE) else { continue };
        if said.split_whitespace().collect::<Vec<_>>().join(" ") == wanted {
            found.push(candidate);
        }
    }
    Ok(found)
}

/// Lets them follow the size of the volume's device.
pub(super) fn grow(device: &Device) -> Result<(), Status> {
    for there in over(&device.of.path)? {
        tool::run(&words_of(&["losetup", "--set-capacity"], &there), 0, PACKAGE)?;
    }
    Ok(())
}

/// Lets the read-only devices of a stage go, and the bind by which they are found.
pub(super) fn remove(staging: &Path) -> Result<(), Status> {
    let bind = staging.join(BIND);
    if block_device(&bind).is_some() {
        for there in over(&bind)? {
            tool::run(&words_of(&["losetup", "--detach"], &there), 0, PACKAGE)?;
        }
        if let Some(left) = over(&bind)?.first() {
            return Err(Status::unavailable(format!(
                "{} is in use: a program has it open; it goes when that program ends",
                left.display()
            )));
        }
    }
    take_away(&bind)?;
    match fs::remove_file(&bind) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &bind, error)),
        _ => Ok(()),
    }
}

/// Invariant 2.
fn keep_bind(device: &Device, staging: &Path) -> Result<(), Status> {
    let bind = staging.join(BIND);
    if block_device(&bind) == Some(device.number) {
        return Ok(());
    }
    // Of a device that the volume had on this node before.
    if mounts()?.at(&bind).is_some() {
        remove(staging)?;
    }
    fs::create_dir_all(staging).map_err(|error| failed("make", staging, error))?;
    mount_device(&device.of.path, &bind)
}

fn sysfs(number: u64) -> String {
    format!("/sys/dev/block/{}:{}", rustix::fs::major(number), rustix::fs::minor(number))
}

/// The kernel's name of a block device, such as `loop3`.
pub(super) fn name_of(number: u64) -> Option<String> {
    let link = fs::read_link(sysfs(number)).ok()?;
    Some(link.file_name()?.to_str()?.to_owned())
}

/// Loop devices that are read only and lie over something that is called like the device; one that has no name any more, as
/// a device that the kernel's initiator gave up under its users, may be what any of those that are gone was. What they lie over
/// is told as a path, which a container that has ended has taken its mounts from; so more than its name is looked at later,
/// and only these are opened for that.
fn candidates(name: Option<&str>) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")?.flatten() {
        let read = |attribute: &str| fs::read_to_string(entry.path().join(attribute)).unwrap_or_default();
        let under = read("loop/backing_file");
        let is_gone = |name: &str| !Path::new("/sys/block").join(name).exists();
        if lies_over(&under, name, is_gone) && read("ro").trim() == "1" {
            found.push(Path::new("/dev").join(entry.file_name()));
        }
    }
    found.sort();
    Ok(found)
}

/// Whether what the kernel says of the file under a loop device may be the device of this name, or one that is gone.
fn lies_over(backing: &str, name: Option<&str>, is_gone: impl Fn(&str) -> bool) -> bool {
    let path = backing.trim_end_matches('\n');
    let path = Path::new(path.strip_suffix(" (deleted)").unwrap_or(path));
    path.file_name().and_then(|last| last.to_str()).is_some_and(|last| match name {
        Some(name) => last == name,
        None => last.starts_with("nvme") && is_gone(last),
    })
}

fn words_of(words: &[&str], device: &Path) -> Vec<String> {
    let device = device.display().to_string();
    words.iter().map(|word| (*word).to_owned()).chain([device]).collect()
}

#[cfg(test)]
mod tests;

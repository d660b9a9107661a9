//! The block device of a volume on this node: where the API says it is, opened and measured.

use super::{
    contents::{self, Contents},
    tool,
};
use crate::filesystem::{Filesystem, MkfsOptions};
use model::{VolumeState, VolumeView};
use rustix::fs::OFlags;
use std::{
    fs::File,
    io::{Seek, SeekFrom},
    os::{linux::fs::MetadataExt, unix::fs::OpenOptionsExt},
    path::PathBuf,
};
use tonic::Status;

/// Where the device of a volume is.
#[derive(Clone, Debug)]
pub(super) struct Attached {
    /// The volume's name, for people.
    pub(super) volume: String,
    /// The volume's UUID.
    pub(super) uuid: String,
    /// The path of the device.
    pub(super) path: PathBuf,
}

impl Attached {
    /// The device, if the volume is attached on `node` and has one there.
    pub(super) fn on(view: &VolumeView, node: &str) -> Result<Self, Status> {
        let volume = view.name.clone();
        let refused = |why: String| Err(Status::failed_precondition(format!("volume {volume:?} {why}")));
        if view.intent.readers.iter().any(|reader| reader == node) {
            return Self::for_reading(view, node);
        }
        match &view.intent.attach {
            Some(attach) if attach.node == node => {}
            Some(attach) => {
                return refused(format!("is published on node {:?}, not on {node:?}", attach.node));
            }
            None => return refused(format!("is not published on node {node:?}")),
        }
        let on_its_way =
            view.status.state == VolumeState::Attaching || view.status.owner.as_deref() != Some(node);
        match &view.status.device {
            Some(device) if device.starts_with("/dev/") && !on_its_way => {
                Ok(Self { uuid: view.uuid.to_string(), path: device.into(), volume })
            }
            Some(device) if !on_its_way => {
                refused(format!("is {device} on node {node:?}, whose engine does not run as root"))
            }
            _ => {
                let why = view.status.message.as_deref().unwrap_or("its device is being made");
                Err(Status::unavailable(format!("volume {volume:?} is not attached yet: {why}")))
            }
        }
    }

    /// The device of a reader.
    fn for_reading(view: &VolumeView, node: &str) -> Result<Self, Status> {
        let volume = view.name.clone();
        let reader = view.status.reader(node);
        if let Some(device) = reader.and_then(|reader| reader.device.as_ref()) {
            return Ok(Self { uuid: view.uuid.to_string(), path: device.into(), volume });
        }
        let why = reader.and_then(|reader| reader.message.as_deref()).unwrap_or("its device is being made");
        Err(Status::unavailable(format!("volume {volume:?} is not attached yet: {why}")))
    }

    /// Opens the device, to look at it.
    pub(super) fn open(self) -> Result<Device, Status> {
        let open = File::open(&self.path).and_then(|mut file| {
            let bytes = file.seek(SeekFrom::End(0))?;
            Ok((file.metadata()?.st_rdev(), bytes))
        });
        let (number, bytes) = open.map_err(|error| {
            Status::unavailable(format!(
                "volume {:?}: cannot open {}: {error}",
                self.volume,
                self.path.display()
            ))
        })?;
        Ok(Device { of: self, number, bytes })
    }
}

/// The block device of a volume.
#[derive(Debug)]
pub(super) struct Device {
    /// Which one.
    pub(super) of: Attached,
    /// Its major and minor number.
    pub(super) number: u64,
    /// Its size.
    pub(super) bytes: u64,
}

impl Device {
    /// The file system on the device, checked and ready to be mounted; made if there is nothing at all.
    pub(super) fn prepare(
        &self,
        wanted: Option<Filesystem>,
        options: &MkfsOptions,
    ) -> Result<Filesystem, Status> {
        let Attached { volume, uuid, path } = &self.of;
        let found = contents::look(&self.claim()?, self.bytes, uuid);
        let found =
            found.map_err(|error| Status::internal(format!("cannot read {}: {error}", path.display())))?;
        let filesystem = match (found, wanted) {
            (Contents::Nothing | Contents::Unfinished, wanted) => {
                let filesystem = wanted.unwrap_or_default();
                self.make(filesystem, options)?;
                filesystem
            }
            (Contents::Filesystem(found), Some(wanted)) if found != wanted => {
                return Err(Status::failed_precondition(format!(
                    "volume {volume:?} carries {} and is to be mounted as {}; it is not formatted over",
                    found.name(),
                    wanted.name()
                )));
            }
            (Contents::Filesystem(found), _) => found,
            (Contents::Other(other), _) => {
                return Err(Status::failed_precondition(format!(
                    "volume {volume:?} carries {other}; it is not formatted over: delete what is on it first"
                )));
            }
        };
        if let Some(words) = filesystem.check(path) {
            // 1: errors were corrected; 2: and the machine should restart if it was mounted, which it was not.
            tool::run(&words, 2, filesystem.package())
                .map_err(|status| self.not_whole(filesystem, status))?;
        }
        // A pod that could not grow while it was mounted finds its room now.
        if filesystem == Filesystem::Ext4 && self.can_grow()? {
            for words in filesystem.grow_unmounted(path) {
                tool::run(&words, 2, filesystem.package())?;
            }
        }
        Ok(filesystem)
    }

    /// What the check of a file system said, with what to do where it says that it repairs no more by itself.
    fn not_whole(&self, filesystem: Filesystem, status: Status) -> Status {
        let Attached { volume, path, .. } = &self.of;
        if !status.message().contains("(exit status: 4)") {
            return status;
        }
        Status::failed_precondition(format!(
            "volume {volume:?}: its {} is damaged beyond what is repaired without asking; it is not mounted: have it published \
             as a block device and run e2fsck -f on that (here it is {}): {}",
            filesystem.name(),
            path.display(),
            status.message()
        ))
    }

    /// The file system on a device that refuses writes: as its last writer has left it. Nothing is made, checked or grown.
    pub(super) fn find(&self, wanted: Option<Filesystem>) -> Result<Filesystem, Status> {
        let Attached { volume, uuid, path } = &self.of;
        let found = File::open(path).and_then(|device| contents::look(&device, self.bytes, uuid));
        let found =
            found.map_err(|error| Status::internal(format!("cannot read {}: {error}", path.display())))?;
        let why = match found {
            Contents::Filesystem(found) if wanted.is_none_or(|wanted| wanted == found) => return Ok(found),
            Contents::Filesystem(found) => {
                let wanted = wanted.unwrap_or_default();
                format!("carries {} and is to be mounted as {}", found.name(), wanted.name())
            }
            Contents::Nothing | Contents::Unfinished => {
                "has no file system yet, and who only reads makes none: write it first, with a ReadWriteOnce claim"
                    .to_owned()
            }
            Contents::Other(other) => format!("carries {other}, which is not mounted"),
        };
        Err(Status::failed_precondition(format!("volume {volume:?} {why}")))
    }

    /// Whether its ext4 is smaller than it could be.
    pub(super) fn can_grow(&self) -> Result<bool, Status> {
        let path = &self.of.path;
        let can_grow = File::open(path).and_then(|device| contents::ext4_can_grow(&device, self.bytes));
        can_grow.map_err(|error| Status::internal(format!("cannot read {}: {error}", path.display())))
    }

    /// Makes a file system; what happens if this ends anywhere in between is in `contents`.
    fn make(&self, filesystem: Filesystem, options: &MkfsOptions) -> Result<(), Status> {
        let Attached { volume, uuid, path } = &self.of;
        let mark = |there| {
            contents::set_mark(&self.claim()?, self.bytes, uuid, there)
                .map_err(|error| Status::internal(format!("cannot write to {}: {error}", path.display())))
        };
        tracing::info!(volume, device = %path.display(), filesystem = filesystem.name(), "makes a file system");
        mark(true)?;
        tool::run(&filesystem.make(path, self.bytes, options), 0, filesystem.package())?;
        mark(false)
    }

    /// Opens the device for this alone: not while a mkfs of a plugin that was killed still has it, nor while it is
    /// mounted.
    fn claim(&self) -> Result<File, Status> {
        let exclusive = i32::try_from(OFlags::EXCL.bits()).unwrap_or(0);
        let open = File::options().read(true).write(true).custom_flags(exclusive).open(&self.of.path);
        open.map_err(|error| {
            let (volume, path) = (&self.of.volume, self.of.path.display());
            Status::unavailable(format!("volume {volume:?}: {path} is in use by another program: {error}"))
        })
    }
}

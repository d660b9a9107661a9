//! Attaching and detaching: the FUSE mount, the loop device over it and the task that serves them, as one thing.

use super::cleanup;
use super::loopdev::{self, LoopDevice, Setup};
use super::mark::Mark;
use super::mount;
use super::serve::{self, Connection, Counters, Ended};
use crate::{Error, ErrorKind};
use device::Device;
use rt::{Errno, Task};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// How long programs that look at every new device (udev, blkid) may keep it open while it is detached.
const OPENERS_WAIT: Duration = Duration::from_secs(2);
/// How long the kernel may take to let go of a released device or an unmounted file system.
const RELEASE_WAIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// What [`attach`] is told.
#[derive(Clone, Debug)]
pub struct AttachConfig {
    /// Folder of this engine; mounts are made in its subfolder `fuse`.
    pub state_dir: PathBuf,
    /// The volume's name, for messages.
    pub volume_name: String,
    /// The volume's identity, for the mount and the mark.
    pub volume_uuid: Uuid,
    /// Marks what is made, so that a guard finds it; at most 24 letters, digits, `-`, `_` and `.`.
    pub run_id: String,
    /// Logical block size of the loop device; the device's own divides it.
    pub block_size: u32,
    /// Refuse writes.
    pub read_only: bool,
}

impl AttachConfig {
    /// Where the volume's file system is mounted.
    fn mount_dir(&self) -> PathBuf {
        self.state_dir.join("fuse").join(self.volume_uuid.to_string())
    }
}

/// A volume that the kernel has as a block device. Dropping it stops serving and leaves the device waiting (or, if
/// nobody else holds the descriptor, failing with `EIO`): call [`Self::detach`] to remove it.
#[derive(Debug)]
pub struct Attached {
    volume_name: String,
    mount_dir: PathBuf,
    device: LoopDevice,
    connection: Rc<Connection>,
    serving: RefCell<Option<Task<Ended>>>,
}

/// Makes `device` a block device of this machine and serves it on the current reactor.
///
/// # Errors
/// `NotPermitted` without root, `Unsupported` where the kernel lacks something, `InUse` when a block device left over
/// from an earlier attachment of this volume is still mounted or open.
pub async fn attach<D: Device + 'static>(config: AttachConfig, device: D) -> Result<Attached, Error> {
    let mark = Mark::new(&config.run_id, config.volume_uuid)?;
    let geometry = device.geometry();
    if !matches!(config.block_size, 512 | 4096) || !config.block_size.is_multiple_of(geometry.block_size) {
        let message = format!(
            "volume {:?} with blocks of {} bytes cannot be attached with blocks of {}: use 512 or 4096, not smaller",
            config.volume_name, geometry.block_size, config.block_size
        );
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    let (left, volume) = (config.mount_dir(), config.volume_uuid);
    rt::blocking(move || cleanup::clear_leftovers(volume, &left)).await?;
    let fresh = Fresh { config, mark };
    fresh.attach(device).await
}

struct Fresh {
    config: AttachConfig,
    mark: Mark,
}

impl Fresh {
    async fn attach<D: Device + 'static>(self, device: D) -> Result<Attached, Error> {
        let Self { config, mark } = self;
        let dir = config.mount_dir();
        let (mount_at, source, read_only) = (dir.clone(), mark.to_string(), config.read_only);
        let fuse = rt::blocking(move || {
            make_dir(&mount_at)?;
            let fuse = mount::open_fuse()?;
            mount::mount(&fuse, &source, &mount_at, read_only)?;
            Ok::<_, Error>(fuse)
        })
        .await?;
        let connection = Connection::new(fuse);
        let serving = rt::spawn(serve::serve(Rc::clone(&connection), device, config.block_size, read_only));
        let (file, block_size) = (dir.join(serve::FILE_NAME), config.block_size);
        let made =
            rt::blocking(move || LoopDevice::make(&file, &Setup { mark: &mark, block_size, read_only }))
                .await;
        match made {
            Ok(device) => {
                let serving = RefCell::new(Some(serving));
                Ok(Attached { volume_name: config.volume_name, mount_dir: dir, device, connection, serving })
            }
            Err(error) => {
                // The file system was never published: end it at once.
                if let Err(errno) = rt::blocking(move || mount::abort(&dir)).await {
                    tracing::warn!(%errno, "a mount that failed to become a device stays behind");
                }
                serving.await;
                Err(error)
            }
        }
    }
}

fn make_dir(dir: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| Error::os(format_args!("cannot make folder {}", dir.display()), error))
}

impl Attached {
    /// The block device, such as `/dev/loop3`.
    pub fn device_path(&self) -> PathBuf {
        self.device.path()
    }

    /// What has been served so far.
    pub fn counters(&self) -> Counters {
        self.connection.counters()
    }

    /// Whether the kernel still asks: false after a detach, or when somebody unmounted or aborted the file system.
    pub fn is_serving(&self) -> bool {
        self.serving.borrow().as_ref().is_some_and(|task| !task.is_finished())
    }

    /// Whether the death of this process can be survived (Linux 6.9 and later).
    pub fn can_survive(&self) -> bool {
        self.connection.can_resend()
    }

    /// Tells the kernel that the device has grown; returns the size in bytes that the block device has now.
    pub async fn resized(&self) -> Result<u64, Error> {
        self.connection.size_changed().await.map_err(|error| {
            Error::os(format_args!("cannot announce the size of {:?}", self.volume_name), error)
        })?;
        let (file, device) = (self.mount_dir.join(serve::FILE_NAME), self.device);
        rt::blocking(move || {
            // The kernel asks for the size when it is looked at.
            std::fs::metadata(&file)
                .map_err(|error| Error::os(format_args!("cannot look at {}", file.display()), error))?;
            device.grow()
        })
        .await
    }

    /// Removes the block device and the mount, and stops serving. May be repeated.
    ///
    /// # Errors
    /// `InUse`, with the name of the mount point or of the programs, when the device is in use; then nothing changes.
    pub async fn detach(&self) -> Result<(), Error> {
        self.release_loop().await?;
        self.unmount().await?;
        let serving = self.serving.borrow_mut().take();
        if let Some(serving) = serving
            && rt::timeout(RELEASE_WAIT, serving).await.is_err()
        {
            tracing::warn!(volume = %self.volume_name, "requests of an unmounted volume did not end: they are dropped");
        }
        let dir = self.mount_dir.clone();
        rt::blocking(move || std::fs::remove_dir(&dir))
            .await
            .map_err(|error| Error::os(format_args!("cannot remove {}", self.mount_dir.display()), error))
            .or_else(|error| if self.mount_dir.exists() { Err(error) } else { Ok(()) })
    }

    async fn release_loop(&self) -> Result<(), Error> {
        let device = self.device;
        if !rt::blocking(move || device.is_bound()).await {
            return Ok(());
        }
        let start = rt::now();
        loop {
            // Claimed first: from now on nobody can mount it.
            let claim = rt::blocking(move || device.claim()).await?;
            let openers = rt::blocking(move || device.openers()).await;
            if openers.is_empty() {
                rt::blocking(move || claim.release()).await?;
                break;
            }
            drop(claim);
            if start.elapsed() > OPENERS_WAIT {
                let message =
                    format!("{} is open in {}: end it first", device.path().display(), openers.join(", "));
                return Err(Error::new(ErrorKind::InUse, message));
            }
            rt::sleep(POLL).await;
        }
        let start = rt::now();
        while rt::blocking(move || device.is_bound()).await {
            if start.elapsed() > RELEASE_WAIT {
                rt::blocking(move || loopdev::keep(device)).await?;
                let path = device.path();
                let message = format!("{} was opened while it was released: try again", path.display());
                return Err(Error::new(ErrorKind::InUse, message));
            }
            rt::sleep(POLL).await;
        }
        Ok(())
    }

    async fn unmount(&self) -> Result<(), Error> {
        let start = rt::now();
        loop {
            let dir = self.mount_dir.clone();
            match rt::blocking(move || mount::unmount(&dir)).await {
                Ok(()) => return Ok(()),
                // The loop driver drops the file a moment after the device is gone; a shell may stand in the folder.
                Err(Errno::BUSY) if start.elapsed() < OPENERS_WAIT => rt::sleep(POLL).await,
                Err(Errno::BUSY) => break,
                Err(error) => {
                    return Err(Error::os(
                        format_args!("cannot unmount {}", self.mount_dir.display()),
                        error,
                    ));
                }
            }
        }
        // Nobody does I/O any more: the loop device is gone.
        let dir = self.mount_dir.clone();
        rt::blocking(move || mount::abort(&dir))
            .await
            .map_err(|error| Error::os(format_args!("cannot abort {}", self.mount_dir.display()), error))
    }
}

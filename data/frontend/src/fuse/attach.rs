//! Attaching and detaching: the FUSE mount, the loop device over it and the task that serves them, as one thing.

use super::cleanup;
use super::holder::{Holder, STATE_LEN_MAX};
use super::loopdev::{self, LoopDevice, Setup};
use super::mark::Mark;
use super::mount;
use super::serve::{self, Connection, Counters, Ended};
use crate::isolated::isolated;
use crate::mounts::mounts;
use crate::{Error, ErrorKind};
use device::Device;
use rt::{Errno, Task};
use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// How long programs that look at every new device (udev, blkid) may keep it open while it is detached.
const OPENERS_WAIT: Duration = Duration::from_secs(2);
/// How long the kernel may take to let go of a released device or an unmounted file system.
const RELEASE_WAIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// What [`attach()`] is told.
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
    /// Keeps the device alive when this process dies; without one I/O then fails at once.
    pub holder: Option<Holder>,
    /// Programs may go on with the device of a process that died: nobody else has written to the volume since. Else what
    /// the kernel remembers of it, such as a mounted file system, is not so any more, and would be written over it.
    pub continues: bool,
}

impl AttachConfig {
    fn mount_dir(&self) -> PathBuf {
        mount_dir(&self.state_dir, self.volume_uuid)
    }

    /// With the path that the mount table will show.
    async fn with_whole_path(self) -> Result<Self, Error> {
        let dir = self.state_dir.clone();
        let whole = rt::blocking(move || make_dir(&dir).and_then(|()| whole_path(&dir))).await?;
        Ok(Self { state_dir: whole, ..self })
    }
}

/// A volume that the kernel has as a block device. Dropping it stops serving and leaves the device waiting (or, if
/// nobody else holds the descriptor, failing with `EIO`): call [`Self::detach`] to remove it.
#[derive(Debug)]
pub struct Attached {
    volume_name: String,
    volume_uuid: Uuid,
    mount_dir: PathBuf,
    device: LoopDevice,
    connection: Rc<Connection>,
    serving: RefCell<Option<Task<Ended>>>,
    holder: Option<Holder>,
    /// See [`Self::abort`].
    dead: Cell<bool>,
}

/// Makes `device` a block device of this machine and serves it on the current reactor. If the holder has the volume's
/// descriptor from a process that died, takes over the block device that this one had: programs that use it go on.
///
/// # Errors
/// `NotPermitted` without root, `Unsupported` where the kernel lacks something, `InUse` when a block device left over
/// from an earlier attachment of this volume is still mounted or open, `Holder` when no second holder can be had.
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
    let config = config.with_whole_path().await?;
    let device = Rc::new(device);
    if !config.continues {
        give_up(&config).await?;
    } else if let Some(attached) = take_over(&config, &device).await? {
        return Ok(attached);
    }
    clear_leftovers(&config).await?;
    begin(config, mark, device).await
}

/// Removes what an earlier attachment of the volume has left, which is attached in another way now.
///
/// # Errors
/// `InUse` when its block device is still mounted or open; programs that use it get errors by then.
pub async fn clear(config: AttachConfig) -> Result<(), Error> {
    let config = config.with_whole_path().await?;
    give_up(&config).await?;
    clear_leftovers(&config).await
}

async fn clear_leftovers(config: &AttachConfig) -> Result<(), Error> {
    let (left, volume) = (config.mount_dir(), config.volume_uuid);
    isolated(move || cleanup::clear_leftovers(volume, &left)).await
}

/// Where a volume's file system is mounted.
pub(crate) fn mount_dir(state_dir: &Path, volume: Uuid) -> PathBuf {
    state_dir.join("fuse").join(volume.to_string())
}

/// What travels with the descriptor, for the process that takes over.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct HeldState {
    version: u32,
    loop_number: u32,
    block_size: u32,
    can_resend: u32,
}

const HELD_STATE_VERSION: u32 = 1;
const _: () = assert!(size_of::<HeldState>() <= STATE_LEN_MAX);

/// Continues what a process that died has begun; `None` if there is nothing to continue.
async fn take_over<D: Device + 'static>(
    config: &AttachConfig,
    device: &Rc<D>,
) -> Result<Option<Attached>, Error> {
    let Some(holder) = &config.holder else { return Ok(None) };
    let Some((fuse, state)) = holder.take(config.volume_uuid).await? else { return Ok(None) };
    let state = HeldState::read_from_bytes(&state).ok().filter(|state| state.version == HELD_STATE_VERSION);
    let Some(state) = state.filter(|state| state.can_resend != 0 && state.block_size == config.block_size)
    else {
        tracing::warn!(volume = %config.volume_name, "what the holder has cannot be continued: attaching anew");
        return abandon(config, holder).await;
    };
    let copy = duplicate(&fuse)?;
    let connection = Connection::new(fuse);
    // Before anything is read, so that what was unanswered comes before what is new.
    if let Err(errno) = connection.resend().await {
        tracing::warn!(volume = %config.volume_name, %errno, "the held connection is dead: attaching anew");
        return abandon(config, holder).await;
    }
    let served = serve::serve(Rc::clone(&connection), Rc::clone(device), config.block_size, config.read_only);
    let serving = RefCell::new(Some(rt::spawn(served)));
    let (loop_device, volume) = (LoopDevice { number: state.loop_number }, config.volume_uuid);
    let is_there = move || loop_device.mark().is_some_and(|mark| mark.volume == volume);
    if !isolated(is_there).await {
        tracing::warn!(volume = %config.volume_name, "the block device is gone: attaching anew");
        return abandon(config, holder).await;
    }
    let attached = Attached {
        volume_name: config.volume_name.clone(),
        volume_uuid: volume,
        mount_dir: config.mount_dir(),
        device: loop_device,
        connection,
        serving,
        holder: Some(holder.clone()),
        dead: Cell::new(false),
    };
    attached.hand_over(copy, config.block_size).await?;
    // The volume may have grown while nobody served it.
    attached.resized().await?;
    tracing::info!(volume = %config.volume_name, device = %attached.device_path().display(), "took over");
    Ok(Some(attached))
}

/// Ends what a process that died has left, where others have had the volume since.
async fn give_up(config: &AttachConfig) -> Result<(), Error> {
    let Some(holder) = &config.holder else { return Ok(()) };
    if holder.take(config.volume_uuid).await?.is_some() {
        tracing::warn!(volume = %config.volume_name, "others have had the volume since: its old device fails");
        abandon(config, holder).await?;
    }
    Ok(())
}

/// Ends a held connection that cannot be continued; waiting I/O fails.
async fn abandon(config: &AttachConfig, holder: &Holder) -> Result<Option<Attached>, Error> {
    let dir = config.mount_dir();
    rt::blocking(move || mount::abort(&dir))
        .await
        .map_err(|error| Error::os("cannot end a connection", error))?;
    holder.release(config.volume_uuid).await?;
    Ok(None)
}

fn duplicate(fd: &OwnedFd) -> Result<OwnedFd, Error> {
    fd.try_clone().map_err(|error| Error::os("cannot duplicate a descriptor", error))
}

/// Mounts, serves and makes the loop device.
async fn begin<D: Device + 'static>(
    config: AttachConfig,
    mark: Mark,
    device: Rc<D>,
) -> Result<Attached, Error> {
    let dir = config.mount_dir();
    let (mount_at, source, read_only) = (dir.clone(), mark.to_string(), config.read_only);
    let fuse = rt::blocking(move || {
        make_dir(&mount_at)?;
        let fuse = mount::open_fuse()?;
        mount::mount(&fuse, &source, &mount_at, read_only)?;
        Ok::<_, Error>(fuse)
    })
    .await?;
    let copy = duplicate(&fuse)?;
    let connection = Connection::new(fuse);
    let serving = rt::spawn(serve::serve(Rc::clone(&connection), device, config.block_size, read_only));
    let (file, block_size) = (dir.join(serve::FILE_NAME), config.block_size);
    let made = isolated(move || LoopDevice::make(&file, &Setup { mark: &mark, block_size, read_only })).await;
    let failure = match made {
        Ok(device) => {
            let attached = Attached {
                volume_name: config.volume_name,
                volume_uuid: config.volume_uuid,
                mount_dir: dir.clone(),
                device,
                connection,
                serving: RefCell::new(Some(serving)),
                holder: config.holder,
                dead: Cell::new(false),
            };
            match attached.hand_over(copy, block_size).await {
                Ok(()) => return Ok(attached),
                Err(error) => {
                    attached.detach().await?;
                    error
                }
            }
        }
        Err(error) => error,
    };
    // The block device was never published: end it at once.
    if let Err(errno) = rt::blocking(move || mount::abort(&dir)).await {
        tracing::warn!(%errno, "a mount that failed to become a device stays behind");
    }
    Err(failure)
}

fn make_dir(dir: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| Error::os(format_args!("cannot make folder {}", dir.display()), error))
}

/// The path without links and relative parts, as the kernel shows it and as other processes can use it.
pub(crate) fn whole_path(dir: &Path) -> Result<PathBuf, Error> {
    std::fs::canonicalize(dir)
        .map_err(|error| Error::os(format_args!("cannot find {}", dir.display()), error))
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

    /// Whether the death of this process can be survived: there is a holder, and Linux is 6.9 or later.
    pub fn can_survive(&self) -> bool {
        self.holder.is_some() && self.connection.can_resend()
    }

    /// Gives `copy` of the descriptor to the holder.
    async fn hand_over(&self, copy: OwnedFd, block_size: u32) -> Result<(), Error> {
        let Some(holder) = &self.holder else { return Ok(()) };
        let state = HeldState {
            version: HELD_STATE_VERSION,
            loop_number: self.device.number,
            block_size,
            can_resend: u32::from(self.connection.can_resend()),
        };
        let dir = self.mount_dir.clone();
        let mounted = rt::blocking(mounts).await?;
        let number = mounted.iter().rev().find(|mount| mount.point == dir).map_or(0, |mount| mount.device.1);
        holder.put(self.volume_uuid, copy, number, state.as_bytes().to_vec()).await
    }

    /// Tells the kernel that the device has grown; returns the size in bytes that the block device has now.
    pub async fn resized(&self) -> Result<u64, Error> {
        self.connection.size_changed().await.map_err(|error| {
            Error::os(format_args!("cannot announce the size of {:?}", self.volume_name), error)
        })?;
        let (file, device) = (self.mount_dir.join(serve::FILE_NAME), self.device);
        isolated(move || {
            // The kernel asks for the size when it is looked at.
            std::fs::metadata(&file)
                .map_err(|error| Error::os(format_args!("cannot look at {}", file.display()), error))?;
            device.grow()
        })
        .await
    }

    /// Ends the connection to the kernel for good, for a volume that others have by now: whoever uses the device gets
    /// `EIO`, and no later process takes it over. The device stays until [`Self::detach`].
    pub async fn abort(&self) -> Result<(), Error> {
        self.dead.set(true);
        let dir = self.mount_dir.clone();
        rt::blocking(move || mount::abort(&dir))
            .await
            .map_err(|error| Error::os(format_args!("cannot abort {}", self.mount_dir.display()), error))?;
        match &self.holder {
            Some(holder) => holder.release(self.volume_uuid).await,
            None => Ok(()),
        }
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
        if let Some(holder) = &self.holder {
            holder.release(self.volume_uuid).await?;
        }
        let dir = self.mount_dir.clone();
        isolated(move || std::fs::remove_dir(&dir))
            .await
            .map_err(|error| Error::os(format_args!("cannot remove {}", self.mount_dir.display()), error))
            .or_else(|error| if self.mount_dir.exists() { Err(error) } else { Ok(()) })
    }

    async fn release_loop(&self) -> Result<(), Error> {
        let device = self.device;
        if !rt::blocking(move || device.is_bound()).await {
            return Ok(());
        }
        let (start, dead) = (rt::now(), self.dead.get());
        loop {
            let release = move || if dead { device.release_dead() } else { device.release() };
            let openers = isolated(release).await?;
            if openers.is_empty() {
                break;
            }
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
                isolated(move || loopdev::keep(device)).await?;
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
            match isolated(move || mount::unmount(&dir)).await {
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

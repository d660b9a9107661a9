//! Attaching and detaching: the kernel's controller and its block device, as one thing.

use super::options::{self, Options};
use super::sysfs::{Controller, Head, System};
use super::{Name, Patience};
use crate::isolated::isolated;
use crate::mounts::mounted_anywhere;
use crate::{Error, ErrorKind};
use std::cell::Cell;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

/// How long the kernel and `/dev` may take to show a device after it was connected.
const SHOW_WAIT: Duration = Duration::from_secs(30);
/// How long the kernel may take to see another size.
const GROW_WAIT: Duration = Duration::from_secs(5);
/// How long programs that look at every new device (udev, blkid) may keep it open while it is detached.
const OPENERS_WAIT: Duration = Duration::from_secs(2);
/// How long the kernel may take to see that its connection was ended.
const CUT_OFF_WAIT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);

/// What [`attach()`] is told.
pub struct AttachConfig {
    /// The machine.
    pub system: System,
    /// What the device is called.
    pub name: Name,
    /// The volume's name, for messages.
    pub volume_name: String,
    /// Where this node's target listens, which knows the name by now.
    pub address: SocketAddr,
    /// What host and target prove to each other, in the form of NVMe, if they do.
    pub key: Option<String>,
    /// The size of the volume.
    pub size_bytes: u64,
    /// How long the device waits for an engine.
    pub patience: Patience,
    /// Go on with the device of this name that an engine before has made.
    pub continues: bool,
}

/// A volume that the kernel has as a block device. Dropping it leaves the device, which waits for the next engine: call
/// [`Self::detach`] to remove it.
#[derive(Debug)]
pub struct Attached {
    system: System,
    controller: Controller,
    head: Head,
    patience: Patience,
    /// See [`Self::abort`].
    dead: Cell<bool>,
    /// See [`Self::settle`].
    settled: Cell<bool>,
}

/// Whether there is a device of this name. Blocks, shortly.
pub fn has_device(system: &System, name: &Name) -> bool {
    !system.controllers(|found| found == name).is_empty()
}

/// The devices that the run `run_id` made and that are there. Blocks, shortly.
pub fn attached(system: &System, run_id: &str) -> Vec<PathBuf> {
    let controllers = system.controllers(|name| name.run_id == run_id);
    controllers.iter().filter_map(|controller| system.head(controller)).map(|head| head.device.path).collect()
}

/// The volumes whose devices on a node are not connected. Blocks, shortly.
pub fn lost(system: &System, run_id: &str, node: &str) -> Vec<Uuid> {
    let of_node = system.controllers(|name| name.run_id == run_id && name.node == node);
    of_node.iter().filter(|found| !found.is_live()).map(|found| found.name.volume).collect()
}

/// Lets those of one volume wait for their engine as long as `patience` says, counted from when the connection was lost.
/// Blocks, shortly.
pub fn keep(system: &System, run_id: &str, node: &str, volume: Uuid, patience: Patience) {
    let of_volume =
        system.controllers(|name| name.run_id == run_id && name.node == node && name.volume == volume);
    for controller in of_volume.iter().filter(|controller| !controller.is_live()) {
        if let Err(error) = controller.be_patient(patience) {
            tracing::warn!(%volume, %error, "how long a device waits for its engine is as before");
        }
    }
}

/// Removes a controller that its target does not answer any more, once the kernel has seen that it is cut off: otherwise it
/// says farewell and waits a minute for the answer.
async fn remove_unserved(controller: Controller) -> Result<(), Error> {
    let start = rt::now();
    while controller.is_live() && start.elapsed() < CUT_OFF_WAIT {
        rt::sleep(POLL).await;
    }
    isolated(move || controller.delete()).await
}

/// Removes what earlier attachments of the volume on this node have left, in use or not: what uses it gets errors.
///
/// # Errors
/// What the kernel said.
pub async fn clear(system: &System, run_id: &str, node: &str, volume: Uuid) -> Result<(), Error> {
    let left = system.controllers(|name| name.run_id == run_id && name.node == node && name.volume == volume);
    for controller in left {
        tracing::warn!(%volume, controller = controller.instance, "a device of before is removed");
        remove_unserved(controller).await?;
    }
    Ok(())
}

/// Removes every device of a run, in use or not; returns what was removed. Blocks: not for the reactor's thread.
///
/// # Errors
/// What the kernel said.
pub fn cleanup(system: &System, run_id: &str) -> Result<Vec<String>, Error> {
    let mut removed = Vec::new();
    for controller in system.controllers(|name| name.run_id == run_id) {
        controller.delete()?;
        removed.push(format!("NVMe controller {}", controller.instance));
    }
    Ok(removed)
}

/// Makes the volume a block device of this machine, or goes on with the one that there is.
///
/// # Errors
/// `Unsupported` where the kernel does not connect, `Io` when the device does not appear; what is left of it then is for
/// [`clear`], once the target does not answer it any more.
pub async fn attach(config: AttachConfig) -> Result<Attached, Error> {
    let AttachConfig { system, name, size_bytes, patience, continues, .. } = &config;
    let controller = if *continues {
        let found = system.controllers(|found| found == name).into_iter().next();
        found.ok_or_else(|| {
            Error::new(ErrorKind::Io, "the device of an earlier engine has just gone: try again")
        })?
    } else {
        connect(&config).await?
    };
    match controller.hide_keys() {
        Err(error) if *continues => {
            tracing::warn!(volume = config.volume_name, %error, "its keys can be read");
        }
        hidden => hidden?,
    }
    let start = rt::now();
    loop {
        let head = system.head(&controller);
        // One that goes on may have grown since; the engine sees to it.
        let is_whole = |head: &Head| *continues || head.size_bytes().is_ok_and(|size| size == *size_bytes);
        if let Some(head) = head.filter(is_whole) {
            let (system, patience) = (system.clone(), *patience);
            let (dead, settled) = (Cell::new(false), Cell::new(!*continues));
            return Ok(Attached { system, controller, head, patience, dead, settled });
        }
        if start.elapsed() > SHOW_WAIT || !controller.is_there() {
            let message = format!(
                "the kernel made no block device of volume {:?} in {} s: `dmesg` says why",
                config.volume_name,
                SHOW_WAIT.as_secs()
            );
            return Err(Error::new(ErrorKind::Io, message));
        }
        rt::sleep(POLL).await;
    }
}

/// Connects, which needs the target, so it must not be waited for where that runs.
async fn connect(config: &AttachConfig) -> Result<Controller, Error> {
    let options = Options {
        address: config.address,
        name: &config.name,
        key: config.key.as_deref(),
        patience: config.patience,
    };
    let (system, line) = (config.system.clone(), options.line());
    let answer = isolated(move || system.connect(&line)).await.map_err(|error| {
        let doing =
            format!("the kernel cannot connect volume {:?} to {}", config.volume_name, config.address);
        let advice = format!("{error}; `dmesg` says more");
        Error::os(doing, std::io::Error::new(error.kind(), advice))
    })?;
    let made = options::instance(&answer).and_then(|instance| config.system.controller(instance));
    made.filter(|controller| controller.name == config.name).ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            format!("the kernel does not say what it has connected: {answer:?}"),
        )
    })
}

impl Attached {
    /// Path of the block device.
    pub fn device_path(&self) -> &Path {
        &self.head.device.path
    }

    /// The size that the kernel sees.
    ///
    /// # Errors
    /// When the device is gone.
    pub fn size_bytes(&self) -> Result<u64, Error> {
        self.head.size_bytes()
    }

    /// Whether the kernel still has it: it gives up after a while without a target, and `nvme disconnect` takes it away.
    /// Blocks, shortly.
    pub fn is_there(&self) -> bool {
        self.dead.get() || self.controller.is_there()
    }

    /// Once it is connected again: it waits as long as it was told for the engine after this one.
    pub fn settle(&self) {
        if !self.controller.is_live() {
            return;
        }
        match self.controller.be_patient(self.patience) {
            Ok(()) => self.settled.set(true),
            Err(error) => {
                let device = self.device_path().display();
                tracing::warn!(%device, %error, "a device waits too long for its engine");
            }
        }
    }

    /// Whether it was seen connected, and has been told how long to wait.
    pub fn is_settled(&self) -> bool {
        self.settled.get() || self.dead.get()
    }

    /// Lets the kernel see the size that the volume has now.
    ///
    /// # Errors
    /// When it does not see it in time, as while it is connecting: try again.
    pub async fn resized(&self, size_bytes: u64) -> Result<(), Error> {
        self.controller.rescan()?;
        let start = rt::now();
        while self.size_bytes()? != size_bytes {
            if start.elapsed() > GROW_WAIT {
                let path = self.device_path().display();
                let message =
                    format!("the kernel does not see yet that {path} has grown to {size_bytes} bytes");
                return Err(Error::new(ErrorKind::Io, message));
            }
            rt::sleep(POLL).await;
        }
        Ok(())
    }

    /// Takes the device away from whoever uses it: their I/O fails from now on, for good, because no device has this name
    /// again. The target should not answer any more.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn abort(&self) -> Result<(), Error> {
        self.dead.set(true);
        remove_unserved(self.controller.clone()).await
    }

    /// Removes the block device. May be repeated.
    ///
    /// # Errors
    /// `InUse`, with the name of the mount point or of the programs, when the device is in use; then nothing changes.
    pub async fn detach(&self) -> Result<(), Error> {
        let start = rt::now();
        while self.controller.is_there() {
            let (controller, device) = (self.controller.clone(), self.head.device.clone());
            let release = move || {
                // While it is held nobody can mount it.
                let claim = device.claim()?;
                if let Err(error) = rustix::fs::fsync(&claim)
                    && controller.is_live()
                {
                    return Err(Error::os(format_args!("cannot flush {}", device.path.display()), error));
                }
                let openers = device.openers();
                if openers.is_empty() {
                    controller.delete()?;
                }
                Ok(openers)
            };
            let openers = isolated(release).await?;
            if openers.is_empty() {
                break;
            }
            if start.elapsed() > OPENERS_WAIT {
                let path = self.device_path().display();
                let message = format!("{path} is open in {}: end it first", openers.join(", "));
                return Err(Error::new(ErrorKind::InUse, message));
            }
            rt::sleep(POLL).await;
        }
        self.wait_forgotten().await
    }

    /// One that was taken away stays in the tables of mounts until it is unmounted.
    async fn wait_forgotten(&self) -> Result<(), Error> {
        let (proc, number) = (self.system.proc(), self.head.device.number);
        match rt::blocking(move || mounted_anywhere(&proc, number)).await {
            None => Ok(()),
            Some(point) => {
                let (path, point) = (self.device_path().display(), point.display());
                let message =
                    format!("{path} was taken away and is mounted at {point} still: unmount {point} first");
                Err(Error::new(ErrorKind::InUse, message))
            }
        }
    }
}

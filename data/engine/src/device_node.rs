//! A volume as a block device of this node, as the intent wishes.

use crate::meter::{Meter, Metered};
use crate::{FuseConfig, State};
use device::Device;
use frontend::fuse::{AttachConfig, Attached, Holder, HolderConfig, attach, has_device};
use model::Volume;
use nexus::Nexus;
use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// How long a device waits for this engine to be started again.
const RESTART_LIMIT: Duration = Duration::from_secs(20);

/// The second holder of this node's devices, where one is wished.
pub(crate) fn holder(fuse: &FuseConfig) -> Option<Holder> {
    let config = HolderConfig {
        state_dir: fuse.state_dir.clone(),
        command: fuse.holder.clone()?,
        run_id: fuse.run_id.clone(),
        limit: RESTART_LIMIT,
        supervisor: fuse.supervisor,
    };
    Some(Holder::new(config))
}

/// An attachment that an engine of this node has given.
#[derive(Clone, Copy)]
struct Earlier {
    number: u64,
    /// Of the nexus that gave it, or took it over last.
    epoch: u64,
}

impl Earlier {
    fn read(text: &str) -> Option<Self> {
        let (number, epoch) = text.trim().split_once(' ')?;
        Some(Self { number: number.parse().ok()?, epoch: epoch.parse().ok()? })
    }

    /// What an earlier engine gave, if its block device is still there.
    async fn find(fuse: &FuseConfig, volume: Uuid, file: &Path) -> Option<Self> {
        let (state_dir, path) = (fuse.state_dir.clone(), file.to_owned());
        rt::blocking(move || {
            let left = has_device(&state_dir, volume);
            left.then(|| Self::read(&std::fs::read_to_string(path).ok()?)).flatten()
        })
        .await
    }
}

/// The block device of one volume, if there is one.
#[derive(Default)]
pub(crate) struct DeviceNode {
    attached: RefCell<Option<Attached>>,
    size_bytes: Cell<u64>,
    /// Where the number of the attachment is kept for the engine after this one.
    number_file: RefCell<Option<PathBuf>>,
    /// Why it is not as wished, in one line.
    message: RefCell<Option<String>>,
}

impl DeviceNode {
    /// The path of the device.
    pub(crate) fn path(&self) -> Option<String> {
        self.attached.borrow().as_ref().map(|attached| attached.device_path().display().to_string())
    }

    /// Its size, which follows that of the volume.
    pub(crate) fn size_bytes(&self) -> Option<u64> {
        self.attached.borrow().as_ref().map(|_| self.size_bytes.get())
    }

    /// Why it is not as wished.
    pub(crate) fn message(&self) -> Option<String> {
        self.message.borrow().clone()
    }

    /// Makes the device, lets it grow, or removes it.
    pub(crate) async fn follow(
        &self,
        state: &State,
        fuse: &FuseConfig,
        nexus: &Nexus,
        meter: &Rc<Meter>,
        volume: &Volume,
        wanted: bool,
    ) {
        let present = self.attached.borrow().is_some();
        let followed = match (present, wanted) {
            (false, true) => self.attach(state, fuse, nexus, meter, volume).await,
            (true, true) => self.grow(nexus).await,
            (true, false) => self.detach().await,
            (false, false) => Ok(()),
        };
        *self.message.borrow_mut() = followed.err();
    }

    async fn attach(
        &self,
        state: &State,
        fuse: &FuseConfig,
        nexus: &Nexus,
        meter: &Rc<Meter>,
        volume: &Volume,
    ) -> Result<(), String> {
        let number_file = fuse.state_dir.join(format!("attachment-{}", volume.uuid));
        // A path that reconnects keeps its number (I10); it is one only while nobody else has written.
        let earlier = Earlier::find(fuse, volume.uuid, &number_file).await;
        let earlier = earlier.filter(|earlier| nexus.is_latest(earlier.number, earlier.epoch));
        let attachment = match earlier {
            Some(earlier) => nexus.resume(earlier.number),
            None => nexus.attach().await.map_err(|status| status.to_string())?,
        };
        let (path, text) = (number_file.clone(), format!("{} {}", attachment.number(), nexus.epoch()));
        let size_bytes = attachment.geometry().size().0;
        let attach_config = AttachConfig {
            state_dir: fuse.state_dir.clone(),
            volume_name: volume.name.clone(),
            volume_uuid: volume.uuid,
            run_id: fuse.run_id.clone(),
            block_size: volume.spec.block_size,
            read_only: false,
            holder: state.holder.clone(),
            continues: earlier.is_some(),
        };
        let metered = Metered::new(attachment, Rc::clone(meter));
        let attached = attach(attach_config, metered).await.map_err(|error| error.to_string())?;
        // Only now: until then what is left of an earlier engine may still be there, and is not to be taken for this.
        if let Err(error) = rt::blocking(move || std::fs::write(path, text)).await {
            // It stays for a moment where that fails, too: without the number nobody goes on with it.
            drop(attached.detach().await);
            return Err(format!("cannot write {}: {error}", number_file.display()));
        }
        tracing::info!(volume = volume.name, device = %attached.device_path().display(), "volume is attached");
        self.size_bytes.set(size_bytes);
        *self.number_file.borrow_mut() = Some(number_file);
        *self.attached.borrow_mut() = Some(attached);
        Ok(())
    }

    async fn grow(&self, nexus: &Nexus) -> Result<(), String> {
        let size_bytes = nexus.size().0;
        if size_bytes == self.size_bytes.get() {
            return Ok(());
        }
        let attached = self.attached.take();
        let grown = match &attached {
            Some(attached) => attached.resized().await.map(drop).map_err(|error| error.to_string()),
            None => Ok(()),
        };
        *self.attached.borrow_mut() = attached;
        if grown.is_ok() {
            self.size_bytes.set(size_bytes);
        }
        grown
    }

    /// Makes the device fail for good: others have the volume by now. It stays until nobody uses it.
    pub(crate) async fn abort(&self) -> Result<(), String> {
        let Some(attached) = self.attached.take() else { return Ok(()) };
        let aborted = attached.abort().await;
        *self.attached.borrow_mut() = Some(attached);
        aborted.map_err(|error| error.to_string())
    }

    /// Removes the device.
    ///
    /// # Errors
    /// When it is in use, with the name of the mount; nothing is changed then.
    pub(crate) async fn detach(&self) -> Result<(), String> {
        let Some(attached) = self.attached.take() else { return Ok(()) };
        match attached.detach().await {
            Ok(()) => {
                let number_file = self.number_file.take();
                if let Some(path) = number_file {
                    // A number that stays is not used: there is no device left that could go on.
                    let _removed = rt::blocking(move || std::fs::remove_file(path)).await;
                }
                Ok(())
            }
            Err(error) => {
                *self.attached.borrow_mut() = Some(attached);
                Err(error.to_string())
            }
        }
    }
}

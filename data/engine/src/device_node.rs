//! A volume as a block device of this node, as the intent wishes.

use crate::FuseConfig;
use device::Device;
use frontend::fuse::{AttachConfig, Attached, attach};
use model::Volume;
use nexus::Nexus;
use std::cell::{Cell, RefCell};

/// The block device of one volume, if there is one.
#[derive(Default)]
pub(crate) struct DeviceNode {
    attached: RefCell<Option<Attached>>,
    size_bytes: Cell<u64>,
    /// Why it is not as wished, in one line.
    message: RefCell<Option<String>>,
}

impl DeviceNode {
    /// The path of the device.
    pub(crate) fn path(&self) -> Option<String> {
        self.attached.borrow().as_ref().map(|attached| attached.device_path().display().to_string())
    }

    /// Why it is not as wished.
    pub(crate) fn message(&self) -> Option<String> {
        self.message.borrow().clone()
    }

    /// Makes the device, lets it grow, or removes it.
    pub(crate) async fn follow(&self, config: &FuseConfig, nexus: &Nexus, volume: &Volume, wanted: bool) {
        let present = self.attached.borrow().is_some();
        let followed = match (present, wanted) {
            (false, true) => self.attach(config, nexus, volume).await,
            (true, true) => self.grow(nexus).await,
            (true, false) => self.detach().await,
            (false, false) => Ok(()),
        };
        *self.message.borrow_mut() = followed.err();
    }

    async fn attach(&self, config: &FuseConfig, nexus: &Nexus, volume: &Volume) -> Result<(), String> {
        let attachment = nexus.attach().await.map_err(|status| status.to_string())?;
        let size_bytes = attachment.geometry().size().0;
        let attach_config = AttachConfig {
            state_dir: config.state_dir.clone(),
            volume_name: volume.name.clone(),
            volume_uuid: volume.uuid,
            run_id: config.run_id.clone(),
            block_size: volume.spec.block_size,
            read_only: false,
            holder: None,
        };
        let attached = attach(attach_config, attachment).await.map_err(|error| error.to_string())?;
        tracing::info!(volume = volume.name, device = %attached.device_path().display(), "volume is attached");
        self.size_bytes.set(size_bytes);
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

    /// Removes the device.
    ///
    /// # Errors
    /// When it is in use, with the name of the mount; nothing is changed then.
    pub(crate) async fn detach(&self) -> Result<(), String> {
        let Some(attached) = self.attached.take() else { return Ok(()) };
        match attached.detach().await {
            Ok(()) => Ok(()),
            Err(error) => {
                *self.attached.borrow_mut() = Some(attached);
                Err(error.to_string())
            }
        }
    }
}

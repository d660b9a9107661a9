//! A volume as a block device of this node, as the intent wishes: over FUSE or by NVMe/TCP.
//!
//! # Invariants
//! 1. What a volume is attached by is chosen when there is no device that can go on; until it is detached it stays so.
//! 2. What an engine before has left of a volume goes on only under its number (I10). Else it is ended, whatever it is,
//!    before there is a new device.

use crate::keys::volume_key;
use crate::meter::{Meter, Metered};
use crate::target::Admission;
use crate::{Config, Frontend, FuseConfig, State};
use device::Device;
use frontend::fuse::{Holder, HolderConfig};
use frontend::nvme::{Name, Patience, System};
use frontend::{fuse, nvme};
use model::Volume;
use nexus::{Attachment, Nexus};
use std::cell::{Cell, RefCell};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// How long a device waits for this engine to be started again.
const RESTART_LIMIT: Duration = Duration::from_secs(20);
/// How often devices that wait for an engine that is there are looked at.
pub(crate) const KEEP: Duration = Duration::from_secs(10);
/// How much longer they then wait: were this engine to end for good, they would fail after it.
const KEEP_LIMIT: Duration = Duration::from_secs(300);
/// For how long devices are made over FUSE after one by NVMe/TCP could not be made: to find that out may take long.
const FAILED_REST: Duration = Duration::from_secs(600);

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

/// Says once what devices are made of, and why not of what would be better.
pub(crate) async fn say_what_is_made(config: &Config) {
    let Some(fuse) = &config.fuse else { return };
    let (frontend, has_secret) = (fuse.frontend, config.secret.is_some());
    if frontend == Frontend::Fuse {
        return;
    }
    match rt::blocking(move || nvme::usable(&System::default(), has_secret)).await {
        Ok(found) => tracing::info!(found, "devices are made by NVMe/TCP"),
        Err((why, remedy)) if frontend == Frontend::Auto => {
            tracing::info!(why, remedy, "devices are made over FUSE");
        }
        Err((why, remedy)) => tracing::warn!(why, remedy, "no devices can be made by NVMe/TCP"),
    }
}

/// The volumes whose devices on this node are not connected.
pub(crate) async fn lost(config: &Config) -> Vec<Uuid> {
    let Some(fuse) = &config.fuse else { return Vec::new() };
    let (run_id, node) = (fuse.run_id.clone(), config.node.clone());
    rt::blocking(move || nvme::lost(&System::default(), &run_id, &node)).await
}

/// Lets the device of a volume that is not connected wait for this engine, which was `begun` then and has not opened the
/// volume yet; one that is not `wanted` any more fails soon.
pub(crate) async fn keep(config: &Config, begun: rt::Instant, volume: Uuid, wanted: bool) {
    let Some(fuse) = &config.fuse else { return };
    let (run_id, node) = (fuse.run_id.clone(), config.node.clone());
    let patience = Patience(if wanted { begun.elapsed() + KEEP_LIMIT } else { RESTART_LIMIT });
    rt::blocking(move || nvme::keep(&System::default(), &run_id, &node, volume, patience)).await;
}

/// An attachment that an engine of this node has given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Earlier {
    number: u64,
    /// Of the nexus that gave it, or took it over last.
    epoch: u64,
    by: By,
}

/// By what a volume is a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Fuse,
    /// With the identifier that was drawn for it.
    Nvme(Uuid),
}

impl Earlier {
    fn read(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let (number, epoch) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let by = match words.next() {
            Some(id) => By::Nvme(id.parse().ok()?),
            None => By::Fuse,
        };
        words.next().is_none().then_some(Self { number, epoch, by })
    }

    /// An engine from before there was NVMe/TCP reads none but those of FUSE, and goes on with none of the others.
    fn write(&self) -> String {
        let Self { number, epoch, by } = self;
        match by {
            By::Fuse => format!("{number} {epoch}"),
            By::Nvme(id) => format!("{number} {epoch} {id}"),
        }
    }

    /// What an earlier engine gave, if its block device is still there.
    async fn find(node: &str, fuse: &FuseConfig, volume: Uuid, file: &Path) -> Option<Self> {
        let (node, fuse, path) = (node.to_owned(), fuse.clone(), file.to_owned());
        rt::blocking(move || {
            let earlier = Self::read(&std::fs::read_to_string(path).ok()?)?;
            let is_left = match earlier.by {
                By::Fuse => fuse::has_device(&fuse.state_dir, volume),
                By::Nvme(id) => nvme::has_device(&System::default(), &name(&node, &fuse, volume, id)),
            };
            is_left.then_some(earlier)
        })
        .await
    }
}

fn name(node: &str, fuse: &FuseConfig, volume: Uuid, id: Uuid) -> Name {
    Name { run_id: fuse.run_id.clone(), node: node.to_owned(), volume, id }
}

/// By what a volume becomes a device that is none yet.
///
/// # Errors
/// Where the one that the operator wants cannot be.
async fn choose(state: &State, fuse: &FuseConfig) -> Result<By, String> {
    let has_failed = state.nvme_failed.get().is_some_and(|at| at.elapsed() < FAILED_REST);
    if fuse.frontend == Frontend::Fuse || (fuse.frontend == Frontend::Auto && has_failed) {
        return Ok(By::Fuse);
    }
    let has_secret = state.config.secret.is_some();
    match rt::blocking(move || nvme::usable(&System::default(), has_secret)).await {
        Ok(_) => Ok(By::Nvme(rt::random_uuid())),
        Err((why, remedy)) if fuse.frontend == Frontend::NvmeTcp => {
            Err(format!("no device by NVMe/TCP: {why}; {remedy}, or run the node with --frontend auto"))
        }
        Err((why, _)) => {
            tracing::debug!(why, "devices are made over FUSE");
            Ok(By::Fuse)
        }
    }
}

/// Where the kernel of this node finds its target.
fn own_address(listens: SocketAddr) -> SocketAddr {
    match listens.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => (Ipv4Addr::LOCALHOST, listens.port()).into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => (Ipv6Addr::LOCALHOST, listens.port()).into(),
        _ => listens,
    }
}

/// A block device.
enum Made {
    Fuse(fuse::Attached),
    Nvme { attached: nvme::Attached, admission: RefCell<Option<Admission>> },
}

impl Made {
    fn path(&self) -> String {
        let path = match self {
            Self::Fuse(attached) => attached.device_path(),
            Self::Nvme { attached, .. } => attached.device_path().to_path_buf(),
        };
        path.display().to_string()
    }

    /// Whether it can be used; the kernel may have given one up.
    fn is_there(&self) -> bool {
        match self {
            Self::Fuse(_) => true,
            Self::Nvme { attached, .. } => {
                attached.settle();
                attached.is_there()
            }
        }
    }

    async fn resized(&self, size_bytes: u64) -> Result<(), frontend::Error> {
        match self {
            Self::Fuse(attached) => attached.resized().await.map(drop),
            Self::Nvme { attached, .. } => attached.resized(size_bytes).await,
        }
    }

    async fn abort(&self) -> Result<(), frontend::Error> {
        match self {
            Self::Fuse(attached) => attached.abort().await,
            Self::Nvme { attached, admission } => {
                // First: what waits for an answer must not hold up the end.
                drop(admission.take());
                attached.abort().await
            }
        }
    }

    async fn detach(&self) -> Result<(), frontend::Error> {
        match self {
            Self::Fuse(attached) => attached.detach().await,
            Self::Nvme { attached, .. } => attached.detach().await,
        }
    }
}

/// The block device of one volume, if there is one.
#[derive(Default)]
pub(crate) struct DeviceNode {
    attached: RefCell<Option<Made>>,
    size_bytes: Cell<u64>,
    /// Where the number of the attachment is kept for the engine after this one.
    number_file: RefCell<Option<PathBuf>>,
    /// Why it is not as wished, in one line.
    message: RefCell<Option<String>>,
}

impl DeviceNode {
    /// The path of the device.
    pub(crate) fn path(&self) -> Option<String> {
        self.attached.borrow().as_ref().map(Made::path)
    }

    /// Its size, which follows that of the volume.
    pub(crate) fn size_bytes(&self) -> Option<u64> {
        self.attached.borrow().as_ref().map(|_| self.size_bytes.get())
    }

    /// Whether nothing is to be done for it once the kernel is connected.
    pub(crate) fn is_settled(&self) -> bool {
        match self.attached.borrow().as_ref() {
            Some(Made::Nvme { attached, .. }) => attached.is_settled(),
            _ => true,
        }
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
        self.look_after();
        let present = self.attached.borrow().is_some();
        let followed = match (present, wanted) {
            (false, true) => self.attach(state, fuse, nexus, meter, volume).await,
            (true, true) => self.grow(nexus).await,
            (true, false) => self.detach().await,
            (false, false) => Ok(()),
        };
        *self.message.borrow_mut() = followed.err();
    }

    /// Forgets a device that the kernel has given up: what is mounted on it fails, and the next one is another.
    fn look_after(&self) {
        let gone = self.attached.borrow().as_ref().is_some_and(|made| !made.is_there());
        if gone && let Some(made) = self.attached.take() {
            tracing::warn!(
                device = made.path(),
                "the kernel has given the device up: it is made anew, under another name"
            );
        }
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
        let earlier = Earlier::find(&state.config.node, fuse, volume.uuid, &number_file).await;
        let earlier = earlier.filter(|earlier| nexus.is_latest(earlier.number, earlier.epoch));
        let (by, continues) = match earlier {
            Some(earlier) => (earlier.by, Some(earlier.number)),
            None => (choose(state, fuse).await?, None),
        };
        let asked = Asked { state, fuse, nexus, meter, volume, number_file: &number_file };
        let made = asked.make(by, continues).await;
        let (made, size_bytes) = match (made, by) {
            // What is new is made by what works; what is there stays what it is.
            (Err(why), By::Nvme(_))
                if continues.is_none() && fuse.frontend == Frontend::Auto && nexus.stopped().is_none() =>
            {
                state.nvme_failed.set(Some(rt::now()));
                tracing::warn!(volume = volume.name, why, "no device by NVMe/TCP: it is made over FUSE");
                asked.make(By::Fuse, None).await?
            }
            (made, _) => made?,
        };
        tracing::info!(volume = volume.name, device = made.path(), "volume is attached");
        self.size_bytes.set(size_bytes);
        *self.number_file.borrow_mut() = Some(number_file);
        *self.attached.borrow_mut() = Some(made);
        Ok(())
    }

    async fn grow(&self, nexus: &Nexus) -> Result<(), String> {
        let size_bytes = nexus.size().0;
        if size_bytes == self.size_bytes.get() {
            return Ok(());
        }
        let attached = self.attached.take();
        let grown = match &attached {
            Some(made) => made.resized(size_bytes).await.map_err(|error| error.to_string()),
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

/// A device that is to be made.
struct Asked<'a> {
    state: &'a State,
    fuse: &'a FuseConfig,
    nexus: &'a Nexus,
    meter: &'a Rc<Meter>,
    volume: &'a Volume,
    number_file: &'a Path,
}

impl Asked<'_> {
    /// Makes it, or goes on with the one that is there under the number that it `continues`. The device, and its size.
    async fn make(&self, by: By, continues: Option<u64>) -> Result<(Made, u64), String> {
        let Self { state, fuse, nexus, meter, volume, number_file } = *self;
        let attachment = match continues {
            Some(number) => nexus.resume(number),
            None => nexus.attach().await.map_err(|status| status.to_string())?,
        };
        let note = Note {
            earlier: Earlier { number: attachment.number(), epoch: nexus.epoch(), by },
            continues: continues.is_some(),
            path: number_file.to_owned(),
        };
        let metered = Metered::new(attachment, Rc::clone(meter));
        match by {
            By::Fuse => make_fuse(state, fuse, volume, metered, &note).await,
            By::Nvme(id) => make_nvme(state, fuse, volume, metered, &note, id).await,
        }
    }
}

/// What the engine after this one finds.
struct Note {
    earlier: Earlier,
    /// It was there.
    continues: bool,
    path: PathBuf,
}

impl Note {
    async fn write(&self) -> Result<(), String> {
        let (path, text) = (self.path.clone(), self.earlier.write());
        let written = rt::blocking(move || std::fs::write(path, text)).await;
        written.map_err(|error| format!("cannot write {}: {error}", self.path.display()))
    }
}

fn fuse_config(state: &State, fuse: &FuseConfig, volume: &Volume, continues: bool) -> fuse::AttachConfig {
    fuse::AttachConfig {
        state_dir: fuse.state_dir.clone(),
        volume_name: volume.name.clone(),
        volume_uuid: volume.uuid,
        run_id: fuse.run_id.clone(),
        block_size: volume.spec.block_size,
        read_only: false,
        holder: state.holder.clone(),
        continues,
    }
}

/// The device over FUSE, and the size that it has.
async fn make_fuse(
    state: &State,
    fuse: &FuseConfig,
    volume: &Volume,
    attachment: Metered<Attachment>,
    note: &Note,
) -> Result<(Made, u64), String> {
    // Invariant 2.
    let said = |error: frontend::Error| error.to_string();
    nvme::clear(&System::default(), &fuse.run_id, &state.config.node, volume.uuid).await.map_err(said)?;
    let size_bytes = attachment.geometry().size().0;
    let config = fuse_config(state, fuse, volume, note.continues);
    let attached = fuse::attach(config, attachment).await.map_err(said)?;
    // Only now: until then what is left of an earlier engine may still be there, and is not to be taken for this.
    if let Err(error) = note.write().await {
        // It stays for a moment where that fails, too: without the number nobody goes on with it.
        drop(attached.detach().await);
        return Err(error);
    }
    Ok((Made::Fuse(attached), size_bytes))
}

/// The device by NVMe/TCP, and the size that it has.
async fn make_nvme(
    state: &State,
    fuse: &FuseConfig,
    volume: &Volume,
    attachment: Metered<Attachment>,
    note: &Note,
    id: Uuid,
) -> Result<(Made, u64), String> {
    let (system, name) = (System::default(), name(&state.config.node, fuse, volume.uuid, id));
    let said = |error: frontend::Error| error.to_string();
    if !note.continues {
        // Invariant 2.
        nvme::clear(&system, &fuse.run_id, &state.config.node, volume.uuid).await.map_err(said)?;
        fuse::clear(fuse_config(state, fuse, volume, false)).await.map_err(said)?;
    }
    // Before there is one: its name is no other's, so that it is not taken for what was there before.
    note.write().await?;
    let secret = state.config.secret.as_ref();
    let config = nvme::AttachConfig {
        key: secret.map(|secret| volume_key(secret, volume.uuid, &name.hostnqn()).reveal()),
        volume_name: volume.name.clone(),
        address: own_address(state.address),
        size_bytes: attachment.geometry().size().0,
        patience: Patience(RESTART_LIMIT),
        continues: note.continues,
        system: system.clone(),
        name,
    };
    let admission = state.exports.admit(&config.name, config.address.ip(), attachment);
    let attached = match nvme::attach(config).await {
        Ok(attached) => attached,
        Err(error) => {
            // First: what waits for an answer must not hold up the end.
            drop(admission);
            let left = nvme::clear(&system, &fuse.run_id, &state.config.node, volume.uuid);
            left.await.map_err(said)?;
            return Err(error.to_string());
        }
    };
    // What the kernel knows: the volume may have grown while nobody served it.
    let size_bytes = attached.size_bytes().map_err(said)?;
    Ok((Made::Nvme { attached, admission: RefCell::new(Some(admission)) }, size_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_whole_or_not_at_all() {
        for by in [By::Fuse, By::Nvme(Uuid::from_u128(7))] {
            let note = Earlier { number: 3, epoch: 2, by };
            assert_eq!(Earlier::read(&note.write()), Some(note));
        }
        for odd in ["", "3", "3 x", "3 2 x", "3 2 00000000-0000-0000-0000-000000000007 4", "-3 2"] {
            assert_eq!(Earlier::read(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn an_engine_from_before_nvme_does_not_take_its_notes_for_those_of_fuse() {
        // As it read them.
        let read = |text: &str| {
            let (number, epoch) = text.trim().split_once(' ')?;
            Some((number.parse::<u64>().ok()?, epoch.parse::<u64>().ok()?))
        };
        let note = |by| Earlier { number: 3, epoch: 2, by }.write();
        assert_eq!(read(&note(By::Fuse)), Some((3, 2)));
        assert_eq!(read(&note(By::Nvme(Uuid::nil()))), None);
    }

    #[test]
    fn the_kernel_finds_the_target_of_its_own_node() {
        for (listens, own) in [
            ("0.0.0.0:4420", "127.0.0.1:4420"),
            ("[::]:4420", "[::1]:4420"),
            ("10.0.0.7:4420", "10.0.0.7:4420"),
        ] {
            assert_eq!(own_address(listens.parse().unwrap()), own.parse().unwrap());
        }
    }
}

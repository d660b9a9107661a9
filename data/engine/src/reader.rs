//! One volume that this node is wished to read: a block device of its own that refuses writes, over a [`Follower`].
//!
//! # Invariants
//! 1. A device is of one `attachSerial`, within which nobody has written. What the kernel remembers of it is never taken
//!    for another: for a new number it is made new, and until the old one is gone there is none.
//! 2. Where others have the volume by now, or another number is wished, whoever still uses the old device gets errors.
//! 3. An engine that is started again goes on with a device of the same number, as a file beside it says, and at once:
//!    what is asked of the device waits for the volume to be open, and the device does not.

use crate::follower::Follower;
use crate::{ControlError, FuseConfig, State};
use frontend::fuse::{AttachConfig, Attached, attach, has_device};
use model::{ReaderReport, Volume};
use rt::Task;
use rt::sync::Event;
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// The same while it is not as wished.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// What tells the identity of a reader's device from that of the volume's own, which may still be there.
const READER: u128 = 0x7265_6164_6572;

/// The task of one volume that is read here.
pub(crate) struct ReaderTask {
    reader: Rc<Reader>,
    task: Task<()>,
}

struct Reader {
    name: String,
    volume: Uuid,
    changed: Event,
    ending: Cell<bool>,
    over: Cell<bool>,
    shown: RefCell<Option<Rc<Shown>>>,
    /// The number that is wished.
    serial: Cell<u64>,
    message: RefCell<Option<String>>,
    /// Why it cannot end now.
    refused: RefCell<Option<String>>,
}

/// A device that is there.
struct Shown {
    attached: Attached,
    follower: Follower,
    path: String,
    serial: u64,
    place: Place,
    size_bytes: Cell<u64>,
    dead: Cell<bool>,
}

impl ReaderTask {
    /// Begins to read a volume.
    pub(crate) fn start(state: &Rc<State>, volume: &Volume) -> Self {
        let reader = Rc::new(Reader {
            name: volume.name.clone(),
            volume: volume.uuid,
            changed: Event::new(),
            ending: Cell::new(false),
            over: Cell::new(false),
            shown: RefCell::default(),
            serial: Cell::new(volume.intent.attach_serial),
            message: RefCell::default(),
            refused: RefCell::default(),
        });
        let task = rt::spawn(Rc::clone(&reader).run(Rc::clone(state)));
        Self { reader, task }
    }

    /// What is wished may have changed.
    pub(crate) fn look(&self) {
        self.reader.changed.notify();
    }

    /// Whether it has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.reader.over.get()
    }

    /// The volume's name.
    pub(crate) fn name(&self) -> &str {
        &self.reader.name
    }

    /// What the store is told.
    pub(crate) fn report(&self) -> ReaderReport {
        let shown = self.reader.shown.borrow();
        ReaderReport {
            volume: self.reader.volume,
            attach_serial: shown.as_ref().map_or_else(|| self.reader.serial.get(), |shown| shown.serial),
            device: shown.as_ref().map(|shown| shown.path.clone()),
            size_bytes: shown.as_ref().map_or(0, |shown| shown.size_bytes.get()),
            message: self.reader.message.borrow().clone(),
        }
    }

    /// Removes the device.
    ///
    /// # Errors
    /// Gives itself back, with the reason, when its device is in use; it goes on then.
    pub(crate) async fn close(self) -> Result<(), (Self, String)> {
        *self.reader.refused.borrow_mut() = None;
        self.reader.ending.set(true);
        self.reader.changed.notify();
        while !self.is_over() {
            let refused = self.reader.refused.take();
            if let Some(reason) = refused {
                self.reader.ending.set(false);
                return Err((self, reason));
            }
            rt::race(self.reader.changed.wait(), rt::sleep(LOOK_AGAIN)).await;
        }
        self.task.await;
        Ok(())
    }
}

impl Reader {
    async fn run(self: Rc<Self>, state: Rc<State>) {
        loop {
            let changed = self.changed.wait();
            let before = self.said();
            let followed = self.follow(&state).await;
            let look = if followed == Ok(Next::Rest) { LOOK } else { LOOK_AGAIN };
            if followed == Ok(Next::End) {
                break;
            }
            let message = match &followed {
                Err(message) => Some(message.clone()),
                Ok(_) if self.waits() => Some("reads wait until the volume is open".to_owned()),
                Ok(_) => None,
            };
            *self.message.borrow_mut() = message;
            if self.said() != before {
                state.changed_here.notify();
            }
            if followed != Ok(Next::Go) {
                rt::race(changed, rt::sleep(look)).await;
            }
        }
        self.over.set(true);
        self.changed.notify();
        state.changed_here.notify();
    }

    /// What of the report changes.
    fn said(&self) -> (Option<(String, u64)>, Option<String>) {
        let shown = self.shown.borrow();
        let shown = shown.as_ref().map(|shown| (shown.path.clone(), shown.size_bytes.get()));
        (shown, self.message.borrow().clone())
    }

    fn waits(&self) -> bool {
        self.shown.borrow().as_ref().is_some_and(|shown| shown.follower.waits())
    }

    /// Does what is wished; answers what comes next, or why it is not so yet.
    async fn follow(&self, state: &Rc<State>) -> Result<Next, String> {
        let shown = self.shown.borrow().clone();
        let volume = match self.wish(state, shown.as_deref()).await {
            Ok(volume) => volume,
            Err(error) => return Err(format!("the store cannot be asked: {error}")),
        };
        let wished = volume.as_ref().filter(|volume| !self.ending.get() && state.reads(volume));
        if let Some(volume) = wished {
            self.serial.set(volume.intent.attach_serial);
        }
        match (shown, wished) {
            (None, None) => Ok(Next::End),
            (None, Some(volume)) => self.make(state, volume).await.map(|()| Next::Rest),
            (Some(shown), Some(volume)) if shown.serial == volume.intent.attach_serial => {
                shown.grow().await.map(|()| Next::Rest)
            }
            (Some(shown), _) => {
                let serial = volume.as_ref().map(|volume| volume.intent.attach_serial);
                let removed = self.remove(&shown).await;
                if let Err(reason) = &removed {
                    // Invariant 2.
                    if serial != Some(shown.serial) {
                        shown.abort(&self.name).await;
                    }
                    if self.ending.get() {
                        *self.refused.borrow_mut() = Some(reason.clone());
                        self.changed.notify();
                    }
                }
                removed.map(|()| Next::Go)
            }
        }
    }

    /// The volume as watches have told, as long as the device is as they say; else as the store itself says.
    async fn wish(&self, state: &State, shown: Option<&Shown>) -> Result<Option<Volume>, ControlError> {
        let known = state.control.known();
        let told = known.as_ref().and_then(|known| known.volumes.get(&self.name)).map(|item| &item.value);
        let told = told.filter(|volume| volume.uuid == self.volume);
        let is_so = |volume: &Volume| {
            state.reads(volume) && shown.is_some_and(|shown| shown.serial == volume.intent.attach_serial)
        };
        if let Some(volume) = told.filter(|volume| is_so(volume)) {
            return Ok(Some(volume.clone()));
        }
        let found = state.control.volume(&self.name).await?;
        Ok(found.filter(|volume| volume.uuid == self.volume))
    }

    async fn make(&self, state: &Rc<State>, volume: &Volume) -> Result<(), String> {
        let Some(fuse) = &state.config.fuse else {
            return Err("this node's engine does not run as root, so it makes no block devices".to_owned());
        };
        let place = Place::of(fuse, volume);
        let earlier = place.earlier().await;
        let follower = match earlier {
            Some(size_bytes) => Follower::new(state, volume, size_bytes),
            None => Follower::open(state, volume).await.map_err(|_| {
                let owner = volume.intent.owner.as_deref().map(|node| format!(" on node {node}"));
                format!("waits until the volume is open{}", owner.unwrap_or_default())
            })?,
        };
        let config = AttachConfig {
            state_dir: fuse.state_dir.clone(),
            volume_name: volume.name.clone(),
            volume_uuid: place.identity,
            run_id: fuse.run_id.clone(),
            block_size: volume.spec.block_size,
            read_only: true,
            holder: state.holder.clone(),
            continues: earlier.is_some(),
        };
        let size_bytes = follower.size_bytes();
        let attached = attach(config, follower.clone()).await.map_err(|error| error.to_string())?;
        // Only now: until then what is left of an earlier engine may still be there, and is not to be taken for this.
        if let Err(error) = place.note(size_bytes).await {
            drop(attached.detach().await);
            return Err(error);
        }
        let path = attached.device_path().display().to_string();
        tracing::info!(volume = volume.name, device = path, "volume is attached read only");
        let (serial, size_bytes, dead) = (place.serial, Cell::new(size_bytes), Cell::new(false));
        let shown = Shown { attached, follower, path, serial, place, size_bytes, dead };
        *self.shown.borrow_mut() = Some(Rc::new(shown));
        Ok(())
    }

    async fn remove(&self, shown: &Shown) -> Result<(), String> {
        shown.attached.detach().await.map_err(|error| error.to_string())?;
        let file = shown.place.file.clone();
        // A number that stays is not used: there is no device left that could go on.
        let _removed = rt::blocking(move || std::fs::remove_file(file)).await;
        *self.shown.borrow_mut() = None;
        Ok(())
    }
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Nothing, until something changes.
    Rest,
    /// The next step.
    Go,
    /// It is over.
    End,
}

impl Shown {
    async fn grow(&self) -> Result<(), String> {
        let size_bytes = self.follower.size_bytes();
        if size_bytes == self.size_bytes.get() {
            return Ok(());
        }
        // First: an engine after this one must not know less than the kernel does.
        self.place.note(size_bytes).await?;
        self.attached.resized().await.map_err(|error| error.to_string())?;
        self.size_bytes.set(size_bytes);
        Ok(())
    }

    async fn abort(&self, name: &str) {
        if self.dead.get() {
            return;
        }
        tracing::warn!(
            volume = name,
            device = self.path,
            "others have the volume; who still reads it here gets errors"
        );
        match self.attached.abort().await {
            Ok(()) => self.dead.set(true),
            Err(error) => tracing::error!(volume = name, %error, "the device cannot be made to fail"),
        }
    }
}

/// What tells an engine that is started again which device is there (invariant 3).
#[derive(Clone)]
struct Place {
    state_dir: PathBuf,
    identity: Uuid,
    serial: u64,
    file: PathBuf,
}

impl Place {
    fn of(fuse: &FuseConfig, volume: &Volume) -> Self {
        Self {
            state_dir: fuse.state_dir.clone(),
            identity: Uuid::from_u128(volume.uuid.as_u128() ^ READER),
            serial: volume.intent.attach_serial,
            file: fuse.state_dir.join(format!("reader-{}", volume.uuid)),
        }
    }

    /// The size of the device that an earlier engine has left, if it has this number.
    async fn earlier(&self) -> Option<u64> {
        let place = self.clone();
        rt::blocking(move || {
            let text = std::fs::read_to_string(&place.file).ok()?;
            let (serial, size_bytes) = read_note(&text)?;
            (serial == place.serial && has_device(&place.state_dir, place.identity)).then_some(size_bytes)
        })
        .await
    }

    /// Notes what is there.
    async fn note(&self, size_bytes: u64) -> Result<(), String> {
        let (file, text) = (self.file.clone(), format!("{} {size_bytes}", self.serial));
        let written = rt::blocking(move || std::fs::write(file, text)).await;
        written.map_err(|error| format!("cannot write {}: {error}", self.file.display()))
    }
}

fn read_note(text: &str) -> Option<(u64, u64)> {
    let (serial, size_bytes) = text.trim().split_once(' ')?;
    Some((serial.parse().ok()?, size_bytes.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_whole_or_not_at_all() {
        assert_eq!(read_note("12 1048576"), Some((12, 1 << 20)));
        for odd in ["", "12", "12 ", "x 1", "12 -1", "12 1 1"] {
            assert_eq!(read_note(odd), None, "{odd:?}");
        }
    }
}

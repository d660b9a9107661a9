//! A device that reads a volume wherever its nexus is: a plain call on this node, the target of the owner's elsewhere.
//!
//! # Invariants
//! 1. A read that finds no way waits for one, at most [`READ_LIMIT`]: when the owner dies or hands over, a reader waits as
//!    long as a writer would, and sees no error. Only reads are repeated, and they change nothing.
//! 2. Which node to ask is what watches have told; that it is the right one is for that node to say: none but the nexus
//!    that has the volume lets readers in, and those only that are of now.

use crate::State;
use crate::dial::connect_reader;
use crate::meter::Metered;
use crate::target::Reading;
use device::{BlockCount, Device, Geometry, Lba, Status};
use model::Volume;
use rt::sync::Mutex;
use rt::{DmaBuf, DmaBytes, Durability, Instant};
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;
use uuid::Uuid;

/// How long a read waits for a way: several times what a nexus needs to be opened elsewhere when its node dies.
pub(crate) const READ_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks for a way.
const PAUSE: Duration = Duration::from_millis(200);

/// A volume as it is read on this node; a cheap handle.
#[derive(Clone)]
pub struct Follower(Rc<Inner>);

struct Inner {
    state: Weak<State>,
    name: String,
    volume: Uuid,
    /// The `attachSerial` of the device.
    serial: u64,
    geometry: Cell<Geometry>,
    way: RefCell<Option<Way>>,
    finding: Mutex<()>,
    /// Nobody looks for a way before.
    look_at: Cell<Instant>,
}

#[derive(Clone)]
enum Way {
    Here(Metered<Reading>),
    There(nvmf::Namespace),
}

impl Way {
    fn is_dead(&self) -> bool {
        match self {
            Self::Here(_) => false,
            Self::There(namespace) => namespace.association().is_dead(),
        }
    }

    fn geometry(&self) -> Geometry {
        match self {
            Self::Here(device) => device.geometry(),
            Self::There(device) => device.geometry(),
        }
    }

    async fn read(&self, lba: Lba, buf: DmaBuf) -> Result<DmaBuf, Status> {
        match self {
            Self::Here(device) => device.read(lba, buf).await,
            Self::There(device) => device.read(lba, buf).await,
        }
    }
}

impl Follower {
    /// The volume, once there is a way to it.
    pub(crate) async fn open(state: &Rc<State>, volume: &Volume) -> Result<Self, Status> {
        let follower = Self::new(state, volume, 0);
        follower.way().await?;
        Ok(follower)
    }

    /// The volume, of which so much is known to be there.
    pub(crate) fn new(state: &Rc<State>, volume: &Volume, size_bytes: u64) -> Self {
        let block_size = volume.spec.block_size;
        let geometry = Geometry { block_size, blocks: BlockCount(size_bytes / u64::from(block_size)) };
        Self(Rc::new(Inner {
            state: Rc::downgrade(state),
            name: volume.name.clone(),
            volume: volume.uuid,
            serial: volume.intent.attach_serial,
            geometry: Cell::new(geometry),
            way: RefCell::default(),
            finding: Mutex::new(()),
            look_at: Cell::new(rt::now()),
        }))
    }

    /// The size by now.
    pub(crate) fn size_bytes(&self) -> u64 {
        let way = self.0.way.borrow().clone();
        if let Some(way) = way {
            self.note_geometry(&way);
        }
        self.geometry().size().0
    }

    /// Whether there is no way now: reads wait.
    pub(crate) fn waits(&self) -> bool {
        self.0.way.borrow().as_ref().is_none_or(Way::is_dead)
    }

    /// A volume does not shrink.
    fn note_geometry(&self, way: &Way) {
        let (seen, known) = (way.geometry(), self.geometry());
        if seen.blocks > known.blocks {
            self.0.geometry.set(seen);
        }
    }

    fn living(&self) -> Option<Way> {
        self.0.way.borrow().clone().filter(|way| !way.is_dead())
    }

    /// A way that was not dead a moment ago.
    async fn way(&self) -> Result<Way, Status> {
        if let Some(way) = self.living() {
            return Ok(way);
        }
        let _turn = self.0.finding.lock().await;
        if let Some(way) = self.living() {
            return Ok(way);
        }
        if rt::now() < self.0.look_at.get() {
            return Err(Status::Gone);
        }
        let found = self.find().await;
        self.0.look_at.set(rt::now() + PAUSE);
        let way = found?;
        self.note_geometry(&way);
        *self.0.way.borrow_mut() = Some(way.clone());
        Ok(way)
    }

    async fn find(&self) -> Result<Way, Status> {
        let state = self.0.state.upgrade().ok_or(Status::Gone)?;
        if let Some(reading) = state.exports.reading(self.0.volume, self.0.serial) {
            return Ok(Way::Here(reading));
        }
        let known = state.control.known();
        let volume = known.as_ref().and_then(|known| known.volumes.get(&self.0.name)).map(|item| &item.value);
        let owner = volume
            .filter(|volume| volume.uuid == self.0.volume)
            .and_then(|volume| volume.intent.owner.clone());
        match owner.filter(|owner| *owner != state.config.node) {
            Some(owner) => {
                let connected = connect_reader(&state, &owner, self.0.volume, self.0.serial).await;
                connected.map(Way::There)
            }
            None => Err(Status::Gone),
        }
    }
}

/// Whether another way may do better.
const fn is_of_the_way(status: Status) -> bool {
    matches!(status, Status::Gone | Status::TimedOut | Status::Fenced | Status::Aborted)
}

impl Device for Follower {
    fn geometry(&self) -> Geometry {
        self.0.geometry.get()
    }

    async fn read(&self, lba: Lba, buf: DmaBuf) -> Result<DmaBuf, Status> {
        let (deadline, len, mut first) = (rt::now() + READ_LIMIT, buf.len(), Some(buf));
        loop {
            let read = match self.way().await {
                Ok(way) => {
                    let buf = first.take().unwrap_or_else(|| DmaBuf::new(len));
                    way.read(lba, buf).await
                }
                Err(status) => Err(status),
            };
            match read {
                Err(status) if is_of_the_way(status) && rt::now() < deadline => {
                    self.0.way.take();
                    rt::sleep(PAUSE).await;
                }
                ended => return ended,
            }
        }
    }

    async fn write(&self, _: Lba, _: DmaBytes, _: Durability) -> Result<(), Status> {
        Err(Status::Invalid)
    }

    async fn write_zeroes(&self, _: Lba, _: BlockCount, _: Durability) -> Result<(), Status> {
        Err(Status::Invalid)
    }

    async fn unmap(&self, _: Lba, _: BlockCount) -> Result<(), Status> {
        Err(Status::Invalid)
    }

    async fn flush(&self) -> Result<(), Status> {
        Ok(())
    }
}

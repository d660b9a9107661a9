//! The test bed: a volume whose members are pools on simulated disks, reached by plain calls, with a record in memory.

use device::{AnyDevice, DeviceUri};
use model::{MemberRecord, MemberState, VolumeRecord};
use nexus::leg::{Leg, Port, Session};
use nexus::{Config, Nexus, OpenError, Planted, RecordError, RecordFuture, Records, Versioned};
use pool::{FormatOptions, Pool, ReplicaConfig};
use rt::DmaBuf;
use rt::sim::{SimDisk, World};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;
/// The volume.
pub(crate) const VOLUME: Uuid = Uuid::from_u128(0xB10C);
/// Its size.
pub(crate) const SIZE: u64 = 8 << 20;

/// Runs `body` on a machine of a simulated world.
pub(crate) fn simulated<T: 'static, F: Future<Output = T> + 'static>(
    seed: u64,
    body: impl FnOnce(World) -> F + 'static,
) -> T {
    let world = World::new(seed);
    let node = world.add_node("n1");
    let inside = world.clone();
    let task = world.spawn_on(node, async move { body(inside).await });
    world.run(task)
}

/// Milliseconds.
pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A pool on a disk of its own, with one replica.
pub(crate) struct Place {
    pub(crate) disk: SimDisk,
    pub(crate) port: Port,
    pub(crate) entry: MemberRecord,
    _pool: Pool<AnyDevice>,
    /// Whether dialling it fails.
    away: Cell<bool>,
    sessions: RefCell<Vec<Session>>,
}

impl Place {
    /// Makes a disk of `disk_bytes` with a pool and a replica.
    pub(crate) async fn new(world: &World, number: u128, disk_bytes: u64) -> Rc<Self> {
        let path = format!("/disk{number}");
        let node = world.node("n1").expect("the bed's machine");
        let disk = world.add_disk(node, &path, disk_bytes, 4096);
        let uri: DeviceUri = format!("disk://{path}").parse().expect("a URI");
        let device = device::open(&uri).await.expect("a disk");
        let options = FormatOptions {
            cluster: Uuid::from_u128(1),
            pool: Uuid::from_u128(0x100 + number),
            name: "disk".into(),
            node: Some("n1".into()),
            force: false,
        };
        Pool::format(&device, &options).await.expect("an empty disk");
        let pool = Pool::open(device, Uuid::from_u128(0xB007)).await.expect("just made");
        let replica = Uuid::from_u128(0x200 + number);
        let config = ReplicaConfig {
            replica,
            volume: VOLUME,
            volume_name: "vol".into(),
            size_bytes: SIZE,
            block_size: 4096,
            copies: 2,
        };
        pool.create_replica(&config).await.expect("there is room");
        let incarnation = pool.info().label.incarnation;
        let handle = pool.replica(replica).expect("just made");
        let port = Port::new(handle, incarnation, Uuid::from_u128(0xB007), Planted::Nothing);
        let entry = MemberRecord::new(replica, options.pool, format!("n{number}"));
        Rc::new(Self { disk, port, entry, _pool: pool, away: Cell::new(false), sessions: RefCell::default() })
    }

    /// Breaks its connections and lets it not be dialled until [`Self::back`].
    pub(crate) fn cut(&self) {
        self.away.set(true);
        for session in self.sessions.take() {
            rt::spawn(async move { session.close().await }).detach();
        }
    }

    /// Lets it be reached again.
    pub(crate) fn back(&self) {
        self.away.set(false);
    }

    fn dial(&self) -> Result<Leg, device::Status> {
        if self.away.get() {
            return Err(device::Status::Gone);
        }
        let session = self.port.open();
        self.sessions.borrow_mut().push(session.clone());
        Ok(Leg::Local(session))
    }
}

/// The record of the volume, in a store that answers after a moment.
pub(crate) struct Store(RefCell<Versioned>);

impl Store {
    /// Of a volume that was never opened.
    pub(crate) fn new(places: &[Rc<Place>]) -> Rc<Self> {
        let members = places.iter().map(|place| place.entry.clone()).collect();
        Rc::new(Self(RefCell::new(Versioned {
            record: VolumeRecord::new(VOLUME, SIZE, 4096, members),
            revision: 1,
        })))
    }

    /// The record.
    pub(crate) fn record(&self) -> VolumeRecord {
        self.0.borrow().record.clone()
    }

    /// Sets the store back, or on.
    pub(crate) fn set(&self, record: VolumeRecord) {
        let mut current = self.0.borrow_mut();
        *current = Versioned { record, revision: current.revision + 1 };
    }

    /// The state of a member.
    pub(crate) fn state(&self, place: &Place) -> MemberState {
        let record = self.record();
        record.members.iter().find(|m| m.replica == place.entry.replica).expect("a member").state
    }
}

impl Records for Store {
    fn read(&self, _volume: Uuid) -> RecordFuture<'_, Versioned> {
        Box::pin(async move {
            rt::sleep(ms(1)).await;
            Ok(self.0.borrow().clone())
        })
    }

    fn replace(&self, revision: u64, record: VolumeRecord) -> RecordFuture<'_, u64> {
        Box::pin(async move {
            rt::sleep(ms(1)).await;
            let mut current = self.0.borrow_mut();
            if current.revision != revision {
                return Err(RecordError::Conflict);
            }
            *current = Versioned { record, revision: revision + 1 };
            Ok(revision + 1)
        })
    }
}

/// Opens the volume over `places`; they may be more than its members.
pub(crate) async fn open(store: &Rc<Store>, places: &[Rc<Place>]) -> Nexus {
    try_open(store, places).await.expect("opened")
}

/// Tries to open the volume over `places`.
pub(crate) async fn try_open(store: &Rc<Store>, places: &[Rc<Place>]) -> Result<Nexus, OpenError> {
    let places: Vec<_> = places.to_vec();
    let dial: nexus::Dial = Rc::new(move |member| {
        let place = places.iter().find(|place| place.entry.replica == member.replica).map(Rc::clone);
        Box::pin(async move { place.ok_or(device::Status::Gone)?.dial() })
    });
    let config = Config { node: "n1".into(), ..Config::default() };
    let records: Rc<dyn Records> = Rc::clone(store) as Rc<dyn Records>;
    nexus::open(config, records, dial, VOLUME).await
}

/// `count` blocks of `byte`.
pub(crate) fn blocks(byte: u8, count: usize) -> rt::DmaBytes {
    DmaBuf::copy_of(&vec![byte; count * BLOCK]).freeze()
}

/// Room for `count` blocks.
pub(crate) fn room(count: usize) -> DmaBuf {
    DmaBuf::new(count * BLOCK)
}

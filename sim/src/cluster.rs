//! Three simulated machines, each with one disk and one engine, and one volume with three copies.

use crate::store::{NodeControl, Store};
use crate::totals::Totals;
use engine::{Config, Engine, Expected, PoolConfig};
use model::{MemberIntent, MemberRecord, Volume, VolumeIntent, VolumeRecord, VolumeSpec};
use nexus::Planted;
use nvmf::Key;
use rt::sim::{NodeId, SimDisk, World};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// Where each machine has its disk.
pub(crate) const DISK: &str = "/disk";
/// The port of every target.
const PORT: u16 = 4420;
/// What a volume grows by at once.
const GROWTH_BYTES: u64 = 5 << 20;
/// Logical block size of the volume.
pub(crate) const BLOCK_SIZE: u32 = 4096;

/// What the engines prove to each other: authentication meets every fault, too.
pub(crate) fn secret() -> Key {
    Key::new(*b"a secret of the simulated nodes.")
}

/// How large things are in one seed.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_field_names, reason = "the unit is in the name")]
pub(crate) struct Sizes {
    /// The volume at first.
    pub(crate) volume_bytes: u64,
    /// The volume when it has grown as far as it will.
    pub(crate) grown_bytes: u64,
    /// Each machine's disk.
    pub(crate) disk_bytes: [u64; 3],
}

impl Sizes {
    /// Blocks of the volume at first.
    pub(crate) const fn blocks(self) -> u64 {
        self.volume_bytes / BLOCK_SIZE as u64
    }

    /// Blocks of the volume at last.
    pub(crate) const fn blocks_grown(self) -> u64 {
        self.grown_bytes / BLOCK_SIZE as u64
    }

    /// Whether some disk is too small for the whole volume.
    pub(crate) fn is_full(self) -> bool {
        self.disk_bytes.iter().any(|bytes| *bytes < self.volume_bytes)
    }
}

/// One machine.
pub(crate) struct Machine {
    pub(crate) id: NodeId,
    pub(crate) name: String,
    pub(crate) disk: SimDisk,
    engine: RefCell<Option<Engine>>,
    /// Which life of its process this is.
    life: Cell<u64>,
}

/// The cluster; a cheap handle.
#[derive(Clone)]
pub(crate) struct Cluster(Rc<Inner>);

pub(crate) struct Inner {
    pub(crate) world: World,
    pub(crate) machines: Vec<Machine>,
    pub(crate) store: Store,
    pub(crate) volume: Uuid,
    cluster: Uuid,
    sizes: Sizes,
    planted: Planted,
    /// An owner is silent, and to be replaced.
    pub(crate) silenced: Cell<bool>,
    /// Counted by nexuses that have ended since.
    pub(crate) past: RefCell<Totals>,
}

impl std::ops::Deref for Cluster {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Cluster {
    /// Sets the machines up and names the volume; nothing runs yet.
    pub(crate) fn new(world: &World, sizes: Sizes, planted: Planted) -> Self {
        let machine = |index: usize| {
            let name = format!("n{}", index + 1);
            let id = world.add_node(&name);
            let disk = world.add_disk(id, DISK, sizes.disk_bytes[index], BLOCK_SIZE);
            Machine { id, name, disk, engine: RefCell::default(), life: Cell::new(0) }
        };
        let machines: Vec<_> = (0..3).map(machine).collect();
        let volume = Uuid::from_u128(0xB10C);
        Self(Rc::new(Inner {
            world: world.clone(),
            machines,
            store: Store::default(),
            volume,
            cluster: Uuid::from_u128(0xC1),
            sizes,
            planted,
            silenced: Cell::new(false),
            past: RefCell::default(),
        }))
    }

    /// Starts a machine's engine; its pool is made at the first start.
    pub(crate) fn start(&self, index: usize) {
        let machine = &self.machines[index];
        machine.life.set(machine.life.get() + 1);
        let (cluster, life) = (self.clone(), machine.life.get());
        self.world.spawn_on(machine.id, async move { cluster.run_engine(index, life).await }).detach();
    }

    async fn run_engine(&self, index: usize, life: u64) {
        let machine = &self.machines[index];
        let listen = SocketAddr::new(self.world.address(machine.id), PORT);
        let config = Config {
            node: machine.name.clone(),
            cluster: self.cluster,
            boot_id: self.world.boot_id(machine.id),
            pid: 1,
            pools: vec![PoolConfig {
                name: "disk".to_owned(),
                uri: format!("disk://{DISK}"),
                class: None,
                expected: Expected::Named,
            }],
            listen,
            secret: Some(secret()),
            metrics_address: None,
            nexus: nexus::Config { planted: self.planted, ..nexus::Config::default() },
            fuse: None,
        };
        let control = Rc::new(NodeControl::new(self.store.clone(), machine.name.clone()));
        loop {
            match Engine::start(config.clone(), Rc::clone(&control) as Rc<dyn engine::Control>).await {
                Ok(engine) => {
                    if machine.life.get() == life {
                        *machine.engine.borrow_mut() = Some(engine);
                    }
                    return;
                }
                // A disk that fails now may work later; an operator's supervisor would start it again, too.
                Err(_) => rt::sleep(Duration::from_millis(500)).await,
            }
        }
    }

    /// Names the volume, once all pools are known.
    pub(crate) async fn create_volume(&self, sizes: Sizes) {
        let mut members = Vec::new();
        for machine in &self.machines {
            let pool = loop {
                let pools = machine.engine.borrow().as_ref().map(|engine| engine.metrics().pools);
                if let Some(pool) = pools.and_then(|pools| pools.first().map(|pool| pool.uuid)) {
                    break pool;
                }
                rt::sleep(Duration::from_millis(10)).await;
            };
            members.push((rt::random_uuid(), pool, machine.name.clone()));
        }
        let intent = |(replica, pool, node): &(Uuid, Uuid, String)| MemberIntent {
            replica: *replica,
            pool: *pool,
            node: node.clone(),
        };
        let record =
            |(replica, pool, node): &(Uuid, Uuid, String)| MemberRecord::new(*replica, *pool, node.clone());
        let volume = Volume {
            name: "vol".to_owned(),
            uuid: self.volume,
            spec: VolumeSpec {
                size_bytes: sizes.volume_bytes,
                copies: 3,
                stripes: 1,
                block_size: BLOCK_SIZE,
                class: None,
                spread: None,
            },
            intent: VolumeIntent {
                members: members.iter().map(intent).collect(),
                owner: Some(self.machines[0].name.clone()),
                recorded: true,
                ..VolumeIntent::default()
            },
            message: None,
        };
        let members = members.iter().map(record).collect();
        self.store.create(volume, VolumeRecord::new(self.volume, sizes.volume_bytes, BLOCK_SIZE, members));
    }

    /// The user wishes the volume larger, up to a limit.
    pub(crate) fn grow(&self) {
        let limit = self.sizes.grown_bytes;
        self.store.wish(self.volume, |volume| {
            volume.spec.size_bytes = (volume.spec.size_bytes + GROWTH_BYTES).min(limit);
        });
    }

    /// A machine whose engine has the volume open, and its nexus; none of those to be avoided.
    pub(crate) fn owner(&self, avoided: &[usize]) -> Option<(usize, nexus::Nexus)> {
        let open = |(index, machine): (usize, &Machine)| {
            let engine = machine.engine.borrow().clone()?;
            let handle = engine.volume(self.volume)?;
            handle.nexus.stopped().is_none().then_some((index, handle.nexus))
        };
        // An old owner that does not know better may still be there: clients may talk to either.
        let asked = self.machines.iter().enumerate().filter(|(index, _)| !avoided.contains(index));
        let owners: Vec<_> = asked.filter_map(open).collect();
        let which = usize::try_from(rt::random_u64() % owners.len().max(1) as u64).ok()?;
        owners.into_iter().nth(which)
    }

    /// The machine on which the volume's nexus is wished to be.
    pub(crate) fn wished_owner(&self) -> usize {
        let owner = self.store.wished_owner(self.volume);
        self.machines.iter().position(|machine| owner.as_deref() == Some(&machine.name)).unwrap_or(0)
    }

    /// The machine that the record names as the owner's.
    pub(crate) fn recorded_owner(&self) -> Option<usize> {
        let owner = self.store.record(self.volume).owner?;
        self.machines.iter().position(|machine| machine.name == owner.node)
    }

    /// Whether a machine has the volume open, rightly or not.
    pub(crate) fn serves(&self, index: usize) -> bool {
        self.nexus_of(index).is_some_and(|nexus| nexus.stopped().is_none())
    }

    /// The nexus that is open on a machine.
    pub(crate) fn nexus_of(&self, index: usize) -> Option<nexus::Nexus> {
        let engine = self.machines[index].engine.borrow().clone()?;
        engine.volume(self.volume).map(|handle| handle.nexus)
    }

    /// The volume as a machine reads it; none while there is no way to it.
    #[cfg(test)]
    pub(crate) async fn read_on(&self, index: usize) -> Option<engine::Follower> {
        let engine = self.machines[index].engine.borrow().clone()?;
        engine.read(&self.store.volume(self.volume)).await.ok()
    }

    /// Adds what a machine's nexuses have counted, before they are gone.
    fn remember(&self, index: usize) {
        let engine = self.machines[index].engine.borrow().clone();
        let Some(engine) = engine else { return };
        let mut past = self.past.borrow_mut();
        for volume in engine.metrics().volumes {
            past.rebuilds_resumed += volume.status.resumed;
            past.full_pools += volume.status.refused_for_space;
            past.overlapping += volume.status.overlaps;
        }
    }

    /// Kills a machine's engine as `kill -9` does, or cuts the machine's power.
    pub(crate) fn kill(&self, index: usize, power: bool) {
        self.remember(index);
        let machine = &self.machines[index];
        machine.life.set(machine.life.get() + 1);
        *machine.engine.borrow_mut() = None;
        if power {
            self.world.power_cut(machine.id);
        } else {
            self.world.crash(machine.id);
        }
    }

    /// Ends every engine in order.
    pub(crate) async fn stop(&self) {
        for index in 0..self.machines.len() {
            self.remember(index);
            let engine = self.machines[index].engine.take();
            if let Some(engine) = engine {
                let stopping = self.world.spawn_on(self.machines[index].id, async move {
                    drop(engine.stop().await);
                });
                stopping.await;
            }
        }
    }
}

//! A small subsystem over memory devices, and a simulated world with a target in it.

use device::fault::FaultHandle;
use device::{BlockCount, Device, Fault, Geometry, Lba, Mem, Status};
use nvmf::{
    Association, AssociationHandle, ConnectError, ConnectOptions, ConnectRequest, DiscoveryEntry,
    DiscoveryKind, Error, Key, NamespaceIdentity, Session, Subsystems, Target, TargetConfig, VendorCommand,
    VendorReply,
};
use rt::sim::{NodeId, World};
use rt::sync::Event;
use rt::{DmaBuf, DmaBytes};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

pub(crate) const SUBNQN: &str = "nqn.2026-11.io.orlop:volume";
pub(crate) const OTHER_NQN: &str = "nqn.2026-11.io.orlop:other";
pub(crate) const HOSTNQN: &str = "nqn.2026-11.io.orlop:host";
pub(crate) const HOSTID: Uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
pub(crate) const PORT: u16 = 4420;
pub(crate) const BLOCKS: u64 = 4096;

pub(crate) type Disk = Fault<Mem>;

/// What the test sees of the target's side.
pub(crate) struct Exported {
    pub(crate) disk: Disk,
    pub(crate) faults: FaultHandle,
    pub(crate) geometry: Cell<Geometry>,
    pub(crate) changed: Event,
    pub(crate) associations: RefCell<Vec<AssociationHandle>>,
    /// Sessions that were opened, and that were closed.
    pub(crate) opened: Cell<u32>,
    pub(crate) closed: Rc<Cell<u32>>,
    /// Vendor commands that are running now.
    pub(crate) running: Cell<u32>,
    /// Each host has to prove a key that is made from this one.
    pub(crate) secret: RefCell<Option<Key>>,
}

pub(crate) struct VolumeSession(Rc<Exported>);

impl Exported {
    pub(crate) fn new() -> Rc<Self> {
        let geometry = Geometry { block_size: 4096, blocks: BlockCount(BLOCKS) };
        let disk = Fault::new(Mem::new(geometry));
        let faults = disk.handle();
        Rc::new(Self {
            disk,
            faults,
            geometry: Cell::new(geometry),
            changed: Event::new(),
            associations: RefCell::default(),
            opened: Cell::new(0),
            closed: Rc::default(),
            running: Cell::new(0),
            secret: RefCell::default(),
        })
    }
}

pub(crate) struct Exports(pub(crate) Rc<Exported>);

impl Subsystems for Exports {
    type Session = VolumeSession;

    fn key(&self, subnqn: &str, hostnqn: &str) -> Result<Option<Key>, ConnectError> {
        Ok(self
            .0
            .secret
            .borrow()
            .as_ref()
            .map(|secret| secret.derive(&[subnqn.as_bytes(), hostnqn.as_bytes()])))
    }

    async fn open(&self, connect: &ConnectRequest) -> Result<Rc<VolumeSession>, ConnectError> {
        if ![SUBNQN, OTHER_NQN, crate::golden::SUBNQN].contains(&&connect.subnqn[..]) {
            return Err(ConnectError::UnknownSubsystem);
        }
        if connect.hostnqn.ends_with("stranger") {
            return Err(ConnectError::HostNotAllowed);
        }
        self.0.opened.set(self.0.opened.get() + 1);
        self.0.associations.borrow_mut().push(connect.association.clone());
        Ok(Rc::new(VolumeSession(Rc::clone(&self.0))))
    }

    fn discovery(&self) -> Vec<DiscoveryEntry> {
        let entry = |subnqn: &str, port_id| DiscoveryEntry {
            kind: DiscoveryKind::Subsystem,
            subnqn: subnqn.into(),
            address: "10.0.0.1".parse().expect("an address"),
            port: PORT,
            port_id,
        };
        vec![entry(SUBNQN, 1), entry(OTHER_NQN, 2)]
    }
}

/// A device that can grow while it is open.
pub(crate) struct Growing(Rc<Exported>);

impl Device for Growing {
    fn geometry(&self) -> Geometry {
        self.0.geometry.get()
    }
    async fn read(&self, lba: Lba, buf: DmaBuf) -> Result<DmaBuf, Status> {
        self.0.disk.read(lba, buf).await
    }
    async fn write(&self, lba: Lba, data: DmaBytes, durability: rt::Durability) -> Result<(), Status> {
        self.0.disk.write(lba, data, durability).await
    }
    async fn write_zeroes(
        &self,
        lba: Lba,
        count: BlockCount,
        durability: rt::Durability,
    ) -> Result<(), Status> {
        self.0.disk.write_zeroes(lba, count, durability).await
    }
    async fn unmap(&self, lba: Lba, count: BlockCount) -> Result<(), Status> {
        self.0.disk.unmap(lba, count).await
    }
    async fn flush(&self) -> Result<(), Status> {
        self.0.disk.flush().await
    }
}

impl Session for VolumeSession {
    type Namespace = Growing;

    fn namespace_ids(&self) -> Vec<u32> {
        vec![1]
    }

    fn namespace(&self, nsid: u32) -> Option<Growing> {
        (nsid == 1).then(|| Growing(Rc::clone(&self.0)))
    }

    fn identity(&self, _nsid: u32) -> NamespaceIdentity {
        NamespaceIdentity { uuid: Uuid::from_u128(7) }
    }

    /// C0h waits `cdw10` milliseconds; C1h answers with the sum of the data's bytes; C2h answers with `cdw10` bytes.
    async fn vendor(&self, _nsid: u32, command: &VendorCommand) -> Result<VendorReply, Status> {
        let argument = command.cdw10_15[0];
        match command.opcode {
            0xC0 => {
                self.0.running.set(self.0.running.get() + 1);
                rt::sleep(Duration::from_millis(argument.into())).await;
                self.0.running.set(self.0.running.get() - 1);
                Ok(VendorReply { result: u64::MAX - 1, data: None })
            }
            0xC1 => {
                let data = command.data.as_ref().ok_or(Status::Invalid)?;
                let sum = data.iter().map(|&b| u64::from(b)).sum();
                Ok(VendorReply { result: sum, data: None })
            }
            0xC2 => {
                let mut data = DmaBuf::new((argument as usize).min(command.data_len));
                data.fill(0xC2);
                Ok(VendorReply { result: argument.into(), data: Some(data.freeze()) })
            }
            _ => Err(Status::Fenced),
        }
    }

    async fn changed(&self) -> u32 {
        self.0.changed.wait().await;
        1
    }

    async fn closed(&self) {
        assert_eq!(self.0.running.get(), 0, "a session is closed after its commands have ended");
        self.0.closed.set(self.0.closed.get() + 1);
    }
}

/// A world with a target on node `target`; the client is the host.
pub(crate) struct Bench {
    pub(crate) world: World,
    pub(crate) target: NodeId,
    pub(crate) exported: Rc<Exported>,
    pub(crate) address: SocketAddr,
    /// The target itself, while it runs.
    pub(crate) serving: Rc<RefCell<Option<Rc<Target<Exports>>>>>,
}

impl Bench {
    /// Runs `test` against a target with `config`.
    pub(crate) fn run<F: Future<Output = ()>>(
        seed: u64,
        change: impl FnOnce(&mut TargetConfig) + 'static,
        test: impl FnOnce(Rc<Bench>) -> F,
    ) {
        let world = World::new(seed);
        let node = world.add_node("target");
        let address = SocketAddr::new(world.address(node), PORT);
        let exported = Exported::new();
        let bench =
            Rc::new(Self { world: world.clone(), target: node, exported, address, serving: Rc::default() });
        bench.serve(change);
        world.set_time_limit(Duration::from_secs(600));
        world.run(test(bench));
    }

    /// Starts a target; also again after a crash.
    pub(crate) fn serve(&self, change: impl FnOnce(&mut TargetConfig) + 'static) {
        let exports = Rc::new(Exports(Rc::clone(&self.exported)));
        let serving = Rc::clone(&self.serving);
        let mut config = TargetConfig::new(self.address);
        change(&mut config);
        self.world
            .spawn_on(self.target, async move {
                let target = Rc::new(Target::bind(config, exports).await.expect("the port is free"));
                serving.replace(Some(Rc::clone(&target)));
                target.serve().await;
            })
            .detach();
    }

    pub(crate) fn options(&self) -> ConnectOptions {
        ConnectOptions::new(self.address, SUBNQN, HOSTNQN, HOSTID)
    }

    /// Connects, waiting for the target to listen.
    pub(crate) async fn connect(&self, change: impl FnOnce(&mut ConnectOptions)) -> Association {
        let mut options = self.options();
        change(&mut options);
        self.try_connect(options).await.expect("connects")
    }

    pub(crate) async fn try_connect(&self, options: ConnectOptions) -> Result<Association, Error> {
        loop {
            match Association::connect(options.clone()).await {
                Err(error) if error.kind() == nvmf::ErrorKind::Unreachable => {
                    rt::sleep(Duration::from_millis(10)).await;
                }
                result => return result,
            }
        }
    }

    /// Waits until `condition` holds.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        for _ in 0..100_000 {
            if condition() {
                return;
            }
            rt::sleep(Duration::from_millis(1)).await;
        }
        panic!("waited in vain until {what}");
    }
}

/// Data that tells its place: block `lba + i` holds its own number and `stamp`.
pub(crate) fn stamped(lba: u64, blocks: u64, stamp: u8) -> DmaBytes {
    let mut buf = DmaBuf::new(usize::try_from(blocks * 4096).expect("small"));
    for (i, block) in buf.chunks_exact_mut(4096).enumerate() {
        block.fill(stamp);
        block[..8].copy_from_slice(&(lba + i as u64).to_le_bytes());
    }
    buf.freeze()
}

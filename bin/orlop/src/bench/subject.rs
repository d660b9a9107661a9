//! What is measured: a device as it is, or a new thin replica in a pool on it, which is the path of a volume's byte
//! without nexus, network and kernel. Driven from here, or served to initiators elsewhere.

use crate::failure::{Failure, Kind, OrFail, Outcome};
use crate::opened::{self, Opened};
use crate::{output, process};
use device::{BlockCount, Device, DeviceUri, Geometry, Lba, Status};
use model::Generation;
use nvmf::{
    ConnectError, ConnectRequest, DiscoveryEntry, Key, NamespaceIdentity, Session, Subsystems, Target,
    TargetConfig,
};
use pool::{FormatOptions, Pool, Replica, ReplicaConfig};
use rt::{Access, DmaBuf, DmaBytes, Durability};
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// How long a target that goes away may take to come back.
const PATIENCE: Duration = Duration::from_secs(30);
/// The only epoch of a replica that nobody else knows.
const EPOCH: u64 = 1;
/// Volumes are whole MiB.
const MIB: u64 = 1 << 20;
/// The name under which a device is served.
const NQN: &str = "nqn.2026-11.io.orlop:bench";

/// A device that is measured; a cheap handle.
#[derive(Clone)]
pub(super) enum Subject {
    /// As it is.
    Whole(Rc<Opened>),
    /// A replica in a pool on it.
    Thin(Rc<Thin>),
}

/// A replica that nobody else knows.
pub(super) struct Thin {
    /// Keeps the pool open.
    pool: Pool<Opened>,
    replica: Replica<Opened>,
    writes: Cell<u64>,
}

impl Subject {
    /// Opens the device; with `pool` it is formatted first, which is refused if it carries anything.
    pub(super) async fn open(uri: &DeviceUri, access: Access, pool: bool, key: Option<Key>) -> Outcome<Self> {
        if !pool {
            return Ok(Self::Whole(Rc::new(opened::open_with_key(uri, access, PATIENCE, key).await?)));
        }
        let device = opened::open_with_key(uri, Access::Write, PATIENCE, key).await?;
        let failed = |error: pool::Error| Failure::new(format!("{uri}: {error}"));
        let options = FormatOptions {
            name: "bench".into(),
            node: None,
            cluster: rt::random_uuid(),
            pool: rt::random_uuid(),
            force: false,
        };
        Pool::format(&device, &options).await.map_err(|error| match error.kind() {
            pool::ErrorKind::Occupied => Failure::new(format!("{uri} is not empty"))
                .kind(Kind::Conflict)
                .hint("--pool formats an empty device only"),
            _ => failed(error),
        })?;
        let pool = Pool::open(device, process::boot_id()?).await.map_err(failed)?;
        let size_bytes = pool.info().free_bytes / 10 * 9 / MIB * MIB;
        if size_bytes == 0 {
            return Err(Failure::new(format!("{uri}: too small for a pool with a volume in it")));
        }
        let config = ReplicaConfig {
            replica: rt::random_uuid(),
            volume: rt::random_uuid(),
            volume_name: "bench".into(),
            size_bytes,
            block_size: 4096,
            copies: 1,
        };
        pool.create_replica(&config).await.map_err(failed)?;
        let replica =
            pool.replica(config.replica).ok_or_else(|| Failure::new(format!("{uri}: no replica")))?;
        let accepted = replica.accept_epoch(EPOCH, rt::random_uuid()).await;
        accepted.map_err(|status| Failure::new(format!("{uri}: {status}")))?;
        Ok(Self::Thin(Rc::new(Thin { pool, replica, writes: Cell::new(0) })))
    }

    /// Ends in order, so that a pool is left clean.
    pub(super) async fn close(self) -> Outcome {
        match self {
            Self::Whole(_) => Ok(()),
            Self::Thin(thin) => {
                thin.pool.close().await.map_err(|error| Failure::new(format!("the pool: {error}")))
            }
        }
    }

    /// Serves it to initiators until standard input ends; says first what to measure.
    pub(super) async fn serve(self, listen: SocketAddr) -> Outcome {
        let target = Target::bind(TargetConfig::new(listen), Rc::new(Export(Rc::new(self.clone())))).await;
        let target = target.map_err(|error| {
            Failure::new(format!("cannot listen on {listen}: {error}")).kind(Kind::Conflict)
        })?;
        output::line(&format!("nvme+tcp://{}/{NQN}", target.local_address()))?;
        let (end, ended) = rt::mailbox::bounded::<()>(1);
        std::thread::Builder::new()
            .name("input".into())
            .spawn(move || {
                // Closed, or not readable: both are an end.
                std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).ok();
                drop(end);
            })
            .or_fail(|| "cannot start a thread".into())?;
        rt::race(target.serve(), async { _ = ended.recv().await }).await;
        self.close().await
    }
}

impl Thin {
    fn next_generation(&self) -> Generation {
        self.writes.set(self.writes.get() + 1);
        Generation::new(EPOCH, self.writes.get())
    }
}

impl Device for Subject {
    fn geometry(&self) -> Geometry {
        match self {
            Self::Whole(device) => device.geometry(),
            Self::Thin(thin) => thin.replica.geometry(),
        }
    }

    async fn read(&self, lba: Lba, buf: DmaBuf) -> Result<DmaBuf, Status> {
        match self {
            Self::Whole(device) => device.read(lba, buf).await,
            Self::Thin(thin) => thin.replica.read(lba, buf).await,
        }
    }

    async fn write(&self, lba: Lba, data: DmaBytes, durability: Durability) -> Result<(), Status> {
        match self {
            Self::Whole(device) => device.write(lba, data, durability).await,
            Self::Thin(thin) => thin.replica.write(thin.next_generation(), lba, data, durability).await,
        }
    }

    async fn write_zeroes(&self, lba: Lba, count: BlockCount, durability: Durability) -> Result<(), Status> {
        match self {
            Self::Whole(device) => device.write_zeroes(lba, count, durability).await,
            Self::Thin(thin) => {
                thin.replica.write_zeroes(thin.next_generation(), lba, count, durability).await
            }
        }
    }

    async fn unmap(&self, lba: Lba, count: BlockCount) -> Result<(), Status> {
        match self {
            Self::Whole(device) => device.unmap(lba, count).await,
            Self::Thin(thin) => thin.replica.unmap(thin.next_generation(), lba, count).await,
        }
    }

    async fn flush(&self) -> Result<(), Status> {
        match self {
            Self::Whole(device) => device.flush().await,
            Self::Thin(thin) => thin.replica.flush().await,
        }
    }
}

/// The one subsystem, with the one namespace, for whoever connects.
struct Export(Rc<Subject>);

impl Subsystems for Export {
    type Session = Subject;

    fn key(&self, _subnqn: &str, _hostnqn: &str) -> Result<Option<Key>, ConnectError> {
        Ok(None)
    }

    async fn open(&self, connect: &ConnectRequest) -> Result<Rc<Subject>, ConnectError> {
        if connect.subnqn == NQN { Ok(Rc::clone(&self.0)) } else { Err(ConnectError::UnknownSubsystem) }
    }

    fn discovery(&self) -> Vec<DiscoveryEntry> {
        Vec::new()
    }
}

impl Session for Subject {
    type Namespace = Self;

    fn namespace_ids(&self) -> Vec<u32> {
        vec![1]
    }

    fn namespace(&self, nsid: u32) -> Option<Self> {
        (nsid == 1).then(|| self.clone())
    }

    fn identity(&self, _nsid: u32) -> NamespaceIdentity {
        NamespaceIdentity { uuid: Uuid::nil() }
    }
}

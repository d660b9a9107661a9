//! What this node's target exports: its replicas, for nexuses elsewhere, and its open volumes, for initiators.

use crate::Error;
use crate::meter::{Meter, Metered};
use crate::pools::{Pools, Ports};
use device::{BlockCount, Device, Geometry, Lba, Status};
use nexus::leg::{ReplicaNamespace, ReplicaSession, replica_of_nqn};
use nexus::{Attachment, Nexus};
use nvmf::{
    ConnectError, ConnectRequest, DiscoveryEntry, DiscoveryKind, NamespaceIdentity, Session, Subsystems,
    Target, TargetConfig, VendorCommand, VendorReply,
};
use rt::{DmaBuf, DmaBytes, Durability, Task};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use uuid::Uuid;

/// The namespace of every subsystem of Orlop.
const NSID: u32 = 1;

/// The subsystem name of a volume.
pub(crate) fn volume_nqn(name: &str) -> String {
    format!("nqn.2026-11.io.orlop:volume:{name}")
}

/// The volumes that are open on this node, by name; a cheap handle.
#[derive(Clone, Default)]
pub(crate) struct Exports(Rc<RefCell<BTreeMap<String, Export>>>);

struct Export {
    nexus: Nexus,
    meter: Rc<Meter>,
    /// A host that reconnects keeps the number of its attachment (I10).
    attachments: BTreeMap<Uuid, u64>,
}

impl Exports {
    /// Serves a volume.
    pub(crate) fn add(&self, name: &str, nexus: &Nexus, meter: &Rc<Meter>) {
        let export = Export { nexus: nexus.clone(), meter: Rc::clone(meter), attachments: BTreeMap::new() };
        self.0.borrow_mut().insert(volume_nqn(name), export);
    }

    /// Serves it no more.
    pub(crate) fn remove(&self, name: &str) {
        self.0.borrow_mut().remove(&volume_nqn(name));
    }

    /// The attachment of a host: its old one, or a new one.
    async fn attach(&self, nqn: &str, host: Uuid) -> Result<Metered<Attachment>, ConnectError> {
        let (nexus, meter, known) = {
            let exports = self.0.borrow();
            let export = exports.get(nqn).ok_or(ConnectError::UnknownSubsystem)?;
            (export.nexus.clone(), Rc::clone(&export.meter), export.attachments.get(&host).copied())
        };
        if let Some(number) = known {
            return Ok(Metered::new(nexus.resume(number), meter));
        }
        let attachment = nexus.attach().await.map_err(|_| ConnectError::Busy)?;
        if let Some(export) = self.0.borrow_mut().get_mut(nqn) {
            export.attachments.insert(host, attachment.number());
        }
        Ok(Metered::new(attachment, meter))
    }
}

/// Listens and serves; the task ends when it is dropped.
pub(crate) async fn serve(
    listen: SocketAddr,
    exports: Exports,
    pools: &Pools,
) -> Result<(SocketAddr, Task<()>), Error> {
    let served = Rc::new(Served { exports, ports: pools.shared_ports(), address: Cell::new(listen) });
    let target = Target::bind(TargetConfig::new(listen), Rc::clone(&served))
        .await
        .map_err(|source| Error::Listen { address: listen, source })?;
    let address = target.local_address();
    served.address.set(address);
    Ok((address, rt::spawn(async move { target.serve().await })))
}

struct Served {
    exports: Exports,
    ports: Ports,
    address: Cell<SocketAddr>,
}

impl Subsystems for Served {
    type Session = Exported;

    async fn open(&self, connect: &ConnectRequest) -> Result<Rc<Exported>, ConnectError> {
        if let Some(replica) = replica_of_nqn(&connect.subnqn) {
            let port = self.ports.get(replica).ok_or(ConnectError::UnknownSubsystem)?;
            let session = Rc::new(ReplicaSession::new(&port));
            let (watched, association) = (Rc::clone(&session), connect.association.clone());
            // A newer association of this replica's volume ends this one (I3).
            rt::spawn(async move {
                rt::race(watched.dead(), association.over()).await;
                association.end();
            })
            .detach();
            return Ok(Rc::new(Exported::Replica(session)));
        }
        let attachment = self.exports.attach(&connect.subnqn, connect.hostid).await?;
        Ok(Rc::new(Exported::Volume(attachment)))
    }

    fn discovery(&self) -> Vec<DiscoveryEntry> {
        let volumes = self.exports.0.borrow();
        let entry = |nqn: &String| DiscoveryEntry {
            kind: DiscoveryKind::Subsystem,
            subnqn: nqn.clone(),
            address: self.address.get().ip(),
            port: self.address.get().port(),
            port_id: 1,
        };
        volumes.keys().map(entry).collect()
    }
}

/// One association with something that this node exports.
enum Exported {
    Replica(Rc<ReplicaSession>),
    Volume(Metered<Attachment>),
}

/// The namespace of either.
#[derive(Clone)]
enum Namespace {
    Replica(ReplicaNamespace),
    Volume(Metered<Attachment>),
}

impl Session for Exported {
    type Namespace = Namespace;

    fn namespace_ids(&self) -> Vec<u32> {
        vec![NSID]
    }

    fn namespace(&self, nsid: u32) -> Option<Namespace> {
        (nsid == NSID).then(|| match self {
            Self::Replica(session) => Namespace::Replica(session.namespace()),
            Self::Volume(attachment) => Namespace::Volume(attachment.clone()),
        })
    }

    fn identity(&self, _nsid: u32) -> NamespaceIdentity {
        match self {
            Self::Replica(session) => session.identity(),
            Self::Volume(attachment) => NamespaceIdentity { uuid: attachment.inner().volume() },
        }
    }

    async fn vendor(&self, _nsid: u32, command: &VendorCommand) -> Result<VendorReply, Status> {
        match self {
            Self::Replica(session) => session.vendor(command).await,
            Self::Volume(_) => Err(Status::Invalid),
        }
    }

    async fn closed(&self) {
        if let Self::Replica(session) = self {
            session.closed().await;
        }
    }
}

/// Calls the device of either.
macro_rules! each {
    ($namespace:expr, $device:ident => $call:expr) => {
        match $namespace {
            Namespace::Replica($device) => $call,
            Namespace::Volume($device) => $call,
        }
    };
}

impl Device for Namespace {
    fn geometry(&self) -> Geometry {
        each!(self, device => device.geometry())
    }

    async fn read(&self, lba: Lba, buf: DmaBuf) -> Result<DmaBuf, Status> {
        each!(self, device => device.read(lba, buf).await)
    }

    async fn write(&self, lba: Lba, data: DmaBytes, durability: Durability) -> Result<(), Status> {
        each!(self, device => device.write(lba, data, durability).await)
    }

    async fn write_zeroes(&self, lba: Lba, count: BlockCount, durability: Durability) -> Result<(), Status> {
        each!(self, device => device.write_zeroes(lba, count, durability).await)
    }

    async fn unmap(&self, lba: Lba, count: BlockCount) -> Result<(), Status> {
        each!(self, device => device.unmap(lba, count).await)
    }

    async fn flush(&self) -> Result<(), Status> {
        each!(self, device => device.flush().await)
    }
}

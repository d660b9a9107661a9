//! What this node's target exports: its replicas, for nexuses elsewhere, and its open volumes, for initiators and for
//! readers on other nodes; and to the kernel of this node, which makes block devices of them.
//!
//! # Invariants
//! 1. A volume is read by readers or written by others, never both: while readers are let in no host is, and while a host
//!    is connected no reader is. What a reader has asked before it was shut out is not answered after.
//! 2. A reader names the `attachSerial` of its device, and is let in with the one that is wished now: what it remembers is
//!    of before or after a writer otherwise, also if nobody could tell it so.
//! 3. A block device is one attachment, whose number its engine has found to be good (I10): only the host with the
//!    identifier that was drawn for it is let in, from this machine itself, and only as long as it is admitted.

use crate::keys::volume_key;
use crate::meter::{Meter, Metered};
use crate::pools::{Pools, Ports};
use crate::{Config, Error};
use device::{BlockCount, Device, Geometry, Lba, Status};
use frontend::nvme::Name;
use nexus::leg::{ReplicaNamespace, ReplicaSession, replica_of_nqn};
use nexus::{Attachment, Nexus};
use nvmf::wire::fabrics::DISCOVERY_NQN;
use nvmf::{
    AssociationHandle, ConnectError, ConnectRequest, DiscoveryEntry, DiscoveryKind, Key, NamespaceIdentity,
    Session, Subsystems, Target, TargetConfig, VendorCommand, VendorReply,
};
use rt::{DmaBuf, DmaBytes, Durability, Task};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use uuid::Uuid;

/// The namespace of every subsystem of Orlop.
pub(crate) const NSID: u32 = 1;

/// The subsystem name of a volume.
pub(crate) fn volume_nqn(name: &str) -> String {
    format!("nqn.2026-11.io.orlop:volume:{name}")
}

/// The subsystem name of a volume for readers. By its identity, and their number (invariant 2): what they remember is of
/// no other.
pub(crate) fn reader_nqn(volume: Uuid, serial: u64) -> String {
    format!("{READER_NQN}{volume}:{serial}")
}

const READER_NQN: &str = "nqn.2026-11.io.orlop:reader:";

fn of_reader_nqn(nqn: &str) -> Option<(Uuid, u64)> {
    let (volume, serial) = nqn.strip_prefix(READER_NQN)?.split_once(':')?;
    Some((volume.parse().ok()?, serial.parse().ok()?))
}

/// The volumes that are open on this node, by name; a cheap handle.
#[derive(Clone, Default)]
pub(crate) struct Exports(Rc<RefCell<Open>>);

#[derive(Default)]
struct Open {
    volumes: BTreeMap<String, Export>,
    /// How many associations each host has with each volume, across the lives of its nexus. A host keeps the number of
    /// its attachment, which is in the record, until its last one has ended in order (I10).
    hosts: BTreeMap<(String, Uuid), usize>,
    /// The block devices of this node, by the identifier of their attachment.
    devices: BTreeMap<Uuid, Admitted>,
}

/// The attachment of a block device.
struct Admitted {
    volume: Uuid,
    /// Of this machine; the kernel comes from where it connects to.
    address: IpAddr,
    attachment: Metered<Attachment>,
    associations: Vec<AssociationHandle>,
}

/// Lets the kernel in for one block device, until this is dropped (invariant 3).
pub(crate) struct Admission {
    exports: Exports,
    id: Uuid,
}

impl Drop for Admission {
    fn drop(&mut self) {
        let admitted = self.exports.0.borrow_mut().devices.remove(&self.id);
        for association in admitted.iter().flat_map(|admitted| &admitted.associations) {
            association.end();
        }
    }
}

#[derive(Clone)]
struct Export {
    nexus: Nexus,
    meter: Rc<Meter>,
    /// Readers with this number are let in.
    is_read: Rc<Cell<Option<u64>>>,
}

impl Exports {
    /// Serves a volume.
    pub(crate) fn add(&self, name: &str, nexus: &Nexus, meter: &Rc<Meter>) {
        let export = Export { nexus: nexus.clone(), meter: Rc::clone(meter), is_read: Rc::default() };
        self.0.borrow_mut().volumes.insert(volume_nqn(name), export);
    }

    /// Serves it no more.
    pub(crate) fn remove(&self, name: &str) {
        let removed = self.0.borrow_mut().volumes.remove(&volume_nqn(name));
        if let Some(export) = removed {
            export.is_read.set(None);
        }
    }

    /// Lets readers with a number in, or keeps all others out from now on (invariants 1 and 2).
    ///
    /// # Errors
    /// Why they are not let in.
    pub(crate) fn let_read(&self, name: &str, serial: Option<u64>) -> Result<(), String> {
        let nqn = volume_nqn(name);
        let Some(export) = self.get(&nqn) else { return Ok(()) };
        let hosts = self.0.borrow().hosts.keys().filter(|(of, _)| *of == nqn).count();
        export.is_read.set(serial.filter(|_| hosts == 0));
        if serial.is_none() || hosts == 0 {
            return Ok(());
        }
        Err(format!("connections of hosts to its target, which may write: {hosts}; disconnect them"))
    }

    /// A volume that is open here, as its readers have it.
    pub(crate) fn reading(&self, volume: Uuid, serial: u64) -> Option<Metered<Reading>> {
        let open = self.0.borrow();
        let export = open.volumes.values().find(|export| export.nexus.volume() == volume)?;
        let reader = export.nexus.reader();
        let reading = Reading { reader, is_read: Rc::clone(&export.is_read), volume, serial };
        reading.is_let_in().then(|| Metered::new(reading, Rc::clone(&export.meter)))
    }

    /// Lets the kernel of this node in for one block device.
    pub(crate) fn admit(&self, name: &Name, address: IpAddr, attachment: Metered<Attachment>) -> Admission {
        let address = address.to_canonical();
        let admitted = Admitted { volume: name.volume, address, attachment, associations: Vec::new() };
        self.0.borrow_mut().devices.insert(name.id, admitted);
        Admission { exports: self.clone(), id: name.id }
    }

    fn has_admitted(&self, volume: Uuid, id: Uuid) -> bool {
        self.0.borrow().devices.get(&id).is_some_and(|admitted| admitted.volume == volume)
    }

    /// The attachment of a block device.
    fn device(&self, volume: Uuid, id: Uuid, connect: &ConnectRequest) -> Option<Metered<Attachment>> {
        let mut open = self.0.borrow_mut();
        let admitted = open.devices.get_mut(&id).filter(|admitted| admitted.volume == volume)?;
        if connect.hostid != id || connect.peer.to_canonical() != admitted.address {
            tracing::warn!(%volume, peer = %connect.peer, "somebody else asked for a block device of this node");
            return None;
        }
        admitted.associations.retain(|association| !association.is_over());
        admitted.associations.push(connect.association.clone());
        Some(admitted.attachment.clone())
    }

    fn get(&self, nqn: &str) -> Option<Export> {
        self.0.borrow().volumes.get(nqn).cloned()
    }

    fn is_connected(&self, nqn: &str, host: Uuid) -> bool {
        self.0.borrow().hosts.contains_key(&(nqn.to_owned(), host))
    }

    /// The attachment of a host, and how its association ends.
    async fn attach(&self, connect: &ConnectRequest) -> Result<Metered<Attachment>, ConnectError> {
        let (nqn, host) = (&connect.subnqn, connect.hostid);
        let Export { nexus, meter, is_read } = self.get(nqn).ok_or(ConnectError::UnknownSubsystem)?;
        if is_read.get().is_some() {
            tracing::info!(nqn, %host, "a host cannot attach while the volume has readers");
            return Err(ConnectError::Busy);
        }
        let connected = Connected::new(self, nqn, host);
        let attachment = nexus.attach_host(host, |host| self.is_connected(nqn, host)).await;
        let attachment = attachment.map_err(|status| {
            tracing::info!(nqn, %host, %status, "a host cannot attach now");
            ConnectError::Busy
        })?;
        rt::spawn(connected.until_detached(connect.association.clone())).detach();
        Ok(Metered::new(attachment, meter))
    }
}

/// A volume for readers (invariants 1 and 2).
#[derive(Clone)]
pub(crate) struct Reading {
    reader: nexus::Reader,
    is_read: Rc<Cell<Option<u64>>>,
    volume: Uuid,
    serial: u64,
}

impl Reading {
    fn is_let_in(&self) -> bool {
        self.is_read.get() == Some(self.serial)
    }
}

impl Device for Reading {
    fn geometry(&self) -> Geometry {
        self.reader.geometry()
    }

    async fn read(&self, lba: Lba, buf: DmaBuf) -> Result<DmaBuf, Status> {
        let read = if self.is_let_in() { self.reader.read(lba, buf).await } else { Err(Status::Gone) };
        if self.is_let_in() { read } else { Err(Status::Gone) }
    }

    async fn write(&self, lba: Lba, data: DmaBytes, durability: Durability) -> Result<(), Status> {
        self.reader.write(lba, data, durability).await
    }

    async fn write_zeroes(&self, lba: Lba, count: BlockCount, durability: Durability) -> Result<(), Status> {
        self.reader.write_zeroes(lba, count, durability).await
    }

    async fn unmap(&self, lba: Lba, count: BlockCount) -> Result<(), Status> {
        self.reader.unmap(lba, count).await
    }

    async fn flush(&self) -> Result<(), Status> {
        self.reader.flush().await
    }
}

/// Counts one association of a host.
struct Connected {
    exports: Exports,
    nqn: String,
    host: Uuid,
}

impl Connected {
    fn new(exports: &Exports, nqn: &str, host: Uuid) -> Self {
        *exports.0.borrow_mut().hosts.entry((nqn.to_owned(), host)).or_default() += 1;
        Self { exports: exports.clone(), nqn: nqn.to_owned(), host }
    }

    /// Waits for the end of the association; if the host has ended its last one in order, it has detached.
    async fn until_detached(self, association: AssociationHandle) {
        let (exports, nqn, host) = (self.exports.clone(), self.nqn.clone(), self.host);
        association.ended().await;
        drop(self);
        if !association.ended_in_order().await {
            return;
        }
        let Some(Export { nexus, .. }) = exports.get(&nqn) else { return };
        // It may have come back meanwhile.
        if let Err(status) = nexus.detach_host(host, || !exports.is_connected(&nqn, host)).await {
            tracing::info!(nqn, %host, %status, "a host has detached; it keeps its number");
        }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut open = self.exports.0.borrow_mut();
        let key = (std::mem::take(&mut self.nqn), self.host);
        match open.hosts.get_mut(&key) {
            Some(count) if *count > 1 => *count -= 1,
            _ => _ = open.hosts.remove(&key),
        }
    }
}

/// Listens and serves; the task ends when it is dropped.
pub(crate) async fn serve(
    config: &Config,
    exports: Exports,
    pools: &Pools,
) -> Result<(SocketAddr, Task<()>), Error> {
    let (listen, secret) = (config.listen, config.secret.clone());
    let (ports, address) = (pools.shared_ports(), Cell::new(listen));
    let served = Rc::new(Served { exports, ports, address, secret });
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
    secret: Option<Key>,
}

impl Subsystems for Served {
    type Session = Exported;

    fn key(&self, subnqn: &str, hostnqn: &str) -> Result<Option<Key>, ConnectError> {
        let Some(secret) = &self.secret else { return Ok(None) };
        if subnqn == DISCOVERY_NQN || replica_of_nqn(subnqn).is_some() {
            return Ok(Some(secret.clone()));
        }
        // Whether there is such a volume is not told to those who cannot prove that they may know.
        let volume = if let Some((volume, _)) = of_reader_nqn(subnqn) {
            volume
        } else if let Some((volume, id)) = Name::of_subnqn(subnqn) {
            // Now: Linux repeats a proof after which it is not let in, and waits a minute for the answer. Who asks learns
            // nothing that can be guessed.
            if !self.exports.has_admitted(volume, id) {
                return Err(ConnectError::Busy);
            }
            volume
        } else {
            self.exports.get(subnqn).ok_or(ConnectError::UnknownSubsystem)?.nexus.volume()
        };
        Ok(Some(volume_key(secret, volume, hostnqn)))
    }

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
        if let Some((volume, serial)) = of_reader_nqn(&connect.subnqn) {
            let reading = self.exports.reading(volume, serial).ok_or(ConnectError::UnknownSubsystem)?;
            return Ok(Rc::new(Exported::Reader(reading)));
        }
        if let Some((volume, id)) = Name::of_subnqn(&connect.subnqn) {
            // The volume may not be open again yet: the kernel is to ask once more.
            let attachment = self.exports.device(volume, id, connect).ok_or(ConnectError::Busy)?;
            return Ok(Rc::new(Exported::Device(attachment, id)));
        }
        let attachment = self.exports.attach(connect).await?;
        Ok(Rc::new(Exported::Volume(attachment)))
    }

    fn discovery(&self) -> Vec<DiscoveryEntry> {
        let open = self.exports.0.borrow();
        let entry = |nqn: &String| DiscoveryEntry {
            kind: DiscoveryKind::Subsystem,
            subnqn: nqn.clone(),
            address: self.address.get().ip(),
            port: self.address.get().port(),
            port_id: 1,
        };
        open.volumes.keys().map(entry).collect()
    }
}

/// One association with something that this node exports.
enum Exported {
    Replica(Rc<ReplicaSession>),
    Volume(Metered<Attachment>),
    /// With the identifier that was drawn for it.
    Device(Metered<Attachment>, Uuid),
    Reader(Metered<Reading>),
}

/// The namespace of each of them.
#[derive(Clone)]
enum Namespace {
    Replica(ReplicaNamespace),
    Volume(Metered<Attachment>),
    Reader(Metered<Reading>),
}

impl Session for Exported {
    type Namespace = Namespace;

    fn namespace_ids(&self) -> Vec<u32> {
        vec![NSID]
    }

    fn namespace(&self, nsid: u32) -> Option<Namespace> {
        (nsid == NSID).then(|| match self {
            Self::Replica(session) => Namespace::Replica(session.namespace()),
            Self::Volume(attachment) | Self::Device(attachment, _) => Namespace::Volume(attachment.clone()),
            Self::Reader(reading) => Namespace::Reader(reading.clone()),
        })
    }

    fn identity(&self, _nsid: u32) -> NamespaceIdentity {
        match self {
            Self::Replica(session) => session.identity(),
            Self::Volume(attachment) => NamespaceIdentity { uuid: attachment.inner().volume() },
            Self::Device(_, id) => NamespaceIdentity { uuid: *id },
            Self::Reader(reading) => NamespaceIdentity { uuid: reading.inner().volume },
        }
    }

    async fn vendor(&self, _nsid: u32, command: &VendorCommand) -> Result<VendorReply, Status> {
        match self {
            Self::Replica(session) => session.vendor(command).await,
            Self::Volume(_) | Self::Device(..) | Self::Reader(_) => Err(Status::Invalid),
        }
    }

    async fn closed(&self) {
        if let Self::Replica(session) = self {
            session.closed().await;
        }
    }
}

/// Calls the device of each of them.
macro_rules! each {
    ($namespace:expr, $device:ident => $call:expr) => {
        match $namespace {
            Namespace::Replica($device) => $call,
            Namespace::Volume($device) => $call,
            Namespace::Reader($device) => $call,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_for_readers_is_of_one_volume_and_one_number() {
        let volume = Uuid::from_u128(7);
        let name = reader_nqn(volume, 12);
        assert!(nvmf::wire::fabrics::is_nqn(&name));
        assert_eq!(of_reader_nqn(&name), Some((volume, 12)));
        for other in
            [volume_nqn("data"), name.replace(":12", ""), name.replace(":12", ":-1"), format!("{name}x")]
        {
            assert_eq!(of_reader_nqn(&other), None, "{other}");
        }
    }
}

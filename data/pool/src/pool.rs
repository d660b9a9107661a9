//! The pool: making one, opening one, and the replicas in it.

use crate::checkpoint::write_superblocks;
use crate::error::{Error, ErrorKind};
use crate::inner::{Inner, zero_blocks};
use crate::journal::Journal;
use crate::layer::{Layer, LayerState};
use crate::layout::{Layout, PIECE_SIZE, SUPERBLOCKS};
use crate::load::{Loaded, Problem, load, load_superblock};
use crate::metrics::Metrics;
use crate::record::{Record, ReplicaConfig};
use crate::replica::{Replica, ReplicaInfo, info_of};
use crate::signature;
use crate::space::Space;
use crate::superblock::{NAME_LEN_MAX, Superblock};
use device::{ByteCount, Device, Lba, Status};
use model::Generation;
use rt::Durability;
use std::rc::Rc;
use uuid::Uuid;

/// What [`Pool::format`] makes.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// The cluster that the pool belongs to.
    pub cluster: Uuid,
    /// The pool, never used twice.
    pub pool: Uuid,
    /// Its name, at most 64 bytes.
    pub name: String,
    /// The node that makes it, at most 64 bytes; none for a pool of no node.
    pub node: Option<String>,
    /// Whether to overwrite whatever the device carries.
    pub force: bool,
}

/// What the superblock says of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolLabel {
    /// The cluster that the pool belongs to.
    pub cluster: Uuid,
    /// The pool.
    pub pool: Uuid,
    /// Its name.
    pub name: String,
    /// Drawn anew at each opening; nil before the first.
    pub incarnation: Uuid,
    /// The boot of the machine that opened it; another id if the pool may have lost something within that boot.
    pub boot_id: Uuid,
    /// The node that made it or opened it last; none if that was not said.
    pub node: Option<String>,
}

/// Who opens a pool, and what is known of the time before.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    /// The node, which the superblock names from then on; without one it keeps the name that it has.
    pub node: Option<&'a str>,
    /// The machine's boot.
    pub boot_id: Uuid,
    /// The device failed or was away while the machine ran: what had completed and was not flushed may be lost, so the
    /// label gets another boot id.
    pub may_have_lost: bool,
}

/// A pool and how it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolInfo {
    /// What the superblock says.
    pub label: PoolLabel,
    /// The incarnation before this opening; nil if there was none.
    pub previous_incarnation: Uuid,
    /// The boot of the machine at that opening.
    pub previous_boot_id: Uuid,
    /// Space for data and metadata, in bytes.
    pub capacity_bytes: u64,
    /// Free space, in bytes; a little of it is kept for metadata.
    pub free_bytes: u64,
    /// Space in use, in bytes.
    pub used_bytes: u64,
    /// Whether the pool has failed and takes no more changes until it is opened again.
    pub failed: bool,
}

/// An open pool; clones are handles to the same one.
pub struct Pool<D: Device> {
    inner: Rc<Inner<D>>,
}

impl<D: Device> Clone for Pool<D> {
    fn clone(&self) -> Self {
        Self { inner: Rc::clone(&self.inner) }
    }
}

impl<D: Device + 'static> Pool<D> {
    /// Makes an empty pool on `device`.
    ///
    /// # Errors
    /// `Occupied` if the device carries anything and `force` is not set; then nothing has been changed.
    pub async fn format(device: &D, options: &FormatOptions) -> Result<(), Error> {
        for (whose, name) in [("pool", Some(&options.name)), ("node", options.node.as_ref())] {
            let Some(name) = name else { continue };
            if name.len() > NAME_LEN_MAX || name.is_empty() {
                let what = format!("the {whose} name {name:?} must have 1 to {NAME_LEN_MAX} bytes");
                return Err(Error::new(ErrorKind::Invalid, what));
            }
        }
        let device_bytes = device.geometry().size().0;
        let layout = Layout::new(device_bytes)?;
        if !options.force {
            let found = signature::find(device).await.map_err(|status| {
                Error::io("the device cannot be read to see whether it is empty", status)
            })?;
            if let Some(what) = found {
                return Err(Self::occupied(device, &what, options).await);
            }
        }
        let superblock = Superblock {
            sequence: 1,
            cluster: options.cluster,
            pool: options.pool,
            name: options.name.clone(),
            clean: true,
            device_bytes,
            layout,
            next_layer: 1,
            incarnation: Uuid::nil(),
            boot: Uuid::nil(),
            previous_incarnation: Uuid::nil(),
            previous_boot: Uuid::nil(),
            checkpoint: 0,
            cut: 1,
            session: Uuid::nil(),
            journal_position: 0,
            journal_batch: 1,
            manifest_head: 0,
            manifest_pages: 0,
            machine_boot: Uuid::nil(),
            features_incompatible: 0,
            lost: false,
            node: options.node.clone(),
        };
        write_new(device, &superblock)
            .await
            .map_err(|status| Error::io(format!("pool {} cannot be written", options.name), status))
    }

    /// The refusal to format a device that carries something; a pool is told by whose it is.
    async fn occupied(device: &D, what: &str, options: &FormatOptions) -> Error {
        let carries = match Self::probe(device).await {
            Ok(label) => format!(
                "the device carries the Orlop pool {} ({}) {}, and is not to become one {}",
                label.pool,
                label.name,
                whose(label.cluster, label.node.as_deref()),
                whose(options.cluster, options.node.as_deref()),
            ),
            Err(_) => format!("the device carries {what}"),
        };
        let advice = "choose another one, or blank it first if nobody needs what is on it";
        Error::new(ErrorKind::Occupied, format!("{carries}: {advice}"))
    }

    /// Opens the pool on `device` in this boot of the machine, without saying which node does it.
    ///
    /// # Errors
    /// As [`Self::open_as`].
    pub async fn open(device: D, boot_id: Uuid) -> Result<Self, Error> {
        Self::open_as(device, Opening { node: None, boot_id, may_have_lost: false }).await
    }

    /// Opens the pool on `device`: recovers it, and draws a new incarnation, durable before this returns.
    ///
    /// # Errors
    /// `NotAPool`, `Newer`, `Damaged` with object and offset, `Invalid` if the node's name is too long, or `Io`. Nothing
    /// has been changed then, unless writing failed; after a flush that failed the next opening has another boot id.
    pub async fn open_as(device: D, opening: Opening<'_>) -> Result<Self, Error> {
        let Opening { node, boot_id, may_have_lost: lost } = opening;
        if node.is_some_and(|node| node.len() > NAME_LEN_MAX) {
            let what = format!("the node name {node:?} has more than {NAME_LEN_MAX} bytes");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let loaded = load(&device).await?;
        if let Some(problem) = loaded.problems.iter().find(|problem| !problem.repairable) {
            return Err(damaged(&loaded.superblock.name, problem));
        }
        let name = loaded.superblock.name.clone();
        let context = |status| Error::io(format!("pool {name} cannot be written while it is opened"), status);
        let inner = assemble(device, loaded);
        // What recovery believed must be durable before anything is written over what it did not.
        if let Err(status) = inner.device.flush().await {
            // It may have taken what an opening before, in this boot of the machine, had completed (I5).
            Rc::clone(&inner).note_loss().await;
            return Err(context(status));
        }
        let (incarnation, session) = (rt::random_uuid(), rt::random_uuid());
        let boot = {
            let superblock = inner.superblock.borrow();
            match (lost || superblock.lost, superblock.machine_boot == boot_id) {
                (true, _) => rt::random_uuid(),
                (false, true) => superblock.boot,
                (false, false) => boot_id,
            }
        };
        let change = |superblock: &mut Superblock| {
            superblock.previous_incarnation = superblock.incarnation;
            superblock.previous_boot = superblock.boot;
            superblock.incarnation = incarnation;
            superblock.boot = boot;
            superblock.machine_boot = boot_id;
            superblock.lost = false;
            if let Some(node) = node {
                superblock.node = Some(node.to_owned());
            }
            superblock.session = session;
            superblock.clean = false;
        };
        let next_record = inner.journal.borrow().next_record();
        let ring_bytes = inner.layout.journal_bytes;
        inner.journal.replace(Journal::new(session, ring_bytes, next_record));
        inner.last_checkpoint(change).await.map_err(context)?;
        Ok(Self { inner })
    }

    /// Reads what the superblock says, and changes nothing.
    pub async fn probe(device: &D) -> Result<PoolLabel, Error> {
        load_superblock(device).await.map(|(superblock, _)| label(&superblock))
    }

    /// The pool and how it stands.
    pub fn info(&self) -> PoolInfo {
        let superblock = self.inner.superblock.borrow();
        let capacity_bytes = u64::from(superblock.layout.pieces()) * PIECE_SIZE;
        let free_bytes = self.inner.space.borrow().alloc.free_pieces() * PIECE_SIZE;
        PoolInfo {
            label: label(&superblock),
            previous_incarnation: superblock.previous_incarnation,
            previous_boot_id: superblock.previous_boot,
            capacity_bytes,
            free_bytes,
            used_bytes: capacity_bytes - free_bytes,
            failed: self.inner.failed.get(),
        }
    }

    /// Counters since the pool was opened.
    pub fn metrics(&self) -> Metrics {
        self.inner.metrics.get()
    }

    /// Makes an empty replica, durably; does nothing if it is there already, with the same properties.
    ///
    /// # Errors
    /// `Exists` if it is there with other properties; `NoSpace`; `Invalid`.
    pub async fn create_replica(&self, config: &ReplicaConfig) -> Result<(), Error> {
        if !config.is_sane() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "replica {} of volume {:?}: its size of {} must be whole blocks of 512 or 4096 bytes, \
                     its name at most 256 bytes",
                    config.replica,
                    config.volume_name,
                    ByteCount(config.size_bytes)
                ),
            ));
        }
        let context = format!("replica {} cannot be made in pool {}", config.replica, self.name());
        if let Some(there) = self.replica(config.replica) {
            if there.config() == *config {
                // Perhaps made by a call whose answer got lost, and not durable yet.
                return self.inner.flush_records().await.map_err(|status| Error::io(context, status));
            }
            return Err(Error::new(
                ErrorKind::Exists,
                format!("replica {} exists in pool {} with other properties", config.replica, self.name()),
            ));
        }
        if !self.inner.has_room_for_layer() {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!("{context}: the pool is full; delete a volume or add a pool"),
            ));
        }
        let layer = self.next_layer();
        let record = Record::Layer { layer, parent: 0, config: config.clone() };
        let made = Rc::new(Layer::new(layer, LayerState::new(config.clone())));
        let apply = || _ = self.inner.layers.borrow_mut().insert(config.replica, made);
        self.inner.control(&record, apply).await.map_err(|status| Error::io(context, status))
    }

    /// Deletes a replica, durably; does nothing if it is not there. Its space is free only after that.
    pub async fn delete_replica(&self, replica: Uuid) -> Result<(), Error> {
        let context = format!("replica {replica} cannot be deleted from pool {}", self.name());
        let layer = self.inner.layers.borrow().get(&replica).map(Rc::clone);
        let Some(layer) = layer else {
            // Perhaps deleted by a call whose answer got lost, and not durable yet.
            return self.inner.flush_records().await.map_err(|status| Error::io(context, status));
        };
        self.inner.admit_change().map_err(|status| Error::io(context.as_str(), status))?;
        layer.deleted.set(true);
        self.inner.layers.borrow_mut().remove(&replica);
        self.inner.deleted.borrow_mut().push(Rc::clone(&layer));
        let record = self.inner.push(|out| Record::Delete { layer: layer.number }.encode(out));
        self.free_everything(&layer, record);
        self.inner.make_durable(record).await.map_err(|status| Error::io(context, status))
    }

    fn free_everything(&self, layer: &Layer, record: u64) {
        let map = layer.map.take();
        for (_, entry) in map.entries(0) {
            let pieces: Vec<u32> = entry.pieces.into_iter().filter(|piece| *piece != 0).collect();
            self.inner.free_pieces(layer, &pieces, record);
        }
        let inner = &self.inner;
        inner.chunks.set(inner.chunks.get() - map.chunks.len() as u64);
        inner.placed.set(inner.placed.get() - layer.directory.borrow().len() as u64);
    }

    /// Every replica, in the order of their UUIDs.
    pub fn replicas(&self) -> Vec<ReplicaInfo> {
        self.inner.layers.borrow().values().map(|layer| info_of(layer)).collect()
    }

    /// A handle to one replica.
    pub fn replica(&self, replica: Uuid) -> Option<Replica<D>> {
        let layer = self.inner.layers.borrow().get(&replica).map(Rc::clone)?;
        Some(Replica::new(Rc::clone(&self.inner), layer))
    }

    /// Ends everything under way, writes a last checkpoint, and marks the pool clean. Afterwards every call fails.
    pub async fn close(&self) -> Result<(), Error> {
        let inner = &self.inner;
        let context = |status| Error::io(format!("pool {} cannot be closed in order", self.name()), status);
        inner.admit_change().map_err(context)?;
        inner.closed.set(true);
        inner.closing.notify();
        inner.drain().await;
        inner.all_written().await.map_err(context)?;
        inner.last_checkpoint(|superblock| superblock.clean = true).await.map_err(context)
    }

    /// Closes the pool and makes its device blank, if it holds no replica. From the first write on it is no pool any more;
    /// what was interrupted is done by hand (`orlop wipe`).
    ///
    /// # Errors
    /// `Occupied` if it holds a replica: nothing was changed. Otherwise it is closed, and perhaps still a pool.
    pub async fn retire(&self) -> Result<(), Error> {
        if let Some(first) = self.replicas().first() {
            let (name, volume) = (self.name(), &first.config.volume_name);
            let context = format!("pool {name} holds a copy of volume {volume:?}");
            return Err(Error::new(ErrorKind::Occupied, context));
        }
        // Between the look and this nothing waits: no replica is made from here on.
        self.close().await?;
        let blanked = signature::blank(&self.inner.device).await;
        blanked.map_err(|status| Error::io(format!("pool {} cannot be made blank", self.name()), status))
    }

    fn name(&self) -> String {
        self.inner.superblock.borrow().name.clone()
    }

    fn next_layer(&self) -> u32 {
        let next = self.inner.next_layer.get();
        self.inner.next_layer.set(next + 1);
        next
    }
}

impl<D: Device + 'static> Inner<D> {
    /// Waits until every record pushed so far has been written.
    async fn all_written(&self) -> Result<(), Status> {
        let next = self.journal.borrow().next_record();
        if self.journal.borrow().is_idle() { Ok(()) } else { self.written(next - 1).await }
    }

    /// Makes every record pushed so far durable.
    async fn flush_records(self: &Rc<Self>) -> Result<(), Status> {
        self.admit_change()?;
        self.all_written().await?;
        self.flush().await
    }
}

fn damaged(pool: &str, problem: &Problem) -> Error {
    Error::new(
        ErrorKind::Damaged,
        format!("pool {pool} is damaged: {problem}; check it, and rebuild its replicas from other pools"),
    )
}

pub(crate) fn label(superblock: &Superblock) -> PoolLabel {
    PoolLabel {
        cluster: superblock.cluster,
        pool: superblock.pool,
        name: superblock.name.clone(),
        incarnation: superblock.incarnation,
        boot_id: superblock.boot,
        node: superblock.node.clone(),
    }
}

/// Of which cluster and node, for people.
fn whose(cluster: Uuid, node: Option<&str>) -> String {
    let node = node.map(|node| format!(" and the node {node}")).unwrap_or_default();
    format!("of the cluster {cluster}{node}")
}

/// The open pool of what was loaded.
fn assemble<D: Device + 'static>(device: D, loaded: Loaded) -> Rc<Inner<D>> {
    let unclean = !loaded.superblock.clean;
    let mut superblock = loaded.superblock;
    superblock.next_layer = loaded.next_layer;
    let journal = Journal::new(Uuid::nil(), superblock.layout.journal_bytes, loaded.next_record);
    let inner = Rc::new(Inner::new(device, superblock, Space::new(loaded.alloc), journal));
    let (mut chunks, mut placed) = (0, 0);
    for (number, mut state) in loaded.layers {
        if unclean {
            state.unsure = state.unsure.max(state.ceiling);
        }
        state.ceiling = Generation::ZERO;
        chunks += state.map.chunks.len() as u64;
        placed += state.directory.len() as u64;
        let replica = state.config.replica;
        inner.layers.borrow_mut().insert(replica, Rc::new(Layer::new(number, state)));
    }
    inner.chunks.set(chunks);
    inner.placed.set(placed);
    // Pages that only the old checkpoint needs go the way of its manifest.
    let mut old_pages = loaded.manifest;
    old_pages.extend(loaded.retired);
    inner.manifest.replace(old_pages);
    inner
}

async fn write_new(device: &impl Device, superblock: &Superblock) -> Result<(), Status> {
    let block = u64::from(device.geometry().block_size);
    // No old superblock may survive beside a new one.
    for offset in SUPERBLOCKS {
        device.write(Lba(offset / block), zero_blocks(1).freeze(), Durability::Durable).await?;
    }
    device.flush().await?;
    write_superblocks(device, superblock).await
}

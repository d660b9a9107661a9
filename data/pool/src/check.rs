//! Checking a pool offline, and reading replicas out of one that nobody has opened. Writes nothing.

use crate::error::{Error, ErrorKind};
use crate::layer::{LayerState, owned_pieces};
use crate::layout::{BLOCK_BYTES, BLOCK_LEN, BLOCKS_PER_EXTENT, Layout, PIECE_SIZE, index};
use crate::load::{Problem, load, read_at};
use crate::map::Run;
use crate::replica::{ReplicaInfo, hash_block};
use device::{BlockCount, Device, Geometry, Lba, Status};
use rt::DmaBuf;
use uuid::Uuid;

/// What [`check`] found.
#[derive(Clone, Debug)]
pub struct CheckReport {
    /// The pool's name.
    pub name: String,
    /// The pool.
    pub pool: Uuid,
    /// The cluster it belongs to.
    pub cluster: Uuid,
    /// Whether it was closed in order; otherwise its journal was replayed, in memory.
    pub clean: bool,
    /// Its replicas.
    pub replicas: Vec<ReplicaInfo>,
    /// Space in use, in bytes.
    pub used_bytes: u64,
    /// Everything that is not as it should be.
    pub problems: Vec<Problem>,
}

/// Verifies the pool on `device`: superblocks, manifest, every page of every map, the journal, and that every piece has
/// exactly one owner.
///
/// # Errors
/// Where there is no pool to check: `NotAPool`, `Newer`, `Damaged` (no superblock is left), `Io`.
pub async fn check<D: Device>(device: &D) -> Result<CheckReport, Error> {
    let loaded = load(device).await?;
    let total = u64::from(loaded.superblock.layout.pieces());
    Ok(CheckReport {
        name: loaded.superblock.name.clone(),
        pool: loaded.superblock.pool,
        cluster: loaded.superblock.cluster,
        clean: loaded.superblock.clean,
        replicas: loaded.layers.values().map(info_of).collect(),
        used_bytes: (total - loaded.alloc.free_pieces()) * PIECE_SIZE,
        problems: loaded.problems,
    })
}

fn info_of(layer: &LayerState) -> ReplicaInfo {
    let pieces: u64 = layer.map.entries(0).map(|(_, entry)| owned_pieces(&entry.pieces)).sum();
    ReplicaInfo {
        config: layer.config.clone(),
        fence: layer.fence,
        stable: layer.stable,
        progress: layer.progress,
        used_bytes: pieces * PIECE_SIZE,
        bad_blocks: layer.map.bad_blocks(),
    }
}

/// Reads one replica of a pool that nobody has opened.
pub struct ReplicaReader<'a, D> {
    device: &'a D,
    layout: Layout,
    layer: LayerState,
}

impl<'a, D: Device> ReplicaReader<'a, D> {
    /// Finds `replica` in the pool on `device`.
    ///
    /// # Errors
    /// `NotFound`, and those of [`check`].
    pub async fn open(device: &'a D, replica: Uuid) -> Result<Self, Error> {
        let loaded = load(device).await?;
        let layout = loaded.superblock.layout;
        let layer = loaded.layers.into_values().find(|layer| layer.config.replica == replica);
        let layer = layer.ok_or_else(|| {
            let name = &loaded.superblock.name;
            Error::new(ErrorKind::NotFound, format!("replica {replica} is not in pool {name}"))
        })?;
        Ok(Self { device, layout, layer })
    }

    /// What it is and how it stands.
    pub fn info(&self) -> ReplicaInfo {
        info_of(&self.layer)
    }

    /// The latest copy of the volume's record.
    pub fn record(&self) -> Option<&[u8]> {
        self.layer.blob.as_deref()
    }

    /// Its size, in the pool's blocks of 4 KiB whatever the volume's block size; a last part counts as a block.
    pub fn geometry(&self) -> Geometry {
        let blocks = self.layer.config.size_bytes.div_ceil(BLOCK_BYTES);
        Geometry { block_size: 4096, blocks: BlockCount(blocks) }
    }

    /// Reads blocks of 4 KiB; what was never written reads as zeroes, and `MediaRead` is the answer where any is bad.
    pub async fn read(&self, lba: Lba, mut buf: DmaBuf) -> Result<DmaBuf, Status> {
        let count = self.geometry().check(lba, buf.len())?;
        if self.layer.map.is_bad(lba.0, count.0) {
            return Err(Status::MediaRead);
        }
        let mut next = 0;
        for Run { offset, blocks } in self.layer.map.runs(&self.layout, lba.0, count.0) {
            let len = index(blocks * BLOCK_BYTES);
            match offset {
                Some(offset) => {
                    let part = read_at(self.device, offset, len).await?;
                    buf[next..next + len].copy_from_slice(&part);
                }
                None => buf[next..next + len].fill(0),
            }
            next += len;
        }
        Ok(buf)
    }

    /// The extents that hold or held anything.
    pub fn extents(&self) -> impl Iterator<Item = u64> {
        self.layer.map.entries(0).map(|(extent, _)| extent)
    }

    /// One keyed hash per block of 4 KiB of `extent`, as [`crate::Replica::hash_extent`].
    pub async fn hash_extent(&self, extent: u64, seed: u64) -> Result<Vec<[u8; 16]>, Status> {
        let blocks = self.geometry().blocks.0;
        let first = extent.checked_mul(BLOCKS_PER_EXTENT).filter(|first| *first < blocks);
        let first = first.ok_or(Status::OutOfRange)?;
        let count = BLOCKS_PER_EXTENT.min(blocks - first);
        let bytes = self.read(Lba(first), DmaBuf::new(index(count * BLOCK_BYTES))).await?;
        Ok(bytes.chunks_exact(BLOCK_LEN).map(|block| hash_block(block, seed)).collect())
    }
}

//! The superblock: who the pool is, how it is laid out, and which checkpoint counts.
//!
//! Both copies are written at each change, one after the other, each durable before the next step; so one good copy is
//! always there, and after a crash between the two the higher sequence counts.
//!
//! # Invariants
//! 1. A copy is believed only as a whole: magic, checksum and its own place in it.
//! 2. Nothing that the older copy refers to is reused before both copies carry the newer state.
//!
//! # Spec
//! `docs/formats/pool.md`, "Superblock".

use crate::error::{Error, ErrorKind};
use crate::layout::{BLOCK_LEN, Layout, crc32c, index, narrow_len};
use device::ByteCount;
use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"ORLOPOOL";
/// The format version this code writes; it opens all up to it.
pub(crate) const VERSION: u32 = 1;
/// Features that a reader must know to read, of those this code knows.
const INCOMPATIBLE_KNOWN: u64 = BAD_BLOCKS;
/// Some map page has bad blocks: a reader that does not know them would take them for what lies in their pieces.
pub(crate) const BAD_BLOCKS: u64 = 1;
/// Features that a writer must know to write, of those this code knows.
const READ_ONLY_KNOWN: u64 = 0;
/// Bytes for the pool's name, and for its node's.
pub(crate) const NAME_LEN_MAX: usize = 64;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SuperblockDisk {
    magic: [u8; 8],
    version: U32,
    copy: U32,
    sequence: U64,
    features_compatible: U64,
    features_read_only: U64,
    features_incompatible: U64,
    cluster: [u8; 16],
    pool: [u8; 16],
    name: [u8; NAME_LEN_MAX],
    name_len: U32,
    clean: U32,
    device_bytes: U64,
    journal_offset: U64,
    journal_bytes: U64,
    data_offset: U64,
    extents: U32,
    next_layer: U32,
    incarnation: [u8; 16],
    boot: [u8; 16],
    previous_incarnation: [u8; 16],
    previous_boot: [u8; 16],
    checkpoint: U64,
    cut: U64,
    session: [u8; 16],
    journal_position: U64,
    journal_batch: U64,
    manifest_head: U64,
    manifest_pages: U64,
    machine_boot: [u8; 16],
    lost: U32,
    node: [u8; NAME_LEN_MAX],
    node_len: U32,
    reserved: [u8; 3684],
    crc: U32,
}

const _: () = assert!(size_of::<SuperblockDisk>() == BLOCK_LEN);

/// The superblock in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// Grows with each change; the higher of two valid copies counts.
    pub(crate) sequence: u64,
    pub(crate) cluster: Uuid,
    pub(crate) pool: Uuid,
    pub(crate) name: String,
    /// Closed in order: the journal holds nothing that the checkpoint lacks.
    pub(crate) clean: bool,
    pub(crate) device_bytes: u64,
    pub(crate) layout: Layout,
    /// The layer number that the next replica gets.
    pub(crate) next_layer: u32,
    pub(crate) incarnation: Uuid,
    /// The time in which nothing that completed was lost: the machine's boot, or drawn after a loss within one.
    pub(crate) boot: Uuid,
    pub(crate) previous_incarnation: Uuid,
    pub(crate) previous_boot: Uuid,
    /// The number of the checkpoint, stamped on its pages.
    pub(crate) checkpoint: u64,
    /// Records below this number are part of the checkpoint.
    pub(crate) cut: u64,
    /// Which opening's journal batches count.
    pub(crate) session: Uuid,
    /// Where the first batch beyond the checkpoint begins (counts on; modulo the ring's length it is an offset).
    pub(crate) journal_position: u64,
    /// The number of that batch.
    pub(crate) journal_batch: u64,
    /// First page of the manifest, plus one; zero while there is none.
    pub(crate) manifest_head: u64,
    pub(crate) manifest_pages: u64,
    /// The boot of the machine at the last opening.
    pub(crate) machine_boot: Uuid,
    /// What a reader must know: [`BAD_BLOCKS`].
    pub(crate) features_incompatible: u64,
    /// The pool has failed since: what had completed may be lost, although the machine still runs.
    pub(crate) lost: bool,
    /// The node that opened it last; none if that was not said.
    pub(crate) node: Option<String>,
}

/// Why a copy is not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// No Orlop magic.
    Foreign,
    /// The magic is there, the rest is not as written.
    Damaged(&'static str),
    /// A version or feature beyond this code.
    Newer(String),
}

impl Superblock {
    /// The block for copy `copy` (0 or 1).
    pub(crate) fn encode(&self, copy: u32) -> Vec<u8> {
        let node = self.node.as_deref().unwrap_or_default();
        let mut disk = SuperblockDisk {
            magic: MAGIC,
            version: U32::new(VERSION),
            copy: U32::new(copy),
            sequence: U64::new(self.sequence),
            features_compatible: U64::new(0),
            features_read_only: U64::new(0),
            features_incompatible: U64::new(self.features_incompatible),
            cluster: self.cluster.into_bytes(),
            pool: self.pool.into_bytes(),
            name: name_field(&self.name),
            name_len: U32::new(narrow_len(self.name.len())),
            clean: U32::new(u32::from(self.clean)),
            device_bytes: U64::new(self.device_bytes),
            journal_offset: U64::new(self.layout.journal_offset),
            journal_bytes: U64::new(self.layout.journal_bytes),
            data_offset: U64::new(self.layout.data_offset),
            extents: U32::new(self.layout.extents),
            next_layer: U32::new(self.next_layer),
            incarnation: self.incarnation.into_bytes(),
            boot: self.boot.into_bytes(),
            previous_incarnation: self.previous_incarnation.into_bytes(),
            previous_boot: self.previous_boot.into_bytes(),
            checkpoint: U64::new(self.checkpoint),
            cut: U64::new(self.cut),
            session: self.session.into_bytes(),
            journal_position: U64::new(self.journal_position),
            journal_batch: U64::new(self.journal_batch),
            manifest_head: U64::new(self.manifest_head),
            manifest_pages: U64::new(self.manifest_pages),
            machine_boot: self.machine_boot.into_bytes(),
            lost: U32::new(u32::from(self.lost)),
            node: name_field(node),
            node_len: U32::new(narrow_len(node.len())),
            reserved: [0; 3684],
            crc: U32::new(0),
        };
        let crc = crc32c(&disk.as_bytes()[..BLOCK_LEN - 4]);
        disk.crc = U32::new(crc);
        disk.as_bytes().to_vec()
    }

    /// Reads copy `copy` of the superblock.
    pub(crate) fn decode(bytes: &[u8], copy: u32) -> Result<Self, Unreadable> {
        let disk = SuperblockDisk::ref_from_bytes(bytes)
            .map_err(|_| Unreadable::Damaged("it is shorter than a block"))?;
        if disk.magic != MAGIC {
            return Err(Unreadable::Foreign);
        }
        if disk.crc.get() != crc32c(&bytes[..BLOCK_LEN - 4]) {
            return Err(Unreadable::Damaged("its checksum does not hold"));
        }
        if disk.version.get() > VERSION {
            return Err(Unreadable::Newer(format!(
                "format version {}, known is {VERSION}",
                disk.version.get()
            )));
        }
        let unknown = (disk.features_incompatible.get() & !INCOMPATIBLE_KNOWN)
            | (disk.features_read_only.get() & !READ_ONLY_KNOWN);
        if unknown != 0 {
            return Err(Unreadable::Newer(format!("format features {unknown:#x} are not known")));
        }
        if disk.copy.get() != copy {
            return Err(Unreadable::Damaged("it is the other copy, at the wrong place"));
        }
        let layout = Layout {
            journal_offset: disk.journal_offset.get(),
            journal_bytes: disk.journal_bytes.get(),
            data_offset: disk.data_offset.get(),
            extents: disk.extents.get(),
        };
        if !layout.is_sane(disk.device_bytes.get()) {
            return Err(Unreadable::Damaged("its layout contradicts itself"));
        }
        if disk.manifest_head.get() > layout.pages() || disk.manifest_pages.get() > layout.pages() {
            return Err(Unreadable::Damaged("its manifest lies beyond the pool"));
        }
        let name = name_of(&disk.name, disk.name_len).ok_or(Unreadable::Damaged("its name is not text"))?;
        let node = name_of(&disk.node, disk.node_len).ok_or(Unreadable::Damaged("its node is not text"))?;
        Ok(Self {
            sequence: disk.sequence.get(),
            cluster: Uuid::from_bytes(disk.cluster),
            pool: Uuid::from_bytes(disk.pool),
            name,
            clean: disk.clean.get() != 0,
            device_bytes: disk.device_bytes.get(),
            layout,
            next_layer: disk.next_layer.get(),
            incarnation: Uuid::from_bytes(disk.incarnation),
            boot: Uuid::from_bytes(disk.boot),
            previous_incarnation: Uuid::from_bytes(disk.previous_incarnation),
            previous_boot: Uuid::from_bytes(disk.previous_boot),
            checkpoint: disk.checkpoint.get(),
            cut: disk.cut.get(),
            session: Uuid::from_bytes(disk.session),
            journal_position: disk.journal_position.get(),
            journal_batch: disk.journal_batch.get(),
            manifest_head: disk.manifest_head.get(),
            manifest_pages: disk.manifest_pages.get(),
            machine_boot: Uuid::from_bytes(disk.machine_boot),
            features_incompatible: disk.features_incompatible.get(),
            lost: disk.lost.get() != 0,
            node: Some(node).filter(|node| !node.is_empty()),
        })
    }

    /// Chooses between the two copies as read.
    pub(crate) fn choose(copies: [Result<Self, Unreadable>; 2], device_bytes: u64) -> Result<Self, Error> {
        let chosen = match copies {
            [Ok(first), Ok(second)] => {
                if first.pool != second.pool {
                    return Err(Error::new(
                        ErrorKind::Damaged,
                        format!(
                            "the superblocks at offsets 0 and 524288 belong to different pools ({} and {}): \
                             format the device anew with force",
                            first.pool, second.pool
                        ),
                    ));
                }
                if second.sequence > first.sequence { second } else { first }
            }
            [Err(Unreadable::Newer(what)), _] | [_, Err(Unreadable::Newer(what))] => {
                return Err(Error::new(
                    ErrorKind::Newer,
                    format!("the pool was written by a newer Orlop ({what}): upgrade this one"),
                ));
            }
            [Ok(only), Err(_)] | [Err(_), Ok(only)] => only,
            [Err(Unreadable::Foreign), Err(Unreadable::Foreign)] => {
                return Err(Error::new(
                    ErrorKind::NotAPool,
                    "the device is not an Orlop pool: name one that a node has used",
                ));
            }
            [Err(first), Err(second)] => {
                return Err(Error::new(
                    ErrorKind::Damaged,
                    format!(
                        "both superblocks are damaged (offset 0: {first}, offset 524288: {second}): \
                         rebuild its replicas from other pools"
                    ),
                ));
            }
        };
        if chosen.device_bytes > device_bytes {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!(
                    "pool {} was made on a device of {}, but this one has {}: it has been cut short; \
                     keep a copy of it, and rebuild its replicas from other pools",
                    chosen.name,
                    ByteCount(chosen.device_bytes),
                    ByteCount(device_bytes)
                ),
            ));
        }
        Ok(chosen)
    }
}

fn name_field(name: &str) -> [u8; NAME_LEN_MAX] {
    let mut field = [0; NAME_LEN_MAX];
    field[..name.len()].copy_from_slice(name.as_bytes());
    field
}

fn name_of(field: &[u8], len: U32) -> Option<String> {
    let name = std::str::from_utf8(field.get(..index(len.get().into()))?).ok()?;
    Some(name.to_owned())
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Foreign => f.write_str("it is not a superblock"),
            Self::Damaged(what) => f.write_str(what),
            Self::Newer(what) => f.write_str(what),
        }
    }
}

#[cfg(test)]
pub(crate) fn example() -> Superblock {
    let device_bytes = 64 << 20;
    Superblock {
        sequence: 7,
        cluster: Uuid::from_u128(1),
        pool: Uuid::from_u128(2),
        name: "disk0".into(),
        clean: true,
        device_bytes,
        layout: Layout::new(device_bytes).expect("large enough"),
        next_layer: 3,
        incarnation: Uuid::from_u128(3),
        boot: Uuid::from_u128(4),
        previous_incarnation: Uuid::from_u128(5),
        previous_boot: Uuid::from_u128(6),
        checkpoint: 9,
        cut: 1000,
        session: Uuid::from_u128(7),
        journal_position: 12288,
        journal_batch: 4,
        manifest_head: 65,
        manifest_pages: 1,
        machine_boot: Uuid::from_u128(8),
        features_incompatible: 0,
        lost: true,
        node: Some("n1".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let superblock = example();
        for copy in 0..2 {
            assert_eq!(Superblock::decode(&superblock.encode(copy), copy), Ok(superblock.clone()));
            assert!(matches!(
                Superblock::decode(&superblock.encode(copy), 1 - copy),
                Err(Unreadable::Damaged(_))
            ));
        }
    }

    #[test]
    fn one_that_names_no_node_is_read() {
        let superblock = Superblock { node: None, ..example() };
        let block = superblock.encode(0);
        assert!(block[340..4092].iter().all(|byte| *byte == 0), "as versions before wrote it");
        assert_eq!(Superblock::decode(&block, 0), Ok(superblock));
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let block = example().encode(0);
        for position in 0..block.len() {
            let mut rotten = block.clone();
            rotten[position] ^= 0x10;
            assert!(Superblock::decode(&rotten, 0).is_err(), "byte {position}");
        }
    }

    #[test]
    fn the_higher_sequence_counts_and_one_copy_is_enough() {
        let old = example();
        let new = Superblock { sequence: 8, cut: 2000, ..old.clone() };
        let chosen = Superblock::choose([Ok(old.clone()), Ok(new.clone())], 64 << 20).expect("both hold");
        assert_eq!(chosen, new);
        let one = Superblock::choose([Err(Unreadable::Foreign), Ok(old.clone())], 64 << 20);
        assert_eq!(one.expect("one holds"), old);
        let none = Superblock::choose([Err(Unreadable::Foreign), Err(Unreadable::Foreign)], 64 << 20);
        assert_eq!(none.expect_err("none").kind(), ErrorKind::NotAPool);
        let short = Superblock::choose([Ok(old.clone()), Ok(old)], 32 << 20);
        assert_eq!(short.expect_err("too short").kind(), ErrorKind::Damaged);
    }
}

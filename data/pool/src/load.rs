//! Reading a pool: the newest checkpoint, then the journal, then the data that only a checksum vouches for.
//!
//! Writes nothing, so that it can be repeated after a crash in the middle, and serves opening and checking alike.
//!
//! # Invariants
//! 1. Records below the checkpoint's cut are part of it and are skipped.
//! 2. The journal ends at the first batch that is not whole; if a later one says that it had been durable, that is
//!    damage, not a crash.
//! 3. A block whose record no mark covers is believed only if its data matches one of its records' checksums, or if it
//!    was here before.
//!
//! # Spec
//! `docs/formats/pool.md`, "Recovery".

use crate::alloc::Allocator;
use crate::error::{Error, ErrorKind};
use crate::layer::LayerState;
use crate::layout::{BLOCK_BYTES, BLOCK_LEN, EXTENT_SIZE, EXTENTS_PER_CHUNK, Layout, SUPERBLOCKS};
use crate::layout::{crc32c, index, narrow};
use crate::map::{Chunk, Entry};
use crate::page::{ManifestPage, decode_map_page};
use crate::record::{Malformed, PageRef, Record};
use crate::superblock::{Superblock, Unreadable};
use crate::{replay, ring};
use device::{Device, Lba, Status};
use futures_util::future::{join_all, try_join_all};
use rt::DmaBuf;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

/// Reads under way at once.
const READS_AT_ONCE: usize = 16;
/// Pages read by one I/O, at most.
const PAGES_PER_READ: usize = 64;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What is affected.
    pub object: String,
    /// Where on the device, in bytes.
    pub offset_bytes: u64,
    /// What is wrong.
    pub what: String,
    /// Whether opening the pool repairs it.
    pub repairable: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {}: {}", self.object, self.offset_bytes, self.what)
    }
}

/// A pool as found on the device, after recovery in memory.
pub(crate) struct Loaded {
    pub(crate) superblock: Superblock,
    pub(crate) layers: BTreeMap<u32, LayerState>,
    pub(crate) alloc: Allocator,
    /// Pages of the manifest (stored form).
    pub(crate) manifest: Vec<u64>,
    /// Pages of layers that the journal deletes: the checkpoint on the device still needs them.
    pub(crate) retired: Vec<u64>,
    pub(crate) next_record: u64,
    pub(crate) next_layer: u32,
    pub(crate) problems: Vec<Problem>,
}

impl Loaded {
    pub(crate) fn problem(&mut self, object: impl Into<String>, offset_bytes: u64, what: impl Into<String>) {
        let (object, what) = (object.into(), what.into());
        self.problems.push(Problem { object, offset_bytes, what, repairable: false });
    }
}

/// Reads `len` bytes at byte offset `offset`.
pub(crate) async fn read_at(device: &impl Device, offset: u64, len: usize) -> Result<DmaBuf, Status> {
    let block = u64::from(device.geometry().block_size);
    device.read(Lba(offset / block), DmaBuf::new(len)).await
}

/// Reads and chooses between the superblocks; also says which copy is bad.
pub(crate) async fn load_superblock(device: &impl Device) -> Result<(Superblock, Vec<Problem>), Error> {
    let geometry = device.geometry();
    let device_bytes = geometry.size().0;
    if device_bytes < SUPERBLOCKS[1] + BLOCK_BYTES {
        return Err(Error::new(ErrorKind::NotAPool, "the device is too small to be an Orlop pool"));
    }
    let mut copies = Vec::new();
    let mut problems = Vec::new();
    let mut unreadable = None;
    for (copy, offset) in (0u32..).zip(SUPERBLOCKS) {
        let read = match read_at(device, offset, BLOCK_LEN).await {
            Ok(bytes) => Superblock::decode(&bytes, copy),
            Err(status) => {
                unreadable = Some(status);
                Err(Unreadable::Damaged("the device cannot read it"))
            }
        };
        if let Err(what) = &read {
            problems.push(Problem {
                object: "superblock".into(),
                offset_bytes: offset,
                what: what.to_string(),
                repairable: true,
            });
        }
        copies.push(read);
    }
    let copies: [_; 2] = copies.try_into().expect("two copies");
    if let ([Err(_), Err(_)], Some(status)) = (&copies, unreadable) {
        return Err(Error::io("the device cannot read the superblocks of the pool", status));
    }
    Superblock::choose(copies, device_bytes).map(|superblock| (superblock, problems))
}

/// Reads the whole pool.
pub(crate) async fn load(device: &impl Device) -> Result<Loaded, Error> {
    let (superblock, problems) = load_superblock(device).await?;
    let mut loaded = Loaded {
        alloc: Allocator::new(superblock.layout.extents),
        layers: BTreeMap::new(),
        manifest: Vec::new(),
        retired: Vec::new(),
        next_record: superblock.cut,
        next_layer: superblock.next_layer,
        superblock,
        problems,
    };
    let directory = load_manifest(device, &mut loaded).await?;
    load_maps(device, &mut loaded, directory).await;
    if !loaded.superblock.clean {
        let batches = ring::read(device, &mut loaded).await?;
        replay::apply(device, &mut loaded, &batches).await?;
    }
    claim_all(&mut loaded);
    Ok(loaded)
}

/// The directory: which page of the map lies where.
type Directory = Vec<(u32, u64, PageRef)>;

async fn load_manifest(device: &impl Device, loaded: &mut Loaded) -> Result<Directory, Error> {
    let superblock = loaded.superblock.clone();
    let mut stream = Vec::new();
    let mut next = superblock.manifest_head;
    while next != 0 {
        let number = loaded.manifest.len() as u64;
        if number >= superblock.manifest_pages || next > superblock.layout.pages() {
            loaded.problem("manifest", superblock.layout.page_offset(next), "its chain leads astray");
            return Ok(Vec::new());
        }
        let offset = superblock.layout.page_offset(next);
        let read = match read_at(device, offset, BLOCK_LEN).await {
            Ok(bytes) => bytes,
            Err(status) => {
                loaded.problem("manifest", offset, status.to_string());
                return Ok(Vec::new());
            }
        };
        match ManifestPage::decode(&read, superblock.pool) {
            Ok(page) if page.checkpoint == superblock.checkpoint && page.number == number => {
                loaded.manifest.push(next);
                stream.extend_from_slice(page.payload);
                next = page.next;
            }
            Ok(_) => {
                loaded.problem("manifest", offset, "it belongs to another checkpoint");
                return Ok(Vec::new());
            }
            Err(what) => {
                loaded.problem("manifest", offset, what);
                return Ok(Vec::new());
            }
        }
    }
    parse_manifest(loaded, &stream)
}

fn parse_manifest(loaded: &mut Loaded, stream: &[u8]) -> Result<Directory, Error> {
    let offset = loaded.manifest.first().map_or(0, |page| loaded.superblock.layout.page_offset(*page));
    let mut directory = Vec::new();
    let mut rest = stream;
    while !rest.is_empty() {
        let (record, len) = match Record::decode(rest) {
            Ok(read) => read,
            Err(malformed) => {
                malformed_record(loaded, "manifest", offset, malformed)?;
                break;
            }
        };
        rest = &rest[len..];
        let known = match record {
            Record::Directory { layer, pages } => {
                directory.extend(pages.into_iter().map(|(chunk, page)| (layer, chunk, page)));
                loaded.layers.contains_key(&layer)
            }
            record => replay::apply_control(loaded, record),
        };
        if !known {
            loaded.problem("manifest", offset, "a record contradicts the ones before");
        }
    }
    Ok(directory)
}

/// A record that cannot be read: from the future, or damage.
pub(crate) fn malformed_record(
    loaded: &mut Loaded,
    object: &str,
    offset: u64,
    malformed: Malformed,
) -> Result<(), Error> {
    match malformed {
        Malformed::UnknownKind(kind) => Err(Error::new(
            ErrorKind::Newer,
            format!(
                "the {object} of pool {} at offset {offset} has a record of kind {kind}, which this Orlop does \
                 not know: upgrade it",
                loaded.superblock.name
            ),
        )),
        Malformed::Contradictory => {
            loaded.problem(object, offset, "a record contradicts itself");
            Ok(())
        }
    }
}

async fn load_maps(device: &impl Device, loaded: &mut Loaded, mut directory: Directory) {
    let layout = loaded.superblock.layout;
    directory.sort_unstable_by_key(|(_, _, page)| page.page);
    directory.retain(|(layer, chunk, page)| {
        let there = page.page != 0 && page.page <= layout.pages() && *chunk < u64::MAX / (1 << 24);
        if !there {
            loaded.problem(format!("directory of layer {layer}"), 0, format!("page {} is none", page.page));
        }
        there
    });
    let groups: Vec<_> = directory
        .chunk_by(|(_, _, a), (_, _, b)| a.page + 1 == b.page)
        .flat_map(|group| group.chunks(PAGES_PER_READ))
        .collect();
    for some in groups.chunks(READS_AT_ONCE) {
        let reads = some
            .iter()
            .map(|group| read_at(device, layout.page_offset(group[0].2.page), group.len() * BLOCK_LEN));
        for (group, read) in some.iter().zip(join_all(reads).await) {
            for (i, (layer, chunk, page)) in group.iter().enumerate() {
                let bytes = read.as_ref().map(|buf| &buf[i * BLOCK_LEN..(i + 1) * BLOCK_LEN]);
                if let Err(what) = take_map_page(loaded, *layer, *chunk, *page, bytes) {
                    let object = format!("map page of chunk {chunk} of layer {layer}");
                    loaded.problem(object, layout.page_offset(page.page), what);
                }
            }
        }
    }
}

fn take_map_page(
    loaded: &mut Loaded,
    number: u32,
    chunk: u64,
    page: PageRef,
    bytes: Result<&[u8], &Status>,
) -> Result<(), String> {
    let bytes = bytes.map_err(ToString::to_string)?;
    if crc32c(bytes) != page.crc {
        return Err("its checksum does not hold".into());
    }
    let entries = decode_map_page(bytes, loaded.superblock.pool, number, chunk)?;
    let layout = loaded.superblock.layout;
    let layer = loaded.layers.get_mut(&number).ok_or("its layer does not exist")?;
    for (extent, entry) in (chunk * EXTENTS_PER_CHUNK..).zip(&entries) {
        check_entry(&layout, layer, extent, entry)?;
    }
    layer.directory.insert(chunk, page);
    layer.map.has_bad |= entries.iter().any(|entry| entry.bad != 0);
    layer.map.chunks.insert(chunk, Rc::new(Chunk::settled(&entries)));
    Ok(())
}

/// Whether an entry can be true.
pub(crate) fn check_entry(
    layout: &Layout,
    layer: &LayerState,
    extent: u64,
    entry: &Entry,
) -> Result<(), &'static str> {
    if *entry == Entry::EMPTY {
        return Ok(());
    }
    if extent >= layer.config.size_bytes.div_ceil(EXTENT_SIZE) {
        return Err("an extent lies beyond the end of the volume");
    }
    if entry.present & entry.bad != 0 {
        return Err("a block is here and bad");
    }
    if entry.pieces.iter().any(|piece| *piece > layout.pieces()) {
        return Err("a piece lies beyond the pool");
    }
    let owned = (0..8).filter(|i| entry.pieces[*i] != 0).fold(0u8, |owned, i| owned | 1 << i);
    if Entry::pieces_of(entry.present) & !owned != 0 {
        return Err("a block is here without a piece");
    }
    Ok(())
}

/// Gives every page and piece to its owner, and notes those with two.
fn claim_all(loaded: &mut Loaded) {
    let layout = loaded.superblock.layout;
    let mut problems = Vec::new();
    let mut note = |object: String, offset_bytes: u64, what: &str| {
        problems.push(Problem { object, offset_bytes, what: what.into(), repairable: false });
    };
    for page in loaded.manifest.iter().chain(&loaded.retired) {
        if let Err(what) = loaded.alloc.claim_page(*page) {
            note("manifest".into(), layout.page_offset(*page), what);
        }
    }
    for (number, layer) in &loaded.layers {
        for page in layer.directory.values() {
            if let Err(what) = loaded.alloc.claim_page(page.page) {
                note(format!("map of layer {number}"), layout.page_offset(page.page), what);
            }
        }
    }
    for layer in loaded.layers.values() {
        for (extent, entry) in layer.map.entries(0) {
            for piece in entry.pieces.iter().filter(|piece| **piece != 0) {
                if let Err(what) = loaded.alloc.claim(*piece) {
                    let object = format!("extent {extent} of replica {}", layer.config.replica);
                    note(object, layout.block_offset(*piece, 0), what);
                }
            }
        }
    }
    loaded.alloc.finish_claims();
    loaded.problems.extend(problems);
}

/// Reads the blocks `blocks` of an extent; for each its number and its bytes, or what the device said.
pub(crate) async fn read_blocks(
    device: &impl Device,
    layout: &Layout,
    entry: &Entry,
    blocks: u64,
) -> Vec<(u32, Result<DmaBuf, Status>)> {
    let wanted: Vec<u32> = (0..64).filter(|block| blocks >> block & 1 == 1).collect();
    let reads = wanted.iter().map(|block| {
        let offset = layout.block_offset(entry.pieces[index(u64::from(block / 8))], *block);
        read_at(device, offset, BLOCK_LEN)
    });
    wanted.iter().copied().zip(join_all(reads).await).collect()
}

/// Reads `len` bytes from `offset` on in large parts.
pub(crate) async fn read_region(device: &impl Device, offset: u64, len: u64) -> Result<Vec<u8>, Status> {
    let mut bytes = Vec::with_capacity(index(len));
    let part = EXTENT_SIZE * 4;
    let starts: Vec<u64> = (0..len).step_by(index(part)).collect();
    for some in starts.chunks(READS_AT_ONCE) {
        let reads = some.iter().map(|start| read_at(device, offset + start, index(part.min(len - start))));
        for buf in try_join_all(reads).await? {
            bytes.extend_from_slice(&buf);
        }
    }
    debug_assert_eq!(narrow(len), narrow(bytes.len() as u64));
    Ok(bytes)
}

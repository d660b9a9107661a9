//! Records: what the journal and the manifest are made of; each says one thing about one layer.
//!
//! A layer is what a replica consists of on disk (today one per replica; snapshots will make chains of them). The
//! manifest of a checkpoint is the sequence of records that would build its state, so both are read by one decoder.
//!
//! # Invariants
//! 1. Each record is a multiple of eight bytes and says its own length; decoding never reads beyond it.
//! 2. Applying a prefix of the records in order gives a state that the pool was in.
//!
//! # Spec
//! `docs/formats/pool.md`, "Records".

use crate::layout::{index, narrow_len};
use model::Generation;
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Longest name of a volume, in bytes.
pub(crate) const NAME_LEN_MAX: usize = 256;
/// Longest copy of a volume's record, in bytes.
pub const RECORD_LEN_MAX: usize = 16 << 10;
/// Entries of one directory record.
pub(crate) const DIRECTORY_LEN_MAX: usize = 64;
/// The longest record, in bytes.
pub(crate) const ENCODED_LEN_MAX: usize = RECORD_LEN_MAX + 64;

/// The kind of a record, its first field on disk.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
enum Kind {
    Layer = 1,
    Delete = 2,
    Fence = 3,
    Stable = 4,
    Progress = 5,
    Blob = 6,
    Size = 7,
    Ceiling = 8,
    Map = 9,
    Unmap = 10,
    Mark = 11,
    Directory = 12,
    Unsure = 13,
    Bad = 14,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct HeaderDisk {
    kind: U16,
    reserved: U16,
    len: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct LayerDisk {
    layer: U32,
    /// The layer that is asked for blocks that are not here; zero: none.
    parent: U32,
    replica: [u8; 16],
    volume: [u8; 16],
    size_bytes: U64,
    block_size: U32,
    copies: U32,
    flags: U32,
    name_len: U32,
}

/// Fence, stable mark, ceiling, unsure limit: a layer, a generation or epoch, and for the fence its nexus.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ClockDisk {
    layer: U32,
    reserved: U32,
    epoch: U64,
    counter: U64,
    nexus: [u8; 16],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ProgressDisk {
    layer: U32,
    present: U32,
    source_epoch: U64,
    cursor_extent: U64,
    received_epoch: U64,
    received_counter: U64,
}

/// Delete, size, mark, blob: a layer and one number.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct NumberDisk {
    layer: U32,
    reserved: U32,
    number: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct MapDisk {
    layer: U32,
    /// Bit i: the i-th of the extent's pieces is assigned (map) or freed (unmap) by this record.
    pieces: u8,
    reserved: [u8; 3],
    extent: U64,
    epoch: U64,
    counter: U64,
    blocks: U64,
    /// Blocks that become known zeroes (layers with a parent); zero today.
    zeroes: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DirectoryDisk {
    chunk: U64,
    page: U64,
    crc: U32,
    reserved: U32,
}

/// A replica's properties.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaConfig {
    /// The replica, never used twice.
    pub replica: Uuid,
    /// The volume it is a copy of.
    pub volume: Uuid,
    /// The volume's name.
    pub volume_name: String,
    /// Size in bytes; a multiple of the block size.
    pub size_bytes: u64,
    /// Bytes per block: 512 or 4096.
    pub block_size: u32,
    /// Number of copies of the volume.
    pub copies: u32,
}

/// Who may write: the epoch and the nexus it belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fence {
    /// The highest epoch accepted; zero before the first.
    pub epoch: u64,
    /// The nexus of that epoch.
    pub nexus: Uuid,
}

/// What a rebuild of a replica has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The epoch in which the rebuild ran.
    pub source_epoch: u64,
    /// Everything before this extent has been copied.
    pub cursor_extent: u64,
    /// The last generation whose writes this replica received in full.
    pub received_since: Generation,
}

/// A page of the map: where it lies and what its checksum is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageRef {
    /// The page, plus one.
    pub(crate) page: u64,
    /// CRC32C of the whole page.
    pub(crate) crc: u32,
}

/// Blocks of one extent made present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MapRecord {
    pub(crate) layer: u32,
    pub(crate) extent: u64,
    pub(crate) generation: Generation,
    /// The blocks that become present.
    pub(crate) blocks: u64,
    /// Newly assigned pieces, plus one; zero: as before.
    pub(crate) pieces: [u32; 8],
    /// CRC32C of each block in `blocks`, lowest first.
    pub(crate) crcs: Vec<u32>,
}

/// Blocks of one extent made absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnmapRecord {
    pub(crate) layer: u32,
    pub(crate) extent: u64,
    pub(crate) generation: Generation,
    pub(crate) blocks: u64,
    /// Bit i: the i-th piece is given back.
    pub(crate) freed: u8,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// A layer comes into being.
    Layer {
        layer: u32,
        parent: u32,
        config: ReplicaConfig,
    },
    /// A layer and all it owns are gone.
    Delete {
        layer: u32,
    },
    Fence {
        layer: u32,
        fence: Fence,
    },
    Stable {
        layer: u32,
        generation: Generation,
    },
    Progress {
        layer: u32,
        progress: Option<Progress>,
    },
    /// The latest copy of the volume's record.
    Blob {
        layer: u32,
        bytes: Vec<u8>,
    },
    Size {
        layer: u32,
        size_bytes: u64,
    },
    /// Writes up to this generation may follow.
    Ceiling {
        layer: u32,
        generation: Generation,
    },
    Map(MapRecord),
    Unmap(UnmapRecord),
    /// Blocks of one extent made bad, as an unmap otherwise.
    Bad(UnmapRecord),
    /// Records below this number, and their data, are durable.
    Mark {
        settled: u64,
    },
    /// Where pages of the map lie (manifest only).
    Directory {
        layer: u32,
        pages: Vec<(u64, PageRef)>,
    },
    /// Up to this generation the extents' own generations may be too low (manifest only).
    Unsure {
        layer: u32,
        generation: Generation,
    },
}

/// A record that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// Lengths or values contradict each other.
    Contradictory,
    /// A kind that this code does not know.
    UnknownKind(u16),
}

impl Record {
    /// Appends the record's bytes to `out`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let start = begin(out);
        let kind = self.encode_body(out);
        finish(out, start, kind);
    }

    fn encode_body(&self, out: &mut Vec<u8>) -> Kind {
        match self {
            Self::Layer { layer, parent, config } => {
                push(
                    out,
                    &LayerDisk {
                        layer: U32::new(*layer),
                        parent: U32::new(*parent),
                        replica: config.replica.into_bytes(),
                        volume: config.volume.into_bytes(),
                        size_bytes: U64::new(config.size_bytes),
                        block_size: U32::new(config.block_size),
                        copies: U32::new(config.copies),
                        flags: U32::new(0),
                        name_len: U32::new(narrow_len(config.volume_name.len())),
                    },
                );
                out.extend_from_slice(config.volume_name.as_bytes());
                Kind::Layer
            }
            Self::Delete { layer } => number(out, *layer, 0, Kind::Delete),
            Self::Size { layer, size_bytes } => number(out, *layer, *size_bytes, Kind::Size),
            Self::Mark { settled } => number(out, 0, *settled, Kind::Mark),
            Self::Blob { layer, bytes } => {
                number(out, *layer, bytes.len() as u64, Kind::Blob);
                out.extend_from_slice(bytes);
                Kind::Blob
            }
            Self::Fence { layer, fence } => {
                clock(out, *layer, Generation::new(fence.epoch, 0), fence.nexus, Kind::Fence)
            }
            Self::Stable { layer, generation } => clock(out, *layer, *generation, Uuid::nil(), Kind::Stable),
            Self::Ceiling { layer, generation } => {
                clock(out, *layer, *generation, Uuid::nil(), Kind::Ceiling)
            }
            Self::Unsure { layer, generation } => clock(out, *layer, *generation, Uuid::nil(), Kind::Unsure),
            Self::Progress { layer, progress } => {
                let value = progress.unwrap_or_default();
                push(
                    out,
                    &ProgressDisk {
                        layer: U32::new(*layer),
                        present: U32::new(u32::from(progress.is_some())),
                        source_epoch: U64::new(value.source_epoch),
                        cursor_extent: U64::new(value.cursor_extent),
                        received_epoch: U64::new(value.received_since.epoch),
                        received_counter: U64::new(value.received_since.counter),
                    },
                );
                Kind::Progress
            }
            Self::Map(map) => map.encode_body(out),
            Self::Unmap(unmap) => unmap.encode_body(out),
            Self::Bad(bad) => {
                bad.encode_body(out);
                Kind::Bad
            }
            Self::Directory { layer, pages } => {
                number(out, *layer, pages.len() as u64, Kind::Directory);
                for (chunk, page) in pages {
                    push(
                        out,
                        &DirectoryDisk {
                            chunk: U64::new(*chunk),
                            page: U64::new(page.page),
                            crc: U32::new(page.crc),
                            reserved: U32::new(0),
                        },
                    );
                }
                Kind::Directory
            }
        }
    }

    /// Reads the record at the start of `bytes`; returns it and its length.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(Self, usize), Malformed> {
        let (header, _) = HeaderDisk::ref_from_prefix(bytes).map_err(|_| Malformed::Contradictory)?;
        let len = index(header.len.get().into());
        if len < size_of::<HeaderDisk>() || !len.is_multiple_of(8) || len > bytes.len() {
            return Err(Malformed::Contradictory);
        }
        let body = &bytes[size_of::<HeaderDisk>()..len];
        let record = Self::decode_body(header.kind.get(), body)?;
        record.ok_or(Malformed::Contradictory).map(|record| (record, len))
    }

    /// The body's record; `None` where it contradicts itself.
    fn decode_body(kind: u16, body: &[u8]) -> Result<Option<Self>, Malformed> {
        const LAYER: u16 = Kind::Layer as u16;
        const DELETE: u16 = Kind::Delete as u16;
        const FENCE: u16 = Kind::Fence as u16;
        const STABLE: u16 = Kind::Stable as u16;
        const PROGRESS: u16 = Kind::Progress as u16;
        const BLOB: u16 = Kind::Blob as u16;
        const SIZE: u16 = Kind::Size as u16;
        const CEILING: u16 = Kind::Ceiling as u16;
        const MAP: u16 = Kind::Map as u16;
        const UNMAP: u16 = Kind::Unmap as u16;
        const MARK: u16 = Kind::Mark as u16;
        const DIRECTORY: u16 = Kind::Directory as u16;
        const UNSURE: u16 = Kind::Unsure as u16;
        const BAD: u16 = Kind::Bad as u16;
        Ok(match kind {
            LAYER => decode_layer(body),
            DELETE => take::<NumberDisk>(body).map(|(disk, _)| Self::Delete { layer: disk.layer.get() }),
            FENCE => take::<ClockDisk>(body).map(|(disk, _)| Self::Fence {
                layer: disk.layer.get(),
                fence: Fence { epoch: disk.epoch.get(), nexus: Uuid::from_bytes(disk.nexus) },
            }),
            STABLE => decode_clock(body).map(|(layer, generation)| Self::Stable { layer, generation }),
            CEILING => decode_clock(body).map(|(layer, generation)| Self::Ceiling { layer, generation }),
            UNSURE => decode_clock(body).map(|(layer, generation)| Self::Unsure { layer, generation }),
            PROGRESS => take::<ProgressDisk>(body).map(|(disk, _)| Self::Progress {
                layer: disk.layer.get(),
                progress: (disk.present.get() != 0).then(|| Progress {
                    source_epoch: disk.source_epoch.get(),
                    cursor_extent: disk.cursor_extent.get(),
                    received_since: Generation::new(disk.received_epoch.get(), disk.received_counter.get()),
                }),
            }),
            BLOB => take::<NumberDisk>(body).and_then(|(disk, rest)| {
                let len = usize::try_from(disk.number.get()).ok().filter(|len| *len <= RECORD_LEN_MAX)?;
                Some(Self::Blob { layer: disk.layer.get(), bytes: rest.get(..len)?.to_vec() })
            }),
            SIZE => take::<NumberDisk>(body)
                .map(|(disk, _)| Self::Size { layer: disk.layer.get(), size_bytes: disk.number.get() }),
            MAP => decode_map(body),
            UNMAP => decode_unmap(body).map(Self::Unmap),
            BAD => decode_unmap(body).map(Self::Bad),
            MARK => take::<NumberDisk>(body).map(|(disk, _)| Self::Mark { settled: disk.number.get() }),
            DIRECTORY => decode_directory(body),
            unknown => return Err(Malformed::UnknownKind(unknown)),
        })
    }
}

impl MapRecord {
    /// Appends the record's bytes to `out`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let start = begin(out);
        let kind = self.encode_body(out);
        finish(out, start, kind);
    }

    fn encode_body(&self, out: &mut Vec<u8>) -> Kind {
        let mut assigned = 0;
        for (i, piece) in self.pieces.iter().enumerate() {
            assigned |= u8::from(*piece != 0) << i;
        }
        push(
            out,
            &MapDisk {
                layer: U32::new(self.layer),
                pieces: assigned,
                reserved: [0; 3],
                extent: U64::new(self.extent),
                epoch: U64::new(self.generation.epoch),
                counter: U64::new(self.generation.counter),
                blocks: U64::new(self.blocks),
                zeroes: U64::new(0),
            },
        );
        for word in self.pieces.iter().filter(|piece| **piece != 0).chain(&self.crcs) {
            out.extend_from_slice(&word.to_le_bytes());
        }
        Kind::Map
    }
}

impl UnmapRecord {
    /// Appends the record's bytes to `out`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let start = begin(out);
        let kind = self.encode_body(out);
        finish(out, start, kind);
    }

    fn encode_body(&self, out: &mut Vec<u8>) -> Kind {
        push(
            out,
            &MapDisk {
                layer: U32::new(self.layer),
                pieces: self.freed,
                reserved: [0; 3],
                extent: U64::new(self.extent),
                epoch: U64::new(self.generation.epoch),
                counter: U64::new(self.generation.counter),
                blocks: U64::new(self.blocks),
                zeroes: U64::new(0),
            },
        );
        Kind::Unmap
    }
}

/// The length that the record at the start of `bytes` claims, which this process encoded itself.
pub(crate) fn encoded_len(bytes: &[u8]) -> usize {
    let (header, _) = HeaderDisk::ref_from_prefix(bytes).expect("a whole record");
    index(header.len.get().into())
}

fn begin(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; size_of::<HeaderDisk>()]);
    start
}

fn finish(out: &mut Vec<u8>, start: usize, kind: Kind) {
    let len = (out.len() - start).next_multiple_of(8);
    out.resize(start + len, 0);
    let header =
        HeaderDisk { kind: U16::new(kind as u16), reserved: U16::new(0), len: U32::new(narrow_len(len)) };
    out[start..start + size_of::<HeaderDisk>()].copy_from_slice(header.as_bytes());
}

fn push(out: &mut Vec<u8>, disk: &(impl IntoBytes + Immutable)) {
    out.extend_from_slice(disk.as_bytes());
}

fn number(out: &mut Vec<u8>, layer: u32, number: u64, kind: Kind) -> Kind {
    push(out, &NumberDisk { layer: U32::new(layer), reserved: U32::new(0), number: U64::new(number) });
    kind
}

fn clock(out: &mut Vec<u8>, layer: u32, generation: Generation, nexus: Uuid, kind: Kind) -> Kind {
    push(
        out,
        &ClockDisk {
            layer: U32::new(layer),
            reserved: U32::new(0),
            epoch: U64::new(generation.epoch),
            counter: U64::new(generation.counter),
            nexus: nexus.into_bytes(),
        },
    );
    kind
}

fn take<T: FromBytes + Immutable + KnownLayout + Unaligned>(body: &[u8]) -> Option<(&T, &[u8])> {
    T::ref_from_prefix(body).ok()
}

fn decode_clock(body: &[u8]) -> Option<(u32, Generation)> {
    let (disk, _) = take::<ClockDisk>(body)?;
    Some((disk.layer.get(), Generation::new(disk.epoch.get(), disk.counter.get())))
}

fn decode_layer(body: &[u8]) -> Option<Record> {
    let (disk, rest) = take::<LayerDisk>(body)?;
    let name_len = usize::try_from(disk.name_len.get()).ok().filter(|len| *len <= NAME_LEN_MAX)?;
    let name = std::str::from_utf8(rest.get(..name_len)?).ok()?;
    let config = ReplicaConfig {
        replica: Uuid::from_bytes(disk.replica),
        volume: Uuid::from_bytes(disk.volume),
        volume_name: name.to_owned(),
        size_bytes: disk.size_bytes.get(),
        block_size: disk.block_size.get(),
        copies: disk.copies.get(),
    };
    let known = disk.flags.get() == 0 && disk.parent.get() == 0 && disk.layer.get() != 0;
    (known && config.is_sane()).then(|| Record::Layer {
        layer: disk.layer.get(),
        parent: disk.parent.get(),
        config,
    })
}

fn decode_map(body: &[u8]) -> Option<Record> {
    let (disk, rest) = take::<MapDisk>(body)?;
    let words = |from: usize, count: u32| -> Option<Vec<u32>> {
        let bytes = rest.get(from * 4..(from + index(count.into())) * 4)?;
        Some(
            bytes
                .chunks_exact(4)
                .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
                .collect(),
        )
    };
    let assigned = words(0, disk.pieces.count_ones())?;
    let crcs = words(assigned.len(), disk.blocks.get().count_ones())?;
    let mut pieces = [0; 8];
    let mut next = assigned.into_iter();
    for (i, piece) in pieces.iter_mut().enumerate() {
        if disk.pieces & (1 << i) != 0 {
            *piece = next.next().filter(|piece| *piece != 0)?;
        }
    }
    Some(Record::Map(MapRecord {
        layer: disk.layer.get(),
        extent: disk.extent.get(),
        generation: Generation::new(disk.epoch.get(), disk.counter.get()),
        blocks: disk.blocks.get(),
        pieces,
        crcs,
    }))
}

fn decode_unmap(body: &[u8]) -> Option<UnmapRecord> {
    let (disk, _) = take::<MapDisk>(body)?;
    Some(UnmapRecord {
        layer: disk.layer.get(),
        extent: disk.extent.get(),
        generation: Generation::new(disk.epoch.get(), disk.counter.get()),
        blocks: disk.blocks.get(),
        freed: disk.pieces,
    })
}

fn decode_directory(body: &[u8]) -> Option<Record> {
    let (disk, rest) = take::<NumberDisk>(body)?;
    let count = usize::try_from(disk.number.get()).ok().filter(|count| *count <= DIRECTORY_LEN_MAX)?;
    let entries = <[DirectoryDisk]>::ref_from_prefix_with_elems(rest, count).ok()?.0;
    let pages = entries
        .iter()
        .map(|entry| (entry.chunk.get(), PageRef { page: entry.page.get(), crc: entry.crc.get() }))
        .collect();
    Some(Record::Directory { layer: disk.layer.get(), pages })
}

impl ReplicaConfig {
    /// Whether the sizes make sense.
    pub(crate) fn is_sane(&self) -> bool {
        matches!(self.block_size, 512 | 4096)
            && self.size_bytes > 0
            && self.size_bytes.is_multiple_of(u64::from(self.block_size))
            && self.size_bytes <= 1 << 56
            && self.volume_name.len() <= NAME_LEN_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn generation() -> impl Strategy<Value = Generation> {
        (any::<u64>(), any::<u64>()).prop_map(|(epoch, counter)| Generation::new(epoch, counter))
    }

    fn record() -> impl Strategy<Value = Record> {
        let config = ("[a-z]{0,64}", 1u64..1 << 40, any::<u128>(), any::<u32>()).prop_map(
            |(volume_name, blocks, id, copies)| ReplicaConfig {
                replica: Uuid::from_u128(id),
                volume: Uuid::from_u128(!id),
                volume_name,
                size_bytes: blocks * 512,
                block_size: 512,
                copies,
            },
        );
        let map = (any::<u32>(), any::<u64>(), generation(), any::<u64>(), any::<[u32; 8]>(), any::<u32>())
            .prop_map(|(layer, extent, generation, blocks, pieces, crc)| MapRecord {
                layer,
                extent,
                generation,
                blocks,
                pieces,
                crcs: (0..blocks.count_ones()).map(|i| crc.wrapping_add(i)).collect(),
            });
        let pages = proptest::collection::vec((any::<u64>(), any::<u64>(), any::<u32>()), 0..64)
            .prop_map(|pages| pages.into_iter().map(|(c, page, crc)| (c, PageRef { page, crc })).collect());
        let progress = proptest::option::of((any::<u64>(), any::<u64>(), generation()).prop_map(
            |(source_epoch, cursor_extent, received_since)| Progress {
                source_epoch,
                cursor_extent,
                received_since,
            },
        ));
        prop_oneof![
            (1..u32::MAX, config).prop_map(|(layer, config)| Record::Layer { layer, parent: 0, config }),
            any::<u32>().prop_map(|layer| Record::Delete { layer }),
            (any::<u32>(), any::<u64>(), any::<u128>()).prop_map(|(layer, epoch, nexus)| Record::Fence {
                layer,
                fence: Fence { epoch, nexus: Uuid::from_u128(nexus) }
            }),
            (any::<u32>(), generation()).prop_map(|(layer, generation)| Record::Stable { layer, generation }),
            (any::<u32>(), generation())
                .prop_map(|(layer, generation)| Record::Ceiling { layer, generation }),
            (any::<u32>(), generation()).prop_map(|(layer, generation)| Record::Unsure { layer, generation }),
            (any::<u32>(), progress).prop_map(|(layer, progress)| Record::Progress { layer, progress }),
            (any::<u32>(), proptest::collection::vec(any::<u8>(), 0..500))
                .prop_map(|(layer, bytes)| Record::Blob { layer, bytes }),
            (any::<u32>(), any::<u64>()).prop_map(|(layer, size_bytes)| Record::Size { layer, size_bytes }),
            map.prop_map(Record::Map),
            (any::<u32>(), any::<u64>(), generation(), any::<u64>(), any::<u8>(), any::<bool>()).prop_map(
                |(layer, extent, generation, blocks, freed, bad)| {
                    let unmap = UnmapRecord { layer, extent, generation, blocks, freed };
                    if bad { Record::Bad(unmap) } else { Record::Unmap(unmap) }
                }
            ),
            any::<u64>().prop_map(|settled| Record::Mark { settled }),
            (any::<u32>(), pages).prop_map(|(layer, pages)| Record::Directory { layer, pages }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(records in proptest::collection::vec(record(), 1..8)) {
            let mut bytes = Vec::new();
            for record in &records {
                record.encode(&mut bytes);
            }
            let mut rest = &bytes[..];
            for record in &records {
                let (read, len) = Record::decode(rest).expect("just written");
                prop_assert_eq!(&read, record);
                prop_assert_eq!(len, encoded_len(rest));
                prop_assert!(len <= ENCODED_LEN_MAX);
                rest = &rest[len..];
            }
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600), kind in 0u8..16) {
            let mut bytes = bytes;
            let decoded = Record::decode(&bytes);
            prop_assert!(decoded.is_err() || bytes.len() >= 8);
            if bytes.len() >= 8 {
                let len = u32::try_from(bytes.len() / 8 * 8).expect("short");
                bytes[0] = kind;
                bytes[1] = 0;
                bytes[4..8].copy_from_slice(&len.to_le_bytes());
                if let Ok((record, len)) = Record::decode(&bytes) {
                    prop_assert!(len <= bytes.len());
                    let mut again = Vec::new();
                    record.encode(&mut again);
                    prop_assert_eq!(Record::decode(&again).expect("just written").0, record);
                }
            }
        }
    }
}

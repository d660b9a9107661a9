//! The commands between engines as pure bytes: vendor-specific NVMe I/O commands, in the association of the I/O itself,
//! so that epochs fence them together.
//!
//! Written down byte by byte in `docs/protocols/replica.md`. Reads and flushes are the standard NVMe commands.
//!
//! # Invariants
//! 1. `decode(encode(request)) == request`.
//! 2. No input panics or allocates beyond what its own length says.

use crate::leg::{Change, Hello, Kept};
use device::{BlockCount, Lba, Status};
use model::Generation;
use nvmf::{VendorCommand, VendorReply};
use pool::{Changed, Progress};
use rt::{DmaBytes, Durability};
use uuid::Uuid;

/// The subsystem name of a replica.
pub fn replica_nqn(replica: Uuid) -> String {
    format!("nqn.2026-11.io.orlop:replica:{replica}")
}

/// The replica that a subsystem name means, if it means one.
pub fn replica_of_nqn(nqn: &str) -> Option<Uuid> {
    nqn.strip_prefix("nqn.2026-11.io.orlop:replica:").and_then(|uuid| Uuid::try_parse(uuid).ok())
}

const BEAT: u8 = 0xC0;
const ZEROES: u8 = 0xC4;
const UNMAP: u8 = 0xC8;
const RESIZE: u8 = 0xCC;
const CLEAR_PROGRESS: u8 = 0xD0;
const BAD: u8 = 0xD4;
const WRITE: u8 = 0xC1;
const SET_PROGRESS: u8 = 0xC5;
const SET_RECORD: u8 = 0xC9;
const ACCEPT_EPOCH: u8 = 0xC2;
const CHANGED_SINCE: u8 = 0xC6;
const HASH_EXTENT: u8 = 0xCA;
const GET_KEPT: u8 = 0xCE;

/// Bit of dword 13: force unit access.
const FUA: u32 = 1;
/// Length of a hello.
const HELLO_LEN: usize = 96;
/// Length of a note of progress.
const PROGRESS_LEN: usize = 32;
/// Length of one changed extent.
const ENTRY_LEN: usize = 24;
/// Length of the head of a list of changed extents.
const LIST_HEAD_LEN: usize = 16;
/// The longest list of changed extents asked for at once.
pub(super) const ENTRIES_MAX: usize = 4096;
/// Length of a keyed hash.
const HASH_LEN: usize = 16;
/// Hashes of one extent at most.
const HASHES_MAX: usize = 64;
/// The longest record.
const RECORD_MAX: usize = 16 << 10;
/// Length of the head of what is kept.
const KEPT_HEAD_LEN: usize = 16;

/// A command between engines.
#[derive(Clone, Debug)]
pub(super) enum Request {
    Beat,
    AcceptEpoch { epoch: u64, nexus: Uuid },
    Change { counter: u64, lba: Lba, change: Change, durability: Durability },
    ChangedSince { since: Generation, first_extent: u64, max_extents: usize },
    HashExtent { extent: u64, seed: u64 },
    SetProgress(Option<Progress>),
    SetRecord(Vec<u8>),
    GetKept,
    Resize { size_bytes: u64 },
}

fn halves(value: u64) -> [u32; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
    [value as u32, (value >> 32) as u32]
}

fn whole(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn dwords(first: u64, second: u64, third: u64) -> [u32; 6] {
    let pairs = [halves(first), halves(second), halves(third)];
    std::array::from_fn(|index| pairs[index / 2][index % 2])
}

impl Request {
    /// The NVMe command; `block_size` gives the count of blocks of a write.
    pub(super) fn encode(self) -> VendorCommand {
        let command = |opcode, cdw10_15, data, data_len| VendorCommand { opcode, cdw10_15, data, data_len };
        match self {
            Self::Beat => command(BEAT, [0; 6], None, 0),
            Self::AcceptEpoch { epoch, nexus } => {
                let (high, low) = nexus.as_u64_pair();
                command(ACCEPT_EPOCH, dwords(epoch, high, low), None, HELLO_LEN)
            }
            Self::Change { counter, lba, change, durability } => {
                let fua = if durability == Durability::Durable { FUA } else { 0 };
                let (opcode, count, data) = match change {
                    Change::Write(data) => (WRITE, 0, Some(data)),
                    Change::Zeroes(count) => (ZEROES, count.0, None),
                    Change::Unmap(count) => (UNMAP, count.0, None),
                    Change::Bad(count) => (BAD, count.0, None),
                };
                let count = u32::try_from(count).expect("changes are split below 2^32 blocks");
                let mut cdw = dwords(lba.0, 0, counter);
                (cdw[2], cdw[3]) = (count, fua);
                command(opcode, cdw, data, 0)
            }
            Self::ChangedSince { since, first_extent, max_extents } => {
                let len = LIST_HEAD_LEN + max_extents.min(ENTRIES_MAX) * ENTRY_LEN;
                command(CHANGED_SINCE, dwords(since.epoch, since.counter, first_extent), None, len)
            }
            Self::HashExtent { extent, seed } => {
                command(HASH_EXTENT, dwords(extent, seed, 0), None, HASHES_MAX * HASH_LEN)
            }
            Self::SetProgress(None) => command(CLEAR_PROGRESS, [0; 6], None, 0),
            Self::SetProgress(Some(progress)) => {
                let mut bytes = Vec::with_capacity(PROGRESS_LEN);
                put_progress(&mut bytes, progress);
                command(SET_PROGRESS, [0; 6], Some(DmaBytes::copy_of(&bytes)), 0)
            }
            Self::SetRecord(bytes) => command(SET_RECORD, [0; 6], Some(DmaBytes::copy_of(&bytes)), 0),
            Self::GetKept => command(GET_KEPT, [0; 6], None, KEPT_HEAD_LEN + RECORD_MAX),
            Self::Resize { size_bytes } => command(RESIZE, dwords(size_bytes, 0, 0), None, 0),
        }
    }

    /// What a command asks.
    ///
    /// # Errors
    /// `Invalid` for unknown opcodes and impossible lengths.
    pub(super) fn decode(command: &VendorCommand) -> Result<Self, Status> {
        let [low, high, count, flags, last @ ..] = command.cdw10_15;
        let (first, second, third) = (whole(low, high), whole(count, flags), whole(last[0], last[1]));
        let durability = if flags & FUA == 0 { Durability::Cached } else { Durability::Durable };
        let data = || command.data.clone().ok_or(Status::Invalid);
        let change = |change| Self::Change { counter: third, lba: Lba(first), change, durability };
        Ok(match command.opcode {
            BEAT => Self::Beat,
            ACCEPT_EPOCH => Self::AcceptEpoch { epoch: first, nexus: Uuid::from_u64_pair(second, third) },
            WRITE => change(Change::Write(data()?)),
            ZEROES => change(Change::Zeroes(BlockCount(u64::from(count)))),
            UNMAP => change(Change::Unmap(BlockCount(u64::from(count)))),
            BAD => change(Change::Bad(BlockCount(u64::from(count)))),
            CHANGED_SINCE => {
                let room = command.data_len.checked_sub(LIST_HEAD_LEN + ENTRY_LEN).ok_or(Status::Invalid)?;
                let max_extents = (room / ENTRY_LEN + 1).min(ENTRIES_MAX);
                Self::ChangedSince { since: Generation::new(first, second), first_extent: third, max_extents }
            }
            HASH_EXTENT => Self::HashExtent { extent: first, seed: second },
            CLEAR_PROGRESS => Self::SetProgress(None),
            SET_PROGRESS => {
                Self::SetProgress(Some(take_progress(&mut Bytes(&data()?)).ok_or(Status::Invalid)?))
            }
            SET_RECORD => {
                let data = data()?;
                if data.len() > RECORD_MAX {
                    return Err(Status::Invalid);
                }
                Self::SetRecord(data.to_vec())
            }
            GET_KEPT if command.data_len < KEPT_HEAD_LEN + RECORD_MAX => return Err(Status::Invalid),
            GET_KEPT => Self::GetKept,
            RESIZE => Self::Resize { size_bytes: first },
            _ => return Err(Status::Invalid),
        })
    }
}

/// Reads little-endian fields from the front.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (front, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*front)
    }

    fn number(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn generation(&mut self) -> Option<Generation> {
        Some(Generation::new(self.number()?, self.number()?))
    }
}

fn put(bytes: &mut Vec<u8>, number: u64) {
    bytes.extend_from_slice(&number.to_le_bytes());
}

fn put_progress(bytes: &mut Vec<u8>, progress: Progress) {
    put(bytes, progress.source_epoch);
    put(bytes, progress.cursor_extent);
    put(bytes, progress.received_since.epoch);
    put(bytes, progress.received_since.counter);
}

fn take_progress(bytes: &mut Bytes<'_>) -> Option<Progress> {
    Some(Progress {
        source_epoch: bytes.number()?,
        cursor_extent: bytes.number()?,
        received_since: bytes.generation()?,
    })
}

fn reply(bytes: &[u8]) -> VendorReply {
    VendorReply { result: 0, data: Some(DmaBytes::copy_of(bytes)) }
}

/// The answer to [`Request::AcceptEpoch`].
pub(super) fn encode_hello(hello: &Hello) -> VendorReply {
    let mut bytes = Vec::with_capacity(HELLO_LEN);
    bytes.extend_from_slice(hello.incarnation.as_bytes());
    bytes.extend_from_slice(hello.boot_id.as_bytes());
    put(&mut bytes, hello.size_bytes);
    put(&mut bytes, hello.stable.epoch);
    put(&mut bytes, hello.stable.counter);
    put(&mut bytes, u64::from(hello.progress.is_some()));
    put_progress(&mut bytes, hello.progress.unwrap_or_default());
    assert_eq!(bytes.len(), HELLO_LEN, "a hello has a fixed length");
    reply(&bytes)
}

/// Reads the answer to [`Request::AcceptEpoch`].
pub(super) fn decode_hello(data: &[u8]) -> Option<Hello> {
    let mut bytes = Bytes(data);
    let incarnation = Uuid::from_bytes(bytes.take()?);
    let boot_id = Uuid::from_bytes(bytes.take()?);
    let (size_bytes, stable) = (bytes.number()?, bytes.generation()?);
    let has_progress = bytes.number()? != 0;
    let progress = take_progress(&mut bytes)?;
    Some(Hello { incarnation, boot_id, size_bytes, stable, progress: has_progress.then_some(progress) })
}

/// The answer to [`Request::GetKept`].
pub(super) fn encode_kept(kept: &Kept) -> VendorReply {
    let mut bytes = Vec::with_capacity(KEPT_HEAD_LEN + kept.record.len());
    put(&mut bytes, kept.epoch);
    put(&mut bytes, kept.record.len() as u64);
    bytes.extend_from_slice(&kept.record);
    reply(&bytes)
}

/// Reads the answer to [`Request::GetKept`].
pub(super) fn decode_kept(data: &[u8]) -> Option<Kept> {
    let mut bytes = Bytes(data);
    let (epoch, len) = (bytes.number()?, bytes.number()?);
    let record = bytes.0.get(..usize::try_from(len).ok()?)?;
    Some(Kept { epoch, record: record.to_vec() })
}

/// The answer to [`Request::ChangedSince`].
pub(super) fn encode_changed(changed: &Changed) -> VendorReply {
    let mut bytes = Vec::new();
    match changed {
        Changed::Everything => {
            put(&mut bytes, u64::MAX);
            put(&mut bytes, u64::MAX);
        }
        Changed::Extents { list, next } => {
            put(&mut bytes, list.len() as u64);
            put(&mut bytes, next.unwrap_or(u64::MAX));
            for (extent, generation) in list {
                put(&mut bytes, *extent);
                put(&mut bytes, generation.epoch);
                put(&mut bytes, generation.counter);
            }
        }
    }
    reply(&bytes)
}

/// Reads the answer to [`Request::ChangedSince`].
pub(super) fn decode_changed(data: &[u8]) -> Option<Changed> {
    let mut bytes = Bytes(data);
    let (count, next) = (bytes.number()?, bytes.number()?);
    if count == u64::MAX {
        return Some(Changed::Everything);
    }
    let count = usize::try_from(count).ok().filter(|count| *count <= bytes.0.len() / ENTRY_LEN)?;
    let list = (0..count).map(|_| Some((bytes.number()?, bytes.generation()?))).collect::<Option<_>>()?;
    Some(Changed::Extents { list, next: (next != u64::MAX).then_some(next) })
}

/// The answer to [`Request::HashExtent`].
pub(super) fn encode_hashes(hashes: &[[u8; 16]]) -> VendorReply {
    let bytes: Vec<u8> = hashes.concat();
    reply(&bytes)
}

/// Reads the answer to [`Request::HashExtent`].
pub(super) fn decode_hashes(data: &[u8]) -> Vec<[u8; 16]> {
    let mut bytes = Bytes(data);
    std::iter::from_fn(|| bytes.take()).take(HASHES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rt::DmaBuf;

    fn requests() -> impl Strategy<Value = Request> {
        let durability = prop_oneof![Just(Durability::Cached), Just(Durability::Durable)];
        let change = prop_oneof![
            (1_usize..9).prop_map(|blocks| Change::Write(DmaBuf::zeroed(blocks * 512).freeze())),
            (1..=u64::from(u32::MAX)).prop_map(|count| Change::Zeroes(BlockCount(count))),
            (1..=u64::from(u32::MAX)).prop_map(|count| Change::Unmap(BlockCount(count))),
            (1..=u64::from(u32::MAX)).prop_map(|count| Change::Bad(BlockCount(count))),
        ];
        let generation = || (any::<u64>(), any::<u64>()).prop_map(|(e, c)| Generation::new(e, c));
        let progress = (any::<u64>(), any::<u64>(), generation()).prop_map(
            |(source_epoch, cursor_extent, received_since)| Progress {
                source_epoch,
                cursor_extent,
                received_since,
            },
        );
        prop_oneof![
            Just(Request::Beat),
            (any::<u64>(), any::<u128>())
                .prop_map(|(epoch, nexus)| Request::AcceptEpoch { epoch, nexus: Uuid::from_u128(nexus) }),
            (any::<u64>(), any::<u64>(), change, durability).prop_map(
                |(counter, lba, change, durability)| {
                    Request::Change { counter, lba: Lba(lba), change, durability }
                }
            ),
            (generation(), any::<u64>(), 1..=ENTRIES_MAX).prop_map(|(since, first_extent, max_extents)| {
                Request::ChangedSince { since, first_extent, max_extents }
            }),
            (any::<u64>(), any::<u64>()).prop_map(|(extent, seed)| Request::HashExtent { extent, seed }),
            proptest::option::of(progress).prop_map(Request::SetProgress),
            proptest::collection::vec(any::<u8>(), 1..100).prop_map(Request::SetRecord),
            any::<u64>().prop_map(|size_bytes| Request::Resize { size_bytes }),
            Just(Request::GetKept),
        ]
    }

    fn same(a: &VendorCommand, b: &VendorCommand) -> bool {
        (a.opcode, a.cdw10_15, a.data.as_deref(), a.data_len)
            == (b.opcode, b.cdw10_15, b.data.as_deref(), b.data_len)
    }

    proptest! {
        #[test]
        fn requests_come_back_as_they_went(request in requests()) {
            let command = request.encode();
            let again = Request::decode(&command).unwrap().encode();
            prop_assert!(same(&command, &again), "{command:?} became {again:?}");
        }

        #[test]
        fn no_bytes_panic(
            opcode in any::<u8>(), cdw10_15 in any::<[u32; 6]>(), data_len in any::<usize>(),
            data in proptest::option::of(proptest::collection::vec(any::<u8>(), 1..200)),
        ) {
            let bytes = data.clone().unwrap_or_default();
            let data = data.map(|data| DmaBytes::copy_of(&data));
            drop(Request::decode(&VendorCommand { opcode, cdw10_15, data, data_len }));
            let _hello = decode_hello(&bytes);
            drop(decode_changed(&bytes));
            drop(decode_kept(&bytes));
            drop(decode_hashes(&bytes));
        }

        #[test]
        fn answers_come_back_as_they_went(
            numbers in any::<[u64; 7]>(), ids in any::<[u128; 2]>(), has_progress in any::<bool>(),
            extents in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 0..50),
        ) {
            let [size_bytes, a, b, cursor_extent, c, d, next] = numbers;
            let progress = Progress { source_epoch: c, cursor_extent, received_since: Generation::new(c, d) };
            let hello = Hello {
                incarnation: Uuid::from_u128(ids[0]),
                boot_id: Uuid::from_u128(ids[1]),
                size_bytes,
                stable: Generation::new(a, b),
                progress: has_progress.then_some(progress),
            };
            prop_assert_eq!(decode_hello(encode_hello(&hello).data.as_deref().unwrap()), Some(hello));

            let extents: Vec<_> = extents.into_iter().map(|(e, a, b)| (e, Generation::new(a, b))).collect();
            let next = (next % 2 == 0).then_some(next);
            let reply = encode_changed(&Changed::Extents { list: extents.clone(), next });
            match decode_changed(reply.data.as_deref().unwrap()) {
                Some(Changed::Extents { list: found, next: more }) => {
                    prop_assert_eq!((found, more), (extents, next));
                }
                other => prop_assert!(false, "{:?}", other),
            }
            let kept = Kept { epoch: a, record: ids[0].to_le_bytes().to_vec() };
            prop_assert_eq!(decode_kept(encode_kept(&kept).data.as_deref().unwrap()), Some(kept));
            let everything = decode_changed(encode_changed(&Changed::Everything).data.as_deref().unwrap());
            prop_assert!(matches!(everything, Some(Changed::Everything)));
        }
    }
}

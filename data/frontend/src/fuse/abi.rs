//! The kernel's FUSE protocol as pure bytes: requests are decoded, replies are encoded; nothing here does I/O.
//!
//! On the path of a byte: between `/dev/fuse` and [`super::serve`]. Only what a file system with one directory and one
//! file needs is decoded; everything else is [`Request::Unsupported`].
//!
//! # Invariants
//! 1. No input panics or allocates more than its own length.
//! 2. A request decodes only if its lengths agree: the header's with what was read, the payload's with the header's.
//!
//! # Spec
//! `include/uapi/linux/fuse.h` of Linux, protocol 7.40 (Linux 6.9); the byte order is the machine's.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Protocol version spoken here; the kernel uses the smaller minor of both.
pub(crate) const MAJOR: u32 = 7;
pub(crate) const MINOR: u32 = 40;
/// Oldest minor version whose structures these are (Linux 5.4).
pub(crate) const MINOR_MIN: u32 = 31;

/// Length of a request's header.
pub(crate) const HEADER_LEN: usize = 40;
/// Length of everything before the payload of a write: header and `fuse_write_in`.
pub(crate) const WRITE_HEAD_LEN: usize = 80;

/// Inode numbers.
pub(crate) const ROOT: u64 = 1;
pub(crate) const FILE: u64 = 2;

/// Set in the number of a request that the kernel sends again.
pub(crate) const UNIQUE_RESEND: u64 = 1 << 63;

/// `FUSE_INIT` flags that are used here; bits from 32 on travel in `flags2`.
pub(crate) mod init_flags {
    pub(crate) const ASYNC_READ: u64 = 1 << 0;
    pub(crate) const BIG_WRITES: u64 = 1 << 5;
    pub(crate) const ASYNC_DIO: u64 = 1 << 15;
    pub(crate) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(crate) const MAX_PAGES: u64 = 1 << 22;
    pub(crate) const INIT_EXT: u64 = 1 << 30;
    pub(crate) const HAS_RESEND: u64 = 1 << 39;
}

/// Flags of the reply to `FUSE_OPEN`.
pub(crate) mod open_flags {
    pub(crate) const DIRECT_IO: u32 = 1 << 0;
    pub(crate) const NOFLUSH: u32 = 1 << 5;
    pub(crate) const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

const FATTR_SIZE: u32 = 1 << 3;
const FATTR_FH: u32 = 1 << 6;

const NOTIFY_INVAL_INODE: i32 = 2;
const NOTIFY_RESEND: i32 = 7;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct InHeader {
    pub(crate) len: u32,
    pub(crate) opcode: u32,
    pub(crate) unique: u64,
    pub(crate) node: u64,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) pid: u32,
    pub(crate) extension_len: u16,
    pub(crate) padding: u16,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct OutHeader {
    len: u32,
    error: i32,
    unique: u64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct InitIn {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) max_readahead: u32,
    pub(crate) flags: u32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct InitOut {
    major: u32,
    minor: u32,
    max_readahead: u32,
    flags: u32,
    max_background: u16,
    congestion_threshold: u16,
    max_write: u32,
    time_gran: u32,
    max_pages: u16,
    map_alignment: u16,
    flags2: u32,
    max_stack_depth: u32,
    unused: [u32; 6],
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct ReadIn {
    handle: u64,
    offset: u64,
    size: u32,
    read_flags: u32,
    lock_owner: u64,
    flags: u32,
    padding: u32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct WriteIn {
    handle: u64,
    offset: u64,
    size: u32,
    write_flags: u32,
    lock_owner: u64,
    flags: u32,
    padding: u32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct FallocateIn {
    handle: u64,
    offset: u64,
    length: u64,
    mode: u32,
    padding: u32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct OpenIn {
    flags: u32,
    open_flags: u32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct SetAttrIn {
    valid: u32,
    padding: u32,
    handle: u64,
    size: u64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct Attr {
    pub(crate) ino: u64,
    pub(crate) size: u64,
    pub(crate) blocks: u64,
    pub(crate) times: [u64; 3],
    pub(crate) nanos: [u32; 3],
    pub(crate) mode: u32,
    pub(crate) nlink: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: u32,
    pub(crate) block_size: u32,
    pub(crate) flags: u32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct EntryOut {
    node: u64,
    generation: u64,
    entry_valid_secs: u64,
    attr_valid_secs: u64,
    entry_valid_nanos: u32,
    attr_valid_nanos: u32,
    attr: Attr,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct AttrOut {
    attr_valid_secs: u64,
    attr_valid_nanos: u32,
    padding: u32,
    attr: Attr,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct OpenOut {
    handle: u64,
    open_flags: u32,
    padding: u32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct WriteOut {
    size: u32,
    padding: u32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct StatfsOut {
    blocks: u64,
    blocks_free: u64,
    blocks_available: u64,
    files: u64,
    files_free: u64,
    block_size: u32,
    name_len_max: u32,
    fragment_size: u32,
    padding: u32,
    spare: [u32; 6],
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct DirentHead {
    ino: u64,
    next_offset: u64,
    name_len: u32,
    kind: u32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct InvalInodeOut {
    ino: u64,
    offset: i64,
    len: i64,
}

const _: () = {
    assert!(size_of::<InHeader>() == HEADER_LEN);
    assert!(size_of::<OutHeader>() == 16);
    assert!(size_of::<InitIn>() == 16);
    assert!(size_of::<InitOut>() == 64);
    assert!(size_of::<ReadIn>() == 40);
    assert!(HEADER_LEN + size_of::<WriteIn>() == WRITE_HEAD_LEN);
    assert!(size_of::<FallocateIn>() == 32);
    assert!(size_of::<OpenIn>() == 8);
    assert!(size_of::<SetAttrIn>() == 24);
    assert!(size_of::<Attr>() == 88);
    assert!(size_of::<EntryOut>() == 128);
    assert!(size_of::<AttrOut>() == 104);
    assert!(size_of::<OpenOut>() == 16);
    assert!(size_of::<WriteOut>() == 8);
    assert!(size_of::<StatfsOut>() == 80);
    assert!(size_of::<DirentHead>() == 24);
    assert!(size_of::<InvalInodeOut>() == 24);
};

/// What the kernel asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Init {
        major: u32,
        minor: u32,
        flags: u64,
    },
    Lookup {
        name: Vec<u8>,
    },
    /// Needs no reply.
    Forget,
    GetAttr,
    SetAttr {
        resizes: bool,
    },
    Open {
        flags: u32,
    },
    OpenDir,
    Read {
        offset: u64,
        size: u32,
    },
    /// The payload lies behind the first [`WRITE_HEAD_LEN`] bytes.
    Write {
        offset: u64,
        size: u32,
        flags: u32,
    },
    Statfs,
    /// Of a file or a directory.
    Release,
    Fsync,
    ReadDir {
        offset: u64,
        size: u32,
    },
    Fallocate {
        offset: u64,
        length: u64,
        mode: u32,
    },
    Destroy,
    Unsupported {
        opcode: u32,
    },
}

/// A request whose lengths do not agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// Not even a header: there is nobody to answer.
    Header,
    /// The header is good; the request can be refused by its number.
    Body(InHeader),
}

impl PartialEq for InHeader {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for InHeader {}

/// Decodes a request of which `head` holds the first [`WRITE_HEAD_LEN`] bytes at most and `rest` all others.
pub(crate) fn decode(head: &[u8], rest: &[u8]) -> Result<(InHeader, Request), Malformed> {
    let (header, body) = InHeader::read_from_prefix(head).map_err(|_| Malformed::Header)?;
    if header.len as usize != head.len() + rest.len() || (head.len() < WRITE_HEAD_LEN && !rest.is_empty()) {
        return Err(Malformed::Body(header));
    }
    match body_of(&header, body, rest) {
        Some(request) => Ok((header, request)),
        None => Err(Malformed::Body(header)),
    }
}

fn body_of(header: &InHeader, body: &[u8], rest: &[u8]) -> Option<Request> {
    Some(match header.opcode {
        1 => Request::Lookup { name: name(body, rest)? },
        2 | 42 => Request::Forget,
        3 => Request::GetAttr,
        4 => {
            let (set, _) = SetAttrIn::read_from_prefix(body).ok()?;
            Request::SetAttr { resizes: set.valid & !FATTR_FH & FATTR_SIZE != 0 }
        }
        14 => Request::Open { flags: OpenIn::read_from_prefix(body).ok()?.0.flags },
        15 => {
            let (read, _) = ReadIn::read_from_prefix(body).ok()?;
            Request::Read { offset: read.offset, size: read.size }
        }
        16 => {
            let (write, _) = WriteIn::read_from_prefix(body).ok()?;
            if write.size as usize != rest.len() {
                return None;
            }
            Request::Write { offset: write.offset, size: write.size, flags: write.flags }
        }
        17 => Request::Statfs,
        18 | 29 => Request::Release,
        20 => Request::Fsync,
        26 => {
            let (init, more) = InitIn::read_from_prefix(body).ok()?;
            let high = if u64::from(init.flags) & init_flags::INIT_EXT == 0 {
                0
            } else {
                u32::read_from_prefix(more).ok()?.0
            };
            let flags = u64::from(init.flags) | u64::from(high) << 32;
            Request::Init { major: init.major, minor: init.minor, flags }
        }
        27 => Request::OpenDir,
        28 => {
            let (read, _) = ReadIn::read_from_prefix(body).ok()?;
            Request::ReadDir { offset: read.offset, size: read.size }
        }
        38 => Request::Destroy,
        43 => {
            let (allocate, _) = FallocateIn::read_from_prefix(body).ok()?;
            Request::Fallocate { offset: allocate.offset, length: allocate.length, mode: allocate.mode }
        }
        opcode => Request::Unsupported { opcode },
    })
}

/// A name ends with a zero byte.
fn name(body: &[u8], rest: &[u8]) -> Option<Vec<u8>> {
    let mut name = [body, rest].concat();
    let end = name.iter().position(|byte| *byte == 0)?;
    name.truncate(end);
    Some(name)
}

/// A reply: the header for `unique` and `body`; further data of `data_len` bytes follows from elsewhere.
fn reply(unique: u64, error: i32, body: &[u8], data_len: usize) -> Vec<u8> {
    let len = u32::try_from(size_of::<OutHeader>() + body.len() + data_len).expect("replies are below 2 MiB");
    let mut bytes = Vec::with_capacity(size_of::<OutHeader>() + body.len());
    bytes.extend_from_slice(OutHeader { len, error, unique }.as_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Success without content.
pub(crate) fn reply_empty(unique: u64) -> Vec<u8> {
    reply(unique, 0, &[], 0)
}

/// Failure.
pub(crate) fn reply_error(unique: u64, errno: rt::Errno) -> Vec<u8> {
    reply(unique, -errno.raw_os_error(), &[], 0)
}

/// The header of a reply that `data_len` bytes of data follow.
pub(crate) fn reply_data_head(unique: u64, data_len: usize) -> Vec<u8> {
    reply(unique, 0, &[], data_len)
}

/// The reply to a write.
pub(crate) fn reply_written(unique: u64, size: u32) -> Vec<u8> {
    reply(unique, 0, WriteOut { size, padding: 0 }.as_bytes(), 0)
}

/// What the kernel is told about how to speak with us.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Session {
    pub(crate) flags: u64,
    pub(crate) write_bytes_max: u32,
    pub(crate) background_max: u16,
}

/// The reply to `FUSE_INIT`.
pub(crate) fn reply_init(unique: u64, session: Session) -> Vec<u8> {
    let half = |bits: u64| u32::try_from(bits & 0xffff_ffff).expect("masked to 32 bits");
    let out = InitOut {
        major: MAJOR,
        minor: MINOR,
        max_readahead: 0,
        flags: half(session.flags),
        max_background: session.background_max,
        congestion_threshold: session.background_max,
        max_write: session.write_bytes_max,
        time_gran: 1,
        max_pages: u16::try_from(session.write_bytes_max / 4096).expect("at most 256 MiB"),
        map_alignment: 0,
        flags2: half(session.flags >> 32),
        max_stack_depth: 0,
        unused: [0; 6],
    };
    reply(unique, 0, out.as_bytes(), 0)
}

/// The reply to a kernel of another major version: it will try again with ours.
pub(crate) fn reply_init_version(unique: u64) -> Vec<u8> {
    reply(unique, 0, [MAJOR, MINOR].as_bytes(), 0)
}

/// The reply to a lookup; names and attributes stay valid until they are invalidated.
pub(crate) fn reply_entry(unique: u64, attr: Attr, valid_secs: u64) -> Vec<u8> {
    let out = EntryOut {
        node: attr.ino,
        generation: 0,
        entry_valid_secs: valid_secs,
        attr_valid_secs: valid_secs,
        entry_valid_nanos: 0,
        attr_valid_nanos: 0,
        attr,
    };
    reply(unique, 0, out.as_bytes(), 0)
}

/// The reply to `FUSE_GETATTR` and `FUSE_SETATTR`.
pub(crate) fn reply_attr(unique: u64, attr: Attr, valid_secs: u64) -> Vec<u8> {
    let out = AttrOut { attr_valid_secs: valid_secs, attr_valid_nanos: 0, padding: 0, attr };
    reply(unique, 0, out.as_bytes(), 0)
}

/// The reply to an open of a file or a directory.
pub(crate) fn reply_open(unique: u64, open_flags: u32) -> Vec<u8> {
    reply(unique, 0, OpenOut { handle: 0, open_flags, padding: 0 }.as_bytes(), 0)
}

/// The reply to `FUSE_STATFS`: the loop driver takes the granularity of discards from the block size.
pub(crate) fn reply_statfs(unique: u64, blocks: u64, block_size: u32) -> Vec<u8> {
    let out = StatfsOut {
        blocks,
        blocks_free: 0,
        blocks_available: 0,
        files: 2,
        files_free: 0,
        block_size,
        name_len_max: 255,
        fragment_size: block_size,
        padding: 0,
        spare: [0; 6],
    };
    reply(unique, 0, out.as_bytes(), 0)
}

/// The reply to `FUSE_READDIR`: the entries from `offset` on that fit into `size` bytes.
pub(crate) fn reply_directory(unique: u64, entries: &[(u64, u32, &[u8])], offset: u64, size: u32) -> Vec<u8> {
    let mut body = Vec::new();
    for (index, (ino, kind, name)) in (1_u64..).zip(entries) {
        if index <= offset {
            continue;
        }
        let name_len = u32::try_from(name.len()).expect("names are short");
        let len = (size_of::<DirentHead>() + name.len()).next_multiple_of(8);
        if body.len() + len > size as usize {
            break;
        }
        let end = body.len() + len;
        body.extend_from_slice(
            DirentHead { ino: *ino, next_offset: index, name_len, kind: *kind }.as_bytes(),
        );
        body.extend_from_slice(name);
        body.resize(end, 0);
    }
    reply(unique, 0, &body, 0)
}

/// A message to the kernel: forget the cached attributes of inode `ino`.
pub(crate) fn notify_attributes_changed(ino: u64) -> Vec<u8> {
    // A negative offset leaves cached data alone.
    reply(0, NOTIFY_INVAL_INODE, InvalInodeOut { ino, offset: -1, len: 0 }.as_bytes(), 0)
}

/// A message to the kernel: send every request again that was read and not answered.
pub(crate) fn notify_resend() -> Vec<u8> {
    reply(0, NOTIFY_RESEND, &[], 0)
}

#[cfg(test)]
#[path = "abi_tests.rs"]
pub(crate) mod tests;

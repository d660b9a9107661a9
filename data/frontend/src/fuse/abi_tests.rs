//! The protocol's bytes: golden requests as the kernel writes them, lengths that lie, and arbitrary input.

use super::*;
use proptest::prelude::*;

fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
    plain(opcode, 42, body)
}

/// A request about the file, with any body.
pub(crate) fn plain(opcode: u32, unique: u64, body: &[u8]) -> Vec<u8> {
    let header = InHeader {
        len: u32::try_from(HEADER_LEN + body.len()).unwrap(),
        opcode,
        unique,
        node: FILE,
        uid: 0,
        gid: 0,
        pid: 0,
        extension_len: 0,
        padding: 0,
    };
    [header.as_bytes(), body].concat()
}

/// A read.
pub(crate) fn read(unique: u64, offset: u64, size: u32) -> Vec<u8> {
    let read = ReadIn { handle: 0, offset, size, read_flags: 0, lock_owner: 0, flags: 0, padding: 0 };
    plain(15, unique, read.as_bytes())
}

/// A write.
pub(crate) fn write(unique: u64, offset: u64, data: &[u8], flags: u32) -> Vec<u8> {
    let size = u32::try_from(data.len()).unwrap();
    let write = WriteIn { handle: 0, offset, size, write_flags: 0, lock_owner: 0, flags, padding: 0 };
    plain(16, unique, &[write.as_bytes(), data].concat())
}

/// A punched hole or zeroed range.
pub(crate) fn fallocate(unique: u64, offset: u64, length: u64, mode: u32) -> Vec<u8> {
    let allocate = FallocateIn { handle: 0, offset, length, mode, padding: 0 };
    plain(43, unique, allocate.as_bytes())
}

fn decode_whole(bytes: &[u8]) -> Result<(InHeader, Request), Malformed> {
    let (head, rest) = bytes.split_at(bytes.len().min(WRITE_HEAD_LEN));
    decode(head, rest)
}

fn ask(opcode: u32, body: &[u8]) -> Option<Request> {
    decode_whole(&request(opcode, body)).ok().map(|(_, request)| request)
}

/// A write of 8 bytes at 4096 with `O_DSYNC`, byte by byte as a little-endian kernel lays it out.
#[test]
#[cfg(target_endian = "little")]
fn a_golden_write() {
    let mut bytes = vec![
        88, 0, 0, 0, 16, 0, 0, 0, // len, opcode
        7, 0, 0, 0, 0, 0, 0, 0x80, // unique with the mark of a resend
        2, 0, 0, 0, 0, 0, 0, 0, // node
        0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, // uid, gid, pid, extensions
        0, 0, 0, 0, 0, 0, 0, 0, // handle
        0, 0x10, 0, 0, 0, 0, 0, 0, // offset
        8, 0, 0, 0, 0, 0, 0, 0, // size, write flags
        0, 0, 0, 0, 0, 0, 0, 0, // lock owner
        0, 0x10, 0, 0, 0, 0, 0, 0, // flags
    ];
    bytes.extend_from_slice(b"payload!");
    let (header, request) = decode_whole(&bytes).unwrap();
    assert_eq!(header.unique, 7 | UNIQUE_RESEND);
    assert_eq!(request, Request::Write { offset: 4096, size: 8, flags: 0x1000 });
}

#[test]
fn requests_decode() {
    assert_eq!(ask(1, b"volume\0"), Some(Request::Lookup { name: b"volume".to_vec() }));
    assert_eq!(ask(1, b"volume"), None, "a name without its end");
    let long = [&[b'x'; 255][..], b"\0"].concat();
    assert_eq!(ask(1, &long), Some(Request::Lookup { name: vec![b'x'; 255] }), "a name beyond the head");
    assert_eq!(ask(3, &[0; 16]), Some(Request::GetAttr));
    assert_eq!(ask(14, &[2, 0, 0, 0, 0, 0, 0, 0]), Some(Request::Open { flags: 2 }));
    assert_eq!(ask(14, &[2, 0, 0]), None);
    let read =
        ReadIn { handle: 0, offset: 512, size: 1024, read_flags: 0, lock_owner: 0, flags: 0, padding: 0 };
    assert_eq!(ask(15, read.as_bytes()), Some(Request::Read { offset: 512, size: 1024 }));
    let punch = FallocateIn { handle: 0, offset: 1, length: 2, mode: 3, padding: 0 };
    assert_eq!(ask(43, punch.as_bytes()), Some(Request::Fallocate { offset: 1, length: 2, mode: 3 }));
    assert_eq!(ask(22, b"anything"), Some(Request::Unsupported { opcode: 22 }));
    assert_eq!(ask(36, &[0; 8]), Some(Request::Unsupported { opcode: 36 }));
}

#[test]
fn init_takes_the_second_flags_only_when_announced() {
    let words = |flags: u32| {
        let mut words = vec![7_u32, 45, 131_072, flags, 1 << 7];
        words.resize(16, 0);
        words.as_bytes().to_vec()
    };
    let ext = 1_u32 << 30;
    assert_eq!(ask(26, &words(1)), Some(Request::Init { major: 7, minor: 45, flags: 1 }));
    let flags = u64::from(ext) | init_flags::HAS_RESEND;
    assert_eq!(ask(26, &words(ext)), Some(Request::Init { major: 7, minor: 45, flags }));
}

#[test]
fn lengths_that_lie_are_refused() {
    assert_eq!(decode(&[0; 39], &[]), Err(Malformed::Header));
    let mut short = request(3, &[0; 16]);
    short.pop();
    assert!(matches!(decode_whole(&short), Err(Malformed::Body(header)) if header.unique == 42));
    let write =
        WriteIn { handle: 0, offset: 0, size: 9, write_flags: 0, lock_owner: 0, flags: 0, padding: 0 };
    assert_eq!(ask(16, &[write.as_bytes(), &[0; 8]].concat()), None, "less payload than announced");
}

#[test]
fn replies_carry_their_length() {
    for bytes in [
        reply_empty(1),
        reply_error(1, rt::Errno::IO),
        reply_written(1, 4096),
        reply_open(1, 1),
        reply_statfs(1, 10, 4096),
        reply_init(1, Session { flags: u64::MAX, write_bytes_max: 1 << 20, background_max: 64 }),
        notify_attributes_changed(FILE),
        notify_resend(),
    ] {
        let (header, _) = OutHeader::read_from_prefix(&bytes).unwrap();
        assert_eq!(header.len as usize, bytes.len());
    }
    let (header, _) = OutHeader::read_from_prefix(&reply_data_head(1, 4096)).unwrap();
    assert_eq!(header.len, 16 + 4096);
    let (header, _) = OutHeader::read_from_prefix(&reply_error(3, rt::Errno::IO)).unwrap();
    assert_eq!((header.error, header.unique), (-5, 3));
}

#[test]
fn directories_are_cut_where_the_buffer_ends() {
    let entries: [(u64, u32, &[u8]); 2] = [(1, 4, b"."), (2, 8, b"volume")];
    let whole = reply_directory(1, &entries, 0, 4096);
    assert_eq!(whole.len(), 16 + 32 + 32);
    assert_eq!(reply_directory(1, &entries, 0, 40).len(), 16 + 32, "the second does not fit");
    assert_eq!(reply_directory(1, &entries, 1, 4096).len(), 16 + 32, "the first was read");
    assert_eq!(reply_directory(1, &entries, 2, 4096).len(), 16);
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(decode_whole(&bytes));
    }

    #[test]
    fn no_body_panics(opcode in 0..60_u32, body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let bytes = request(opcode, &body);
        match decode_whole(&bytes) {
            Ok((header, _)) => prop_assert_eq!(header.opcode, opcode),
            Err(malformed) => prop_assert!(matches!(malformed, Malformed::Body(_))),
        }
    }

    #[test]
    fn reads_and_writes_keep_their_numbers(offset: u64, size in 0..4096_u32, flags: u32) {
        let write = WriteIn { handle: 0, offset, size, write_flags: 0, lock_owner: 0, flags, padding: 0 };
        let body = [write.as_bytes(), &vec![7; size as usize]].concat();
        prop_assert_eq!(ask(16, &body), Some(Request::Write { offset, size, flags }));
        let read = ReadIn { handle: 0, offset, size, read_flags: 0, lock_owner: 0, flags, padding: 0 };
        prop_assert_eq!(ask(15, read.as_bytes()), Some(Request::Read { offset, size }));
    }
}

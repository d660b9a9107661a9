//! The PDUs of NVMe/TCP: their headers, byte by byte.
//!
//! # Spec
//! NVMe/TCP Transport 1.0, section 3.6 (PDU definitions); every figure there is one structure here.

use super::command::{Cqe, Sqe};
use super::wire_struct;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

/// PDU types, byte 0 of every header.
pub mod kind {
    /// Initialize connection request.
    pub const IC_REQ: u8 = 0x00;
    /// Initialize connection response.
    pub const IC_RESP: u8 = 0x01;
    /// Host to controller: the connection ends because of an error.
    pub const H2C_TERM_REQ: u8 = 0x02;
    /// Controller to host: the connection ends because of an error.
    pub const C2H_TERM_REQ: u8 = 0x03;
    /// Command capsule.
    pub const CAPSULE_CMD: u8 = 0x04;
    /// Response capsule.
    pub const CAPSULE_RESP: u8 = 0x05;
    /// Data from the host.
    pub const H2C_DATA: u8 = 0x06;
    /// Data to the host.
    pub const C2H_DATA: u8 = 0x07;
    /// Ready to transfer.
    pub const R2T: u8 = 0x09;
}

/// Bits of the FLAGS byte.
pub mod flag {
    /// A header digest follows the header.
    pub const HEADER_DIGEST: u8 = 1 << 0;
    /// A data digest follows the data.
    pub const DATA_DIGEST: u8 = 1 << 1;
    /// The last data PDU of its transfer.
    pub const LAST: u8 = 1 << 2;
    /// The command succeeded; no response capsule follows.
    pub const SUCCESS: u8 = 1 << 3;
}

/// Bits of the DGST field of ICReq and ICResp.
pub mod dgst {
    /// Header digests are on.
    pub const HEADER: u8 = 1 << 0;
    /// Data digests are on.
    pub const DATA: u8 = 1 << 1;
}

/// Fatal error status of a termination request.
pub mod fes {
    /// A field of the PDU header is wrong; the information field holds its offset.
    pub const INVALID_HEADER_FIELD: u16 = 1;
    /// A PDU that may not come now.
    pub const SEQUENCE_ERROR: u16 = 2;
    /// The header digest does not match; the information field holds the received one.
    pub const HEADER_DIGEST_ERROR: u16 = 3;
    /// Data outside the range that was asked for.
    pub const DATA_OUT_OF_RANGE: u16 = 4;
    /// To the host: more data than allowed. To the controller: more R2Ts than allowed.
    pub const LIMIT_EXCEEDED: u16 = 5;
    /// A parameter that is not supported; the information field holds its offset.
    pub const UNSUPPORTED_PARAMETER: u16 = 6;
}

/// The longest header of any PDU, in bytes.
pub const HEADER_LEN_MAX: usize = 128;
/// A termination request carries at most this many bytes of the PDU that caused it.
pub const TERM_DATA_LEN_MAX: usize = 128;

wire_struct! {
/// The first eight bytes of every PDU.
pub struct CommonHeader [8] {
    /// PDU type, one of [`kind`].
    pub kind: u8,
    /// See [`flag`].
    pub flags: u8,
    /// Length of the header without its digest.
    pub hlen: u8,
    /// Where the data starts, from the start of the PDU.
    pub pdo: u8,
    /// Length of the whole PDU: header, digests, padding, data.
    pub plen: U32,
}
}

wire_struct! {
/// Initialize connection request.
pub struct IcReq [128] {
    /// Type 00h.
    pub header: CommonHeader,
    /// PDU format version: 0.
    pub pfv: U16,
    /// The host wants data to be aligned to (this + 1) times 4 bytes.
    pub hpda: u8,
    /// See [`dgst`].
    pub dgst: u8,
    /// Outstanding R2Ts per command that the host can take, less one.
    pub maxr2t: U32,
    /// Reserved.
    pub reserved: [u8; 112],
}
}

wire_struct! {
/// Initialize connection response.
pub struct IcResp [128] {
    /// Type 01h.
    pub header: CommonHeader,
    /// PDU format version: 0.
    pub pfv: U16,
    /// The controller wants data to be aligned to (this + 1) times 4 bytes.
    pub cpda: u8,
    /// See [`dgst`].
    pub dgst: u8,
    /// The most data that one H2CData PDU may carry, in bytes; at least 4096.
    pub maxh2cdata: U32,
    /// Reserved.
    pub reserved: [u8; 112],
}
}

wire_struct! {
/// Termination request, either way.
pub struct TermReq [24] {
    /// Type 02h or 03h.
    pub header: CommonHeader,
    /// Fatal error status, see [`fes`].
    pub fes: U16,
    /// Fatal error information, low half (the field is not aligned).
    pub fei_low: U16,
    /// Fatal error information, high half.
    pub fei_high: U16,
    /// Reserved.
    pub reserved: [u8; 10],
}
}

wire_struct! {
/// Command capsule without its data.
pub struct CapsuleCmd [72] {
    /// Type 04h.
    pub header: CommonHeader,
    /// The command.
    pub sqe: Sqe,
}
}

wire_struct! {
/// Response capsule.
pub struct CapsuleResp [24] {
    /// Type 05h.
    pub header: CommonHeader,
    /// The completion.
    pub cqe: Cqe,
}
}

wire_struct! {
/// Header of H2CData and C2HData.
pub struct Data [24] {
    /// Type 06h or 07h.
    pub header: CommonHeader,
    /// The command that the data belongs to.
    pub cccid: U16,
    /// H2CData: the tag of the R2T that asked for it. C2HData: reserved.
    pub ttag: U16,
    /// Where in the command's data these bytes belong.
    pub datao: U32,
    /// How many bytes.
    pub datal: U32,
    /// Reserved.
    pub reserved: U32,
}
}

wire_struct! {
/// Ready to transfer: the controller asks for a part of a command's data.
pub struct R2t [24] {
    /// Type 09h.
    pub header: CommonHeader,
    /// The command.
    pub cccid: U16,
    /// The tag that the data shall carry.
    pub ttag: U16,
    /// Where in the command's data the wanted bytes start.
    pub r2to: U32,
    /// How many bytes.
    pub r2tl: U32,
    /// Reserved.
    pub reserved: U32,
}
}

impl TermReq {
    /// Fatal error information.
    pub fn fei(&self) -> u32 {
        u32::from(self.fei_low.get()) | (u32::from(self.fei_high.get()) << 16)
    }
}

/// Which digests a connection uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// CRC32C after every header.
    pub header: bool,
    /// CRC32C after every piece of data.
    pub data: bool,
}

impl Digests {
    /// From the DGST field of ICReq or ICResp; `None` if bits are set that mean nothing.
    pub const fn from_dgst(dgst: u8) -> Option<Self> {
        if dgst & !(dgst::HEADER | dgst::DATA) != 0 {
            return None;
        }
        Some(Self { header: dgst & dgst::HEADER != 0, data: dgst & dgst::DATA != 0 })
    }

    /// The DGST field of ICReq or ICResp.
    pub const fn dgst(self) -> u8 {
        (if self.header { dgst::HEADER } else { 0 }) | (if self.data { dgst::DATA } else { 0 })
    }
}

impl IcReq {
    /// The request of a host that takes one R2T per command at a time.
    pub fn new(digests: Digests) -> Self {
        Self {
            header: CommonHeader { kind: kind::IC_REQ, flags: 0, hlen: 128, pdo: 0, plen: 128.into() },
            pfv: 0.into(),
            hpda: 0,
            dgst: digests.dgst(),
            maxr2t: 0.into(),
            reserved: [0; 112],
        }
    }
}

impl IcResp {
    /// The response of a controller without alignment needs.
    pub fn new(digests: Digests, maxh2cdata: u32) -> Self {
        Self {
            header: CommonHeader { kind: kind::IC_RESP, flags: 0, hlen: 128, pdo: 0, plen: 128.into() },
            pfv: 0.into(),
            cpda: 0,
            dgst: digests.dgst(),
            maxh2cdata: maxh2cdata.into(),
            reserved: [0; 112],
        }
    }
}

/// Builds headers with the right lengths, flags and digests for one connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sealer {
    /// The digests agreed upon.
    pub digests: Digests,
    /// Data starts at a multiple of this many bytes; at least 4, at most 128.
    pub data_align: u8,
}

/// A header ready to be sent: up to 72 bytes, a digest, padding up to the data.
#[derive(Clone, Copy, Debug)]
pub struct Sealed {
    bytes: [u8; 256],
    len: u8,
}

impl std::ops::Deref for Sealed {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl Sealer {
    /// Finishes `pdu` (whose common header is still to be filled) for `data_len` bytes of data that follow.
    ///
    /// # Shape
    /// The result holds header, header digest and padding; the caller sends the data and its digest after it.
    /// # Panics
    /// If header or data do not fit the fields of the format.
    pub fn seal<P: IntoBytes + zerocopy::Immutable>(
        &self,
        pdu: &P,
        kind: u8,
        flags: u8,
        data_len: usize,
    ) -> Sealed {
        let hlen = size_of::<P>();
        let hdgst = if self.digests.header { super::digest::DIGEST_LEN } else { 0 };
        let has_data = data_len > 0;
        let data_start = if has_data {
            (hlen + hdgst).next_multiple_of(usize::from(self.data_align.max(4)))
        } else {
            hlen + hdgst
        };
        let ddgst = if has_data && self.digests.data { super::digest::DIGEST_LEN } else { 0 };
        let mut flags = flags;
        if self.digests.header {
            flags |= flag::HEADER_DIGEST;
        }
        if ddgst > 0 {
            flags |= flag::DATA_DIGEST;
        }
        let small = |value: usize| u8::try_from(value).expect("headers are shorter than 256 bytes");
        let header = CommonHeader {
            kind,
            flags,
            hlen: small(hlen),
            pdo: if has_data { small(data_start) } else { 0 },
            plen: u32::try_from(data_start + data_len + ddgst).expect("PDUs are shorter than 4 GiB").into(),
        };
        let mut sealed = Sealed { bytes: [0; 256], len: small(data_start) };
        sealed.bytes[..hlen].copy_from_slice(pdu.as_bytes());
        sealed.bytes[..8].copy_from_slice(header.as_bytes());
        if self.digests.header {
            let digest = super::digest::crc32c(&sealed.bytes[..hlen]);
            sealed.bytes[hlen..hlen + hdgst].copy_from_slice(&digest.to_le_bytes());
        }
        sealed
    }

    /// A command capsule whose `data_len` bytes of in-capsule data follow.
    pub fn command(&self, sqe: &Sqe, data_len: usize) -> Sealed {
        self.seal(&CapsuleCmd { header: CommonHeader::EMPTY, sqe: *sqe }, kind::CAPSULE_CMD, 0, data_len)
    }

    /// A response capsule.
    pub fn response(&self, cqe: &Cqe) -> Sealed {
        self.seal(&CapsuleResp { header: CommonHeader::EMPTY, cqe: *cqe }, kind::CAPSULE_RESP, 0, 0)
    }

    /// A request for `len` bytes of the command's data.
    pub fn r2t(&self, cid: u16, ttag: u16, offset: u32, len: u32) -> Sealed {
        let r2t = R2t {
            header: CommonHeader::EMPTY,
            cccid: cid.into(),
            ttag: ttag.into(),
            r2to: offset.into(),
            r2tl: len.into(),
            reserved: 0.into(),
        };
        self.seal(&r2t, kind::R2T, 0, 0)
    }

    /// Data to the host; `flags` of [`flag::LAST`] and [`flag::SUCCESS`].
    pub fn c2h_data(&self, cid: u16, offset: u32, len: u32, flags: u8) -> Sealed {
        self.data(kind::C2H_DATA, cid, 0, offset, len, flags)
    }

    /// Data from the host; `flags` of [`flag::LAST`].
    pub fn h2c_data(&self, cid: u16, ttag: u16, offset: u32, len: u32, flags: u8) -> Sealed {
        self.data(kind::H2C_DATA, cid, ttag, offset, len, flags)
    }

    fn data(self, kind: u8, cid: u16, ttag: u16, offset: u32, len: u32, flags: u8) -> Sealed {
        let data = Data {
            header: CommonHeader::EMPTY,
            cccid: cid.into(),
            ttag: ttag.into(),
            datao: offset.into(),
            datal: len.into(),
            reserved: 0.into(),
        };
        self.seal(&data, kind, flags, len as usize)
    }
}

impl CommonHeader {
    const EMPTY: Self = Self { kind: 0, flags: 0, hlen: 0, pdo: 0, plen: U32::ZERO };
}

/// A whole termination request: it never carries digests and ends with the header that caused it.
pub fn term_req(kind: u8, fes: u16, fei: u32, cause: &[u8]) -> Vec<u8> {
    let cause = &cause[..cause.len().min(TERM_DATA_LEN_MAX)];
    let [b0, b1, b2, b3] = fei.to_le_bytes();
    let plen = u32::try_from(24 + cause.len()).expect("at most 152 bytes");
    let term = TermReq {
        header: CommonHeader { kind, flags: 0, hlen: 24, pdo: 0, plen: plen.into() },
        fes: fes.into(),
        fei_low: U16::from_bytes([b0, b1]),
        fei_high: U16::from_bytes([b2, b3]),
        reserved: [0; 10],
    };
    let mut bytes = Vec::with_capacity(24 + cause.len());
    bytes.extend_from_slice(term.as_bytes());
    bytes.extend_from_slice(cause);
    bytes
}

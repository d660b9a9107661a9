//! The parser of a connection: bytes in, one typed PDU header out, or the error that ends the connection.
//!
//! It never allocates and believes nothing: every length is checked against the others and against what this end allows
//! before the caller learns how much data follows. The data itself is received by the caller, straight to where it goes.
//!
//! # Invariants
//! 1. A parsed header is at most [`HEAD_LEN_MAX`] bytes long with digest and padding.
//! 2. The data that follows is at most what this end allows for that PDU.
//! 3. Nothing but the header digest, the PDU's type and its length are looked at before the header digest holds.
//!
//! # Spec
//! NVMe/TCP Transport 1.0, sections 3.4 (initialization), 3.5 (error handling), 3.6 (PDU definitions).

use super::command::{Cqe, Sqe};
use super::digest::{DIGEST_LEN, crc32c};
use super::pdu::{self, CommonHeader, Digests, IcReq, IcResp, TermReq, fes, flag, kind};
use zerocopy::FromBytes;

/// The longest header with digest and padding: the PDO field is one byte.
pub const HEAD_LEN_MAX: usize = 256;
const COMMON_LEN: usize = 8;

/// Which end of the connection receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The target: receives from a host.
    Controller,
    /// The initiator: receives from a controller.
    Host,
}

/// Whether the connection's parameters are agreed upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// ICReq or ICResp must come first.
    Initializing,
    /// Everything else.
    Running,
}

/// What one end allows the other to send.
#[derive(Clone, Copy, Debug)]
pub struct Framing {
    /// Which end this is.
    pub role: Role,
    /// Whether the connection is initialized.
    pub phase: Phase,
    /// The digests agreed upon.
    pub digests: Digests,
    /// The most data in a command capsule, in bytes.
    pub in_capsule_max: u32,
    /// The most data in one data PDU, in bytes.
    pub data_max: u32,
}

/// A PDU's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pdu {
    /// Initialize connection request.
    IcReq(IcReq),
    /// Initialize connection response.
    IcResp(IcResp),
    /// The other end gives up.
    TermReq(TermReq),
    /// A command; in-capsule data may follow.
    Command(Sqe),
    /// A response.
    Response(Cqe),
    /// Data from the host that an R2T asked for.
    H2cData(Data),
    /// Data to the host.
    C2hData(Data),
    /// The controller asks for data.
    R2t {
        /// The command.
        cid: u16,
        /// The tag for the data.
        ttag: u16,
        /// First byte wanted.
        offset: u32,
        /// Bytes wanted; not zero.
        len: u32,
    },
}

/// The fields of a data PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data {
    /// The command.
    pub cid: u16,
    /// The tag of the R2T (host to controller only).
    pub ttag: u16,
    /// Where the data belongs.
    pub offset: u32,
    /// How much data follows; not zero.
    pub len: u32,
    /// The last PDU of this transfer.
    pub last: bool,
    /// No response follows; the command succeeded (controller to host only).
    pub success: bool,
}

/// A parsed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The header.
    pub pdu: Pdu,
    /// Bytes up to the data, or up to the end of the PDU if it has none.
    pub head_len: usize,
    /// Bytes of data that follow.
    pub data_len: u32,
    /// Whether a digest follows the data.
    pub data_digest: bool,
}

/// The result of looking at some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The header is not complete: it needs this many bytes, counted from its start.
    Need(usize),
    /// A whole header.
    Frame(Frame),
}

/// The other end broke the protocol: what to tell it before the connection closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Fatal error status, see [`fes`].
    pub fes: u16,
    /// Fatal error information.
    pub fei: u32,
}

impl Violation {
    /// A header field, at `offset` from the start of the PDU, is wrong.
    pub const fn field(offset: u32) -> Self {
        Self { fes: fes::INVALID_HEADER_FIELD, fei: offset }
    }

    /// This PDU may not come now.
    pub const SEQUENCE: Self = Self { fes: fes::SEQUENCE_ERROR, fei: 0 };
    /// Data outside what was asked for.
    pub const OUT_OF_RANGE: Self = Self { fes: fes::DATA_OUT_OF_RANGE, fei: 0 };
    /// More data, or more R2Ts, than allowed.
    pub const LIMIT: Self = Self { fes: fes::LIMIT_EXCEEDED, fei: 0 };
}

const KIND: u32 = 0;
const FLAGS: u32 = 1;
const HLEN: u32 = 2;
const PDO: u32 = 3;
const PLEN: u32 = 4;
const LENGTH: u32 = 16;

impl Framing {
    /// Looks at the start of a PDU.
    ///
    /// # Errors
    /// What to tell the other end in a termination request.
    pub fn parse(&self, bytes: &[u8]) -> Result<Parsed, Violation> {
        let Ok((header, _)) = CommonHeader::read_from_prefix(bytes) else {
            return Ok(Parsed::Need(COMMON_LEN));
        };
        let hlen = self.expected_header_len(header.kind)?;
        if usize::from(header.hlen) != hlen {
            return Err(Violation::field(HLEN));
        }
        let digested =
            !matches!(header.kind, kind::IC_REQ | kind::IC_RESP | kind::H2C_TERM_REQ | kind::C2H_TERM_REQ);
        let hdgst = if digested && self.digests.header { DIGEST_LEN } else { 0 };
        if bytes.len() < hlen + hdgst {
            return Ok(Parsed::Need(hlen + hdgst));
        }
        if hdgst > 0 {
            let received =
                u32::from_le_bytes([bytes[hlen], bytes[hlen + 1], bytes[hlen + 2], bytes[hlen + 3]]);
            if received != crc32c(&bytes[..hlen]) {
                return Err(Violation { fes: fes::HEADER_DIGEST_ERROR, fei: received }); // 3
            }
        }
        if (header.flags & flag::HEADER_DIGEST != 0) != (hdgst > 0) {
            return Err(Violation::field(FLAGS));
        }
        let layout = self.layout(header, hlen + hdgst, digested)?;
        if bytes.len() < layout.head_len {
            return Ok(Parsed::Need(layout.head_len));
        }
        let pdu = self.typed(header, &bytes[..hlen], layout.data_len)?;
        Ok(Parsed::Frame(Frame {
            pdu,
            head_len: layout.head_len,
            data_len: layout.data_len,
            data_digest: layout.data_digest,
        }))
    }

    /// The header length of a PDU of this type, if it may come at all.
    fn expected_header_len(&self, kind: u8) -> Result<usize, Violation> {
        let (from, phase, len) = match kind {
            kind::IC_REQ => (Role::Controller, Phase::Initializing, size_of::<IcReq>()),
            kind::IC_RESP => (Role::Host, Phase::Initializing, size_of::<IcResp>()),
            kind::H2C_TERM_REQ => (Role::Controller, self.phase, size_of::<TermReq>()),
            kind::C2H_TERM_REQ => (Role::Host, self.phase, size_of::<TermReq>()),
            kind::CAPSULE_CMD => (Role::Controller, Phase::Running, size_of::<pdu::CapsuleCmd>()),
            kind::CAPSULE_RESP => (Role::Host, Phase::Running, size_of::<pdu::CapsuleResp>()),
            kind::H2C_DATA => (Role::Controller, Phase::Running, size_of::<pdu::Data>()),
            kind::C2H_DATA => (Role::Host, Phase::Running, size_of::<pdu::Data>()),
            kind::R2T => (Role::Host, Phase::Running, size_of::<pdu::R2t>()),
            _ => return Err(Violation::field(KIND)),
        };
        if from == self.role && phase == self.phase { Ok(len) } else { Err(Violation::SEQUENCE) }
    }

    /// Checks the lengths against each other and against the limits.
    fn layout(&self, header: CommonHeader, head: usize, digested: bool) -> Result<Layout, Violation> {
        let head_len = u32::try_from(head).expect("at most 132 bytes");
        let plen = header.plen.get();
        let data_max = match header.kind {
            kind::CAPSULE_CMD => self.in_capsule_max,
            kind::H2C_DATA | kind::C2H_DATA => self.data_max,
            kind::H2C_TERM_REQ | kind::C2H_TERM_REQ => 128,
            _ => 0,
        };
        if plen == head_len {
            return if header.flags & flag::DATA_DIGEST == 0 {
                Ok(Layout { head_len: head, data_len: 0, data_digest: false })
            } else {
                Err(Violation::field(FLAGS))
            };
        }
        if plen < head_len || data_max == 0 {
            return Err(Violation::field(PLEN));
        }
        if !digested {
            // A termination request: the header in error follows at once, PDO is reserved.
            let data_len = plen - head_len;
            let fits = data_len <= data_max;
            return if fits {
                Ok(Layout { head_len: head, data_len, data_digest: false })
            } else {
                Err(Violation::field(PLEN))
            };
        }
        let pdo = u32::from(header.pdo);
        if pdo < head_len || !pdo.is_multiple_of(4) {
            return Err(Violation::field(PDO));
        }
        let ddgst = if self.digests.data { 4 } else { 0 };
        if (header.flags & flag::DATA_DIGEST != 0) != self.digests.data {
            return Err(Violation::field(FLAGS));
        }
        let data_len = plen.checked_sub(pdo + ddgst).filter(|&len| len > 0).ok_or(Violation::field(PLEN))?;
        if data_len > data_max {
            return Err(Violation::LIMIT); // 2
        }
        Ok(Layout { head_len: usize::from(header.pdo), data_len, data_digest: ddgst > 0 })
    }

    /// The fields of a header whose lengths hold.
    fn typed(&self, header: CommonHeader, bytes: &[u8], data_len: u32) -> Result<Pdu, Violation> {
        fn read<T: FromBytes>(bytes: &[u8]) -> T {
            T::read_from_bytes(bytes).expect("the header length was checked against the type")
        }
        Ok(match header.kind {
            kind::IC_REQ => Pdu::IcReq(read(bytes)),
            kind::IC_RESP => Pdu::IcResp(read(bytes)),
            kind::H2C_TERM_REQ | kind::C2H_TERM_REQ => Pdu::TermReq(read(bytes)),
            kind::CAPSULE_CMD => Pdu::Command(read::<pdu::CapsuleCmd>(bytes).sqe),
            kind::CAPSULE_RESP => Pdu::Response(read::<pdu::CapsuleResp>(bytes).cqe),
            kind::R2T => {
                let r2t = read::<pdu::R2t>(bytes);
                if r2t.r2tl.get() == 0 {
                    return Err(Violation::field(LENGTH));
                }
                Pdu::R2t {
                    cid: r2t.cccid.get(),
                    ttag: r2t.ttag.get(),
                    offset: r2t.r2to.get(),
                    len: r2t.r2tl.get(),
                }
            }
            _ => {
                let data = read::<pdu::Data>(bytes);
                if data.datal.get() != data_len || data_len == 0 {
                    return Err(Violation::field(LENGTH));
                }
                let data = Data {
                    cid: data.cccid.get(),
                    ttag: data.ttag.get(),
                    offset: data.datao.get(),
                    len: data_len,
                    last: header.flags & flag::LAST != 0,
                    success: header.flags & flag::SUCCESS != 0,
                };
                if self.role == Role::Controller { Pdu::H2cData(data) } else { Pdu::C2hData(data) }
            }
        })
    }
}

struct Layout {
    head_len: usize,
    data_len: u32,
    data_digest: bool,
}

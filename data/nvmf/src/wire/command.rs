//! Submission and completion queue entries, and the opcodes of both command sets.
//!
//! # Spec
//! NVMe Base 2.0, sections 3.3.3 (entries), 4.1.2 (SGL descriptors), 5 (admin commands); NVM Command Set 1.0, section 3.2.

use super::status::StatusCode;
use super::wire_struct;
use zerocopy::little_endian::{U16, U32, U64};

/// Opcodes of the admin command set.
pub mod admin {
    /// Get Log Page.
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub const ABORT: u8 = 0x08;
    /// Set Features.
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features.
    pub const GET_FEATURES: u8 = 0x0A;
    /// Asynchronous Event Request.
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0C;
    /// Keep Alive.
    pub const KEEP_ALIVE: u8 = 0x18;
}

/// Opcodes of the NVM command set, and the one of Fabrics commands.
pub mod io {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
    /// Compare.
    pub const COMPARE: u8 = 0x05;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    /// The first vendor-specific opcode.
    pub const VENDOR_FIRST: u8 = 0x80;
    /// Force unit access, bit 30 of dword 12 of reads and writes.
    pub const FUA: u32 = 1 << 30;
    /// Deallocate, bit 25 of dword 12 of Write Zeroes.
    pub const DEALLOCATE: u32 = 1 << 25;
    /// Deallocate, bit 2 of dword 11 of Dataset Management.
    pub const DATASET_DEALLOCATE: u32 = 1 << 2;
}

/// The opcode of every Fabrics command, on every queue.
pub const FABRICS_OPCODE: u8 = 0x7F;
/// The namespace id that means all namespaces.
pub const NSID_ALL: u32 = 0xFFFF_FFFF;

wire_struct! {
/// An SGL descriptor.
pub struct Sgl [16] {
    /// Address, or offset in the capsule.
    pub address: U64,
    /// Length of the data in bytes.
    pub len: U32,
    /// Reserved.
    pub reserved: [u8; 3],
    /// Type in the high half, subtype in the low half.
    pub kind: u8,
}
}

impl Sgl {
    /// Data block at an offset into the capsule.
    pub const IN_CAPSULE: u8 = 0x01;
    /// Transport data block: the transport moves the data.
    pub const TRANSPORT: u8 = 0x5A;
    /// No data.
    pub const NONE: Self =
        Self { address: U64::ZERO, len: U32::ZERO, reserved: [0; 3], kind: Self::TRANSPORT };

    /// `len` bytes that follow the command in its capsule.
    pub fn in_capsule(len: u32) -> Self {
        Self { len: len.into(), kind: Self::IN_CAPSULE, ..Self::NONE }
    }

    /// `len` bytes that the transport moves by data PDUs.
    pub fn transport(len: u32) -> Self {
        Self { len: len.into(), ..Self::NONE }
    }
}

wire_struct! {
/// A submission queue entry: one command.
pub struct Sqe [64] {
    /// Opcode.
    pub opcode: u8,
    /// Fused operation in bits 1:0, PRP or SGL in bits 7:6 (01b over fabrics).
    pub flags: u8,
    /// Command identifier.
    pub cid: U16,
    /// Namespace; for Fabrics commands byte 0 is the command type.
    pub nsid: U32,
    /// Command dwords 2 and 3.
    pub cdw2_3: [U32; 2],
    /// Metadata pointer; not used.
    pub mptr: U64,
    /// Where the data is.
    pub sgl: Sgl,
    /// Command dwords 10 to 15.
    pub cdw10_15: [U32; 6],
}
}

impl Sqe {
    /// A command with SGLs and no data; the queue fills in the identifier.
    pub fn new(opcode: u8, nsid: u32, cdw10_15: [u32; 6]) -> Self {
        Self {
            opcode,
            flags: 0x40,
            cid: U16::ZERO,
            nsid: nsid.into(),
            cdw2_3: [U32::ZERO; 2],
            mptr: U64::ZERO,
            sgl: Sgl::NONE,
            cdw10_15: cdw10_15.map(U32::new),
        }
    }

    /// A read, write, compare or write-zeroes of `count` (1 to 65536) blocks.
    ///
    /// # Panics
    /// When `count` is 0 or more than the field can say.
    pub fn blocks(opcode: u8, nsid: u32, lba: u64, count: u64, control: u32) -> Self {
        let nlb = u16::try_from(count - 1).expect("at most 65536 blocks per command");
        let half = |shift: u32| u32::try_from((lba >> shift) & 0xFFFF_FFFF).expect("masked to 32 bits");
        let (low, high) = (half(0), half(32));
        Self::new(opcode, nsid, [low, high, control | u32::from(nlb), 0, 0, 0])
    }

    /// Command dword `n`, from 10 to 15.
    pub fn cdw(&self, n: usize) -> u32 {
        self.cdw10_15[n - 10].get()
    }

    /// Starting block of a read, write, compare or write-zeroes.
    pub fn slba(&self) -> u64 {
        u64::from(self.cdw(10)) | (u64::from(self.cdw(11)) << 32)
    }

    /// Number of blocks of a read, write, compare or write-zeroes: 1 to 65536.
    pub fn block_count(&self) -> u64 {
        u64::from(self.cdw(12) & 0xFFFF) + 1
    }

    /// The type of a Fabrics command.
    pub fn fabrics_type(&self) -> u8 {
        self.nsid.to_bytes()[0]
    }
}

wire_struct! {
/// A completion queue entry: one answer.
pub struct Cqe [16] {
    /// Dwords 0 and 1: the command's result.
    pub result: U64,
    /// How far the controller has consumed the submission queue.
    pub sqhd: U16,
    /// Submission queue identifier (reserved over fabrics).
    pub sqid: U16,
    /// Command identifier.
    pub cid: U16,
    /// Status field, see [`StatusCode::field`].
    pub status: U16,
}
}

impl Cqe {
    /// The answer to command `cid`.
    pub fn new(cid: u16, sqhd: u16, status: StatusCode, result: u64) -> Self {
        Self {
            result: result.into(),
            sqhd: sqhd.into(),
            sqid: U16::ZERO,
            cid: cid.into(),
            status: status.field(status.is_permanent()).into(),
        }
    }

    /// The status, or what the command returned.
    pub fn outcome(&self) -> Result<u64, StatusCode> {
        match StatusCode::from_field(self.status.get()) {
            StatusCode::SUCCESS => Ok(self.result.get()),
            code => Err(code),
        }
    }
}

wire_struct! {
/// One range of Dataset Management.
pub struct DatasetRange [16] {
    /// Hints; not used.
    pub attributes: U32,
    /// Number of blocks; 0 is a range of nothing.
    pub blocks: U32,
    /// First block.
    pub slba: U64,
}
}

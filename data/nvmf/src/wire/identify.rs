//! Identify data: controllers, namespaces, lists.
//!
//! # Spec
//! NVMe Base 2.0, section 5.17 (Identify); NVM Command Set 1.0, section 4.1.5. All are 4096 bytes on the wire.

use super::wire_struct;
use uuid::Uuid;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

/// Length of every Identify data structure, in bytes.
pub const IDENTIFY_LEN: usize = 4096;

/// Controller or namespace structure (CNS).
pub mod cns {
    /// Identify Namespace of the NVM command set.
    pub const NAMESPACE: u8 = 0x00;
    /// Identify Controller.
    pub const CONTROLLER: u8 = 0x01;
    /// Active namespace ids.
    pub const NAMESPACE_LIST: u8 = 0x02;
    /// Namespace identification descriptors.
    pub const NAMESPACE_DESCRIPTORS: u8 = 0x03;
    /// Identify Namespace specific to a command set.
    pub const COMMAND_SET_NAMESPACE: u8 = 0x05;
    /// Identify Controller specific to a command set.
    pub const COMMAND_SET_CONTROLLER: u8 = 0x06;
    /// Active namespace ids of a command set.
    pub const COMMAND_SET_NAMESPACE_LIST: u8 = 0x07;
    /// Identify Namespace independent of the command set.
    pub const INDEPENDENT_NAMESPACE: u8 = 0x08;
    /// Supported I/O command sets.
    pub const COMMAND_SETS: u8 = 0x1C;
}

wire_struct! {
/// Identify Controller; fields that Orlop leaves zero are not named.
pub struct IdentifyController [4096] {
    /// PCI vendor and subsystem vendor; 0 over fabrics.
    pub vid_ssvid: [U16; 2],
    /// Serial number, ASCII, padded with spaces.
    pub serial: [u8; 20],
    /// Model, ASCII, padded with spaces.
    pub model: [u8; 40],
    /// Firmware revision, ASCII, padded with spaces.
    pub firmware: [u8; 8],
    /// Recommended arbitration burst.
    pub rab: u8,
    /// IEEE OUI.
    pub ieee: [u8; 3],
    /// Multi-path: bit 1 more than one controller, bit 3 asymmetric access.
    pub cmic: u8,
    /// Maximum data transfer size: a power of two of pages; 0 for no limit.
    pub mdts: u8,
    /// Controller id.
    pub cntlid: U16,
    /// Version.
    pub version: U32,
    /// RTD3 latencies.
    pub rtd3: [U32; 2],
    /// Optional asynchronous events, see [`super::feature::event`].
    pub oaes: U32,
    /// Controller attributes: bit 0 a 128-bit host id, bit 6 traffic-based keep-alive.
    pub ctratt: U32,
    /// Reserved and not used.
    pub rsvd100: [u8; 11],
    /// Controller type: 1 I/O, 2 discovery.
    pub cntrltype: u8,
    /// Reserved and not used.
    pub rsvd112: [u8; 144],
    /// Optional admin commands.
    pub oacs: U16,
    /// Abort command limit, less one.
    pub acl: u8,
    /// Asynchronous event request limit, less one.
    pub aerl: u8,
    /// Firmware updates.
    pub frmw: u8,
    /// Log page attributes: bit 1 commands supported and effects, bit 2 extended data.
    pub lpa: u8,
    /// Error log entries, less one.
    pub elpe: u8,
    /// Power states, less one.
    pub npss: u8,
    /// Not used.
    pub rsvd264: [u8; 56],
    /// Keep-alive granularity in units of 100 ms.
    pub kas: U16,
    /// Not used.
    pub rsvd322: [u8; 190],
    /// Submission queue entry size, as powers of two: least and most.
    pub sqes: u8,
    /// Completion queue entry size, as powers of two: least and most.
    pub cqes: u8,
    /// The most commands of one queue outstanding.
    pub maxcmd: U16,
    /// Number of namespaces: the highest id.
    pub nn: U32,
    /// Optional NVM commands: bit 0 compare, bit 2 dataset management, bit 3 write zeroes.
    pub oncs: U16,
    /// Fused operations.
    pub fuses: U16,
    /// Format attributes.
    pub fna: u8,
    /// Volatile write cache: bit 0 present, bits 2:1 = 11b flush takes all namespaces.
    pub vwc: u8,
    /// Atomic write unit normal, power fail, in blocks less one.
    pub awun_awupf: [U16; 2],
    /// Not used.
    pub rsvd530: [u8; 2],
    /// Atomic compare and write unit.
    pub acwu: U16,
    /// Not used.
    pub rsvd534: [u8; 2],
    /// SGL support: bits 1:0 = 01b supported, bit 20 offsets into the capsule.
    pub sgls: U32,
    /// The most namespaces that may exist.
    pub mnan: U32,
    /// Reserved.
    pub rsvd544: [u8; 224],
    /// The subsystem's NQN, ended by a zero.
    pub subnqn: [u8; 256],
    /// Reserved.
    pub rsvd1024: [u8; 768],
    /// I/O command capsule size in units of 16 bytes.
    pub ioccsz: U32,
    /// I/O response capsule size in units of 16 bytes.
    pub iorcsz: U32,
    /// In-capsule data offset.
    pub icdoff: U16,
    /// Fabrics controller attributes: bit 0 static.
    pub fcatt: u8,
    /// SGL descriptors per command.
    pub msdbd: u8,
    /// Optional Fabrics commands: bit 0 Disconnect.
    pub ofcs: U16,
    /// Reserved.
    pub rsvd1806: [u8; 242],
    /// Power state descriptors and vendor-specific bytes.
    pub rsvd2048: [u8; 2048],
}
}

wire_struct! {
/// A format that a namespace may have.
pub struct LbaFormat [4] {
    /// Metadata bytes per block.
    pub ms: U16,
    /// Block size, as a power of two.
    pub lbads: u8,
    /// Relative performance.
    pub rp: u8,
}
}

wire_struct! {
/// Identify Namespace of the NVM command set.
pub struct IdentifyNamespace [4096] {
    /// Size in blocks.
    pub nsze: U64,
    /// Capacity in blocks.
    pub ncap: U64,
    /// Blocks in use.
    pub nuse: U64,
    /// Features: bit 4, the preferred sizes below are there.
    pub nsfeat: u8,
    /// Formats, less one.
    pub nlbaf: u8,
    /// The format in use.
    pub flbas: u8,
    /// Metadata capabilities.
    pub mc: u8,
    /// Protection capabilities.
    pub dpc: u8,
    /// Protection settings.
    pub dps: u8,
    /// Bit 0: shared between controllers.
    pub nmic: u8,
    /// Reservation capabilities.
    pub rescap: u8,
    /// Format progress.
    pub fpi: u8,
    /// Bits 2:0 = 001b deallocated blocks read as zeroes; bit 3 write-zeroes deallocates.
    pub dlfeat: u8,
    /// Atomic units and boundaries.
    pub atomicity: [U16; 6],
    /// Optimal I/O boundary in blocks.
    pub noiob: U16,
    /// NVM capacity in bytes.
    pub nvmcap: [U64; 2],
    /// Preferred write granularity and alignment, deallocate granularity and alignment, optimal write size; in blocks, less one.
    pub preferred: [U16; 5],
    /// Not used.
    pub rsvd74: [u8; 18],
    /// ANA group.
    pub anagrpid: U32,
    /// Reserved.
    pub rsvd96: [u8; 3],
    /// Attributes: bit 0 write protected.
    pub nsattr: u8,
    /// NVM set and endurance group.
    pub sets: [U16; 2],
    /// Globally unique identifier.
    pub nguid: [u8; 16],
    /// IEEE identifier.
    pub eui64: [u8; 8],
    /// Formats.
    pub lbaf: [LbaFormat; 64],
    /// Vendor-specific.
    pub vendor: [u8; 3712],
}
}

wire_struct! {
/// Identify Namespace independent of the command set.
pub struct IndependentNamespace [4096] {
    /// Features.
    pub nsfeat: u8,
    /// Bit 0: shared between controllers.
    pub nmic: u8,
    /// Reservation capabilities.
    pub rescap: u8,
    /// Format progress.
    pub fpi: u8,
    /// ANA group.
    pub anagrpid: U32,
    /// Attributes: bit 0 write protected.
    pub nsattr: u8,
    /// Reserved.
    pub rsvd9: u8,
    /// NVM set and endurance group.
    pub sets: [U16; 2],
    /// Bit 0: ready.
    pub nstat: u8,
    /// Reserved.
    pub rsvd15: [u8; 4081],
}
}

/// The list that `ids` (ascending) make, from the first above `after`; ends with a zero unless it is full.
pub fn namespace_list(ids: impl IntoIterator<Item = u32>, after: u32) -> Vec<u8> {
    let mut page = vec![0; IDENTIFY_LEN];
    let mut ids = ids.into_iter().filter(|&id| id > after);
    for slot in page.chunks_exact_mut(4) {
        let Some(id) = ids.next() else { break };
        slot.copy_from_slice(&id.to_le_bytes());
    }
    page
}

/// The ids in a namespace list.
pub fn parse_namespace_list(page: &[u8]) -> Vec<u32> {
    page.chunks_exact(4)
        .map(|slot| u32::from_le_bytes([slot[0], slot[1], slot[2], slot[3]]))
        .take_while(|&id| id != 0)
        .collect()
}

/// The descriptors that identify a namespace: its UUID and its command set (NVM).
pub fn namespace_descriptors(uuid: Uuid) -> Vec<u8> {
    const UUID: u8 = 3;
    const COMMAND_SET: u8 = 4;
    let mut page = vec![0; IDENTIFY_LEN];
    page[..4].copy_from_slice(&[UUID, 16, 0, 0]);
    page[4..20].copy_from_slice(uuid.as_bytes());
    page[20..25].copy_from_slice(&[COMMAND_SET, 1, 0, 0, 0]);
    page
}

/// The UUID in the descriptors of a namespace, if there is one.
pub fn parse_descriptors(page: &[u8]) -> Option<Uuid> {
    let mut rest = page;
    while let [kind, len, _, _, tail @ ..] = rest {
        let len = usize::from(*len);
        if len == 0 || tail.len() < len {
            return None;
        }
        if *kind == 3 && len == 16 {
            return Uuid::from_slice(&tail[..16]).ok();
        }
        rest = &tail[len..];
    }
    None
}

/// A structure as a page that can be sent.
pub fn page_of<T: IntoBytes + zerocopy::Immutable>(structure: &T) -> Vec<u8> {
    structure.as_bytes().to_vec()
}

// The offsets of the specification's tables, where a slip would not change the size.
const _: () = {
    use std::mem::offset_of;
    assert!(offset_of!(IdentifyController, cmic) == 76);
    assert!(offset_of!(IdentifyController, version) == 80);
    assert!(offset_of!(IdentifyController, oaes) == 92);
    assert!(offset_of!(IdentifyController, cntrltype) == 111);
    assert!(offset_of!(IdentifyController, oacs) == 256);
    assert!(offset_of!(IdentifyController, kas) == 320);
    assert!(offset_of!(IdentifyController, sqes) == 512);
    assert!(offset_of!(IdentifyController, vwc) == 525);
    assert!(offset_of!(IdentifyController, sgls) == 536);
    assert!(offset_of!(IdentifyController, subnqn) == 768);
    assert!(offset_of!(IdentifyController, ioccsz) == 1792);
    assert!(offset_of!(IdentifyNamespace, dlfeat) == 33);
    assert!(offset_of!(IdentifyNamespace, nvmcap) == 48);
    assert!(offset_of!(IdentifyNamespace, anagrpid) == 92);
    assert!(offset_of!(IdentifyNamespace, nguid) == 104);
    assert!(offset_of!(IdentifyNamespace, lbaf) == 128);
    assert!(offset_of!(IndependentNamespace, nstat) == 14);
};

//! Log pages.
//!
//! # Spec
//! NVMe Base 2.0, section 5.16 (Get Log Page); NVMe over Fabrics 1.1, section 5.3 (Discovery Log Page).

use super::command::{Sqe, admin, io};
use super::{text_field, wire_struct};
use crate::subsystem::{DiscoveryEntry, DiscoveryKind};
use std::net::IpAddr;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

/// Log page identifiers.
pub mod id {
    /// Supported log pages.
    pub const SUPPORTED: u8 = 0x00;
    /// Error information.
    pub const ERROR: u8 = 0x01;
    /// Health.
    pub const SMART: u8 = 0x02;
    /// Firmware slots.
    pub const FIRMWARE: u8 = 0x03;
    /// Namespaces that have changed.
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    /// Commands supported and effects.
    pub const EFFECTS: u8 = 0x05;
    /// Discovery.
    pub const DISCOVERY: u8 = 0x70;
}

/// What a Get Log Page command asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRequest {
    /// Log page identifier.
    pub id: u8,
    /// Keep the asynchronous event that led here.
    pub retain_event: bool,
    /// How many bytes.
    pub len_bytes: u64,
    /// From which byte on.
    pub offset_bytes: u64,
}

impl LogRequest {
    /// Reads the command's fields.
    pub fn parse(sqe: &Sqe) -> Self {
        let [id, specific, low_0, low_1] = sqe.cdw(10).to_le_bytes();
        let dwords = u64::from(u16::from_le_bytes([low_0, low_1])) | (u64::from(sqe.cdw(11) & 0xFFFF) << 16);
        Self {
            id,
            retain_event: specific & 0x80 != 0,
            len_bytes: (dwords + 1) * 4,
            offset_bytes: u64::from(sqe.cdw(12)) | (u64::from(sqe.cdw(13)) << 32),
        }
    }

    /// The command.
    ///
    /// # Panics
    /// When the length is not a multiple of 4 between 4 bytes and 16 GiB.
    pub fn sqe(&self) -> Sqe {
        assert!(self.len_bytes > 0 && self.len_bytes.is_multiple_of(4), "log pages are read in dwords");
        let dwords = u32::try_from(self.len_bytes / 4 - 1).expect("log pages are shorter than 16 GiB");
        let specific = if self.retain_event { 0x8000 } else { 0 };
        let cdw10 = u32::from(self.id) | specific | (dwords << 16);
        let half = |shift: u32| u32::try_from((self.offset_bytes >> shift) & 0xFFFF_FFFF).expect("masked");
        Sqe::new(
            admin::GET_LOG_PAGE,
            super::command::NSID_ALL,
            [cdw10, dwords >> 16, half(0), half(32), 0, 0],
        )
    }
}

wire_struct! {
/// Health of a controller: zero means well.
pub struct SmartLog [512] {
    /// Critical warnings, one bit each.
    pub critical_warning: u8,
    /// Temperature in kelvins; not aligned.
    pub temperature: [u8; 2],
    /// Spare left, in percent.
    pub available_spare: u8,
    /// Spare below which there is a warning, in percent.
    pub spare_threshold: u8,
    /// Life used, in percent.
    pub percentage_used: u8,
    /// Counters and reserved bytes.
    pub rest: [u8; 506],
}
}

wire_struct! {
/// Firmware slots.
pub struct FirmwareLog [512] {
    /// The active slot.
    pub active: u8,
    /// Reserved.
    pub rsvd1: [u8; 7],
    /// Revisions by slot, ASCII.
    pub revisions: [[u8; 8]; 7],
    /// Reserved.
    pub rsvd64: [u8; 448],
}
}

wire_struct! {
/// The header of the discovery log.
pub struct DiscoveryHeader [1024] {
    /// Changes whenever the log does.
    pub genctr: U64,
    /// Entries that follow.
    pub numrec: U64,
    /// Record format: 0.
    pub recfmt: U16,
    /// Reserved.
    pub reserved: [u8; 1006],
}
}

wire_struct! {
/// One entry of the discovery log.
pub struct DiscoveryRecord [1024] {
    /// Transport type: 3 is TCP.
    pub trtype: u8,
    /// Address family: 1 is IPv4, 2 is IPv6.
    pub adrfam: u8,
    /// Subsystem type: 1 referral, 2 NVM subsystem, 3 this discovery service.
    pub subtype: u8,
    /// Requirements: bits 1:0 of a secure channel, bit 2 flow control can be off.
    pub treq: u8,
    /// Port.
    pub portid: U16,
    /// Controller id, or FFFFh for the dynamic model.
    pub cntlid: U16,
    /// The most entries of the admin queue.
    pub asqsz: U16,
    /// Flags: bit 0 duplicate information, bit 1 persistent connections and events.
    pub eflags: U16,
    /// Reserved.
    pub rsvd12: [u8; 20],
    /// Port number as text.
    pub trsvcid: [u8; 32],
    /// Reserved.
    pub rsvd64: [u8; 192],
    /// Subsystem NQN.
    pub subnqn: [u8; 256],
    /// Address as text.
    pub traddr: [u8; 256],
    /// Transport-specific: byte 0 is the security type, 0 for none.
    pub tsas: [u8; 256],
}
}

/// Entries of the admin queue that the discovery log names.
const ADMIN_QUEUE_ENTRIES: u16 = 32;

impl DiscoveryRecord {
    /// The record of `entry`.
    pub fn new(entry: &DiscoveryEntry) -> Self {
        Self {
            trtype: 3,
            adrfam: if entry.address.is_ipv4() { 1 } else { 2 },
            subtype: match entry.kind {
                DiscoveryKind::Referral => 1,
                DiscoveryKind::Subsystem => 2,
                DiscoveryKind::Current => 3,
            },
            treq: 1 << 2,
            portid: entry.port_id.into(),
            cntlid: super::fabrics::CNTLID_DYNAMIC.into(),
            asqsz: ADMIN_QUEUE_ENTRIES.into(),
            eflags: if entry.kind == DiscoveryKind::Current { 3 } else { 0 }.into(),
            rsvd12: [0; 20],
            // Text fields are padded with spaces in the specification and end at a zero everywhere else.
            trsvcid: text_field(&entry.port.to_string(), 0),
            rsvd64: [0; 192],
            subnqn: text_field(&entry.subnqn, 0),
            traddr: text_field(&entry.address.to_string(), 0),
            tsas: [0; 256],
        }
    }

    /// The entry of this record; `None` if it is not TCP over IP or cannot be read.
    pub fn entry(&self) -> Option<DiscoveryEntry> {
        let text = |field| super::field_text(field).map(str::trim_end);
        if self.trtype != 3 {
            return None;
        }
        Some(DiscoveryEntry {
            kind: match self.subtype {
                1 => DiscoveryKind::Referral,
                2 => DiscoveryKind::Subsystem,
                3 => DiscoveryKind::Current,
                _ => return None,
            },
            subnqn: text(&self.subnqn).filter(|nqn| super::fabrics::is_nqn(nqn))?.to_owned(),
            address: text(&self.traddr)?.parse::<IpAddr>().ok()?,
            port: text(&self.trsvcid)?.parse().ok()?,
            port_id: self.portid.get(),
        })
    }
}

/// The whole discovery log.
pub fn discovery(entries: &[DiscoveryEntry], generation: u64) -> Vec<u8> {
    let header = DiscoveryHeader {
        genctr: generation.into(),
        numrec: (entries.len() as u64).into(),
        recfmt: U16::ZERO,
        reserved: [0; 1006],
    };
    let mut page = header.as_bytes().to_vec();
    for entry in entries {
        page.extend_from_slice(DiscoveryRecord::new(entry).as_bytes());
    }
    page
}

/// The entries of a discovery log page, after its header has been read.
pub fn parse_discovery_records(records: &[u8]) -> Vec<DiscoveryEntry> {
    records
        .chunks_exact(size_of::<DiscoveryRecord>())
        .filter_map(|record| DiscoveryRecord::read_from_bytes(record).ok()?.entry())
        .collect()
}

/// The commands that an I/O controller or a discovery controller supports, and what they do to a namespace.
pub fn effects(discovery: bool) -> Vec<u8> {
    const SUPPORTED: u32 = 1 << 0;
    const CHANGES_CONTENT: u32 = 1 << 1;
    let mut page = vec![0; 4096];
    let mut set = |index: usize, effects: u32| {
        page[index * 4..index * 4 + 4].copy_from_slice(&effects.to_le_bytes());
    };
    for opcode in [
        admin::GET_LOG_PAGE,
        admin::IDENTIFY,
        admin::ABORT,
        admin::SET_FEATURES,
        admin::GET_FEATURES,
        admin::ASYNC_EVENT_REQUEST,
        admin::KEEP_ALIVE,
    ] {
        set(usize::from(opcode), SUPPORTED);
    }
    if !discovery {
        // I/O commands have the second half of the first 2 KiB.
        for opcode in [io::FLUSH, io::READ, io::COMPARE] {
            set(256 + usize::from(opcode), SUPPORTED);
        }
        for opcode in [io::WRITE, io::WRITE_ZEROES, io::DATASET_MANAGEMENT] {
            set(256 + usize::from(opcode), SUPPORTED | CHANGES_CONTENT);
        }
    }
    page
}

/// Which log pages there are.
pub fn supported(ids: &[u8]) -> Vec<u8> {
    let mut page = vec![0; 1024];
    for &id in ids {
        page[usize::from(id) * 4] = 1;
    }
    page
}

/// The health log of a controller that is well.
pub fn smart() -> Vec<u8> {
    let log = SmartLog {
        critical_warning: 0,
        temperature: 300_u16.to_le_bytes(),
        available_spare: 100,
        spare_threshold: 0,
        percentage_used: 0,
        rest: [0; 506],
    };
    log.as_bytes().to_vec()
}

/// The firmware log: one slot with this program's version.
pub fn firmware(revision: &str) -> Vec<u8> {
    let mut revisions = [[0; 8]; 7];
    revisions[0] = text_field(revision, b' ');
    FirmwareLog { active: 1, rsvd1: [0; 7], revisions, rsvd64: [0; 448] }.as_bytes().to_vec()
}

/// An error log without errors: `entries` empty entries.
pub fn error(entries: usize) -> Vec<u8> {
    vec![0; 64 * entries]
}

/// The list of changed namespaces; more than it holds become "all".
pub fn changed_namespaces(ids: &[u32]) -> Vec<u8> {
    let mut page = vec![0; 4096];
    if ids.len() > 1024 {
        page[..4].copy_from_slice(&super::command::NSID_ALL.to_le_bytes());
        return page;
    }
    for (slot, id) in page.chunks_exact_mut(4).zip(ids) {
        slot.copy_from_slice(&U32::new(*id).to_bytes());
    }
    page
}

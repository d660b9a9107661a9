//! Fabrics commands (Connect, Property Get and Set, authentication) and the controller properties.
//!
//! # Spec
//! NVMe over Fabrics 1.1, section 3 (commands); NVMe Base 2.0, section 3.1.3 (controller properties).

use super::command::{FABRICS_OPCODE, Sgl, Sqe};
use super::{field_text, text_field, wire_struct};
use uuid::Uuid;
use zerocopy::little_endian::U16;

/// Types of Fabrics commands.
pub mod kind {
    /// Property Set.
    pub const PROPERTY_SET: u8 = 0x00;
    /// Connect.
    pub const CONNECT: u8 = 0x01;
    /// Property Get.
    pub const PROPERTY_GET: u8 = 0x04;
    /// Authentication Send.
    pub const AUTH_SEND: u8 = 0x05;
    /// Authentication Receive.
    pub const AUTH_RECEIVE: u8 = 0x06;
    /// Disconnect.
    pub const DISCONNECT: u8 = 0x08;
}

/// Offsets of the controller properties.
pub mod property {
    /// Controller capabilities, 8 bytes.
    pub const CAP: u32 = 0x00;
    /// Version, 4 bytes.
    pub const VS: u32 = 0x08;
    /// Controller configuration, 4 bytes.
    pub const CC: u32 = 0x14;
    /// Controller status, 4 bytes.
    pub const CSTS: u32 = 0x1C;
    /// NVM subsystem reset, 4 bytes.
    pub const NSSR: u32 = 0x20;
}

/// Bits of the controller configuration.
pub mod cc {
    /// Enable.
    pub const EN: u32 = 1 << 0;
    /// Shutdown notification, two bits.
    pub const SHN: u32 = 3 << 14;
    /// Normal shutdown.
    pub const SHN_NORMAL: u32 = 1 << 14;
    /// Sizes of the queue entries, 64 and 16 bytes, as powers of two.
    pub const ENTRY_SIZES: u32 = (6 << 16) | (4 << 20);
}

/// Bits of the controller status.
pub mod csts {
    /// Ready.
    pub const RDY: u32 = 1 << 0;
    /// Fatal.
    pub const CFS: u32 = 1 << 1;
    /// Shutdown status, two bits.
    pub const SHST: u32 = 3 << 2;
    /// Shutdown is under way.
    pub const SHST_OCCURRING: u32 = 1 << 2;
    /// Shutdown is complete.
    pub const SHST_COMPLETE: u32 = 2 << 2;
}

/// Version 2.0 of the base specification, as in the version property and Identify Controller.
pub const VERSION_2_0: u32 = 0x0002_0000;
/// The well-known name of every discovery service.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// The longest name, in bytes, without the zero that ends it.
pub const NQN_LEN_MAX: usize = 223;
/// The controller id that lets the target choose.
pub const CNTLID_DYNAMIC: u16 = 0xFFFF;
/// Authentication requirement in the answer to Connect: by DH-HMAC-CHAP, before anything else (ATR).
pub const AUTHREQ_ATR: u16 = 1 << 1;
/// The most data of one `AUTH_SEND` or `AUTH_RECEIVE` here, in bytes; messages are far shorter.
pub const AUTH_LEN_MAX: u32 = 4096;
/// Connect attribute: no submission queue flow control.
pub const CATTR_NO_SQ_FLOW_CONTROL: u8 = 1 << 2;

wire_struct! {
/// The data of a Connect command.
pub struct ConnectData [1024] {
    /// Host identifier.
    pub hostid: [u8; 16],
    /// Controller identifier, or [`CNTLID_DYNAMIC`].
    pub cntlid: U16,
    /// Reserved.
    pub reserved: [u8; 238],
    /// Subsystem NQN, ended by a zero.
    pub subnqn: [u8; 256],
    /// Host NQN, ended by a zero.
    pub hostnqn: [u8; 256],
    /// Reserved.
    pub reserved_2: [u8; 256],
}
}

/// The fields of a Connect command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect {
    /// Record format: 0.
    pub recfmt: u16,
    /// Queue: 0 is the admin queue.
    pub qid: u16,
    /// Entries of the queue, less one.
    pub sqsize: u16,
    /// Attributes.
    pub cattr: u8,
    /// Keep-alive time-out in milliseconds (admin queue only).
    pub kato_ms: u32,
}

fn fabrics(kind: u8, cdw10_15: [u32; 6]) -> Sqe {
    Sqe::new(FABRICS_OPCODE, u32::from(kind), cdw10_15)
}

impl Connect {
    /// The command; its data is [`ConnectData`], in the capsule.
    pub fn sqe(&self) -> Sqe {
        let cdw10 = u32::from(self.recfmt) | (u32::from(self.qid) << 16);
        let cdw11 = u32::from(self.sqsize) | (u32::from(self.cattr) << 16);
        let mut sqe = fabrics(kind::CONNECT, [cdw10, cdw11, self.kato_ms, 0, 0, 0]);
        sqe.sgl = Sgl::in_capsule(1024);
        sqe
    }

    /// Reads the command's fields.
    pub fn parse(sqe: &Sqe) -> Self {
        let halves = |dword: u32| (dword & 0xFFFF, dword >> 16);
        let narrow = |half: u32| u16::try_from(half).expect("half of a dword");
        let (recfmt, qid) = halves(sqe.cdw(10));
        let (sqsize, attributes) = halves(sqe.cdw(11));
        Self {
            recfmt: narrow(recfmt),
            qid: narrow(qid),
            sqsize: narrow(sqsize),
            cattr: attributes.to_le_bytes()[0],
            kato_ms: sqe.cdw(12),
        }
    }
}

impl ConnectData {
    /// The data of a host.
    ///
    /// # Panics
    /// When a name is longer than [`NQN_LEN_MAX`] (callers check it).
    pub fn new(hostid: Uuid, cntlid: u16, subnqn: &str, hostnqn: &str) -> Self {
        assert!(subnqn.len() <= NQN_LEN_MAX && hostnqn.len() <= NQN_LEN_MAX, "names are checked before");
        Self {
            hostid: hostid.into_bytes(),
            cntlid: cntlid.into(),
            reserved: [0; 238],
            subnqn: text_field(subnqn, 0),
            hostnqn: text_field(hostnqn, 0),
            reserved_2: [0; 256],
        }
    }

    /// The subsystem's name, if it is one.
    pub fn subnqn(&self) -> Option<&str> {
        nqn(&self.subnqn)
    }

    /// The host's name, if it is one.
    pub fn hostnqn(&self) -> Option<&str> {
        nqn(&self.hostnqn)
    }
}

fn nqn(field: &[u8; 256]) -> Option<&str> {
    field_text(field).filter(|name| is_nqn(name))
}

/// Whether `name` may be an NQN: it has a length that fits, starts with `nqn.` and holds no control characters.
pub fn is_nqn(name: &str) -> bool {
    name.len() <= NQN_LEN_MAX && name.starts_with("nqn.") && !name.chars().any(char::is_control)
}

/// A Property Get of 4 or 8 bytes.
pub fn property_get(offset: u32, wide: bool) -> Sqe {
    fabrics(kind::PROPERTY_GET, [u32::from(wide), offset, 0, 0, 0, 0])
}

/// A Property Set of 4 bytes.
pub fn property_set(offset: u32, value: u32) -> Sqe {
    fabrics(kind::PROPERTY_SET, [0, offset, value, 0, 0, 0])
}

/// The property that a Property Get or Set names: offset, and whether 8 bytes are meant.
///
/// # Shape
/// `None` for sizes that do not exist.
pub fn property_of(sqe: &Sqe) -> Option<(u32, bool)> {
    match sqe.cdw(10) & 7 {
        0 => Some((sqe.cdw(11), false)),
        1 => Some((sqe.cdw(11), true)),
        _ => None,
    }
}

/// The capabilities property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Those of a controller with queues of at most `entries` entries that becomes ready within `ready_ms`.
    pub fn new(entries: u16, ready_ms: u64) -> Self {
        let mqes = u64::from(entries.saturating_sub(1));
        let contiguous_queues = 1 << 16;
        let timeout = ready_ms.div_ceil(500).min(255) << 24;
        let nvm_command_set = 1 << 37;
        // MPSMIN = MPSMAX = 0: pages of 4 KiB, the unit of MDTS.
        Self(mqes | contiguous_queues | timeout | nvm_command_set)
    }

    /// The most entries of an I/O queue.
    pub const fn queue_entries_max(self) -> u32 {
        (self.0 & 0xFFFF) as u32 + 1
    }

    /// The longest wait for ready, in milliseconds.
    pub const fn ready_ms(self) -> u64 {
        ((self.0 >> 24) & 0xFF) * 500
    }

    /// The page size that MDTS counts in, in bytes.
    pub const fn page_bytes(self) -> u64 {
        1 << (12 + ((self.0 >> 48) & 0xF))
    }
}

/// SPSP1 = SPSP0 = 01h and SECP = E9h: NVMe in-band authentication.
const AUTH_PROTOCOL: u32 = 0xE901_0100;

/// An `AUTH_SEND` of `len` bytes.
pub fn auth_send(len: u32) -> Sqe {
    fabrics(kind::AUTH_SEND, [AUTH_PROTOCOL, len, 0, 0, 0, 0])
}

/// An `AUTH_RECEIVE` of at most `len` bytes.
pub fn auth_receive(len: u32) -> Sqe {
    fabrics(kind::AUTH_RECEIVE, [AUTH_PROTOCOL, len, 0, 0, 0, 0])
}

/// The length in an `AUTH_SEND` or `AUTH_RECEIVE`; `None` if it is for another protocol.
pub fn auth_len(sqe: &Sqe) -> Option<u32> {
    (sqe.cdw(10) >> 8 == AUTH_PROTOCOL >> 8).then_some(sqe.cdw(11))
}

/// The answer to Connect: the controller's id in bits 15:0, authentication requirements above.
pub const fn connect_result(cntlid: u16, authreq: u16) -> u64 {
    cntlid as u64 | ((authreq as u64) << 16)
}

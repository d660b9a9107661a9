//! What a target exports: the seam between the protocol and the stage it serves (a nexus's leg, a volume, a device).
//!
//! The target speaks NVMe; behind it a [`Subsystems`] opens one [`Session`] for each association (one host's admin
//! queue and its I/O queues), and commands run on the session's [`Device`]s.
//!
//! # Invariants
//! 1. No command of an association starts after [`AssociationHandle::end`], the loss of any of its connections, its
//!    keep-alive time-out or its shutdown.
//! 2. [`Session::closed`] is called once, after every command that had started has ended. [`AssociationHandle::ended`]
//!    returns no sooner. This order is what fencing is built on (DESIGN I3).
//! 3. A session is asked only for namespaces that it lists itself: no input from the network reaches another volume.

use crate::key::Key;
use crate::wire::status::StatusCode;
use device::{Device, Status};
use rt::DmaBytes;
use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::rc::Rc;
use uuid::Uuid;

/// What this target exports.
pub trait Subsystems: 'static {
    /// One host's association with one subsystem.
    type Session: Session;

    /// The key that the host `hostnqn` has to prove on every queue to `subnqn`, be that the discovery service, before
    /// [`Self::open`] is called or anything else is answered; none lets everybody in.
    fn key(&self, subnqn: &str, hostnqn: &str) -> Result<Option<Key>, ConnectError>;

    /// A host connects to the admin queue of `connect.subnqn`; called for every NQN but the discovery one.
    fn open(&self, connect: &ConnectRequest)
    -> impl Future<Output = Result<Rc<Self::Session>, ConnectError>>;

    /// The subsystems that a host may discover here.
    fn discovery(&self) -> Vec<DiscoveryEntry>;
}

/// One association, as the stage behind the target sees it.
pub trait Session: 'static {
    /// The device behind a namespace; a cheap handle.
    type Namespace: Device;

    /// The namespaces of this association.
    ///
    /// # Shape
    /// Strictly ascending, each between 1 and `0xFFFF_FFFE`.
    fn namespace_ids(&self) -> Vec<u32>;

    /// The device of namespace `nsid`, if it exists now.
    fn namespace(&self, nsid: u32) -> Option<Self::Namespace>;

    /// Who namespace `nsid` is, the same on every path to it and for ever.
    fn identity(&self, nsid: u32) -> NamespaceIdentity;

    /// Runs a vendor-specific I/O command (opcodes 80h to FFh); not one of them is interpreted by the target.
    fn vendor(
        &self,
        nsid: u32,
        command: &VendorCommand,
    ) -> impl Future<Output = Result<VendorReply, Status>> {
        let _ = (nsid, command);
        std::future::ready(Err(Status::Invalid))
    }

    /// Waits until a namespace has changed (grown, come, gone) and returns its id; the host is then told.
    fn changed(&self) -> impl Future<Output = u32> {
        std::future::pending()
    }

    /// The association is over and all of its commands have ended (invariant 2).
    fn closed(&self) -> impl Future<Output = ()> {
        std::future::ready(())
    }
}

/// Who connects, to what, and how.
#[derive(Clone, Debug)]
pub struct ConnectRequest {
    /// The subsystem that the host names.
    pub subnqn: String,
    /// The host's own name.
    pub hostnqn: String,
    /// The host's own identifier.
    pub hostid: Uuid,
    /// Keep-alive time-out in milliseconds; 0 for none.
    pub kato_ms: u32,
    /// The controller id asked for; `0xFFFF` lets the target choose (dynamic model).
    pub cntlid: u16,
    /// The host's address.
    pub peer: IpAddr,
    /// The association that is being made; lets a session end itself or be ended by a newer one.
    pub association: AssociationHandle,
}

/// Why a Connect command is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// There is no such subsystem here.
    UnknownSubsystem,
    /// This host may not connect to it.
    HostNotAllowed,
    /// Not now (starting, stopping, out of resources); the host tries again.
    Busy,
}

impl ConnectError {
    /// # Spec
    /// NVMe over Fabrics 1.1, section 3.3, Connect response: status values and invalid parameter offsets.
    pub(crate) const fn status(self) -> (StatusCode, u32) {
        // Offsets into the data of Connect are marked by IATTR, bit 16 of dword 0.
        match self {
            Self::UnknownSubsystem => (StatusCode::CONNECT_INVALID_PARAMETERS, (1 << 16) | 256),
            Self::HostNotAllowed => (StatusCode::CONNECT_INVALID_HOST, 0),
            Self::Busy => (StatusCode::CONNECT_CONTROLLER_BUSY, 0),
        }
    }
}

/// Whether a discovery entry leads to volumes or to another discovery service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscoveryKind {
    /// A discovery service elsewhere.
    Referral,
    /// A subsystem with namespaces.
    Subsystem,
    /// The discovery service that answers.
    Current,
}

/// One way to a subsystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryEntry {
    /// What is there.
    pub kind: DiscoveryKind,
    /// The subsystem's name.
    pub subnqn: String,
    /// Where it listens.
    pub address: IpAddr,
    /// The TCP port it listens on.
    pub port: u16,
    /// Tells the ports of one subsystem apart.
    pub port_id: u16,
}

/// Who a namespace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceIdentity {
    /// The same on every path; hosts join paths by it.
    pub uuid: Uuid,
}

/// Where the data of a command goes: bits 1:0 of every opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// No data.
    None,
    /// From the host to the controller, as in a write.
    HostToController,
    /// From the controller to the host, as in a read.
    ControllerToHost,
}

/// A vendor-specific I/O command.
///
/// # Spec
/// NVMe Base 2.0, section 3.1.2.2 and figure 88: opcodes 80h to FFh of the I/O command sets; bits 1:0 give the direction.
#[derive(Clone, Debug)]
pub struct VendorCommand {
    /// At least 80h; bits 1:0 say where the data goes.
    pub opcode: u8,
    /// Command dwords 10 to 15.
    pub cdw10_15: [u32; 6],
    /// The data from the host; present exactly when the opcode says host to controller and there is any.
    pub data: Option<DmaBytes>,
    /// Room for data to the host, in bytes; the reply's data may be shorter.
    pub data_len: usize,
}

impl VendorCommand {
    /// Where the opcode says that data goes; bidirectional (11b) does not exist over this transport.
    pub const fn direction(&self) -> Option<Direction> {
        Direction::of(self.opcode)
    }
}

impl Direction {
    /// The direction in bits 1:0 of an opcode or Fabrics command type.
    pub const fn of(opcode: u8) -> Option<Self> {
        match opcode & 3 {
            0 => Some(Self::None),
            1 => Some(Self::HostToController),
            2 => Some(Self::ControllerToHost),
            _ => None,
        }
    }
}

/// The answer to a vendor-specific command that succeeded.
#[derive(Clone, Debug, Default)]
pub struct VendorReply {
    /// Dwords 0 (low) and 1 (high) of the completion.
    pub result: u64,
    /// Data for the host, at most `data_len` bytes of the command.
    pub data: Option<DmaBytes>,
}

/// The life of one association on the target.
#[derive(Clone)]
pub struct AssociationHandle(Rc<Life>);

#[derive(Default)]
struct Life {
    over: Cell<bool>,
    ended: Cell<bool>,
    orderly: Cell<bool>,
    running: Cell<usize>,
    changed: rt::sync::Event,
}

impl AssociationHandle {
    pub(crate) fn new() -> Self {
        Self(Rc::default())
    }

    /// Ends the association: from now on none of its commands starts, and its connections close.
    pub fn end(&self) {
        if !self.0.over.replace(true) {
            self.0.changed.notify();
        }
    }

    /// Whether the association is over (commands that had started may still run).
    pub fn is_over(&self) -> bool {
        self.0.over.get()
    }

    /// Waits until the association is over.
    pub async fn over(&self) {
        while !self.0.over.get() {
            self.0.changed.wait().await;
        }
    }

    /// Waits until the association is over, every command that had started has ended and [`Session::closed`] has
    /// returned.
    pub async fn ended(&self) {
        while !self.0.ended.get() {
            self.0.changed.wait().await;
        }
    }

    /// Waits until the association is over and every command that had started has ended.
    pub(crate) async fn drained(&self) {
        while !self.0.over.get() || self.0.running.get() > 0 {
            self.0.changed.wait().await;
        }
    }

    /// The host shut the controller down in order; the Linux host says so after it has closed its I/O queues.
    pub(crate) fn set_orderly(&self) {
        self.0.orderly.set(true);
        self.0.changed.notify();
    }

    /// Waits until the association has ended and its host has had the time for its last words; whether these were that it
    /// shuts the controller down in order.
    pub async fn ended_in_order(&self) -> bool {
        self.ended().await;
        let orderly = async {
            while !self.0.orderly.get() {
                self.0.changed.wait().await;
            }
        };
        rt::timeout(crate::limits::FAREWELL_LIMIT, orderly).await.is_ok()
    }

    /// Registers a command that starts now; `None` once the association is over (invariant 1).
    pub(crate) fn start(&self) -> Option<Running> {
        if self.0.over.get() {
            return None;
        }
        self.0.running.set(self.0.running.get() + 1);
        Some(Running(Rc::clone(&self.0)))
    }

    /// Whether [`Self::ended`] would return at once.
    pub fn is_ended(&self) -> bool {
        self.0.ended.get()
    }

    /// Says that [`Session::closed`] has returned.
    pub(crate) fn set_ended(&self) {
        assert!(self.0.over.get() && self.0.running.get() == 0, "an association ends after its commands"); // 2
        self.0.ended.set(true);
        self.0.changed.notify();
    }
}

impl fmt::Debug for AssociationHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AssociationHandle(over: {}, running: {})", self.0.over.get(), self.0.running.get())
    }
}

/// A command that has started; dropped when it has ended.
pub(crate) struct Running(Rc<Life>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
        if self.0.running.get() == 0 && self.0.over.get() {
            self.0.changed.notify();
        }
    }
}

//! One member of an open volume, as the nexus sees it: its leg, whether it takes new writes, what it is owed.
//!
//! Its *state* (`InSync`, `Stale`, ...) is not here: the record has it ([`crate::record::Keeper`]).

use crate::leg::Leg;
use crate::owed::Owed;
use device::Status;
use model::MemberRecord;
use rt::Instant;
use rt::sync::Event;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// A member of an open volume.
pub(crate) struct Member {
    /// The replica.
    pub(crate) replica: Uuid,
    /// The node that holds it, for reports.
    pub(crate) node: String,
    /// The association, while there is one whose epoch the member has accepted.
    leg: RefCell<Option<Rc<Leg>>>,
    /// Whether it takes every new write: it is in sync, or has joined (I7).
    receives: Cell<bool>,
    /// What it is owed.
    pub(crate) owed: RefCell<Owed>,
    /// Extents of which blocks were recorded as bad on it by its last rebuild.
    pub(crate) bad: RefCell<BTreeSet<u64>>,
    /// When the last question that it answered was sent (I9).
    answered: Cell<Instant>,
    /// Why its leg must go although the association lives.
    condemned: Cell<Option<Status>>,
    /// Bytes that a rebuild or resync sent to it.
    pub(crate) copied_bytes: Cell<u64>,
    /// Reads under way.
    reads: Cell<u32>,
    /// Rebuilds that went on where an earlier one had stopped.
    pub(crate) resumed: Cell<u64>,
    /// Something above changed, or its state in the record did.
    pub(crate) changed: Event,
}

impl Member {
    pub(crate) fn new(record: &MemberRecord) -> Rc<Self> {
        Rc::new(Self {
            replica: record.replica,
            node: record.node.clone(),
            leg: RefCell::default(),
            receives: Cell::new(false),
            owed: RefCell::new(Owed::nothing()),
            bad: RefCell::default(),
            answered: Cell::new(Instant::from_nanos(0)),
            condemned: Cell::new(None),
            copied_bytes: Cell::new(0),
            reads: Cell::new(0),
            resumed: Cell::new(0),
            changed: Event::new(),
        })
    }

    /// The leg, if it is up.
    pub(crate) fn leg(&self) -> Option<Rc<Leg>> {
        self.leg.borrow().clone()
    }

    /// Whether `leg` is still this member's leg.
    pub(crate) fn has(&self, leg: &Rc<Leg>) -> bool {
        self.leg.borrow().as_ref().is_some_and(|mine| Rc::ptr_eq(mine, leg))
    }

    /// Takes `leg`, which answered a question sent at `asked`.
    pub(crate) fn up(&self, leg: Rc<Leg>, asked: Instant) {
        *self.leg.borrow_mut() = Some(leg);
        self.condemned.set(None);
        self.answered.set(asked);
        self.changed.notify();
    }

    /// Lets the leg go.
    pub(crate) fn down(&self) -> Option<Rc<Leg>> {
        let leg = self.leg.take();
        self.changed.notify();
        leg
    }

    /// Whether it takes new writes.
    pub(crate) fn receives(&self) -> bool {
        self.receives.get()
    }

    /// Lets it take new writes, or not.
    pub(crate) fn set_receives(&self, receives: bool) {
        self.receives.set(receives);
        self.changed.notify();
    }

    /// Notes the answer to a question sent at `asked`.
    pub(crate) fn answered(&self, asked: Instant) {
        if asked > self.answered.get() {
            self.answered.set(asked);
        }
    }

    /// When the last question that it answered was sent.
    pub(crate) fn last_answered(&self) -> Instant {
        self.answered.get()
    }

    /// Whether it has answered within `lease` (I9). A local member cannot be cut off from this process.
    pub(crate) fn lease_holds(&self, lease: Duration) -> bool {
        let local = self.leg.borrow().as_ref().is_some_and(|leg| leg.is_local());
        local || rt::now() - self.answered.get() < lease
    }

    /// Gives the leg up although its association lives: `leg` failed with `status`.
    pub(crate) fn condemn(&self, leg: &Rc<Leg>, status: Status) {
        if self.has(leg) {
            self.condemned.set(Some(status));
            self.changed.notify();
        }
    }

    /// Why the leg must go.
    pub(crate) fn condemned(&self) -> Option<Status> {
        self.condemned.get()
    }

    /// Forgets why the last leg had to go.
    pub(crate) fn pardon(&self) {
        self.condemned.set(None);
    }

    /// Reads under way, for the choice of the least loaded.
    pub(crate) fn reads(&self) -> u32 {
        self.reads.get()
    }

    /// Counts a read as under way until the guard goes.
    pub(crate) fn begin_read(self: &Rc<Self>) -> ReadUnderWay {
        self.reads.set(self.reads.get() + 1);
        ReadUnderWay(Rc::clone(self))
    }
}

/// Counts one read.
pub(crate) struct ReadUnderWay(Rc<Member>);

impl Drop for ReadUnderWay {
    fn drop(&mut self) {
        self.0.reads.set(self.0.reads.get() - 1);
    }
}

//! One association: the controller that a host made by connecting an admin queue, until all of its commands have ended.
//!
//! # Invariants
//! 1. It serves I/O only while it is enabled and not over; it is never enabled twice.
//! 2. At most one connection holds each queue id.

use super::Shared;
use super::queue::{Queue, Reply};
use crate::limits;
use crate::subsystem::{AssociationHandle, Session, Subsystems};
use crate::wire::fabrics::{cc, csts};
use crate::wire::feature::{event, notice};
use rt::sync::Event;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::rc::{Rc, Weak};
use std::time::Duration;
use uuid::Uuid;

/// Where the commands of an association go.
pub(super) enum Export<S: Subsystems> {
    /// The discovery service: no namespaces.
    Discovery,
    /// A subsystem with namespaces.
    Volumes(Rc<S::Session>),
}

/// A controller.
pub(super) struct Association<S: Subsystems> {
    pub(super) handle: AssociationHandle,
    pub(super) cntlid: u16,
    pub(super) subnqn: String,
    pub(super) hostnqn: String,
    pub(super) hostid: Uuid,
    pub(super) export: Export<S>,
    pub(super) kato_ms: Cell<u32>,
    pub(super) io_queues: Cell<u16>,
    kato_changed: Event,
    /// Whether a command has arrived since the keep-alive timer looked last.
    traffic: Cell<bool>,
    configuration: Cell<u32>,
    /// The admin queue answers a little longer than the association lives, so that the host sees how it ended.
    lingers: Cell<bool>,
    queues: RefCell<BTreeSet<u16>>,
    admin: RefCell<Weak<Queue<S>>>,
    events: RefCell<Events>,
}

/// Asynchronous events: at most one of each kind is outstanding, until the host has read the log page that it names.
#[derive(Default)]
struct Events {
    enabled: u32,
    waiting: VecDeque<u16>,
    namespace: Notice,
    discovery: Notice,
    changed: Vec<u32>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Notice {
    #[default]
    Quiet,
    Due,
    /// Told; nothing more until the log page was read.
    Told,
}

impl<S: Subsystems> Association<S> {
    /// Makes the controller known; from now on its tasks watch over it.
    pub(super) fn start(
        shared: &Rc<Shared<S>>,
        handle: AssociationHandle,
        cntlid: u16,
        names: (String, String, Uuid),
        export: Export<S>,
        kato_ms: u32,
    ) -> Rc<Self> {
        let (subnqn, hostnqn, hostid) = names;
        let kato_ms = match (&export, kato_ms) {
            (Export::Discovery, 0) => limits::DISCOVERY_SILENCE_MS,
            _ => kato_ms,
        };
        let association = Rc::new(Self {
            handle,
            cntlid,
            subnqn,
            hostnqn,
            hostid,
            export,
            kato_ms: Cell::new(kato_ms),
            io_queues: Cell::new(shared.config.io_queues_max),
            kato_changed: Event::new(),
            traffic: Cell::new(true),
            configuration: Cell::new(0),
            lingers: Cell::new(false),
            queues: RefCell::default(),
            admin: RefCell::new(Weak::new()),
            events: RefCell::default(),
        });
        let previous = shared.associations.borrow_mut().insert(cntlid, Rc::clone(&association));
        assert!(previous.is_none(), "a controller id is given out once");
        if shared.stopped.get() {
            association.handle.end();
        }
        rt::spawn(Rc::clone(&association).finish(Rc::clone(shared))).detach();
        rt::spawn(Rc::clone(&association).watch_keep_alive()).detach();
        if let Export::Volumes(_) = association.export {
            rt::spawn(Rc::clone(&association).watch_namespaces()).detach();
        }
        association
    }

    /// Once it is over and its commands have ended: closes the session and forgets the controller.
    async fn finish(self: Rc<Self>, shared: Rc<Shared<S>>) {
        self.handle.drained().await;
        if let Export::Volumes(session) = &self.export {
            session.closed().await;
        }
        shared.associations.borrow_mut().remove(&self.cntlid);
        self.handle.set_ended();
    }

    /// Ends the association when the host has been silent for longer than the keep-alive time-out.
    async fn watch_keep_alive(self: Rc<Self>) {
        let mut silent_halves = 0;
        while !self.handle.is_over() {
            let kato = Duration::from_millis(u64::from(self.kato_ms.get()));
            if kato.is_zero() {
                rt::race(self.handle.over(), self.kato_changed.wait()).await;
                continue;
            }
            rt::race(self.handle.over(), rt::sleep(kato / 2)).await;
            silent_halves = if self.traffic.take() { 0 } else { silent_halves + 1 };
            // Looked at twice per time-out: it is noticed after 1 to 1.5 times it.
            if silent_halves >= 2 && !self.handle.is_over() {
                tracing::warn!(host = %self.hostnqn, nqn = %self.subnqn, cntlid = self.cntlid, "keep-alive time-out");
                self.handle.end();
            }
        }
    }

    async fn watch_namespaces(self: Rc<Self>) {
        let Export::Volumes(session) = &self.export else { return };
        loop {
            let changed = async { Some(session.changed().await) };
            let over = async {
                self.handle.over().await;
                None
            };
            let Some(nsid) = rt::race(over, changed).await else { return };
            {
                let mut events = self.events.borrow_mut();
                if !events.changed.contains(&nsid) && events.changed.len() <= limits::CHANGED_NAMESPACES_MAX {
                    events.changed.push(nsid);
                }
                events.namespace = events.namespace.raised();
            }
            self.tell();
        }
    }

    /// A command arrived on one of its queues.
    pub(super) fn saw_traffic(&self) {
        self.traffic.set(true);
    }

    pub(super) fn set_kato_ms(&self, kato_ms: u32) {
        self.kato_ms.set(kato_ms);
        self.kato_changed.notify();
    }

    /// Whether it serves I/O (invariant 1).
    pub(super) fn is_enabled(&self) -> bool {
        self.configuration.get() & cc::EN != 0 && !self.handle.is_over()
    }

    pub(super) fn configuration(&self) -> u32 {
        self.configuration.get()
    }

    /// The host writes the controller configuration: enables, resets or shuts down.
    pub(super) fn configure(&self, value: u32) {
        let old = self.configuration.replace(value);
        let reset = old & cc::EN != 0 && value & cc::EN == 0;
        let shutdown = value & cc::SHN != 0;
        if shutdown {
            self.handle.set_orderly();
        }
        if (reset || shutdown) && !self.handle.is_over() {
            self.lingers.set(true);
            self.handle.end();
        }
    }

    /// The controller status property.
    pub(super) fn status(&self) -> u32 {
        let configuration = self.configuration.get();
        let ended = self.handle.is_ended();
        // Once it is over it cannot be enabled again: the host has to connect anew.
        let enabled = configuration & cc::EN != 0 && (!self.handle.is_over() || self.lingers.get());
        let resetting = configuration & cc::EN == 0 && self.handle.is_over() && !ended;
        let ready = if enabled || resetting { csts::RDY } else { 0 };
        let shutdown = match (configuration & cc::SHN != 0, ended) {
            (false, _) => 0,
            (true, false) => csts::SHST_OCCURRING,
            (true, true) => csts::SHST_COMPLETE,
        };
        ready | shutdown
    }

    /// Takes queue id `qid` for a connection; the admin queue is 0.
    pub(super) fn join(&self, queue: &Rc<Queue<S>>) -> bool {
        let joined = !self.handle.is_over() && self.queues.borrow_mut().insert(queue.qid);
        if joined && queue.qid == 0 {
            self.admin.replace(Rc::downgrade(queue));
        }
        joined
    }

    /// A connection of this association is gone, and with it the association.
    pub(super) fn leave(&self, qid: u16) {
        // The Linux host closes its I/O queues first when it leaves and then asks the admin queue to shut down.
        if qid != 0 && !self.handle.is_over() {
            self.lingers.set(true);
        }
        self.handle.end();
    }

    /// Waits until the connection of queue `qid` has nothing left to do.
    pub(super) async fn farewell(&self, qid: u16) {
        self.handle.over().await;
        if qid == 0 && self.lingers.get() {
            rt::sleep(limits::FAREWELL_LIMIT).await;
        }
    }

    /// Leaves an event request waiting; false if there are too many.
    pub(super) fn await_event(&self, cid: u16) -> bool {
        {
            let mut events = self.events.borrow_mut();
            if events.waiting.len() >= limits::ASYNC_EVENTS_MAX {
                return false;
            }
            events.waiting.push_back(cid);
        }
        self.tell();
        true
    }

    pub(super) fn enable_events(&self, enabled: u32) {
        self.events.borrow_mut().enabled = enabled;
        self.tell();
    }

    pub(super) fn enabled_events(&self) -> u32 {
        self.events.borrow().enabled
    }

    /// The changed namespaces, which the host now knows.
    pub(super) fn take_changed_namespaces(&self, retain: bool) -> Vec<u32> {
        let changed = {
            let mut events = self.events.borrow_mut();
            if retain {
                return events.changed.clone();
            }
            events.namespace = Notice::Quiet;
            std::mem::take(&mut events.changed)
        };
        self.tell();
        changed
    }

    /// The host has read the discovery log.
    pub(super) fn discovery_read(&self) {
        self.events.borrow_mut().discovery = Notice::Quiet;
    }

    pub(super) fn discovery_changed(&self) {
        if let Export::Discovery = self.export {
            {
                let mut events = self.events.borrow_mut();
                events.discovery = events.discovery.raised();
            }
            self.tell();
        }
    }

    /// Answers waiting event requests with the notices that are due.
    fn tell(&self) {
        while let Some((cid, notice)) = self.events.borrow_mut().next() {
            let Some(admin) = self.admin.borrow().upgrade() else { return };
            admin.complete(cid, Ok(Reply::result(u64::from(notice))));
        }
    }
}

impl Notice {
    fn raised(self) -> Self {
        if self == Self::Quiet { Self::Due } else { self }
    }
}

impl Events {
    fn next(&mut self) -> Option<(u16, u32)> {
        let kinds = [
            (&mut self.namespace, event::NAMESPACE, notice::NAMESPACE),
            (&mut self.discovery, event::DISCOVERY, notice::DISCOVERY),
        ];
        let (state, _, notice) =
            kinds.into_iter().find(|(state, bit, _)| **state == Notice::Due && self.enabled & bit != 0)?;
        let cid = self.waiting.pop_front()?;
        *state = Notice::Told;
        Some((cid, notice))
    }
}

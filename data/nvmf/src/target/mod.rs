//! The target: serves subsystems to hosts over TCP.
//!
//! ```text
//! accept -> handshake: ICReq, Connect, proof -> queue - admin command -> association (controller)
//!                                            +---- I/O command ---> Session's Device
//! ```
//!
//! Each connection is one queue and has two tasks: one receives and starts commands, one sends what the
//! outbox has gathered. Each I/O command is a task of its own.
//!
//! # Invariants
//! 1. A connection that has not connected a queue within the configured time is closed.
//! 2. A host's I/O queue joins only an association that the same host made to the same subsystem.
//! 3. A command holds one slot of its queue until its answer is queued; a host that uses more is cut off.

mod admin;
mod association;
mod connection;
mod handshake;
mod io;
mod queue;

use crate::limits;
use crate::subsystem::{DiscoveryEntry, Subsystems};
use association::Association;
use rt::net::TcpListener;
use rt::sync::Event;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::Duration;

/// How a target serves.
#[derive(Clone, Debug)]
pub struct TargetConfig {
    /// Where it listens; port 0 takes a free one.
    pub address: SocketAddr,
    /// In-capsule data of I/O commands, in bytes: writes up to this need no round trip for an R2T.
    pub in_capsule_bytes: u32,
    /// The most data of one command, in bytes: a power of two from 8 KiB to 4 MiB.
    pub data_bytes_max: u32,
    /// Entries of an I/O queue.
    pub queue_entries: u16,
    /// I/O queues of one association.
    pub io_queues_max: u16,
    /// Connections at a time, of all hosts.
    pub connections_max: usize,
    /// Time from accepting a connection to a successful Connect command, and the proof of its host.
    pub handshake_limit: Duration,
    /// Controller ids that it gives out. Targets that serve one subsystem together must not share any.
    pub controller_ids: RangeInclusive<u16>,
    /// Serial number in Identify Controller, at most 20 characters; the same on every path to a subsystem.
    pub serial: String,
}

impl TargetConfig {
    /// The usual settings, listening on `address`.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            in_capsule_bytes: 64 << 10,
            data_bytes_max: 1 << 20,
            queue_entries: 128,
            io_queues_max: 16,
            connections_max: 4096,
            handshake_limit: Duration::from_secs(10),
            controller_ids: 1..=0xFFEF,
            serial: "ORLOP".into(),
        }
    }

    /// # Panics
    /// When a setting cannot be spoken on the wire.
    fn check(&self) {
        assert!(self.data_bytes_max.is_power_of_two(), "data_bytes_max must be a power of two");
        assert!(
            (8192..=limits::DATA_BYTES_LIMIT).contains(&self.data_bytes_max),
            "data_bytes_max: 8 KiB to 4 MiB"
        );
        assert!(self.in_capsule_bytes <= self.data_bytes_max, "a capsule holds one command's data");
        assert!(self.in_capsule_bytes.is_multiple_of(16), "in-capsule data is counted in units of 16 bytes");
        assert!((2..=4096).contains(&self.queue_entries), "queue_entries: 2 to 4096");
        assert!(self.io_queues_max > 0 && !self.controller_ids.is_empty());
        assert!(*self.controller_ids.end() < 0xFFF0, "controller ids end at FFEFh");
    }

    /// MDTS: the power of two of 4 KiB pages; 0 would mean that there is no limit.
    fn mdts(&self) -> u8 {
        u8::try_from((self.data_bytes_max / 4096).ilog2()).expect("at most 10")
    }
}

/// A listening target.
pub struct Target<S: Subsystems> {
    shared: Rc<Shared<S>>,
    listener: TcpListener,
}

/// What all connections of a target share.
struct Shared<S: Subsystems> {
    config: TargetConfig,
    subsystems: Rc<S>,
    /// By controller id, until all of its commands have ended.
    associations: RefCell<BTreeMap<u16, Rc<Association<S>>>>,
    /// Controller ids of connections that are still to prove a key or to open their session.
    reserved: RefCell<BTreeSet<u16>>,
    connections: Cell<usize>,
    last_cntlid: Cell<u16>,
    discovery: RefCell<DiscoveryLog>,
    stopped: Cell<bool>,
    stopping: Event,
}

/// The discovery log as hosts last saw it; its generation changes when it does.
#[derive(Default)]
struct DiscoveryLog {
    entries: Vec<DiscoveryEntry>,
    generation: u64,
}

impl<S: Subsystems> Target<S> {
    /// Listens.
    ///
    /// # Panics
    /// When a setting is out of its bounds.
    pub async fn bind(config: TargetConfig, subsystems: Rc<S>) -> std::io::Result<Self> {
        config.check();
        let listener = TcpListener::bind(config.address).await?;
        let last_cntlid = Cell::new(*config.controller_ids.end());
        let shared = Rc::new(Shared {
            config,
            subsystems,
            associations: RefCell::default(),
            reserved: RefCell::default(),
            connections: Cell::new(0),
            last_cntlid,
            discovery: RefCell::default(),
            stopped: Cell::new(false),
            stopping: Event::new(),
        });
        Ok(Self { shared, listener })
    }

    /// Where it listens.
    pub fn local_address(&self) -> SocketAddr {
        self.listener.local_address()
    }

    /// Serves hosts; never ends by itself. Dropping the future accepts no further connections.
    pub async fn serve(&self) {
        loop {
            let stream = match self.listener.accept().await {
                Ok(stream) => stream,
                Err(errno) => {
                    // Out of descriptors, usually: waiting lets connections end.
                    tracing::warn!(%errno, "target cannot accept a connection");
                    rt::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            if self.shared.connections.get() >= self.shared.config.connections_max {
                tracing::warn!(peer = %stream.peer, "target refuses a connection: too many are open");
                continue;
            }
            let counted = Counted::new(&self.shared);
            rt::spawn(connection::run(counted, stream)).detach();
        }
    }

    /// Tells hosts with a persistent discovery connection that the discovery log may have changed.
    pub fn discovery_changed(&self) {
        let associations: Vec<_> = self.shared.associations.borrow().values().cloned().collect();
        for association in associations {
            association.discovery_changed();
        }
    }

    /// Ends all associations and waits until their commands have ended and their sessions are closed.
    pub async fn stop(&self) {
        self.shared.stop();
        let associations: Vec<_> = self.shared.associations.borrow().values().cloned().collect();
        for association in associations {
            association.handle.ended().await;
        }
    }
}

impl<S: Subsystems> Drop for Target<S> {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

impl<S: Subsystems> Shared<S> {
    fn stop(&self) {
        self.stopped.set(true);
        self.stopping.notify();
        for association in self.associations.borrow().values() {
            association.handle.end();
        }
    }

    /// Waits until the target stops.
    async fn stopping(&self) {
        while !self.stopped.get() {
            self.stopping.wait().await;
        }
    }

    /// A controller id that nobody has, the one least recently given out.
    fn free_cntlid(&self) -> Option<u16> {
        let ids = &self.config.controller_ids;
        let (taken, reserved) = (self.associations.borrow(), self.reserved.borrow());
        let after = (self.last_cntlid.get().checked_add(1)?..=*ids.end()).filter(|id| ids.contains(id));
        let id = after.chain(ids.clone()).find(|id| !taken.contains_key(id) && !reserved.contains(id))?;
        self.last_cntlid.set(id);
        Some(id)
    }

    /// The discovery log, and its generation.
    fn discovery_log(&self) -> (Vec<DiscoveryEntry>, u64) {
        let entries = self.subsystems.discovery();
        let mut log = self.discovery.borrow_mut();
        if log.entries != entries || log.generation == 0 {
            log.generation += 1;
            log.entries.clone_from(&entries);
        }
        (entries, log.generation)
    }
}

/// A connection that is counted while it is open.
struct Counted<S: Subsystems>(Rc<Shared<S>>);

impl<S: Subsystems> Counted<S> {
    fn new(shared: &Rc<Shared<S>>) -> Self {
        shared.connections.set(shared.connections.get() + 1);
        Self(Rc::clone(shared))
    }
}

impl<S: Subsystems> Drop for Counted<S> {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
    }
}

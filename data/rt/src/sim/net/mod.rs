//! The simulated network: TCP-like connections between the nodes of a world.
//!
//! # Fault model
//! - A connection is two reliable, ordered streams of bytes. Bytes arrive in chunks of random length after random delays,
//!   and a sender waits while more than the connection's (random) window is unacknowledged.
//! - Connecting takes a round trip; it is refused where a live node has no listener, and times out where packets do not
//!   come through.
//! - A partition holds back what is sent into it (one direction at a time: data, acknowledgements and resets). After it
//!   heals, data goes on after a delay as retransmission would, or the connection is reset, per seed. Nothing else tells
//!   the ends about a partition.
//! - When a process dies its kernel closes its connections: in order after the data already sent, or by a reset that may
//!   overtake and discard it, per seed. When a node loses power nothing is sent: a peer learns of it by a reset that
//!   answers its own data once the node is up again, or never.
//! - By rule, at a delivery, a connection is reset at random, or one bit of the chunk flips (checksums of TCP miss some).
//!
//! # Invariants
//! 1. A receiver gets a prefix of what was sent, in order, each byte once, unchanged unless a rule says so.
//! 2. An end of stream is seen only after every byte sent before it.
//! 3. At most one arrival per direction is scheduled, and none while it is held back.

mod faults;
mod socket;

pub(crate) use socket::{SimListener, SimReceive, SimSend, connect};

use super::disk::Latency;
use super::executor::Event;
use super::node::ProcessId;
use super::trace::Kind;
use super::world::State;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::task::Waker;
use std::time::Duration;

/// How the network of a world behaves.
#[derive(Clone, Copy, Debug)]
pub struct NetworkBehaviour {
    /// One way between two nodes; within a node it takes a quarter.
    pub latency: Latency,
    /// How many times in a million a chunk meets a connection reset instead of arriving.
    pub reset_per_million: u32,
    /// How many times in a million a chunk arrives with one bit flipped.
    pub corrupt_per_million: u32,
    /// After how long an attempt to connect gives up.
    pub connect_timeout: Duration,
    /// How many times in a thousand a connection that a partition held back is reset at the healing.
    pub reset_at_heal_permille: u16,
}

impl Default for NetworkBehaviour {
    fn default() -> Self {
        Self {
            latency: Latency {
                low: Duration::from_micros(10),
                high: Duration::from_micros(150),
                slow_permille: 2,
                slow: Duration::from_millis(30),
            },
            reset_per_million: 0,
            corrupt_per_million: 0,
            connect_timeout: Duration::from_secs(20),
            reset_at_heal_permille: 250,
        }
    }
}

/// Connections that wait to be accepted, per listener.
const BACKLOG_MAX: usize = 128;
/// The longest delay until retransmission finds a healed path again.
const RETRANSMIT_NANOS_MAX: u64 = 1_000_000_000;
/// Windows that a connection may have, in bytes.
const WINDOWS: [usize; 4] = [16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// Something that arrives at an end of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arrival {
    /// The next chunk of the stream sent by `from`.
    Chunk { connection: u64, from: usize },
    /// Acknowledgements sent by `from`.
    Ack { connection: u64, from: usize },
    /// A reset sent by `from`.
    Reset { connection: u64, from: usize },
}

#[derive(Debug)]
enum Chunk {
    Data(Vec<u8>),
    End,
}

/// How an end came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Open,
    /// Closed by its program or by the kernel of a dead process; data that still comes is answered by a reset.
    Closed,
    /// Its node lost power: it answers nothing until the node is up again.
    Silent,
    /// Knows that the connection is broken.
    Broken,
}

/// One end of a connection and the stream it sends.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, not one state")]
struct End {
    node: usize,
    process: ProcessId,
    life: Life,
    /// Sent and not arrived, with the earliest moment of arrival.
    underway: VecDeque<(u64, Chunk)>,
    /// An arrival of the first chunk underway is scheduled.
    scheduled: bool,
    /// Bytes sent and not acknowledged.
    unacknowledged: usize,
    /// Arrived and not taken by the program.
    arrived: VecDeque<Vec<u8>>,
    /// The peer's end of stream arrived.
    ended: bool,
    /// Bytes consumed and not yet acknowledged to the peer.
    to_acknowledge: usize,
    ack_scheduled: bool,
    reset_held: bool,
    receiver: Option<Waker>,
    sender: Option<Waker>,
}

#[derive(Debug)]
struct Connection {
    ends: [End; 2],
    window: usize,
}

#[derive(Debug)]
struct Listener {
    process: ProcessId,
    /// Connections whose second end is ours, with the peers' addresses.
    backlog: VecDeque<(u64, SocketAddr)>,
    waiting: VecDeque<Waker>,
}

/// All listeners, connections and partitions.
#[derive(Debug, Default)]
pub(super) struct Network {
    pub(super) behaviour: NetworkBehaviour,
    listeners: BTreeMap<(usize, u16), Listener>,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    next_port: u16,
    cut: BTreeSet<(usize, usize)>,
}

/// What became of an attempt to connect when it arrived.
pub(super) enum Answer {
    Accepted(u64),
    Refused,
    Nothing,
}

/// What a program finds when it looks for received bytes.
pub(super) enum Received {
    Bytes(Vec<u8>),
    End,
    Reset,
    NotYet,
}

/// What a program finds when it wants to send.
pub(super) enum Sendable {
    Sent(usize),
    Broken,
    Closed,
    NotYet,
}

impl End {
    fn new(node: usize, process: ProcessId) -> Self {
        Self {
            node,
            process,
            life: Life::Open,
            underway: VecDeque::new(),
            scheduled: false,
            unacknowledged: 0,
            arrived: VecDeque::new(),
            ended: false,
            to_acknowledge: 0,
            ack_scheduled: false,
            reset_held: false,
            receiver: None,
            sender: None,
        }
    }

    fn wake_both(&mut self) {
        for waker in [self.receiver.take(), self.sender.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

impl State {
    /// The node with this address as seen from `node`.
    fn node_at(&self, node: usize, address: IpAddr) -> Option<usize> {
        match address {
            IpAddr::V4(v4) if v4.is_loopback() || v4.is_unspecified() => Some(node),
            IpAddr::V4(v4) => self.nodes.iter().position(|node| node.address == v4),
            IpAddr::V6(_) => None,
        }
    }

    /// Listens on a port, or on a free one for port 0; `None` if it is taken.
    pub(super) fn listen(&mut self, process: ProcessId, port: u16) -> Option<u16> {
        let node = self.processes[process.0].node;
        let port = if port == 0 { self.free_port(node) } else { port };
        if !self.is_alive(process) || self.net.listeners.contains_key(&(node, port)) {
            return None;
        }
        let listener = Listener { process, backlog: VecDeque::new(), waiting: VecDeque::new() };
        self.net.listeners.insert((node, port), listener);
        Some(port)
    }

    fn free_port(&mut self, node: usize) -> u16 {
        loop {
            self.net.next_port = (self.net.next_port + 1) % 28_000;
            let port = 32_768 + self.net.next_port;
            if !self.net.listeners.contains_key(&(node, port)) {
                return port;
            }
        }
    }

    /// The next connection of a listener; else remembers the waker. `None` inside if the listener is gone.
    pub(super) fn accept(
        &mut self,
        process: ProcessId,
        port: u16,
        waker: &Waker,
    ) -> Option<(u64, SocketAddr)> {
        let node = self.processes[process.0].node;
        let listener = self.net.listeners.get_mut(&(node, port))?;
        if listener.process != process {
            return None;
        }
        let next = listener.backlog.pop_front();
        if next.is_none() {
            listener.waiting.retain(|waiting| !waiting.will_wake(waker));
            listener.waiting.push_back(waker.clone());
        }
        next
    }

    /// Closes a listener; what was not accepted is reset.
    pub(super) fn unlisten(&mut self, process: ProcessId, port: u16) {
        let key = (self.processes[process.0].node, port);
        if self.net.listeners.get(&key).is_none_or(|listener| listener.process != process) {
            return;
        }
        let listener = self.net.listeners.remove(&key).expect("looked up just now");
        for (connection, _) in listener.backlog {
            self.abort(connection, 1);
        }
    }

    /// Whether packets from one node reach the other now.
    fn reaches(&self, from: usize, to: usize) -> bool {
        self.nodes[to].up && (from == to || !self.net.cut.contains(&(from, to)))
    }

    pub(super) fn path_is_open(&self, from: usize, to: usize) -> bool {
        self.nodes[from].up && self.reaches(from, to)
    }

    pub(super) fn draw_latency(&mut self, from: usize, to: usize) -> u64 {
        let nanos = self.net.behaviour.latency.draw(&mut self.fate);
        if from == to { nanos / 4 } else { nanos }
    }

    /// An attempt to connect arrives at `to`.
    pub(super) fn knock(&mut self, process: ProcessId, from: SocketAddr, to: usize, port: u16) -> Answer {
        let node = self.processes[process.0].node;
        if !self.reaches(node, to) {
            return Answer::Nothing;
        }
        let Some(listener) = self.net.listeners.get_mut(&(to, port)) else {
            self.fate.counters.connects_failed += 1;
            return Answer::Refused;
        };
        if listener.backlog.len() >= BACKLOG_MAX {
            return Answer::Nothing;
        }
        self.net.next_connection += 1;
        let id = self.net.next_connection;
        listener.backlog.push_back((id, from));
        for waker in listener.waiting.drain(..) {
            waker.wake();
        }
        let ends = [End::new(node, process), End::new(to, listener.process)];
        let window = WINDOWS[self.fate.rng.index(WINDOWS.len())];
        self.net.connections.insert(id, Connection { ends, window });
        self.fate.counters.connections += 1;
        self.fate.note(Kind::Connect, id, to as u64);
        Answer::Accepted(id)
    }

    /// Takes as many bytes as the window has room for.
    pub(super) fn send(&mut self, connection: u64, end: usize, bytes: &[u8], waker: &Waker) -> Sendable {
        let Some(state) = self.net.connections.get_mut(&connection) else { return Sendable::Broken };
        match state.ends[end].life {
            Life::Open => {}
            Life::Broken => return Sendable::Broken,
            Life::Closed | Life::Silent => return Sendable::Closed,
        }
        let room = state.window.saturating_sub(state.ends[end].unacknowledged);
        if room == 0 {
            state.ends[end].sender = Some(waker.clone());
            return Sendable::NotYet;
        }
        let longest = match self.fate.rng.below(4) {
            0 => self.fate.rng.between(1, 512),
            1 => self.fate.rng.between(512, 8192),
            _ => 1 << 17,
        };
        let longest = usize::try_from(longest).expect("small");
        let count = bytes.len().min(room).min(longest);
        state.ends[end].unacknowledged += count;
        self.fate.note(Kind::Send, connection, count as u64);
        self.fate.note_bytes(&bytes[..count]);
        self.emit(connection, end, Chunk::Data(bytes[..count].to_vec()));
        Sendable::Sent(count)
    }

    fn emit(&mut self, connection: u64, end: usize, chunk: Chunk) {
        let state = self.net.connections.get_mut(&connection).expect("only living connections emit");
        let (from, to) = (state.ends[end].node, state.ends[1 - end].node);
        let latency = self.draw_latency(from, to);
        let moment = self.clock.now + latency;
        let state = self.net.connections.get_mut(&connection).expect("looked up just now");
        state.ends[end].underway.push_back((moment, chunk));
        self.schedule_arrival(connection, end, 0);
    }

    /// Schedules the arrival of the first chunk underway, if none is (invariant 3).
    fn schedule_arrival(&mut self, connection: u64, end: usize, extra: u64) {
        let Some(state) = self.net.connections.get_mut(&connection) else { return };
        let sender = &mut state.ends[end];
        let Some((moment, _)) = sender.underway.front() else { return };
        if !std::mem::replace(&mut sender.scheduled, true) {
            let delay = moment.saturating_sub(self.clock.now) + extra;
            self.clock.after(delay, Event::Net(Arrival::Chunk { connection, from: end }));
        }
    }

    pub(super) fn arrive(&mut self, arrival: Arrival) {
        let (Arrival::Chunk { connection, from }
        | Arrival::Ack { connection, from }
        | Arrival::Reset { connection, from }) = arrival;
        let Some(state) = self.net.connections.get(&connection) else { return };
        let (sender, receiver) = (state.ends[from].node, state.ends[1 - from].node);
        let open = self.reaches(sender, receiver);
        self.fate.counters.stalls += u64::from(!open);
        self.fate.note(Kind::Deliver, connection, from as u64 * 2 + u64::from(open));
        match arrival {
            Arrival::Chunk { .. } => self.chunk_arrives(connection, from, open),
            Arrival::Ack { .. } => self.ack_arrives(connection, from, open),
            Arrival::Reset { .. } => self.reset_arrives(connection, from, open),
        }
    }

    fn chunk_arrives(&mut self, connection: u64, from: usize, open: bool) {
        let mut by_rule = |per_million: u32| self.fate.rng.below(1_000_000) < u64::from(per_million);
        let resets = by_rule(self.net.behaviour.reset_per_million);
        let corrupts = by_rule(self.net.behaviour.corrupt_per_million);
        let state = self.net.connections.get_mut(&connection).expect("looked up by the caller");
        let [a, b] = &mut state.ends;
        let (sender, receiver) = if from == 0 { (a, b) } else { (b, a) };
        sender.scheduled = false;
        if !open {
            // Held back until the partition heals or the receiving node is up again.
            return;
        }
        if resets {
            self.break_now(connection);
            return;
        }
        let Some((_, chunk)) = sender.underway.pop_front() else { return };
        match (receiver.life, chunk) {
            (Life::Open, Chunk::Data(mut bytes)) => {
                if corrupts {
                    let byte = self.fate.rng.index(bytes.len());
                    bytes[byte] ^= 1 << self.fate.rng.index(8);
                    self.fate.counters.chunks_corrupted += 1;
                }
                receiver.arrived.push_back(bytes);
                receiver.wake_both();
            }
            (Life::Open, Chunk::End) => {
                receiver.ended = true;
                receiver.wake_both();
            }
            (Life::Closed | Life::Silent, Chunk::Data(_)) => self.send_reset(connection, 1 - from),
            (Life::Closed | Life::Silent | Life::Broken, _) => {}
        }
        self.schedule_arrival(connection, from, 0);
        self.forget_if_done(connection);
    }

    fn ack_arrives(&mut self, connection: u64, from: usize, open: bool) {
        let state = self.net.connections.get_mut(&connection).expect("looked up by the caller");
        state.ends[from].ack_scheduled = false;
        if open {
            let count = std::mem::take(&mut state.ends[from].to_acknowledge);
            let sender = &mut state.ends[1 - from];
            sender.unacknowledged = sender.unacknowledged.saturating_sub(count);
            if let Some(waker) = sender.sender.take() {
                waker.wake();
            }
        }
    }

    fn reset_arrives(&mut self, connection: u64, from: usize, open: bool) {
        let state = self.net.connections.get_mut(&connection).expect("looked up by the caller");
        if !open {
            state.ends[from].reset_held = true;
            return;
        }
        state.ends[from].underway.clear();
        let receiver = &mut state.ends[1 - from];
        if receiver.life == Life::Open {
            receiver.life = Life::Broken;
            // A program may or may not get what had arrived before the reset.
            if self.fate.rng.permille(500) {
                receiver.arrived.clear();
            }
            receiver.wake_both();
            self.fate.counters.connections_reset += 1;
        }
        self.forget_if_done(connection);
    }

    /// What has arrived for the program.
    pub(super) fn receive(&mut self, connection: u64, end: usize, waker: &Waker) -> Received {
        let Some(state) = self.net.connections.get_mut(&connection) else { return Received::Reset };
        let end = &mut state.ends[end];
        if let Some(bytes) = end.arrived.pop_front() {
            return Received::Bytes(bytes);
        }
        match end.life {
            Life::Broken => Received::Reset,
            Life::Closed | Life::Silent => Received::End,
            Life::Open if end.ended => Received::End,
            Life::Open => {
                end.receiver = Some(waker.clone());
                Received::NotYet
            }
        }
    }

    /// The program took bytes: their room in the window goes back to the sender.
    pub(super) fn consumed(&mut self, connection: u64, end: usize, count: usize) {
        let Some(state) = self.net.connections.get_mut(&connection) else { return };
        state.ends[end].to_acknowledge += count;
        if !std::mem::replace(&mut state.ends[end].ack_scheduled, true) {
            let (from, to) = (state.ends[end].node, state.ends[1 - end].node);
            let latency = self.draw_latency(from, to);
            self.clock.after(latency, Event::Net(Arrival::Ack { connection, from: end }));
        }
    }

    /// The program dropped a half: the end closes, in order if everything that arrived was read.
    pub(super) fn close(&mut self, connection: u64, end: usize, unread: bool) {
        let Some(state) = self.net.connections.get_mut(&connection) else { return };
        let closing = &mut state.ends[end];
        if closing.life == Life::Broken {
            closing.life = Life::Closed;
            self.forget_if_done(connection);
            return;
        }
        if closing.life != Life::Open {
            return;
        }
        closing.life = Life::Closed;
        closing.wake_both();
        let unread = unread || !closing.arrived.is_empty();
        closing.arrived.clear();
        self.fate.note(Kind::Close, connection, end as u64);
        if unread {
            self.send_reset(connection, end);
        } else {
            self.emit(connection, end, Chunk::End);
        }
    }

    /// Closes an end by a reset.
    fn abort(&mut self, connection: u64, end: usize) {
        let Some(state) = self.net.connections.get_mut(&connection) else { return };
        state.ends[end].life = Life::Closed;
        state.ends[end].wake_both();
        self.send_reset(connection, end);
    }

    fn send_reset(&mut self, connection: u64, end: usize) {
        let Some(state) = self.net.connections.get(&connection) else { return };
        let (from, to) = (state.ends[end].node, state.ends[1 - end].node);
        self.fate.note(Kind::Reset, connection, end as u64);
        let latency = self.draw_latency(from, to);
        self.clock.after(latency, Event::Net(Arrival::Reset { connection, from: end }));
    }

    /// Breaks a connection at both ends at once.
    fn break_now(&mut self, connection: u64) {
        let Some(state) = self.net.connections.get_mut(&connection) else { return };
        let mut was_open = false;
        for end in &mut state.ends {
            end.underway.clear();
            if end.life == Life::Open {
                end.life = Life::Broken;
                was_open = true;
            }
            end.wake_both();
        }
        self.fate.counters.connections_reset += u64::from(was_open);
        self.fate.note(Kind::Reset, connection, 2);
        self.forget_if_done(connection);
    }

    /// Removes a connection that no program holds and on which nothing is underway.
    fn forget_if_done(&mut self, connection: u64) {
        let Some(state) = self.net.connections.get(&connection) else { return };
        let done = |end: &End| matches!(end.life, Life::Closed | Life::Silent) && end.underway.is_empty();
        if state.ends.iter().all(done) {
            self.net.connections.remove(&connection);
        }
    }
}

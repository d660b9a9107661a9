//! A simulated world as its owner sees it: nodes, their lives and deaths, links, disks, and what happened.

use super::disk::Disk;
use super::executor::{Clock, Handle, Inbox, LATE_PER_MILLION, Ready};
use super::net::Network;
use super::node::{Node, NodeClock, NodeId, Process, ProcessId};
use super::random::Rng;
use super::trace::{Counters, Fate, Kind};
use crate::Task;
use crate::context::{self, Context};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Virtual time after which a root future that has not ended is taken to be stuck.
const TIME_LIMIT_DEFAULT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Everything that a world is, shared by all handles.
pub(super) struct Shared {
    pub(super) seed: u64,
    pub(super) inbox: Arc<Inbox>,
    pub(super) state: RefCell<State>,
}

/// The mutable part. Borrowed for the length of one call, never across a poll or a drop of a future.
pub(super) struct State {
    pub(super) clock: Clock,
    pub(super) fate: Fate,
    /// What programs draw; apart, so that they draw the same when the world decides differently.
    pub(super) program_rng: Rng,
    pub(super) ready: Vec<Ready>,
    pub(super) nodes: Vec<Node>,
    pub(super) processes: Vec<Process>,
    pub(super) disks: Vec<Disk>,
    pub(super) net: Network,
    pub(super) tasks_spawned: u64,
    pub(super) late_per_million: u64,
    pub(super) time_limit: u64,
}

impl State {
    pub(super) fn node_of(&self, process: ProcessId) -> &Node {
        &self.nodes[self.processes[process.0].node]
    }

    pub(super) fn is_alive(&self, process: ProcessId) -> bool {
        self.processes[process.0].alive
    }

    fn start_process(&mut self, node: usize) -> ProcessId {
        let process = ProcessId(self.processes.len());
        self.processes.push(Process { node, alive: true, tasks: BTreeMap::new() });
        self.nodes[node].process = Some(process);
        self.nodes[node].up = true;
        self.fate.note(Kind::Boot, node as u64, process.0 as u64);
        process
    }

    fn go_down(&mut self, node: usize) {
        self.nodes[node].up = false;
        self.nodes[node].paused = false;
        self.draw_boot(node);
    }

    /// Gives the node a new boot id and a new boot clock.
    fn draw_boot(&mut self, node: usize) {
        let mut bytes = [0; 16];
        self.fate.rng.fill(&mut bytes);
        self.nodes[node].boot_id = uuid::Builder::from_random_bytes(bytes).into_uuid();
        let reading = self.fate.rng.between(1_000_000_000, 100_000_000_000);
        let drift = i32::try_from(self.fate.rng.below(101)).expect("small") - 50;
        self.nodes[node].clock = NodeClock::new(self.clock.now, reading, drift);
    }
}

/// A simulated world: all of it follows from the seed and the program.
///
/// Clones are handles to the same world, for use inside its tasks. The world ends with the value that [`Self::new`]
/// returned: then every task is dropped.
pub struct World {
    shared: Rc<Shared>,
    is_owner: bool,
}

impl Clone for World {
    fn clone(&self) -> Self {
        Self { shared: Rc::clone(&self.shared), is_owner: false }
    }
}

/// The node on which root futures run; it cannot die.
const CLIENT: NodeId = NodeId(0);

impl World {
    /// A world of `seed` with one node, the client.
    pub fn new(seed: u64) -> Self {
        let mut fate = Fate::new(seed);
        let state = State {
            clock: Clock::default(),
            program_rng: Rng::new(fate.rng.next()),
            late_per_million: LATE_PER_MILLION[fate.rng.index(LATE_PER_MILLION.len())],
            fate,
            ready: Vec::new(),
            nodes: Vec::new(),
            processes: Vec::new(),
            disks: Vec::new(),
            net: Network::default(),
            tasks_spawned: 0,
            time_limit: u64::MAX,
        };
        let shared = Shared { seed, inbox: Arc::default(), state: RefCell::new(state) };
        let world = Self { shared: Rc::new(shared), is_owner: true };
        world.set_time_limit(TIME_LIMIT_DEFAULT);
        let client = world.add_node("client");
        assert_eq!(client, CLIENT);
        world.shared.state.borrow_mut().start_process(client.0);
        world
    }

    /// The world of the running task.
    ///
    /// # Panics
    /// Outside a simulated world.
    pub fn current() -> Self {
        context::with(|context| match context {
            Context::Sim(sim) => Self { shared: Rc::clone(&sim.world), is_owner: false },
            Context::Os(_) => panic!("this task runs on a real kernel, not in a simulated world"),
        })
    }

    /// The seed of everything.
    pub fn seed(&self) -> u64 {
        self.shared.seed
    }

    /// Adds a machine; its address is 10.0.0.N, N = 1, 2, ... in order (the client's is 10.0.0.254).
    ///
    /// # Panics
    /// At the 254th machine.
    pub fn add_node(&self, name: &str) -> NodeId {
        let state = &mut *self.shared.state.borrow_mut();
        let index = state.nodes.len();
        assert!(index < 254, "a world has at most 253 nodes");
        let host = if index == CLIENT.0 { 254 } else { u8::try_from(index).expect("below 254") };
        state.nodes.push(Node {
            name: name.into(),
            address: Ipv4Addr::new(10, 0, 0, host),
            process: None,
            up: true,
            boot_id: Uuid::nil(),
            clock: NodeClock::new(0, 0, 0),
            paused: false,
            parked: Vec::new(),
        });
        state.draw_boot(index);
        NodeId(index)
    }

    /// The node of root futures.
    pub fn client(&self) -> NodeId {
        CLIENT
    }

    /// The name given to [`Self::add_node`].
    pub fn name(&self, node: NodeId) -> String {
        self.shared.state.borrow().nodes[node.0].name.clone()
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Option<NodeId> {
        self.shared.state.borrow().nodes.iter().position(|node| node.name == name).map(NodeId)
    }

    /// The node's address.
    pub fn address(&self, node: NodeId) -> IpAddr {
        IpAddr::V4(self.shared.state.borrow().nodes[node.0].address)
    }

    /// The machine's boot id: the same across crashes of its process, another one after a power cut.
    pub fn boot_id(&self, node: NodeId) -> Uuid {
        self.shared.state.borrow().nodes[node.0].boot_id
    }

    /// Whether a process lives on the node.
    pub fn is_running(&self, node: NodeId) -> bool {
        let state = self.shared.state.borrow();
        state.nodes[node.0].process.is_some_and(|process| state.is_alive(process))
    }

    /// Runs `root` on the client node until it ends; everything else runs beside it.
    ///
    /// # Panics
    /// When nothing can go on (a deadlock), when the time limit passes, and when a task panics; the message names the seed.
    pub fn run<T>(&self, root: impl Future<Output = T>) -> T {
        let process = self.shared.state.borrow().nodes[CLIENT.0].process.expect("the client lives");
        let _name_the_seed = NameTheSeed(self.shared.seed);
        self.shared.run(process, root)
    }

    /// Starts `future` on a node, and first the node and its process if need be.
    ///
    /// The task ends with the process. Awaiting it after that panics; use `task.fallible()` where that may happen.
    /// Only what runs inside it acts in the node's name: calling a node's objects from elsewhere acts in the caller's.
    pub fn spawn_on<T: 'static>(&self, node: NodeId, future: impl Future<Output = T> + 'static) -> Task<T> {
        let process = {
            let state = &mut *self.shared.state.borrow_mut();
            let living = state.nodes[node.0].process.filter(|process| state.is_alive(*process));
            let boots = !state.nodes[node.0].up;
            let process = living.unwrap_or_else(|| state.start_process(node.0));
            if boots {
                state.net_booted(node.0);
            }
            process
        };
        Handle { world: Rc::clone(&self.shared), process }.spawn(future)
    }

    /// Kills the node's process, as `kill -9` does: its tasks are dropped, its sockets are closed by the kernel, its files
    /// are closed. Everything that completed stays on the disks; what was in flight resolves now, in any way.
    ///
    /// # Panics
    /// For the client node.
    pub fn crash(&self, node: NodeId) {
        self.kill(node, Kind::Crash);
    }

    /// Cuts the node's power: its process ends without a word to its peers, and each write that was not flushed is kept,
    /// lost or torn. The node stays down until the next [`Self::spawn_on`].
    ///
    /// # Panics
    /// For the client node.
    pub fn power_cut(&self, node: NodeId) {
        self.kill(node, Kind::PowerCut);
    }

    /// Shuts the node down in order: its process is killed, its disks are flushed. It stays down until the next
    /// [`Self::spawn_on`], and comes back with another boot id.
    ///
    /// # Panics
    /// For the client node.
    pub fn shut_down(&self, node: NodeId) {
        self.kill(node, Kind::Crash);
        let state = &mut *self.shared.state.borrow_mut();
        state.disks_flush(node.0);
        state.go_down(node.0);
    }

    fn kill(&self, node: NodeId, how: Kind) {
        assert_ne!(node, CLIENT, "the client node cannot die");
        let power_cut = matches!(how, Kind::PowerCut);
        let process = {
            let state = &mut *self.shared.state.borrow_mut();
            let process = state.nodes[node.0].process.take().filter(|process| state.is_alive(*process));
            state.fate.note(how, node.0 as u64, process.map_or(0, |process| process.0 as u64));
            if let Some(process) = process {
                state.fate.counters.crashes += u64::from(!power_cut);
                state.processes[process.0].alive = false;
                state.net_process_died(process, power_cut);
                state.disks_process_died(process);
            }
            if power_cut {
                state.fate.counters.power_cuts += 1;
                state.disks_power_cut(node.0);
                state.go_down(node.0);
            }
            process
        };
        if let Some(process) = process {
            self.shared.drop_tasks(process);
        }
    }

    /// Stops the node from running anything, as a hypervisor's pause does; clock, disks and network go on.
    pub fn pause(&self, node: NodeId) {
        let state = &mut *self.shared.state.borrow_mut();
        state.fate.note(Kind::Pause, node.0 as u64, 1);
        state.fate.counters.pauses += 1;
        state.nodes[node.0].paused = true;
    }

    /// Lets a paused node run again.
    pub fn resume(&self, node: NodeId) {
        let state = &mut *self.shared.state.borrow_mut();
        state.fate.note(Kind::Pause, node.0 as u64, 0);
        state.nodes[node.0].paused = false;
        let parked = std::mem::take(&mut state.nodes[node.0].parked);
        state.ready.extend(parked);
    }

    /// Lets the node's clock run fast (positive) or slow, in parts per million, from now on.
    ///
    /// # Panics
    /// Beyond half or double speed.
    pub fn set_clock_rate(&self, node: NodeId, rate_ppm: i32) {
        assert!((-500_000..=1_000_000).contains(&rate_ppm), "a clock rate of {rate_ppm} ppm");
        let state = &mut *self.shared.state.borrow_mut();
        let now = state.clock.now;
        state.nodes[node.0].clock.set_rate(now, rate_ppm);
    }

    /// Stops data from `from` to `to`, and back.
    pub fn partition(&self, from: NodeId, to: NodeId) {
        self.partition_one_way(from, to);
        self.partition_one_way(to, from);
    }

    /// Stops what travels from `from` to `to`; the other direction goes on.
    pub fn partition_one_way(&self, from: NodeId, to: NodeId) {
        self.shared.state.borrow_mut().net_partition(from.0, to.0);
    }

    /// Cuts the node off from all others.
    pub fn isolate(&self, node: NodeId) {
        let nodes = self.shared.state.borrow().nodes.len();
        for other in (0..nodes).filter(|other| *other != node.0) {
            self.partition(node, NodeId(other));
        }
    }

    /// Ends all partitions. Data that was held back goes on, or its connection is reset.
    pub fn heal(&self) {
        self.shared.state.borrow_mut().net_heal(|_, _| true);
    }

    /// Ends the partition between two nodes, in both directions.
    pub fn heal_between(&self, a: NodeId, b: NodeId) {
        let (a, b) = (a.0, b.0);
        self.shared.state.borrow_mut().net_heal(|x, y| (x, y) == (a, b) || (x, y) == (b, a));
    }

    /// Resets every connection between two nodes.
    pub fn reset_connections(&self, a: NodeId, b: NodeId) {
        self.shared.state.borrow_mut().net_reset_between(a.0, b.0);
    }

    /// How the network behaves from now on.
    pub fn set_network(&self, behaviour: super::net::NetworkBehaviour) {
        self.shared.state.borrow_mut().net.behaviour = behaviour;
    }

    pub(super) fn with_state<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.shared.state.borrow_mut())
    }

    /// The hash of every decision and event so far.
    pub fn trace_hash(&self) -> u64 {
        let state = self.shared.state.borrow();
        state.fate.hash() ^ state.clock.now
    }

    /// Keeps every event from now on, for finding where two runs of one seed part.
    pub fn record(&self) {
        self.shared.state.borrow_mut().fate.record = Some(Vec::new());
    }

    /// One line per event since [`Self::record`].
    pub fn recorded(&self) -> Vec<String> {
        let state = self.shared.state.borrow();
        let record = state.fate.record.iter().flatten();
        record.map(|(kind, a, b)| format!("{kind:?} {a} {b}")).collect()
    }

    /// How often each kind of event happened so far.
    pub fn counters(&self) -> Counters {
        self.shared.state.borrow().fate.counters
    }

    /// Virtual time since the world began.
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.shared.state.borrow().clock.now)
    }

    /// Sets the moment, counted from the world's beginning, at which [`Self::run`] panics because nothing came to an end.
    pub fn set_time_limit(&self, limit: Duration) {
        self.shared.state.borrow_mut().time_limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !self.is_owner {
            return;
        }
        let processes: Vec<ProcessId> = {
            let state = &mut *self.shared.state.borrow_mut();
            let all = 0..state.processes.len();
            all.map(ProcessId)
                .filter(|process| std::mem::take(&mut state.processes[process.0].alive))
                .collect()
        };
        for process in processes {
            self.shared.drop_tasks(process);
        }
        self.shared.inbox.close();
    }
}

/// Says which seed to replay when a panic passes by.
struct NameTheSeed(u64);

impl Drop for NameTheSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("simulated world: seed {}", self.0);
        }
    }
}

//! How processes, machines and links that fail act on connections.

use super::{Arrival, Connection, Life, RETRANSMIT_NANOS_MAX};
use crate::sim::executor::Event;
use crate::sim::node::ProcessId;
use crate::sim::trace::Kind;
use crate::sim::world::State;
use std::collections::BTreeSet;

impl State {
    pub(in crate::sim) fn net_process_died(&mut self, process: ProcessId, power_cut: bool) {
        let node = self.processes[process.0].node;
        let ports: Vec<u16> =
            self.net.listeners.range((node, 0)..=(node, u16::MAX)).map(|((_, port), _)| *port).collect();
        for port in ports {
            if power_cut {
                self.net.listeners.remove(&(node, port));
            } else {
                self.unlisten(process, port);
            }
        }
        let mut touched = Vec::new();
        for (id, state) in &self.net.connections {
            for end in 0..2 {
                if state.ends[end].process == process && state.ends[end].life != Life::Closed {
                    touched.push((*id, end));
                }
            }
        }
        for (id, end) in touched {
            let state = self.net.connections.get_mut(&id).expect("removed only below, by its second end");
            if power_cut {
                let dying = &mut state.ends[end];
                dying.life = Life::Silent;
                dying.underway.clear();
                dying.arrived.clear();
                self.forget_if_done(id);
            } else if state.ends[end].life == Life::Broken {
                state.ends[end].life = Life::Closed;
                self.forget_if_done(id);
            } else if self.fate.rng.permille(500) {
                self.close(id, end, false);
            } else {
                self.abort(id, end);
            }
        }
    }

    /// A node has power again: data that waits for its silent ends comes through and is answered by resets.
    pub(in crate::sim) fn net_booted(&mut self, node: usize) {
        self.retransmit(|_, to| to == node, 0);
    }

    pub(in crate::sim) fn net_partition(&mut self, from: usize, to: usize) {
        if self.net.cut.insert((from, to)) {
            self.fate.counters.partitions += 1;
            self.fate.note(Kind::Partition, from as u64, to as u64);
        }
    }

    pub(in crate::sim) fn net_heal(&mut self, healed: impl Fn(usize, usize) -> bool) {
        let links: BTreeSet<(usize, usize)> =
            self.net.cut.iter().copied().filter(|(from, to)| healed(*from, *to)).collect();
        self.net.cut.retain(|link| !links.contains(link));
        self.fate.note(Kind::Heal, links.len() as u64, 0);
        let permille = u64::from(self.net.behaviour.reset_at_heal_permille);
        self.retransmit(|from, to| links.contains(&(from, to)), permille);
    }

    /// Lets what was held back on the given links go on, each connection after its own delay.
    fn retransmit(&mut self, on: impl Fn(usize, usize) -> bool, reset_permille: u64) {
        let ids: Vec<u64> = self.net.connections.keys().copied().collect();
        for connection in ids {
            for from in 0..2 {
                let Some(state) = self.net.connections.get_mut(&connection) else { continue };
                let to = state.ends[1 - from].node;
                let end = &mut state.ends[from];
                let chunk_held = !end.scheduled && !end.underway.is_empty();
                let ack_held = !end.ack_scheduled && end.to_acknowledge > 0;
                let reset_held = std::mem::take(&mut end.reset_held);
                if !on(end.node, to) || !(chunk_held || ack_held || reset_held) {
                    end.reset_held = reset_held;
                    continue;
                }
                if self.fate.rng.permille(reset_permille) {
                    self.break_now(connection);
                    continue;
                }
                let delay = self.fate.rng.below(RETRANSMIT_NANOS_MAX);
                end.ack_scheduled |= ack_held;
                if ack_held {
                    self.clock.after(delay, Event::Net(Arrival::Ack { connection, from }));
                }
                if reset_held {
                    self.clock.after(delay, Event::Net(Arrival::Reset { connection, from }));
                }
                if chunk_held {
                    self.schedule_arrival(connection, from, delay);
                }
            }
        }
    }

    pub(in crate::sim) fn net_reset_between(&mut self, a: usize, b: usize) {
        let between = |state: &Connection| {
            let nodes = (state.ends[0].node, state.ends[1].node);
            nodes == (a, b) || nodes == (b, a)
        };
        let ids: Vec<u64> =
            self.net.connections.iter().filter(|(_, state)| between(state)).map(|(id, _)| *id).collect();
        for id in ids {
            self.break_now(id);
        }
    }
}

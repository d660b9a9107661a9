//! `rt::net` in a simulated world: the futures over the simulated network.

use super::{Answer, Received, Sendable};
use crate::net::{ReceiveHalf, ReceiveInner, SendHalf, SendInner, TcpStream};
use crate::sim::executor::Handle;
use crate::{Errno, Part};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::task::Poll;

/// Time until an attempt to connect that was not answered is repeated.
const KNOCK_AGAIN_NANOS: u64 = 500_000_000;

/// A listening socket of a node.
#[derive(Debug)]
pub(crate) struct SimListener {
    handle: Handle,
    address: SocketAddr,
}

impl SimListener {
    pub(crate) fn bind(sim: &Handle, address: SocketAddr) -> io::Result<Self> {
        let state = &mut *sim.world.state.borrow_mut();
        let node = state.processes[sim.process.0].node;
        if state.node_at(node, address.ip()) != Some(node) {
            return Err(Errno::ADDRNOTAVAIL.into());
        }
        let port = state.listen(sim.process, address.port()).ok_or(Errno::ADDRINUSE)?;
        Ok(Self { handle: sim.clone(), address: SocketAddr::new(address.ip(), port) })
    }

    pub(crate) fn local_address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) async fn accept(&self) -> Result<TcpStream, Errno> {
        let (sim, port) = (&self.handle, self.address.port());
        let accepted = poll_fn(|cx| {
            let accepted = sim.world.state.borrow_mut().accept(sim.process, port, cx.waker());
            accepted.map_or(Poll::Pending, Poll::Ready)
        });
        let (connection, peer) = accepted.await;
        Ok(stream(sim, connection, 1, peer))
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.handle.world.state.borrow_mut().unlisten(self.handle.process, self.address.port());
    }
}

pub(crate) async fn connect(sim: &Handle, address: SocketAddr) -> io::Result<TcpStream> {
    let (here, there, from, deadline) = {
        let state = &mut *sim.world.state.borrow_mut();
        let here = state.processes[sim.process.0].node;
        let there = state.node_at(here, address.ip()).ok_or(Errno::NETUNREACH)?;
        let ip =
            if address.ip().is_loopback() { address.ip() } else { IpAddr::V4(state.nodes[here].address) };
        let timeout = u64::try_from(state.net.behaviour.connect_timeout.as_nanos()).unwrap_or(u64::MAX);
        let from = SocketAddr::new(ip, state.free_port(here));
        (here, there, from, state.clock.now.saturating_add(timeout))
    };
    let latency = |from, to| sim.world.state.borrow_mut().draw_latency(from, to);
    loop {
        sim.pass(latency(here, there)).await;
        let answer = sim.world.state.borrow_mut().knock(sim.process, from, there, address.port());
        match answer {
            Answer::Accepted(connection) => {
                // From here on a dropped future closes the connection.
                let stream = stream(sim, connection, 0, address);
                sim.pass(latency(there, here)).await;
                until_open(sim, (there, here), deadline).await?;
                return Ok(stream);
            }
            Answer::Refused => {
                sim.pass(latency(there, here)).await;
                until_open(sim, (there, here), deadline).await?;
                return Err(Errno::CONNREFUSED.into());
            }
            Answer::Nothing => again(sim, deadline).await?,
        }
    }
}

/// Waits until packets come through from one node to the other.
async fn until_open(sim: &Handle, (from, to): (usize, usize), deadline: u64) -> Result<(), Errno> {
    while !sim.world.state.borrow().path_is_open(from, to) {
        again(sim, deadline).await?;
    }
    Ok(())
}

async fn again(sim: &Handle, deadline: u64) -> Result<(), Errno> {
    if sim.world.state.borrow().clock.now >= deadline {
        sim.world.state.borrow_mut().fate.counters.connects_failed += 1;
        return Err(Errno::TIMEDOUT);
    }
    sim.pass(KNOCK_AGAIN_NANOS).await;
    Ok(())
}

fn stream(sim: &Handle, connection: u64, end: usize, peer: SocketAddr) -> TcpStream {
    let half = || Half { handle: sim.clone(), connection, end };
    TcpStream {
        receive: ReceiveHalf(ReceiveInner::Sim(SimReceive { half: half(), bytes: Vec::new(), start: 0 })),
        send: SendHalf(SendInner::Sim(SimSend { half: half() })),
        peer,
    }
}

/// A program's hold on one end of a connection.
#[derive(Debug)]
struct Half {
    handle: Handle,
    connection: u64,
    end: usize,
}

/// The receiving half.
#[derive(Debug)]
pub(crate) struct SimReceive {
    half: Half,
    /// The chunk being read.
    bytes: Vec<u8>,
    start: usize,
}

impl SimReceive {
    pub(crate) async fn fill(&mut self) -> Result<&[u8], Errno> {
        if self.start == self.bytes.len() {
            let half = &self.half;
            let received = poll_fn(|cx| {
                let world = &half.handle.world;
                let received = world.state.borrow_mut().receive(half.connection, half.end, cx.waker());
                if matches!(received, Received::NotYet) { Poll::Pending } else { Poll::Ready(received) }
            });
            self.bytes = match received.await {
                Received::Bytes(bytes) => bytes,
                Received::End | Received::NotYet => Vec::new(),
                Received::Reset => return Err(Errno::CONNRESET),
            };
            self.start = 0;
        }
        Ok(&self.bytes[self.start..])
    }

    /// # Panics
    /// Beyond what [`Self::fill`] returned.
    pub(crate) fn consume(&mut self, count: usize) {
        assert!(count <= self.bytes.len() - self.start, "consumed more than has arrived");
        self.start += count;
        let half = &self.half;
        half.handle.world.state.borrow_mut().consumed(half.connection, half.end, count);
    }
}

impl Drop for SimReceive {
    fn drop(&mut self) {
        let unread = self.start < self.bytes.len();
        let half = &self.half;
        half.handle.world.state.borrow_mut().close(half.connection, half.end, unread);
    }
}

/// The sending half.
#[derive(Debug)]
pub(crate) struct SimSend {
    half: Half,
}

impl SimSend {
    pub(crate) async fn send(&mut self, parts: Vec<Part>) -> Result<(), Errno> {
        for part in parts {
            let mut rest = &part[..];
            while !rest.is_empty() {
                let sent = self.send_some(rest).await?;
                rest = &rest[sent..];
            }
        }
        Ok(())
    }

    async fn send_some(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let half = &self.half;
        poll_fn(|cx| {
            let state = &mut *half.handle.world.state.borrow_mut();
            if !state.is_alive(half.handle.process) {
                return Poll::Pending;
            }
            match state.send(half.connection, half.end, bytes, cx.waker()) {
                Sendable::Sent(count) => Poll::Ready(Ok(count)),
                Sendable::Broken => Poll::Ready(Err(Errno::CONNRESET)),
                Sendable::Closed => Poll::Ready(Err(Errno::PIPE)),
                Sendable::NotYet => Poll::Pending,
            }
        })
        .await
    }
}

impl Drop for SimSend {
    fn drop(&mut self) {
        let half = &self.half;
        half.handle.world.state.borrow_mut().close(half.connection, half.end, false);
    }
}

//! TCP: a stream is split at once into the half that a reading task owns and the half that a writing task owns.

use crate::context::{Context, with};
use crate::{DmaBuf, Errno, Part};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

/// A listening socket.
#[derive(Debug)]
pub struct TcpListener(ListenerInner);

#[derive(Debug)]
enum ListenerInner {
    Os(crate::os::OsListener),
    Sim(crate::sim::SimListener),
}

impl TcpListener {
    /// Listens on `address`; port 0 takes a free one.
    #[expect(clippy::unused_async, reason = "opening is asynchronous everywhere")]
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        match with(Clone::clone) {
            Context::Os(os) => crate::os::OsListener::bind(&os, address).map(|l| Self(ListenerInner::Os(l))),
            Context::Sim(sim) => {
                crate::sim::SimListener::bind(&sim, address).map(|l| Self(ListenerInner::Sim(l)))
            }
        }
    }

    /// The address it listens on.
    pub fn local_address(&self) -> SocketAddr {
        match &self.0 {
            ListenerInner::Os(listener) => listener.local_address(),
            ListenerInner::Sim(listener) => listener.local_address(),
        }
    }

    /// Waits for the next connection.
    pub async fn accept(&self) -> Result<TcpStream, Errno> {
        match &self.0 {
            ListenerInner::Os(listener) => listener.accept().await,
            ListenerInner::Sim(listener) => listener.accept().await,
        }
    }
}

/// A connected stream, both halves.
#[derive(Debug)]
pub struct TcpStream {
    /// The receiving half.
    pub receive: ReceiveHalf,
    /// The sending half. Dropping either half shuts the connection down for both.
    pub send: SendHalf,
    /// The address of the other end.
    pub peer: SocketAddr,
}

impl TcpStream {
    /// Connects to `address` (`TCP_NODELAY` is set).
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        match with(Clone::clone) {
            Context::Os(os) => crate::os::connect(&os, address).await,
            Context::Sim(sim) => crate::sim::connect(&sim, address).await,
        }
    }
}

/// A connection between two reactors: off the one, not yet on the other, which may be another thread's.
///
/// Dropped, it ends the connection.
#[derive(Debug)]
pub struct Detached {
    fd: OwnedFd,
    /// What had arrived and was not consumed, in front of what the socket still has.
    arrived: Vec<u8>,
}

impl TcpStream {
    /// Takes the connection off this reactor, to be handed to another one (through a mailbox, say). No byte of the stream
    /// is lost: what arrived and was not consumed goes along. A dropped future ends the connection.
    ///
    /// # Errors
    /// That of the connection, if it is broken; `BUSY` after a dropped future of `send` or `read_exact_dma`, whose
    /// operation may not have ended.
    ///
    /// # Panics
    /// In the simulator, which has one thread and no descriptors.
    pub async fn detach(self) -> Result<Detached, Errno> {
        match (self.receive.0, self.send.0) {
            (ReceiveInner::Os(receive), SendInner::Os(send)) => {
                let (fd, arrived) = crate::os::detach(receive, send).await?;
                Ok(Detached { fd, arrived })
            }
            _ => panic!("the simulator has no descriptors"),
        }
    }

    /// Makes a connection that another reactor has given away one of this reactor's.
    ///
    /// # Errors
    /// When the other end has reset the connection meanwhile.
    ///
    /// # Panics
    /// In the simulator, which has one thread and no descriptors.
    pub fn attach(detached: Detached) -> Result<Self, Errno> {
        with(|context| match context {
            Context::Os(os) => crate::os::attach(os, detached.fd, detached.arrived),
            Context::Sim(_) => panic!("the simulator has no descriptors"),
        })
    }
}

/// The receiving half of a stream: a buffered reader.
#[derive(Debug)]
pub struct ReceiveHalf(pub(crate) ReceiveInner);

#[derive(Debug)]
pub(crate) enum ReceiveInner {
    Os(crate::os::OsReceive),
    Sim(crate::sim::SimReceive),
}

impl ReceiveHalf {
    /// The bytes that have arrived and not been consumed; waits until there is at least one.
    ///
    /// # Shape
    /// Empty only when the other end closed in order. Bytes stay until [`Self::consume`].
    pub async fn fill(&mut self) -> Result<&[u8], Errno> {
        match &mut self.0 {
            ReceiveInner::Os(receive) => receive.fill().await,
            ReceiveInner::Sim(receive) => receive.fill().await,
        }
    }

    /// Drops the first `count` bytes of what [`Self::fill`] returned.
    pub fn consume(&mut self, count: usize) {
        match &mut self.0 {
            ReceiveInner::Os(receive) => receive.consume(count),
            ReceiveInner::Sim(receive) => receive.consume(count),
        }
    }

    /// Receives exactly `bytes.len()` bytes (headers).
    ///
    /// # Errors
    /// `CONNRESET` when the stream ends before that.
    pub async fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), Errno> {
        let mut done = 0;
        while done < bytes.len() {
            let arrived = self.fill().await?;
            if arrived.is_empty() {
                return Err(Errno::CONNRESET);
            }
            let count = arrived.len().min(bytes.len() - done);
            bytes[done..done + count].copy_from_slice(&arrived[..count]);
            self.consume(count);
            done += count;
        }
        Ok(())
    }

    /// Receives exactly `buf.len()` bytes of payload, straight into `buf` where that saves a copy.
    ///
    /// # Errors
    /// `CONNRESET` when the stream ends before that.
    pub async fn read_exact_dma(&mut self, buf: DmaBuf) -> Result<DmaBuf, Errno> {
        match &mut self.0 {
            ReceiveInner::Os(receive) => receive.read_exact_dma(buf).await,
            ReceiveInner::Sim(_) => {
                let mut buf = buf;
                self.read_exact(&mut buf).await?;
                Ok(buf)
            }
        }
    }
}

/// The sending half of a stream.
#[derive(Debug)]
pub struct SendHalf(pub(crate) SendInner);

#[derive(Debug)]
pub(crate) enum SendInner {
    Os(crate::os::OsSend),
    Sim(crate::sim::SimSend),
}

impl SendHalf {
    /// Sends all parts in order, as few system calls as fit (`sendmsg`). Callers batch: one call for all that is queued.
    ///
    /// # Errors
    /// After an error or a dropped future the stream's position is unknown; close it.
    pub async fn send(&mut self, parts: Vec<Part>) -> Result<(), Errno> {
        match &mut self.0 {
            SendInner::Os(send) => send.send(parts).await,
            SendInner::Sim(send) => send.send(parts).await,
        }
    }
}

//! TCP sockets.

use super::Handle;
use super::call::{Gather, Kind, take_descriptor};
use super::many::{Arrival, Multishot};
use super::ops::Operation;
use super::provided::Piece;
use super::traffic::Traffic;
use crate::net::{ReceiveHalf, ReceiveInner, SendHalf, SendInner, TcpStream};
use crate::sync::Mutex;
use crate::{DmaBuf, Errno, Part};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::{AddressFamily, Shutdown, SocketAddrAny, SocketFlags, SocketType, sockopt};
use std::fmt;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;
/// What one receive takes at most.
const RECEIVE_BYTES: usize = 64 << 10;
/// From this size on a payload is received straight into its buffer.
const DIRECT_BYTES: usize = 16 << 10;

fn socket(os: &Handle, address: SocketAddr) -> Result<OwnedFd, Errno> {
    let nonblocking = if os.wants_nonblocking() { SocketFlags::NONBLOCK } else { SocketFlags::empty() };
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | nonblocking, None)
}

pub(crate) struct OsListener {
    os: Handle,
    fd: Rc<OwnedFd>,
    address: SocketAddr,
    /// Its turn goes from one call of `accept` to the next.
    accepting: Mutex<Accepting>,
}

/// The operation by which connections come. It outlives the future that waits for it, because it may have a connection
/// already, and because the kernel wakes one waiter per connection: a waiter being cancelled swallows the wake of the
/// next one.
enum Accepting {
    Nothing,
    One(Operation),
    Many(Multishot),
}

impl OsListener {
    pub(crate) fn bind(os: &Handle, address: SocketAddr) -> io::Result<Self> {
        let fd = socket(os, address)?;
        sockopt::set_socket_reuseaddr(&fd, true)?;
        rustix::net::bind(&fd, &address)?;
        rustix::net::listen(&fd, BACKLOG)?;
        let address = SocketAddr::try_from(rustix::net::getsockname(&fd)?)?;
        Ok(Self { os: os.clone(), fd: Rc::new(fd), address, accepting: Mutex::new(Accepting::Nothing) })
    }

    pub(crate) fn local_address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) async fn accept(&self) -> Result<TcpStream, Errno> {
        let mut accepting = self.accepting.lock().await;
        loop {
            match self.next_connection(&mut accepting).await {
                Ok(Some(fd)) => {
                    // A peer that has reset the connection meanwhile is no failure of the listener.
                    if let Ok(stream) = stream(&self.os, fd) {
                        return Ok(stream);
                    }
                }
                Ok(None) | Err(Errno::INTR | Errno::AGAIN | Errno::CONNABORTED) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The next connection; none where an operation ended without one.
    async fn next_connection(&self, accepting: &mut Accepting) -> Result<Option<OwnedFd>, Errno> {
        match accepting {
            Accepting::Nothing => {
                *accepting = if self.os.has_multishot() {
                    Accepting::Many(self.os.start_many(&self.fd, Kind::AcceptMany))
                } else {
                    Accepting::One(self.os.start(&self.fd, Kind::Accept))
                };
                Ok(None)
            }
            Accepting::One(operation) => {
                let (result, _) = operation.await;
                *accepting = Accepting::Nothing;
                let descriptor = i32::try_from(result?).expect("a descriptor is an int");
                Ok(Some(take_descriptor(descriptor)))
            }
            Accepting::Many(multishot) => match multishot.next().await {
                Some(Ok(Arrival::Connection(fd))) => Ok(Some(fd)),
                Some(Ok(other)) => unreachable!("a listener brings connections, not {other:?}"),
                Some(Err(error)) => Err(error),
                None => {
                    *accepting = Accepting::Nothing;
                    Ok(None)
                }
            },
        }
    }
}

impl Drop for OsListener {
    fn drop(&mut self) {
        // The operation under way keeps the descriptor for a moment; connections are refused from now on.
        rustix::net::shutdown(&self.fd, Shutdown::Both).ok();
    }
}

impl fmt::Debug for OsListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OsListener({})", self.address)
    }
}

pub(crate) async fn connect(os: &Handle, address: SocketAddr) -> io::Result<TcpStream> {
    let fd = Rc::new(socket(os, address)?);
    let kind = Kind::Connect(Box::new(SocketAddrAny::from(address)));
    let (result, call) = os.start(&fd, kind).await;
    result?;
    drop(call);
    let fd = Rc::into_inner(fd).expect("the operation has ended and given its share back");
    Ok(stream(os, fd)?)
}

fn stream(os: &Handle, fd: OwnedFd) -> Result<TcpStream, Errno> {
    sockopt::set_tcp_nodelay(&fd, true)?;
    let peer = rustix::net::getpeername(&fd)?.ok_or(Errno::NOTCONN)?;
    let peer = SocketAddr::try_from(peer).map_err(|_| Errno::AFNOSUPPORT)?;
    let socket = Rc::new(fd);
    let receive = OsReceive {
        os: os.clone(),
        socket: Half::new(&socket),
        arrived: Arrived::Nothing,
        start: 0,
        own: None,
        receiving: Receiving::Nothing,
        one_by_one: false,
        traffic: Traffic::default(),
    };
    let send = OsSend { os: os.clone(), socket: Half::new(&socket), gather: None };
    Ok(TcpStream {
        receive: ReceiveHalf(ReceiveInner::Os(receive)),
        send: SendHalf(SendInner::Os(send)),
        peer,
    })
}

/// Takes a connection off its reactor: its descriptor, and what arrived and was not consumed.
pub(crate) async fn detach(receive: OsReceive, send: OsSend) -> Result<(OwnedFd, Vec<u8>), Errno> {
    let (share, arrived) = receive.detach().await?;
    drop(share);
    // A send whose future was dropped may still be under way.
    let fd = Rc::into_inner(send.socket.release()).ok_or(Errno::BUSY)?;
    Ok((fd, arrived))
}

/// Makes a connection that was detached one of this reactor's.
pub(crate) fn attach(os: &Handle, fd: OwnedFd, arrived: Vec<u8>) -> Result<TcpStream, Errno> {
    let mut flags = fcntl_getfl(&fd)?;
    flags.set(OFlags::NONBLOCK, os.wants_nonblocking());
    fcntl_setfl(&fd, flags)?;
    let mut stream = stream(os, fd)?;
    if let ReceiveInner::Os(receive) = &mut stream.receive.0
        && !arrived.is_empty()
    {
        receive.arrived = Arrived::Piece(Piece::copy_of(arrived));
    }
    Ok(stream)
}

/// One half's share of a socket; dropping it ends the connection for both.
#[derive(Debug)]
struct Half(Option<Rc<OwnedFd>>);

impl Half {
    fn new(socket: &Rc<OwnedFd>) -> Self {
        Self(Some(Rc::clone(socket)))
    }

    fn fd(&self) -> &Rc<OwnedFd> {
        self.0.as_ref().expect("only a half that goes has released its share")
    }

    /// Gives the share away; the connection goes on.
    fn release(mut self) -> Rc<OwnedFd> {
        self.0.take().expect("released once")
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        if let Some(socket) = &self.0 {
            // Fails only where the connection has ended already.
            rustix::net::shutdown(&**socket, Shutdown::Both).ok();
        }
    }
}

pub(crate) struct OsReceive {
    os: Handle,
    socket: Half,
    /// What has arrived; of it `start` bytes were consumed.
    arrived: Arrived,
    start: usize,
    /// For receiving one by one; made when first needed, and elsewhere while in use.
    own: Option<DmaBuf>,
    /// Kept here and not in the future of `fill`, so that dropping that future loses no bytes of the stream.
    receiving: Receiving,
    /// The shared buffers had run out: the next receive does not depend on them.
    one_by_one: bool,
    traffic: Traffic,
}

/// Bytes in the order of the stream.
enum Arrived {
    Nothing,
    Piece(Piece),
    /// In the connection's own buffer, so many bytes.
    Own(DmaBuf, usize),
}

/// How bytes come; at most one way at a time, so that they come in order.
enum Receiving {
    Nothing,
    /// Into the connection's own buffer.
    One(Operation),
    /// Into shared buffers.
    Many(Multishot),
}

/// How a step of receiving ended.
#[derive(PartialEq, Eq)]
enum Step {
    Bytes,
    /// The other end has closed its stream.
    End,
    /// What was under way is over; nothing came of it.
    Over,
}

impl fmt::Debug for OsReceive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OsReceive({} bytes buffered)", self.buffered().len())
    }
}

impl OsReceive {
    pub(crate) async fn fill(&mut self) -> Result<&[u8], Errno> {
        while self.buffered().is_empty() {
            if self.is_idle() {
                self.start();
            }
            match self.step().await? {
                Step::Bytes => self.traffic.small(),
                Step::End => return Ok(&[]),
                Step::Over => {}
            }
        }
        Ok(self.buffered())
    }

    fn buffered(&self) -> &[u8] {
        match &self.arrived {
            Arrived::Nothing => &[],
            Arrived::Piece(piece) => &piece[self.start..],
            Arrived::Own(buf, end) => &buf[self.start..*end],
        }
    }

    pub(crate) fn consume(&mut self, count: usize) {
        let left = self.buffered().len();
        assert!(count <= left, "consumed {count} bytes of {left}");
        self.start += count;
        if count == left {
            // At once: others may need the shared buffer.
            self.start = 0;
            if let Arrived::Own(buf, _) = mem::replace(&mut self.arrived, Arrived::Nothing) {
                self.own = Some(buf);
            }
        }
    }

    fn is_idle(&self) -> bool {
        matches!(self.receiving, Receiving::Nothing)
    }

    /// Starts to receive whatever comes.
    fn start(&mut self) {
        let many = !self.one_by_one && !self.traffic.is_bulk() && self.os.has_receive_buffers();
        self.receiving = if many {
            Receiving::Many(self.os.start_many(self.socket.fd(), Kind::ReceiveMany))
        } else {
            let buf = self.own.take().unwrap_or_else(|| DmaBuf::new(RECEIVE_BYTES));
            let kind = Kind::Receive { buf, done: 0, whole: false };
            Receiving::One(self.os.start(self.socket.fd(), kind))
        };
    }

    /// Waits for what is under way; only when all that arrived before was consumed.
    async fn step(&mut self) -> Result<Step, Errno> {
        let result = match &mut self.receiving {
            Receiving::Nothing => return Ok(Step::Over),
            Receiving::One(operation) => {
                let (result, call) = operation.await;
                self.receiving = Receiving::Nothing;
                self.one_by_one = false;
                let Kind::Receive { buf, .. } = call.kind else { unreachable!("a call keeps its kind") };
                match result {
                    Ok(count @ 1..) => {
                        self.arrived = Arrived::Own(buf, count);
                        return Ok(Step::Bytes);
                    }
                    Ok(0) => {
                        self.own = Some(buf);
                        return Ok(Step::End);
                    }
                    Err(error) => {
                        self.own = Some(buf);
                        error
                    }
                }
            }
            Receiving::Many(multishot) => match multishot.next().await {
                Some(Ok(Arrival::Bytes(piece))) => {
                    self.arrived = Arrived::Piece(piece);
                    return Ok(Step::Bytes);
                }
                Some(Ok(Arrival::End)) => return Ok(Step::End),
                Some(Ok(other)) => unreachable!("a stream brings bytes, not {other:?}"),
                Some(Err(error)) => error,
                None => {
                    self.receiving = Receiving::Nothing;
                    return Ok(Step::Over);
                }
            },
        };
        match result {
            Errno::NOBUFS if matches!(self.receiving, Receiving::Many(_)) => {
                self.one_by_one = true;
                Ok(Step::Over)
            }
            Errno::INTR | Errno::AGAIN => Ok(Step::Over),
            error => Err(error),
        }
    }

    pub(crate) async fn read_exact_dma(&mut self, mut buf: DmaBuf) -> Result<DmaBuf, Errno> {
        if buf.len() >= DIRECT_BYTES {
            self.traffic.large();
            if self.traffic.is_bulk()
                && let Receiving::Many(multishot) = &self.receiving
            {
                multishot.cancel();
            }
        }
        let mut done = 0;
        loop {
            let count = self.buffered().len().min(buf.len() - done);
            buf[done..done + count].copy_from_slice(&self.buffered()[..count]);
            self.consume(count);
            done += count;
            if done == buf.len() {
                return Ok(buf);
            }
            if self.is_idle() {
                if buf.len() - done >= DIRECT_BYTES {
                    return self.receive_direct(buf, done).await;
                }
                self.start();
            }
            if self.step().await? == Step::End {
                return Err(Errno::CONNRESET);
            }
        }
    }

    async fn receive_direct(&mut self, mut buf: DmaBuf, mut done: usize) -> Result<DmaBuf, Errno> {
        while done < buf.len() {
            let kind = Kind::Receive { buf, done, whole: true };
            let (result, call) = self.os.start(self.socket.fd(), kind).await;
            let Kind::Receive { buf: back, .. } = call.kind else { unreachable!("a call keeps its kind") };
            buf = back;
            match result {
                Ok(0) => return Err(Errno::CONNRESET),
                Ok(count) => done += count,
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(buf)
    }

    /// Ends what is under way and gives up the socket, with all that arrived before.
    async fn detach(mut self) -> Result<(Rc<OwnedFd>, Vec<u8>), Errno> {
        match &self.receiving {
            Receiving::Nothing => {}
            Receiving::One(operation) => operation.cancel(),
            Receiving::Many(multishot) => multishot.cancel(),
        }
        let mut bytes = Vec::new();
        loop {
            let count = self.buffered().len();
            bytes.extend_from_slice(self.buffered());
            self.consume(count);
            if self.is_idle() {
                return Ok((self.socket.release(), bytes));
            }
            match self.step().await {
                // An end is found again by whoever receives next.
                Ok(Step::Bytes | Step::Over | Step::End) | Err(Errno::CANCELED) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

pub(crate) struct OsSend {
    os: Handle,
    socket: Half,
    /// Memory of the last call, for the next one.
    gather: Option<Box<Gather>>,
}

impl fmt::Debug for OsSend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OsSend")
    }
}

impl OsSend {
    pub(crate) async fn send(&mut self, parts: Vec<Part>) -> Result<(), Errno> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let mut gather = self.gather.take().unwrap_or_else(|| Box::new(Gather::new()));
        gather.parts = parts;
        let mut done = 0;
        while done < total {
            gather.point(done);
            let (result, call) = self.os.start(self.socket.fd(), Kind::Send(gather)).await;
            let Kind::Send(back) = call.kind else { unreachable!("a call keeps its kind") };
            gather = back;
            match result {
                Ok(count) => done += count,
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error),
            }
        }
        gather.parts = Vec::new();
        self.gather = Some(gather);
        Ok(())
    }
}

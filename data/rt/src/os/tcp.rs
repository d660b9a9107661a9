//! TCP sockets.

use super::Handle;
use super::call::{Gather, Kind, take_descriptor};
use super::ops::Operation;
use crate::net::{ReceiveHalf, ReceiveInner, SendHalf, SendInner, TcpStream};
use crate::{DmaBuf, Errno, Part};
use rustix::net::{AddressFamily, Shutdown, SocketAddrAny, SocketFlags, SocketType, sockopt};
use std::cell::RefCell;
use std::fmt;
use std::io;
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
    /// An accept whose future was dropped. It goes on, because it may have a connection already, and because the
    /// kernel wakes one waiter per connection: a waiter being cancelled swallows the wake of the next one.
    accepting: RefCell<Option<Operation>>,
}

impl OsListener {
    pub(crate) fn bind(os: &Handle, address: SocketAddr) -> io::Result<Self> {
        let fd = socket(os, address)?;
        sockopt::set_socket_reuseaddr(&fd, true)?;
        rustix::net::bind(&fd, &address)?;
        rustix::net::listen(&fd, BACKLOG)?;
        let address = SocketAddr::try_from(rustix::net::getsockname(&fd)?)?;
        Ok(Self { os: os.clone(), fd: Rc::new(fd), address, accepting: RefCell::default() })
    }

    pub(crate) fn local_address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) async fn accept(&self) -> Result<TcpStream, Errno> {
        loop {
            let waiting = self.accepting.take();
            let mut turn = AcceptTurn {
                listener: self,
                operation: Some(waiting.unwrap_or_else(|| self.os.start(&self.fd, Kind::Accept))),
            };
            let (result, _) = turn.operation.as_mut().expect("just put there").await;
            turn.operation = None;
            match result {
                Ok(result) => {
                    let fd = take_descriptor(i32::try_from(result).expect("a descriptor is an int"));
                    // A peer that has reset the connection meanwhile is no failure of the listener.
                    if let Ok(stream) = stream(&self.os, fd) {
                        return Ok(stream);
                    }
                }
                Err(Errno::INTR | Errno::AGAIN | Errno::CONNABORTED) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl fmt::Debug for OsListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OsListener({})", self.address)
    }
}

/// One wait for a connection; dropped before its end it leaves the operation to the next.
struct AcceptTurn<'a> {
    listener: &'a OsListener,
    operation: Option<Operation>,
}

impl Drop for AcceptTurn<'_> {
    fn drop(&mut self) {
        if let Some(operation) = self.operation.take() {
            let older = self.listener.accepting.replace(Some(operation));
            drop(older);
        }
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
        socket: Half(Rc::clone(&socket)),
        buffer: Some(DmaBuf::new(RECEIVE_BYTES)),
        start: 0,
        end: 0,
        receiving: None,
    };
    let send = OsSend { os: os.clone(), socket: Half(socket), gather: None };
    Ok(TcpStream {
        receive: ReceiveHalf(ReceiveInner::Os(receive)),
        send: SendHalf(SendInner::Os(send)),
        peer,
    })
}

/// One half's share of a socket; dropping it ends the connection for both.
#[derive(Debug)]
struct Half(Rc<OwnedFd>);

impl Drop for Half {
    fn drop(&mut self) {
        // Fails only where the connection has ended already.
        rustix::net::shutdown(&*self.0, Shutdown::Both).ok();
    }
}

pub(crate) struct OsReceive {
    os: Handle,
    socket: Half,
    /// None while `receiving` owns it.
    buffer: Option<DmaBuf>,
    /// What of the buffer has arrived and was not consumed.
    start: usize,
    end: usize,
    /// Kept here and not in the future of `fill`, so that dropping that future loses no bytes of the stream.
    receiving: Option<Operation>,
}

impl fmt::Debug for OsReceive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OsReceive({} bytes buffered)", self.end - self.start)
    }
}

impl OsReceive {
    pub(crate) async fn fill(&mut self) -> Result<&[u8], Errno> {
        while self.start == self.end {
            if let Some(buf) = self.buffer.take() {
                let kind = Kind::Receive { buf, done: 0, whole: false };
                self.receiving = Some(self.os.start(&self.socket.0, kind));
            }
            let receiving = self.receiving.as_mut().expect("who has no buffer is receiving into it");
            let (result, call) = receiving.await;
            self.receiving = None;
            let Kind::Receive { buf, .. } = call.kind else { unreachable!("a call keeps its kind") };
            self.buffer = Some(buf);
            match result {
                Ok(0) => return Ok(&[]),
                Ok(count) => (self.start, self.end) = (0, count),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.buffered())
    }

    fn buffered(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer[self.start..self.end])
    }

    pub(crate) fn consume(&mut self, count: usize) {
        assert!(count <= self.end - self.start, "consumed {count} bytes more than arrived");
        self.start += count;
    }

    pub(crate) async fn read_exact_dma(&mut self, mut buf: DmaBuf) -> Result<DmaBuf, Errno> {
        let mut done = 0;
        while done < buf.len() {
            let direct = self.start == self.end && self.receiving.is_none();
            if direct && buf.len() - done >= DIRECT_BYTES {
                return self.receive_direct(buf, done).await;
            }
            let arrived = self.fill().await?;
            if arrived.is_empty() {
                return Err(Errno::CONNRESET);
            }
            let count = arrived.len().min(buf.len() - done);
            buf[done..done + count].copy_from_slice(&arrived[..count]);
            self.consume(count);
            done += count;
        }
        Ok(buf)
    }

    async fn receive_direct(&mut self, mut buf: DmaBuf, mut done: usize) -> Result<DmaBuf, Errno> {
        while done < buf.len() {
            let kind = Kind::Receive { buf, done, whole: true };
            let (result, call) = self.os.start(&self.socket.0, kind).await;
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
            let (result, call) = self.os.start(&self.socket.0, Kind::Send(gather)).await;
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

//! A host that is only bytes: sends what it is told, right or wrong, and reads the answers.

use crate::support::{HOSTID, HOSTNQN, SUBNQN};
use nvmf::wire::command::{Cqe, FABRICS_OPCODE, Sgl, Sqe};
use nvmf::wire::fabrics::{self, CNTLID_DYNAMIC, Connect, ConnectData, cc, property};
use nvmf::wire::frame::{Framing, Parsed, Pdu, Phase, Role};
use nvmf::wire::pdu::{Digests, IcReq, Sealer, kind};
use nvmf::wire::status::StatusCode;
use rt::Part;
use rt::net::TcpStream;
use std::net::SocketAddr;
use std::time::Duration;
use zerocopy::IntoBytes;

pub(crate) struct RawHost {
    stream: TcpStream,
    framing: Framing,
    received: Vec<u8>,
    pub(crate) sealer: Sealer,
    next_cid: u16,
}

impl RawHost {
    /// A TCP connection, nothing sent yet; waits until the target listens.
    pub(crate) async fn open(address: SocketAddr) -> Self {
        let stream = loop {
            match TcpStream::connect(address).await {
                Ok(stream) => break stream,
                Err(_) => rt::sleep(Duration::from_millis(10)).await,
            }
        };
        let framing = Framing {
            role: Role::Host,
            phase: Phase::Initializing,
            digests: Digests::default(),
            in_capsule_max: 0,
            data_max: 1 << 22,
        };
        let sealer = Sealer { digests: Digests::default(), data_align: 4 };
        Self { stream, framing, received: Vec::new(), sealer, next_cid: 0 }
    }

    /// After ICReq and ICResp.
    pub(crate) async fn initialized(address: SocketAddr, digests: Digests) -> Self {
        let mut host = Self::open(address).await;
        host.send(IcReq::new(digests).as_bytes()).await;
        let Some((Pdu::IcResp(response), _)) = host.next().await else { panic!("no ICResp") };
        assert_eq!(Digests::from_dgst(response.dgst), Some(digests));
        host.framing.phase = Phase::Running;
        host.framing.digests = digests;
        host.sealer.digests = digests;
        host
    }

    /// A connected and enabled admin queue; returns the controller id.
    pub(crate) async fn admin(address: SocketAddr, digests: Digests) -> (Self, u16) {
        let mut host = Self::initialized(address, digests).await;
        let result = host.connect(&connect(0), &data(CNTLID_DYNAMIC)).await.expect("Connect");
        host.command(fabrics::property_set(property::CC, cc::EN | cc::ENTRY_SIZES), &[])
            .await
            .expect("enable");
        (host, u16::try_from(result & 0xffff).expect("masked"))
    }

    /// An admin queue and I/O queue 1.
    pub(crate) async fn both(address: SocketAddr, digests: Digests) -> (Self, Self) {
        let (admin, cntlid) = Self::admin(address, digests).await;
        let mut io = Self::initialized(address, digests).await;
        io.connect(&connect(1), &data(cntlid)).await.expect("Connect of the I/O queue");
        (admin, io)
    }

    /// Sends bytes; it does not matter if the other end has closed.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let _lost = self.stream.send.send(vec![Part::Bytes(bytes.to_vec())]).await;
    }

    /// The next PDU with its data; `None` once the target has closed.
    pub(crate) async fn next(&mut self) -> Option<(Pdu, Vec<u8>)> {
        loop {
            if !self.received.is_empty()
                && let Parsed::Frame(frame) =
                    self.framing.parse(&self.received).expect("the target speaks well")
            {
                let digest = if frame.data_digest { 4 } else { 0 };
                let whole = frame.head_len + frame.data_len as usize + digest;
                if self.received.len() >= whole {
                    let rest = self.received.split_off(whole);
                    let mut pdu = std::mem::replace(&mut self.received, rest);
                    pdu.truncate(whole - digest);
                    return Some((frame.pdu, pdu.split_off(frame.head_len)));
                }
            }
            let bytes = self.stream.receive.fill().await.ok().filter(|bytes| !bytes.is_empty())?.to_vec();
            self.stream.receive.consume(bytes.len());
            self.received.extend_from_slice(&bytes);
        }
    }

    /// Sends a command with data in its capsule; returns its identifier.
    pub(crate) async fn start(&mut self, mut sqe: Sqe, data: &[u8]) -> u16 {
        self.next_cid += 1;
        sqe.cid = self.next_cid.into();
        let mut bytes = self.sealer.command(&sqe, data.len()).to_vec();
        bytes.extend_from_slice(data);
        if self.sealer.digests.data && !data.is_empty() {
            bytes.extend_from_slice(&nvmf::wire::digest::crc32c(data).to_le_bytes());
        }
        self.send(&bytes).await;
        self.next_cid
    }

    /// The next response.
    pub(crate) async fn response(&mut self) -> Cqe {
        loop {
            match self.next().await {
                Some((Pdu::Response(cqe), _)) => return cqe,
                Some((Pdu::C2hData(_), _)) => {}
                other => panic!("no response but {other:?}"),
            }
        }
    }

    /// Sends a command and waits for its response.
    pub(crate) async fn command(&mut self, sqe: Sqe, data: &[u8]) -> Result<u64, StatusCode> {
        let cid = self.start(sqe, data).await;
        let cqe = self.response().await;
        assert_eq!(cqe.cid.get(), cid);
        cqe.outcome()
    }

    pub(crate) async fn connect(
        &mut self,
        connect: &Connect,
        data: &ConnectData,
    ) -> Result<u64, (StatusCode, u64)> {
        self.start(connect.sqe(), data.as_bytes()).await;
        let cqe = self.response().await;
        cqe.outcome().map_err(|code| (code, cqe.result.get()))
    }

    /// The fatal error status of the termination request that comes next, after which the target must close.
    pub(crate) async fn terminated(&mut self) -> (u16, u32) {
        let term = loop {
            match self.next().await {
                Some((Pdu::TermReq(term), cause)) => {
                    assert!(cause.len() <= 128);
                    break term;
                }
                Some(_) => {}
                None => panic!("closed without a termination request"),
            }
        };
        let closed = rt::timeout(Duration::from_secs(5), self.next()).await;
        assert_eq!(closed.expect("closes soon"), None);
        (term.fes.get(), term.fei())
    }

    /// Waits until the target closes; true if it did within `limit`.
    pub(crate) async fn closes_within(&mut self, limit: Duration) -> bool {
        let closed = async { while self.next().await.is_some() {} };
        rt::timeout(limit, closed).await.is_ok()
    }
}

/// A sensible Connect for queue `qid`.
pub(crate) fn connect(qid: u16) -> Connect {
    Connect { recfmt: 0, qid, sqsize: 15, cattr: 0, kato_ms: 0 }
}

/// The data of a Connect to the volume.
pub(crate) fn data(cntlid: u16) -> ConnectData {
    ConnectData::new(HOSTID, cntlid, SUBNQN, HOSTNQN)
}

/// A read or write of whole blocks with its data in the capsule (write) or by data PDUs.
pub(crate) fn blocks(opcode: u8, lba: u64, count: u64, in_capsule: bool) -> Sqe {
    let mut sqe = Sqe::blocks(opcode, 1, lba, count, 0);
    let len = u32::try_from(count * 4096).expect("small");
    sqe.sgl = if in_capsule { Sgl::in_capsule(len) } else { Sgl::transport(len) };
    sqe
}

/// A Fabrics command of this type without parameters.
pub(crate) fn fabrics_command(kind: u8) -> Sqe {
    Sqe::new(FABRICS_OPCODE, u32::from(kind), [0; 6])
}

/// The type byte of a termination request by a host.
pub(crate) const TERM_KIND: u8 = kind::H2C_TERM_REQ;

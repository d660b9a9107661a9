//! `orlop probe`: how a container's runtime asks a server that listens on loopback, where nobody else can, or a CSI plugin
//! on its socket; and how to find out whether a target of NVMe/TCP keeps out those who have no key.

use crate::failure::{Failure, Kind, OrFail, Outcome};
use crate::output;
use api::client::deepest;
use csi::client::Plugin;
use csi::v1::ProbeRequest;
use nvmf::wire::command::{Sgl, Sqe, admin};
use nvmf::wire::fabrics::{self, Connect, ConnectData, DISCOVERY_NQN, cc, property};
use nvmf::wire::frame::{Framing, Parsed, Pdu, Phase, Role};
use nvmf::wire::identify::{IDENTIFY_LEN, cns};
use nvmf::wire::pdu::{Digests, IcReq, Sealer};
use nvmf::wire::status::StatusCode;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;
use zerocopy::IntoBytes;

const PATIENCE: Duration = Duration::from_secs(4);
/// A plugin waits for its API for a while before it answers.
const PLUGIN_PATIENCE: Duration = Duration::from_secs(8);
/// The status line is all that is looked at.
const ANSWER_BYTES: u64 = 64;

/// Succeeds if the server answers that all is well, the plugin answers at all, or the target refuses everything.
pub(crate) fn run(url: &str) -> Outcome {
    let usage = || {
        Failure::new(format!("{url:?} is no address of a probe"))
            .kind(Kind::Usage)
            .hint("write http://IP:PORT/PATH, unix:///SOCKET or nvme+tcp://IP:PORT[/NQN]")
    };
    if let Some(socket) = url.strip_prefix("unix://") {
        return if socket.starts_with('/') { plugin(Path::new(socket)) } else { Err(usage()) };
    }
    if let Some(rest) = url.strip_prefix("nvme+tcp://") {
        let (host, nqn) = rest.split_once('/').unwrap_or((rest, DISCOVERY_NQN));
        let address: SocketAddr = host.parse().map_err(|_| usage())?;
        return if fabrics::is_nqn(nqn) { target(address, nqn) } else { Err(usage()) };
    }
    let rest = url.strip_prefix("http://").ok_or_else(usage)?;
    let (host, path) = rest.split_once('/').ok_or_else(usage)?;
    let address: SocketAddr = host.parse().map_err(|_| usage())?;
    let status = status(address, path).or_fail(|| format!("{url} does not answer"))?;
    let code = status.split_whitespace().nth(1).unwrap_or_default();
    if code.len() == 3 && code.starts_with('2') {
        return Ok(());
    }
    Err(Failure::new(format!("{url} answers {:?}", status.trim())))
}

/// The first line of the answer.
fn status(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned())
}

/// Asks a CSI plugin by its `Probe`. One that answers lives, ready or not: what it is not ready for is the API or the
/// store, and who kills it for that has one more thing that does not work.
fn plugin(socket: &Path) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.or_fail(|| "cannot start".into())?;
    let asked = runtime.block_on(async {
        tokio::time::timeout(PLUGIN_PATIENCE, async {
            let mut plugin = Plugin::connect(socket).await.map_err(|error| deepest(&error))?;
            plugin.identity.probe(ProbeRequest {}).await.map_err(|status| deepest(&status))
        })
        .await
    });
    let late = |_| Err(format!("nothing was said within {} s", PLUGIN_PATIENCE.as_secs()));
    let answer = asked.unwrap_or_else(late);
    let ready =
        answer.or_fail(|| format!("no CSI plugin answers at {}", socket.display()))?.into_inner().ready;
    let said =
        if ready == Some(false) { "answers, and is not ready: its API does not answer" } else { "is ready" };
    output::line(&format!("{} {said}", socket.display()))
}

/// Connects to a target as a stranger, without a key, and says what came back.
fn target(address: SocketAddr, nqn: &str) -> Outcome {
    let mut stranger = Stranger::connect(address).or_fail(|| format!("{address} does not speak NVMe/TCP"))?;
    let lost = || format!("{nqn} at {address}: the connection ended");
    let connected = stranger.ask(connect_command(), connect_data(nqn).as_bytes()).or_fail(lost)?;
    output::line(&format!("connect: {}", said(connected)))?;
    if let Err(code) = connected {
        return Err(Failure::new(format!("{nqn} at {address} cannot be connected to: {code}"))
            .hint("name a subsystem that is there, or none for the discovery service"));
    }
    let enable = fabrics::property_set(property::CC, cc::EN | cc::ENTRY_SIZES);
    let mut identify = Sqe::new(admin::IDENTIFY, 0, [u32::from(cns::CONTROLLER), 0, 0, 0, 0, 0]);
    identify.sgl = Sgl::transport(IDENTIFY_LEN.try_into().expect("4096"));
    let commands = [
        ("property get", fabrics::property_get(property::CSTS, false)),
        ("enable", enable),
        ("identify", identify),
    ];
    let mut open = false;
    for (what, sqe) in commands {
        let answer = stranger.ask(sqe, &[]).or_fail(lost)?;
        output::line(&format!("{what}: {}", said(answer)))?;
        open |= answer.is_ok();
    }
    if open {
        return Err(Failure::new(format!("{nqn} at {address} answers who has no key"))
            .hint("run its node with --secret FILE"));
    }
    Ok(())
}

fn said(answer: Result<u64, StatusCode>) -> String {
    answer.map_or_else(|code| code.to_string(), |result| format!("success, result {result:#x}"))
}

fn connect_command() -> Sqe {
    Connect { recfmt: 0, qid: 0, sqsize: 31, cattr: 0, kato_ms: 0 }.sqe()
}

fn connect_data(nqn: &str) -> ConnectData {
    ConnectData::new(uuid::Uuid::from_u128(1), fabrics::CNTLID_DYNAMIC, nqn, "nqn.2026-11.io.orlop:stranger")
}

/// A host without a key, and without patience.
struct Stranger {
    stream: TcpStream,
    framing: Framing,
    next_cid: u16,
}

impl Stranger {
    /// `ICReq` and `ICResp`.
    fn connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let framing = Framing {
            role: Role::Host,
            phase: Phase::Initializing,
            digests: Digests::default(),
            in_capsule_max: 0,
            data_max: 1 << 20,
        };
        let mut stranger = Self { stream, framing, next_cid: 0 };
        stranger.stream.write_all(IcReq::new(Digests::default()).as_bytes())?;
        stranger.next()?;
        stranger.framing.phase = Phase::Running;
        Ok(stranger)
    }

    /// Sends a command, and waits for its answer.
    fn ask(&mut self, mut sqe: Sqe, data: &[u8]) -> std::io::Result<Result<u64, StatusCode>> {
        self.next_cid += 1;
        sqe.cid = self.next_cid.into();
        let sealer = Sealer { digests: Digests::default(), data_align: 4 };
        self.stream.write_all(&[&sealer.command(&sqe, data.len()), data].concat())?;
        loop {
            if let Pdu::Response(cqe) = self.next()? {
                return Ok(cqe.outcome());
            }
        }
    }

    /// The next PDU; its data is not looked at.
    fn next(&mut self) -> std::io::Result<Pdu> {
        let mut head = Vec::new();
        loop {
            match self.framing.parse(&head) {
                Ok(Parsed::Need(len)) => {
                    let have = head.len();
                    head.resize(len, 0);
                    self.stream.read_exact(&mut head[have..])?;
                }
                Ok(Parsed::Frame(frame)) => {
                    let mut data = (&self.stream).take(frame.data_len.into());
                    std::io::copy(&mut data, &mut std::io::sink())?;
                    return Ok(frame.pdu);
                }
                Err(_) => return Err(std::io::Error::other("this is not what NVMe/TCP says")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn answered(answer: &'static str) -> Outcome {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/healthz", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut asked, mut byte) = (Vec::new(), [0]);
            // All of it: what is not read when a connection ends takes the answer with it.
            while !asked.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).unwrap();
                asked.push(byte[0]);
            }
            assert!(asked.starts_with(b"GET /healthz HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let outcome = run(&url);
        server.join().unwrap();
        outcome
    }

    #[test]
    fn only_2xx_is_well() {
        assert!(answered("HTTP/1.1 200 OK\r\n\r\n").is_ok());
        assert!(answered("HTTP/1.1 503 Service Unavailable\r\n\r\n").is_err());
        assert!(answered("").is_err());
        for bad in [
            "",
            "http://",
            "https://127.0.0.1:1/",
            "http://127.0.0.1:1",
            "http://name:1/",
            "unix://csi.sock",
            "nvme+tcp://name:1",
            "nvme+tcp://127.0.0.1:1/name",
        ] {
            assert!(run(bad).unwrap_err().is(Kind::Usage), "{bad}");
        }
    }
}

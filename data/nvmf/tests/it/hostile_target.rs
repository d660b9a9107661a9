//! A target that breaks the rules: something between host and target changes what the target says. The association
//! ends with a reason, no command gets wrong data, nothing panics.

use crate::support::{Bench, PORT, stamped};
use device::{Device, Lba, Status};
use nvmf::Association;
use nvmf::wire::frame::{Data, Frame, Framing, Parsed, Pdu, Phase, Role};
use nvmf::wire::pdu::{Digests, fes, flag, kind, term_req};
use rt::net::{ReceiveHalf, SendHalf, TcpListener, TcpStream};
use rt::{DmaBuf, Durability, Part};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

/// What becomes of one PDU of the target: it may be changed, dropped, or joined by others.
type Meddler = Rc<dyn Fn(&Frame, Vec<u8>) -> Vec<u8>>;

/// Stands between the host and the target.
struct Proxy {
    meddler: RefCell<Option<Meddler>>,
    /// The fatal error status of the host's last termination request.
    terminated: Cell<Option<u16>>,
}

impl Proxy {
    async fn serve(self: Rc<Self>, address: SocketAddr, target: SocketAddr) {
        let listener = TcpListener::bind(address).await.expect("a free port");
        while let Ok(host) = listener.accept().await {
            let Ok(target) = TcpStream::connect(target).await else { continue };
            let to_host = Rc::clone(&self).forward(Role::Host, target.receive, host.send);
            let to_target = Rc::clone(&self).forward(Role::Controller, host.receive, target.send);
            rt::spawn(rt::race(to_host, to_target)).detach();
        }
    }

    /// Forwards whole PDUs to the end that plays `role`.
    async fn forward(self: Rc<Self>, role: Role, mut from: ReceiveHalf, mut to: SendHalf) {
        let (digests, in_capsule_max, data_max) = (Digests::default(), 1 << 20, 1 << 22);
        let mut framing = Framing { role, phase: Phase::Initializing, digests, in_capsule_max, data_max };
        let mut bytes = Vec::new();
        loop {
            while let Ok(Parsed::Frame(frame)) = framing.parse(&bytes) {
                let whole = frame.head_len + frame.data_len as usize;
                if bytes.len() < whole {
                    break;
                }
                let rest = bytes.split_off(whole);
                let pdu = std::mem::replace(&mut bytes, rest);
                framing.phase = Phase::Running;
                let meddler = self.meddler.borrow().clone().filter(|_| role == Role::Host);
                if let Pdu::TermReq(term) = frame.pdu
                    && role == Role::Controller
                {
                    self.terminated.set(Some(term.fes.get()));
                }
                let pdu = meddler.map_or(pdu.clone(), |meddler| meddler(&frame, pdu));
                if !pdu.is_empty() && to.send(vec![Part::Bytes(pdu)]).await.is_err() {
                    return;
                }
            }
            let count = match from.fill().await {
                Ok(arrived) if !arrived.is_empty() => {
                    bytes.extend_from_slice(arrived);
                    arrived.len()
                }
                _ => return,
            };
            from.consume(count);
        }
    }
}

/// Runs `test` with an association through a proxy; its commands take data by R2T, and 1 s at most.
fn through_proxy<F: Future<Output = ()>>(
    seed: u64,
    test: impl FnOnce(Rc<Bench>, Rc<Proxy>, Association) -> F + 'static,
) {
    Bench::run(
        seed,
        |_| {},
        async move |bench| {
            let node = bench.world.add_node("proxy");
            let address = SocketAddr::new(bench.world.address(node), PORT);
            let proxy = Rc::new(Proxy { meddler: RefCell::default(), terminated: Cell::new(None) });
            bench.world.spawn_on(node, Rc::clone(&proxy).serve(address, bench.address)).detach();
            drop(bench.connect(|_| {}).await);
            let change = |options: &mut nvmf::ConnectOptions| {
                options.address = address;
                options.in_capsule_bytes_max = 0;
                options.command_limit = Duration::from_secs(1);
            };
            let association = bench.connect(change).await;
            let namespace = association.namespace(1);
            namespace.write(Lba(0), stamped(0, 4, 1), Durability::Cached).await.expect("undisturbed");
            test(bench, proxy, association).await;
        },
    );
}

fn data_of(frame: &Frame) -> Option<Data> {
    if let Pdu::C2hData(data) = frame.pdu { Some(data) } else { None }
}

fn is_r2t(frame: &Frame) -> bool {
    matches!(frame.pdu, Pdu::R2t { .. })
}

/// Changes bytes of the PDUs that `of` chooses.
fn patch(of: fn(&Frame) -> bool, changes: &'static [(usize, u8)]) -> Meddler {
    Rc::new(move |frame, mut pdu| {
        if of(frame) {
            for &(at, value) in changes {
                pdu[at] = value;
            }
        }
        pdu
    })
}

#[test]
fn each_lie_ends_the_association_with_a_reason() {
    let is_data = |frame: &Frame| data_of(frame).is_some();
    let twice: Meddler = Rc::new(|_, pdu| [pdu.clone(), pdu].concat());
    let cases: [(&str, Meddler, u16); 12] = [
        ("data for a command that is not there", patch(is_data, &[(8, 200)]), fes::INVALID_HEADER_FIELD),
        ("data at the wrong place", patch(is_data, &[(12, 4)]), fes::DATA_OUT_OF_RANGE),
        ("success before the last data", patch(is_data, &[(1, flag::SUCCESS)]), fes::INVALID_HEADER_FIELD),
        ("everything twice", twice, 0),
        ("data length zero", patch(is_data, &[(16, 0), (17, 0)]), fes::INVALID_HEADER_FIELD),
        ("a command from the target", patch(is_data, &[(0, kind::CAPSULE_CMD)]), fes::SEQUENCE_ERROR),
        ("an unknown PDU", patch(is_data, &[(0, 0x42)]), fes::INVALID_HEADER_FIELD),
        ("a PDU of 4 GiB", patch(is_data, &[(7, 0xff)]), fes::LIMIT_EXCEEDED),
        ("R2T for a command that is not there", patch(is_r2t, &[(8, 200)]), fes::INVALID_HEADER_FIELD),
        ("R2T beyond the data", patch(is_r2t, &[(18, 0xff)]), fes::DATA_OUT_OF_RANGE),
        (
            "R2T that wraps",
            patch(is_r2t, &[(12, 0xff), (13, 0xff), (14, 0xff), (15, 0xff)]),
            fes::DATA_OUT_OF_RANGE,
        ),
        ("R2T for nothing", patch(is_r2t, &[(16, 0), (17, 0)]), fes::INVALID_HEADER_FIELD),
    ];
    for (seed, (what, meddler, fes)) in (0..).zip(cases) {
        through_proxy(seed, async move |_bench, proxy, association| {
            proxy.meddler.replace(Some(meddler));
            let namespace = association.namespace(1);
            let read = namespace.read(Lba(0), DmaBuf::new(4 * 4096)).await;
            let read_failed = read.is_err();
            if let Ok(read) = read {
                assert!(read[..] == stamped(0, 4, 1)[..], "{what}: never wrong data");
            }
            let write = namespace.write(Lba(8), stamped(8, 4, 2), Durability::Cached).await;
            assert!(read_failed || write.is_err(), "{what}");
            rt::timeout(Duration::from_secs(1), association.dead()).await.expect(what);
            rt::sleep(Duration::from_millis(100)).await;
            if fes != 0 {
                assert_eq!(proxy.terminated.get(), Some(fes), "{what}");
            }
            assert_eq!(namespace.flush().await, Err(Status::Gone));
        });
    }
}

#[test]
fn a_read_with_too_little_data_fails() {
    through_proxy(1, async |_bench, proxy, association| {
        // The target's SUCCESS flag becomes a response without any data.
        proxy.meddler.replace(Some(Rc::new(|frame, pdu| match data_of(frame) {
            Some(data) => {
                let sealer = nvmf::wire::pdu::Sealer { digests: Digests::default(), data_align: 4 };
                let success = nvmf::wire::status::StatusCode::SUCCESS;
                sealer.response(&nvmf::wire::command::Cqe::new(data.cid, 0, success, 0)).to_vec()
            }
            None => pdu,
        })));
        let read = association.namespace(1).read(Lba(0), DmaBuf::new(4096)).await;
        assert_eq!(read.expect_err("no data came"), Status::Internal);
    });
}

#[test]
fn a_target_that_gives_up_is_believed() {
    through_proxy(1, async |_bench, proxy, association| {
        let term: Meddler = Rc::new(|_, _| term_req(kind::C2H_TERM_REQ, fes::SEQUENCE_ERROR, 0, &[0; 72]));
        proxy.meddler.replace(Some(term));
        assert_eq!(association.namespace(1).flush().await, Err(Status::Gone));
        assert!(association.is_dead());
        assert_eq!(proxy.terminated.get(), None, "no answer to a termination");
    });
}

#[test]
fn a_target_that_says_nothing_is_given_up() {
    through_proxy(1, async |_bench, proxy, association| {
        proxy.meddler.replace(Some(Rc::new(|_, _| Vec::new())));
        let began = rt::now();
        assert_eq!(association.namespace(1).flush().await, Err(Status::TimedOut));
        assert!(began.elapsed() < Duration::from_millis(1600));
        assert!(association.is_dead());
    });
}

/// Noise in everything that the target says, also while connecting: never a panic, and never wrong data that a
/// response calls good unless the noise hit the data itself.
#[test]
fn noise_is_survived() {
    for seed in 0..30 {
        through_proxy(seed, async |bench, proxy, association| {
            drop(association);
            proxy.meddler.replace(Some(Rc::new(|_, mut pdu| {
                if rt::random_u64().is_multiple_of(8) {
                    let head = pdu.len().min(24) as u64;
                    let at = usize::try_from(rt::random_u64() % head).expect("small");
                    pdu[at] = rt::random_u64().to_le_bytes()[0];
                }
                pdu
            })));
            for _ in 0..10 {
                let mut options = bench.options();
                options.address.set_ip(bench.world.address(bench.world.node("proxy").expect("it is there")));
                options.command_limit = Duration::from_millis(500);
                options.connect_limit = Duration::from_secs(2);
                let Ok(association) = Association::connect(options).await else { continue };
                let namespace = association.namespace(1);
                let tasks: Vec<_> = (0..10)
                    .map(|i| {
                        let namespace = namespace.clone();
                        rt::spawn(async move {
                            let _read = namespace.read(Lba(i), DmaBuf::new(4096)).await;
                            let _write =
                                namespace.write(Lba(100 + i), stamped(0, 40, 1), Durability::Cached).await;
                        })
                    })
                    .collect();
                for task in tasks {
                    task.await;
                }
            }
        });
    }
}

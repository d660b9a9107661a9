//! What the Linux initiator sent to the Linux target (`tests/golden`) is sent to ours: wherever that one succeeded, ours
//! must, and what was written must be read back. No kernel is needed for it.

use crate::golden::{Exchange, exchanges};
use crate::raw::RawHost;
use crate::support::Bench;
use nvmf::wire::command::{FABRICS_OPCODE, Sgl, Sqe, admin, io};
use nvmf::wire::fabrics::{ConnectData, DISCOVERY_NQN, kind};
use nvmf::wire::frame::Pdu;
use nvmf::wire::pdu::{Digests, flag};
use nvmf::wire::status::StatusCode;
use std::net::SocketAddr;
use zerocopy::{FromBytes, IntoBytes};

/// Sends one recorded command with its data the recorded way; returns the outcome and the data that came back.
async fn send(host: &mut RawHost, exchange: &Exchange) -> (Result<u64, StatusCode>, Vec<u8>) {
    let in_capsule = exchange.sqe.sgl.kind == Sgl::IN_CAPSULE;
    let cid = host.start(exchange.sqe, if in_capsule { &exchange.sent } else { &[] }).await;
    let mut received = Vec::new();
    loop {
        match host.next().await.expect("the connection lives") {
            (Pdu::C2hData(data), bytes) => {
                assert!(!data.success, "the kernel keeps flow control on");
                received.extend_from_slice(&bytes);
            }
            (Pdu::R2t { ttag, offset, len, .. }, _) => {
                let data = &exchange.sent[offset as usize..(offset + len) as usize];
                let mut bytes = host.sealer.h2c_data(cid, ttag, offset, len, flag::LAST).to_vec();
                bytes.extend_from_slice(data);
                if host.sealer.digests.data {
                    bytes.extend_from_slice(&nvmf::wire::digest::crc32c(data).to_le_bytes());
                }
                host.send(&bytes).await;
            }
            (Pdu::Response(cqe), _) => {
                assert_eq!(cqe.cid.get(), cid);
                return (cqe.outcome(), received);
            }
            (other, _) => panic!("{other:?}"),
        }
    }
}

/// Replays one connection; returns it with the controller id that Connect gave.
async fn replay(address: SocketAddr, scene: &str, cntlid: Option<u64>) -> (RawHost, u64) {
    let on = scene.starts_with("digests");
    let mut host = RawHost::initialized(address, Digests { header: on, data: on }).await;
    let mut given = 0;
    let mut written = false;
    for mut exchange in exchanges(scene) {
        let fabrics = exchange.sqe.opcode == FABRICS_OPCODE;
        let connects = fabrics && exchange.sqe.fabrics_type() == kind::CONNECT;
        if let Some(cntlid) = cntlid.filter(|_| connects) {
            let mut data = ConnectData::read_from_bytes(&exchange.sent).expect("1024 bytes");
            data.cntlid = u16::try_from(cntlid).expect("small").into();
            exchange.sent = data.as_bytes().to_vec();
        }
        // The last command of an admin queue: the shutdown, after which the connections are closed.
        if fabrics
            && exchange.sqe.fabrics_type() == kind::PROPERTY_SET
            && exchange.sqe.cdw(12) & (3 << 14) != 0
        {
            break;
        }
        // Asymmetric access, which that target offers and ours does not.
        if exchange.sqe.opcode == admin::GET_LOG_PAGE && exchange.sqe.cdw(10) & 0xff == 0x0c {
            continue;
        }
        let (outcome, received) = send(&mut host, &exchange).await;
        if connects {
            given = outcome.unwrap_or_default() & 0xffff;
        }
        let what = format!("{scene}: {:?}", exchange.sqe);
        match exchange.cqe.outcome() {
            Ok(_) => assert!(outcome.is_ok(), "{what}: {outcome:?}"),
            // What that target lacks and ours has: Compare, and some kinds of Identify.
            Err(_) if exchange.sqe.opcode == io::COMPARE || exchange.sqe.opcode == admin::IDENTIFY => {
                assert_eq!(outcome, Ok(0), "{what}");
                continue;
            }
            Err(_) => assert!(outcome.is_err(), "{what}: {outcome:?}"),
        }
        if outcome.is_ok() {
            assert_eq!(received.len(), exchange.received.len(), "{what}");
        }
        // What was read before belongs to the scenes before.
        written |= exchange.sqe.opcode == io::WRITE;
        let reads_back = written && exchange.sqe.opcode == io::READ && exchange.sqe.slba() < 22;
        if reads_back && outcome.is_ok() {
            assert!(received == exchange.received, "{what}: other data than the kernel's target gave");
        }
    }
    (host, given)
}

#[test]
fn the_kernels_conversations_go_well_with_our_target() {
    for scene in ["connect", "io", "digests"] {
        Bench::run(
            1,
            |_| {},
            async move |bench| {
                let (_admin, cntlid) = replay(bench.address, &format!("{scene}.0"), None).await;
                replay(bench.address, &format!("{scene}.1"), Some(cntlid)).await;
            },
        );
    }
    Bench::run(
        2,
        |_| {},
        async |bench| {
            assert_eq!(replay(bench.address, "errors.0", None).await.1, 0, "an unknown subsystem");
            let (_admin, cntlid) = replay(bench.address, "errors.1", None).await;
            replay(bench.address, "errors.2", Some(cntlid)).await;
        },
    );
}

#[test]
fn discovery_stays_and_tells_of_changes() {
    use crate::raw::connect;
    use crate::support::{HOSTID, HOSTNQN};
    use nvmf::wire::fabrics::{CNTLID_DYNAMIC, cc, property, property_set};
    use nvmf::wire::feature::{event, id, notice};
    use nvmf::wire::log::{self, LogRequest};
    Bench::run(
        1,
        |_| {},
        async |bench| {
            let mut host = RawHost::initialized(bench.address, Digests::default()).await;
            let names = ConnectData::new(HOSTID, CNTLID_DYNAMIC, DISCOVERY_NQN, HOSTNQN);
            host.connect(&connect(0), &names).await.expect("discovery");
            host.command(property_set(property::CC, cc::EN), &[]).await.expect("enable");
            let enable = Sqe::new(
                admin::SET_FEATURES,
                0,
                [u32::from(id::ASYNC_EVENT_CONFIG), event::DISCOVERY, 0, 0, 0, 0],
            );
            host.command(enable, &[]).await.expect("events on");
            let header =
                LogRequest { id: log::id::DISCOVERY, retain_event: false, len_bytes: 1024, offset_bytes: 0 };
            let mut header = header.sqe();
            header.sgl = Sgl::transport(1024);
            for _ in 0..2 {
                let cid = host.start(Sqe::new(admin::ASYNC_EVENT_REQUEST, 0, [0; 6]), &[]).await;
                let target = bench.serving.borrow().clone().expect("it runs");
                target.discovery_changed();
                let event = host.response().await;
                assert_eq!((event.cid.get(), event.outcome()), (cid, Ok(u64::from(notice::DISCOVERY))));
                // Told once: nothing more until the log was read.
                let cid = host.start(Sqe::new(admin::ASYNC_EVENT_REQUEST, 0, [0; 6]), &[]).await;
                target.discovery_changed();
                host.command(header, &[]).await.expect("the log");
                target.discovery_changed();
                assert_eq!(host.response().await.cid.get(), cid);
                host.command(header, &[]).await.expect("the log");
            }
        },
    );
}

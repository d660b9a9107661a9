//! A host that breaks every rule: each mistake is answered as the specification says, none reaches the device, and none
//! disturbs another host.

use crate::raw::{RawHost, TERM_KIND, blocks, connect, data, fabrics_command};
use crate::support::{Bench, HOSTID, HOSTNQN, OTHER_NQN, SUBNQN, stamped};
use device::fault::{Effect, Op, Rule};
use device::{Device, Lba};
use nvmf::wire::command::{Sgl, Sqe, admin, io};
use nvmf::wire::fabrics::{self, CNTLID_DYNAMIC, Connect, ConnectData, DISCOVERY_NQN, cc, csts, property};
use nvmf::wire::frame::Pdu;
use nvmf::wire::pdu::{Digests, IcReq, fes, flag, term_req};
use nvmf::wire::status::StatusCode;
use nvmf::{Association, VendorCommand};
use rt::{DmaBuf, Durability};
use std::rc::Rc;
use std::time::Duration;
use zerocopy::IntoBytes;

const PLAIN: Digests = Digests { header: false, data: false };
const FULL: Digests = Digests { header: true, data: true };

/// A well-behaved host works while and after others misbehave.
async fn still_serves(bench: &Bench, association: &Association) {
    assert!(!association.is_dead());
    let namespace = association.namespace(1);
    namespace.write(Lba(7), stamped(7, 1, 7), Durability::Cached).await.expect("write");
    assert!(namespace.read(Lba(7), DmaBuf::new(4096)).await.expect("read")[..] == stamped(7, 1, 7)[..]);
    let _ = bench;
}

#[test]
fn broken_pdus_end_the_connection_with_a_reason() {
    Bench::run(
        1,
        |_| {},
        async |bench| {
            let good = bench.connect(|_| {}).await;
            let address = bench.address;
            let plain = nvmf::wire::pdu::Sealer { digests: PLAIN, data_align: 4 };
            let command = plain.command(&blocks(io::WRITE, 0, 1, true), 4096);
            let altered = |changes: &[(usize, u8)]| {
                let mut bytes = command.to_vec();
                for &(at, value) in changes {
                    bytes[at] = value;
                }
                bytes
            };
            let changed = |at: usize, value: u8| altered(&[(at, value)]);
            let cases: [(&str, Vec<u8>, u16, u32); 9] = [
                ("an unknown type", changed(0, 0x55), fes::INVALID_HEADER_FIELD, 0),
                ("a response from a host", changed(0, 0x05), fes::SEQUENCE_ERROR, 0),
                ("ICReq again", IcReq::new(PLAIN).as_bytes().to_vec(), fes::SEQUENCE_ERROR, 0),
                ("a wrong header length", changed(2, 70), fes::INVALID_HEADER_FIELD, 2),
                ("an unagreed digest", changed(1, flag::HEADER_DIGEST), fes::INVALID_HEADER_FIELD, 1),
                ("data in the header", changed(3, 16), fes::INVALID_HEADER_FIELD, 3),
                ("a PDU shorter than its header", altered(&[(4, 71), (5, 0)]), fes::INVALID_HEADER_FIELD, 4),
                ("a PDU of 4 GiB", changed(7, 0xff), fes::LIMIT_EXCEEDED, 0),
                (
                    "data that nobody asked for",
                    plain.h2c_data(1, 0, 0, 16, 4).to_vec(),
                    fes::INVALID_HEADER_FIELD,
                    10,
                ),
            ];
            for (what, bytes, fes, fei) in cases {
                let (_admin, mut host) = RawHost::both(address, PLAIN).await;
                host.send(&bytes).await;
                assert_eq!(host.terminated().await, (fes, fei), "{what}");
            }
            // Before a queue is connected, and in the wrong order.
            let mut host = RawHost::open(address).await;
            host.send(&command).await;
            assert_eq!(host.terminated().await, (fes::SEQUENCE_ERROR, 0), "a command before ICReq");
            let mut host = RawHost::initialized(address, PLAIN).await;
            host.send(&plain.h2c_data(1, 0, 0, 16, 4)).await;
            assert_eq!(host.terminated().await.0, fes::SEQUENCE_ERROR, "data before Connect");
            for (at, value, fes, fei) in
                [(8, 1, fes::UNSUPPORTED_PARAMETER, 8), (10, 32, 1, 10), (11, 4, 1, 11)]
            {
                let mut request = IcReq::new(PLAIN).as_bytes().to_vec();
                request[at] = value;
                let mut host = RawHost::open(address).await;
                host.send(&request).await;
                assert_eq!(host.terminated().await, (fes, fei), "byte {at} of ICReq");
            }
            still_serves(&bench, &good).await;
            let sessions = bench.exported.opened.get() - 1;
            bench.until("their associations are closed", || bench.exported.closed.get() == sessions).await;
        },
    );
}

#[test]
fn a_header_digest_error_ends_the_connection() {
    Bench::run(
        1,
        |_| {},
        async |bench| {
            let (_admin, mut host) = RawHost::both(bench.address, FULL).await;
            let mut bytes = host.sealer.command(&blocks(io::READ, 0, 1, false), 0).to_vec();
            let digest = u32::from_le_bytes(bytes[72..76].try_into().expect("4 bytes"));
            bytes[48] ^= 1;
            host.send(&bytes).await;
            assert_eq!(host.terminated().await, (fes::HEADER_DIGEST_ERROR, digest));
        },
    );
}

#[test]
fn a_data_digest_error_fails_the_command_only() {
    Bench::run(
        1,
        |_| {},
        async |bench| {
            let (_admin, mut host) = RawHost::both(bench.address, FULL).await;
            let payload = stamped(3, 1, 1);
            let mut sqe = blocks(io::WRITE, 3, 1, true);
            sqe.cid = 99.into();
            let mut bytes = host.sealer.command(&sqe, 4096).to_vec();
            bytes.extend_from_slice(&payload);
            bytes.extend_from_slice(&[1, 2, 3, 4]);
            host.send(&bytes).await;
            let cqe = host.response().await;
            assert_eq!((cqe.cid.get(), cqe.outcome()), (99, Err(StatusCode::TRANSIENT_TRANSPORT_ERROR)));
            assert_eq!(cqe.status.get() >> 15, 0, "it may be sent again");
            // The same by R2T, with only the first of two PDUs damaged.
            let cid = host.start(blocks(io::WRITE, 3, 2, false), &[]).await;
            let Some((Pdu::R2t { ttag, len, .. }, _)) = host.next().await else { panic!("no R2T") };
            assert_eq!(len, 8192);
            for (offset, flags, damage) in [(0, 0, 1), (4096, flag::LAST, 0)] {
                let mut bytes = host.sealer.h2c_data(cid, ttag, offset, 4096, flags).to_vec();
                bytes.extend_from_slice(&payload);
                bytes.extend_from_slice(&(nvmf::wire::digest::crc32c(&payload) ^ damage).to_le_bytes());
                host.send(&bytes).await;
            }
            assert_eq!(host.response().await.outcome(), Err(StatusCode::TRANSIENT_TRANSPORT_ERROR));
            let disk = bench.exported.disk.read(Lba(3), DmaBuf::new(8192)).await.expect("read");
            assert!(disk.iter().all(|&b| b == 0), "nothing of it was written");
            assert_eq!(
                host.command(blocks(io::WRITE, 3, 1, true), &payload).await,
                Ok(0),
                "the connection lives"
            );
        },
    );
}

#[test]
fn wrong_connects_are_refused() {
    Bench::run(
        1,
        |_| {},
        async |bench| {
            let address = bench.address;
            let invalid = |offset| Err::<u64, _>((StatusCode::CONNECT_INVALID_PARAMETERS, offset));
            let in_data = 1 << 16;
            let names =
                |subnqn: &str, hostnqn: &str, cntlid| ConnectData::new(HOSTID, cntlid, subnqn, hostnqn);
            // Admin queues.
            let mut garbled = data(CNTLID_DYNAMIC);
            garbled.subnqn = [0xff; 256];
            let cases = [
                (connect(0), names("nqn.absent", HOSTNQN, 0xffff), invalid(in_data | 256)),
                (
                    connect(0),
                    names(SUBNQN, "nqn.stranger", 0xffff),
                    Err((StatusCode::CONNECT_INVALID_HOST, 0)),
                ),
                (connect(0), names(SUBNQN, HOSTNQN, 5), invalid(in_data | 16)),
                (connect(0), garbled, invalid(in_data | 256)),
                (
                    Connect { recfmt: 1, ..connect(0) },
                    data(0xffff),
                    Err((StatusCode::CONNECT_INCOMPATIBLE_FORMAT, 0)),
                ),
                (Connect { sqsize: 0, ..connect(0) }, data(0xffff), invalid(44)),
                (connect(1), data(77), invalid(in_data | 16)),
            ];
            let mut host = RawHost::initialized(address, PLAIN).await;
            for (fields, data, expected) in cases {
                assert_eq!(host.connect(&fields, &data).await, expected, "{fields:?}");
            }
            assert_eq!(
                host.command(Sqe::new(io::READ, 1, [0; 6]), &[]).await,
                Err(StatusCode::SEQUENCE_ERROR)
            );
            assert!(host.closes_within(Duration::from_secs(2)).await, "too many failures");
            // I/O queues of an association that is not enabled yet.
            let mut admin = RawHost::initialized(address, PLAIN).await;
            let cntlid = u16::try_from(admin.connect(&connect(0), &data(0xffff)).await.expect("admin"))
                .expect("small");
            let mut host = RawHost::initialized(address, PLAIN).await;
            assert_eq!(host.connect(&connect(1), &data(cntlid)).await, Err((StatusCode::SEQUENCE_ERROR, 0)));
            for sqe in
                [Sqe::new(admin::IDENTIFY, 0, [1, 0, 0, 0, 0, 0]), Sqe::new(admin::KEEP_ALIVE, 0, [0; 6])]
            {
                assert_eq!(
                    admin.command(sqe, &[]).await,
                    Err(StatusCode::SEQUENCE_ERROR),
                    "before it is enabled"
                );
            }
            admin.command(fabrics::property_set(property::CC, cc::EN), &[]).await.expect("enable");
            assert_eq!(
                admin.command(connect(0).sqe(), data(0xffff).as_bytes()).await,
                Err(StatusCode::SEQUENCE_ERROR)
            );
            let cases = [
                (connect(1), names(OTHER_NQN, HOSTNQN, cntlid), invalid(in_data | 256)),
                (
                    connect(1),
                    names(SUBNQN, "nqn.another-host", cntlid),
                    Err((StatusCode::CONNECT_INVALID_HOST, 0)),
                ),
                (connect(17), data(cntlid), invalid(42)),
                (Connect { sqsize: 128, ..connect(1) }, data(cntlid), invalid(44)),
            ];
            for (fields, data, expected) in cases {
                assert_eq!(host.connect(&fields, &data).await, expected, "{fields:?}");
            }
            host.connect(&connect(1), &data(cntlid)).await.expect("the right one");
            let mut twice = RawHost::initialized(address, PLAIN).await;
            assert_eq!(twice.connect(&connect(1), &data(cntlid)).await, invalid(42), "queue 1 is taken");
        },
    );
}

#[test]
fn commands_that_lie_about_their_data_are_refused() {
    Bench::run(
        1,
        |_| {},
        async |bench| {
            let (_admin, mut host) = RawHost::both(bench.address, PLAIN).await;
            let page = [1; 4096];
            let with = |mut sqe: Sqe, sgl| {
                sqe.sgl = sgl;
                sqe
            };
            let write = blocks(io::WRITE, 0, 1, true);
            let read = blocks(io::READ, 0, 1, false);
            let mut shifted = Sgl::in_capsule(4096);
            shifted.address = 8.into();
            let mut vendor = Sqe::new(0xC2, 1, [0; 6]);
            vendor.sgl = Sgl::transport((1 << 20) + 1);
            let cases: [(&str, Sqe, &[u8], StatusCode); 17] = [
                (
                    "less data than blocks",
                    with(write, Sgl::in_capsule(512)),
                    &page[..512],
                    StatusCode::SGL_LENGTH_INVALID,
                ),
                ("less in the capsule than said", write, &page[..512], StatusCode::SGL_LENGTH_INVALID),
                ("an offset into the capsule", with(write, shifted), &page, StatusCode::SGL_OFFSET_INVALID),
                (
                    "an unknown SGL",
                    with(write, Sgl { kind: 0x40, ..Sgl::in_capsule(4096) }),
                    &page,
                    StatusCode::SGL_TYPE_INVALID,
                ),
                (
                    "data in the capsule and by R2T",
                    with(write, Sgl::transport(4096)),
                    &page,
                    StatusCode::SGL_LENGTH_INVALID,
                ),
                (
                    "a read into the capsule",
                    with(read, Sgl::in_capsule(4096)),
                    &[],
                    StatusCode::SGL_TYPE_INVALID,
                ),
                (
                    "a read of 4 GiB",
                    with(read, Sgl::transport(u32::MAX)),
                    &[],
                    StatusCode::SGL_LENGTH_INVALID,
                ),
                ("a read of more than MDTS", blocks(io::READ, 0, 257, false), &[], StatusCode::INVALID_FIELD),
                (
                    "a read beyond the end",
                    blocks(io::READ, 4095, 2, false),
                    &[],
                    StatusCode::LBA_OUT_OF_RANGE,
                ),
                (
                    "a read that wraps",
                    blocks(io::READ, u64::MAX, 1, false),
                    &[],
                    StatusCode::LBA_OUT_OF_RANGE,
                ),
                (
                    "zeroes beyond the end",
                    Sqe::blocks(io::WRITE_ZEROES, 1, 4095, 2, 0),
                    &[],
                    StatusCode::LBA_OUT_OF_RANGE,
                ),
                ("another namespace", Sqe { nsid: 2.into(), ..read }, &[], StatusCode::INVALID_NAMESPACE),
                ("namespace 0", Sqe { nsid: 0.into(), ..read }, &[], StatusCode::INVALID_NAMESPACE),
                ("all namespaces", Sqe { nsid: u32::MAX.into(), ..read }, &[], StatusCode::INVALID_NAMESPACE),
                ("an unknown opcode", Sqe { opcode: 0x33, ..read }, &[], StatusCode::INVALID_OPCODE),
                ("a huge vendor command", vendor, &[], StatusCode::INVALID_FIELD),
                (
                    "ranges that are not there",
                    Sqe::new(io::DATASET_MANAGEMENT, 1, [7, 4, 0, 0, 0, 0]),
                    &[],
                    StatusCode::SGL_LENGTH_INVALID,
                ),
            ];
            for (what, sqe, payload, expected) in cases {
                assert_eq!(host.command(sqe, payload).await, Err(expected), "{what}");
            }
            let mut ranges = [0_u8; 32];
            ranges[4] = 1;
            ranges[20] = 1;
            ranges[24..32].copy_from_slice(&u64::MAX.to_le_bytes());
            let mut dataset = Sqe::new(io::DATASET_MANAGEMENT, 1, [1, 4, 0, 0, 0, 0]);
            dataset.sgl = Sgl::in_capsule(32);
            assert_eq!(host.command(dataset, &ranges).await, Err(StatusCode::LBA_OUT_OF_RANGE));
            assert_eq!(
                bench.exported.disk.read(Lba(0), DmaBuf::new(4096)).await.expect("read")[..],
                [0; 4096]
            );
            assert_eq!(host.command(read, &[]).await, Ok(0));
        },
    );
}

#[test]
fn admin_commands_with_wrong_parameters_are_refused() {
    Bench::run(
        1,
        |_| {},
        async |bench| {
            let (mut admin, _) = RawHost::admin(bench.address, PLAIN).await;
            let room = |mut sqe: Sqe, len| {
                sqe.sgl = Sgl::transport(len);
                sqe
            };
            let identify = |cns, nsid| room(Sqe::new(admin::IDENTIFY, nsid, [cns, 0, 0, 0, 0, 0]), 4096);
            let log = |id: u32, dwords: u32, offset: u32| {
                room(
                    Sqe::new(admin::GET_LOG_PAGE, 0, [id | (dwords << 16), 0, offset, 0, 0, 0]),
                    (dwords + 1) * 4,
                )
            };
            let features = |opcode, cdw10, cdw11| Sqe::new(opcode, 0, [cdw10, cdw11, 0, 0, 0, 0]);
            let refused = [
                (identify(0x77, 0), StatusCode::INVALID_FIELD),
                (identify(0, 0), StatusCode::INVALID_NAMESPACE),
                (identify(0, u32::MAX), StatusCode::INVALID_NAMESPACE),
                (identify(3, 9), StatusCode::INVALID_NAMESPACE),
                (identify(2, u32::MAX), StatusCode::INVALID_NAMESPACE),
                (room(identify(1, 0), 0), StatusCode::SGL_LENGTH_INVALID),
                (room(identify(1, 0), u32::MAX), StatusCode::SGL_LENGTH_INVALID),
                (log(0x99, 1, 0), StatusCode::INVALID_LOG_PAGE),
                (log(0x70, 255, 0), StatusCode::INVALID_LOG_PAGE),
                (log(2, 127, 1 << 20), StatusCode::INVALID_FIELD),
                (log(2, 127, 2), StatusCode::INVALID_FIELD),
                (features(admin::SET_FEATURES, 0x7, 0xffff_ffff), StatusCode::INVALID_FIELD),
                (features(admin::SET_FEATURES, 0x6, 0), StatusCode::FEATURE_NOT_CHANGEABLE),
                (features(admin::SET_FEATURES, 0x8000_0007, 0), StatusCode::FEATURE_NOT_SAVEABLE),
                (features(admin::SET_FEATURES, 0xee, 0), StatusCode::INVALID_FIELD),
                (features(admin::GET_FEATURES, 0xee, 0), StatusCode::INVALID_FIELD),
                (features(0x7e, 0, 0), StatusCode::INVALID_OPCODE),
                (fabrics::property_get(0x20, false), StatusCode::INVALID_FIELD),
                (fabrics::property_get(property::CAP, false), StatusCode::INVALID_FIELD),
                (fabrics::property_set(property::CSTS, 1), StatusCode::INVALID_FIELD),
                (fabrics_command(fabrics::kind::AUTH_SEND), StatusCode::INVALID_OPCODE),
                (fabrics_command(fabrics::kind::DISCONNECT), StatusCode::INVALID_OPCODE),
            ];
            for (sqe, expected) in refused {
                assert_eq!(admin.command(sqe, &[]).await, Err(expected), "{sqe:?}");
            }
            let length_of_nothing =
                Sqe::new(admin::GET_LOG_PAGE, 0, [2 | (0xffff << 16), 0xffff, 0, 0, 0, 0]);
            assert_eq!(
                admin.command(room(length_of_nothing, 4096), &[]).await,
                Err(StatusCode::INVALID_FIELD)
            );
            // As many event requests as it takes, one more is refused, and the others go on waiting.
            for _ in 0..4 {
                admin.start(Sqe::new(admin::ASYNC_EVENT_REQUEST, 0, [0; 6]), &[]).await;
            }
            let fifth = admin.command(Sqe::new(admin::ASYNC_EVENT_REQUEST, 0, [0; 6]), &[]).await;
            assert_eq!(fifth, Err(StatusCode::ASYNC_LIMIT_EXCEEDED));
            assert_eq!(admin.command(Sqe::new(admin::KEEP_ALIVE, 0, [0; 6]), &[]).await, Ok(0));
            // The discovery service has no namespaces and takes no I/O queues.
            let mut discovery = RawHost::initialized(bench.address, PLAIN).await;
            let names = ConnectData::new(HOSTID, CNTLID_DYNAMIC, DISCOVERY_NQN, HOSTNQN);
            let cntlid = discovery.connect(&connect(0), &names).await.expect("discovery");
            discovery.command(fabrics::property_set(property::CC, cc::EN), &[]).await.expect("enable");
            assert_eq!(discovery.command(identify(2, 0), &[]).await, Err(StatusCode::INVALID_FIELD));
            assert_eq!(discovery.command(log(2, 127, 0), &[]).await, Err(StatusCode::INVALID_LOG_PAGE));
            let mut queue = RawHost::initialized(bench.address, PLAIN).await;
            let names =
                ConnectData::new(HOSTID, u16::try_from(cntlid).expect("small"), DISCOVERY_NQN, HOSTNQN);
            assert_eq!(
                queue.connect(&connect(1), &names).await,
                Err((StatusCode::CONNECT_INVALID_PARAMETERS, 42))
            );
        },
    );
}

#[test]
fn slots_are_counted() {
    Bench::run(
        1,
        |_| {},
        async |bench| {
            let hang = bench.exported.faults.add(Rule::on(Op::Read, Effect::Hang));
            let (_admin, mut host) = RawHost::both(bench.address, PLAIN).await;
            let read = blocks(io::READ, 0, 1, false);
            let cid = host.start(read, &[]).await;
            // The same identifier again, while the first is in use.
            let mut again = read;
            again.cid = cid.into();
            let bytes = host.sealer.command(&again, 0).to_vec();
            host.send(&bytes).await;
            let cqe = host.response().await;
            assert_eq!((cqe.cid.get(), cqe.outcome()), (cid, Err(StatusCode::COMMAND_ID_CONFLICT)));
            // The queue has 16 entries: 15 more fit, the next is one too many.
            for _ in 1..16 {
                host.start(read, &[]).await;
            }
            rt::sleep(Duration::from_millis(100)).await;
            host.start(read, &[]).await;
            assert_eq!(host.terminated().await.0, fes::SEQUENCE_ERROR);
            assert_eq!(bench.exported.closed.get(), 0, "commands still run");
            bench.exported.faults.remove(hang);
            bench.until("the session is closed", || bench.exported.closed.get() == 1).await;
        },
    );
}

#[test]
fn transfers_are_guarded() {
    let payload = [9_u8; 4096];
    let cases = [
        ("an unknown tag", 0, 7, 0, 4096, 0, (fes::INVALID_HEADER_FIELD, 10)),
        ("another command", 1, 0, 0, 4096, 0, (fes::INVALID_HEADER_FIELD, 8)),
        ("a gap", 0, 0, 4096, 4096, 0, (fes::DATA_OUT_OF_RANGE, 0)),
        ("too much", 0, 0, 0, 12288, 0, (fes::DATA_OUT_OF_RANGE, 0)),
        ("the last before the end", 0, 0, 0, 4096, flag::LAST, (fes::INVALID_HEADER_FIELD, 1)),
        ("an offset near 4 GiB", 0, 0, u32::MAX - 4095, 4096, 0, (fes::DATA_OUT_OF_RANGE, 0)),
    ];
    for (what, cid_change, ttag_change, offset, len, flags, expected) in cases {
        Bench::run(
            1,
            |_| {},
            async |bench| {
                let (_admin, mut host) = RawHost::both(bench.address, PLAIN).await;
                let cid = host.start(blocks(io::WRITE, 0, 2, false), &[]).await;
                let Some((Pdu::R2t { ttag, offset: 0, len: 8192, .. }, _)) = host.next().await else {
                    panic!("no R2T")
                };
                let mut bytes =
                    host.sealer.h2c_data(cid + cid_change, ttag + ttag_change, offset, len, flags).to_vec();
                bytes.extend(payload.iter().cycle().take(len as usize));
                host.send(&bytes).await;
                assert_eq!(host.terminated().await, expected, "{what}");
                bench.until("the session is closed", || bench.exported.closed.get() == 1).await;
                let disk = bench.exported.disk.read(Lba(0), DmaBuf::new(8192)).await.expect("read");
                assert!(disk.iter().all(|&b| b == 0), "{what}: a write whose data never came was not done");
            },
        );
    }
}

#[test]
fn the_last_flag_is_needed() {
    Bench::run(
        1,
        |_| {},
        async |bench| {
            let (_admin, mut host) = RawHost::both(bench.address, PLAIN).await;
            let cid = host.start(blocks(io::WRITE, 0, 1, false), &[]).await;
            let Some((Pdu::R2t { ttag, .. }, _)) = host.next().await else { panic!("no R2T") };
            let mut bytes = host.sealer.h2c_data(cid, ttag, 0, 4096, 0).to_vec();
            bytes.extend([1; 4096]);
            host.send(&bytes).await;
            assert_eq!(host.terminated().await, (fes::INVALID_HEADER_FIELD, 1));
        },
    );
}

#[test]
fn slow_hosts_do_not_hold_connections() {
    let change = |config: &mut nvmf::TargetConfig| {
        config.handshake_limit = Duration::from_secs(2);
        config.connections_max = 4;
    };
    Bench::run(1, change, async |bench| {
        let limit = Duration::from_millis(2500);
        let mut silent = RawHost::open(bench.address).await;
        let mut dribbling = RawHost::open(bench.address).await;
        dribbling.send(&IcReq::new(PLAIN).as_bytes()[..100]).await;
        let mut waiting = RawHost::initialized(bench.address, PLAIN).await;
        let mut half_a_connect = RawHost::initialized(bench.address, PLAIN).await;
        let bytes = half_a_connect.sealer.command(&connect(0).sqe(), 1024).to_vec();
        half_a_connect.send(&bytes).await;
        half_a_connect.send(&[0; 500]).await;
        // A fifth is not taken while these four are there.
        let mut fifth = RawHost::open(bench.address).await;
        assert!(fifth.closes_within(Duration::from_secs(1)).await, "too many connections");
        for host in [&mut silent, &mut dribbling, &mut waiting, &mut half_a_connect] {
            assert!(host.closes_within(limit).await);
        }
        let association = bench.connect(|_| {}).await;
        still_serves(&bench, &association).await;
    });
}

#[test]
fn a_host_that_gives_up_is_believed() {
    Bench::run(
        1,
        |_| {},
        async |bench| {
            let (_admin, mut host) = RawHost::both(bench.address, PLAIN).await;
            host.send(&term_req(TERM_KIND, fes::DATA_OUT_OF_RANGE, 0, &[0; 24])).await;
            assert!(host.closes_within(Duration::from_secs(2)).await);
            bench.until("the session is closed", || bench.exported.closed.get() == 1).await;
        },
    );
}

#[test]
fn shutdown_and_reset_are_seen_through() {
    Bench::run(
        1,
        |_| {},
        async |bench| {
            for (value, done) in [(cc::EN | cc::SHN_NORMAL, csts::RDY | csts::SHST_COMPLETE), (0, 0)] {
                let before = bench.exported.closed.get();
                let slow =
                    bench.exported.faults.add(Rule::on(Op::Write, Effect::Delay(Duration::from_millis(500))));
                let (mut admin, mut io_queue) = RawHost::both(bench.address, PLAIN).await;
                io_queue.start(blocks(io::WRITE, 0, 1, true), &[5; 4096]).await;
                rt::sleep(Duration::from_millis(50)).await;
                admin.command(fabrics::property_set(property::CC, value), &[]).await.expect("shut down");
                assert!(io_queue.closes_within(Duration::from_secs(1)).await, "I/O queues close at once");
                let status =
                    admin.command(fabrics::property_get(property::CSTS, false), &[]).await.expect("status");
                assert_ne!(status, u64::from(done), "a write still runs");
                assert_eq!(bench.exported.closed.get(), before);
                rt::sleep(Duration::from_millis(600)).await;
                let status =
                    admin.command(fabrics::property_get(property::CSTS, false), &[]).await.expect("status");
                assert_eq!(status, u64::from(done));
                assert_eq!(bench.exported.closed.get(), before + 1);
                let identify = admin.command(Sqe::new(admin::KEEP_ALIVE, 0, [0; 6]), &[]).await;
                assert_eq!(identify, Err(StatusCode::SEQUENCE_ERROR), "it cannot be enabled again");
                assert!(admin.closes_within(Duration::from_secs(6)).await);
                bench.exported.faults.remove(slow);
            }
        },
    );
}

#[test]
fn an_association_that_is_ended_runs_dry_first() {
    Bench::run(
        1,
        |_| {},
        async |bench| {
            let old = bench.connect(|_| {}).await;
            let new = bench.connect(|options| options.hostnqn = "nqn.newer".into()).await;
            let handle = bench.exported.associations.borrow()[0].clone();
            let wait =
                VendorCommand { opcode: 0xC0, cdw10_15: [300, 0, 0, 0, 0, 0], data: None, data_len: 0 };
            let running = rt::spawn({
                let (old, wait) = (old.clone(), wait.clone());
                async move { old.vendor(1, wait).await }
            });
            bench.until("it runs", || bench.exported.running.get() == 1).await;
            let began = rt::now();
            handle.end();
            assert!(!handle.is_ended());
            let refused = old.namespace(1).write(Lba(1), stamped(1, 1, 1), Durability::Cached).await;
            assert!(refused.is_err(), "nothing starts any more");
            handle.ended().await;
            assert!(began.elapsed() >= Duration::from_millis(200), "what ran has ended");
            assert_eq!((bench.exported.running.get(), bench.exported.closed.get()), (0, 1));
            assert!(running.await.is_err(), "its answer is dropped");
            rt::timeout(Duration::from_secs(1), old.dead()).await.expect("its host learns it");
            let disk = bench.exported.disk.read(Lba(1), DmaBuf::new(4096)).await.expect("read");
            assert!(disk.iter().all(|&b| b == 0));
            still_serves(&bench, &new).await;
        },
    );
}

/// Real conversations with bytes changed, cut, doubled and moved: the target lives, and serves others.
#[test]
fn noise_is_survived() {
    let scenes = ["connect.0", "io.1", "digests.1", "errors.1", "discovery.0"];
    let streams: Vec<Vec<u8>> = scenes
        .iter()
        .map(|scene| {
            let path = format!("{}/tests/golden/{scene}.host.bin", env!("CARGO_MANIFEST_DIR"));
            std::fs::read(path).expect("a golden stream")
        })
        .collect();
    let streams = Rc::new(streams);
    for seed in 0..20 {
        let streams = Rc::clone(&streams);
        Bench::run(
            seed,
            |_| {},
            async move |bench| {
                let association = bench.connect(|_| {}).await;
                for _ in 0..20 {
                    let stream = &streams[usize::try_from(rt::random_u64() % 5).expect("small")];
                    let mut bytes = stream.clone();
                    let mut host = if rt::random_u64().is_multiple_of(4) {
                        RawHost::open(bench.address).await
                    } else {
                        bytes.drain(..128);
                        let digests = if rt::random_u64().is_multiple_of(3) { FULL } else { PLAIN };
                        if rt::random_u64().is_multiple_of(2) {
                            RawHost::both(bench.address, digests).await.1
                        } else {
                            RawHost::initialized(bench.address, digests).await
                        }
                    };
                    let len = bytes.len() as u64;
                    let at = |limit: u64| usize::try_from(rt::random_u64() % limit).expect("small");
                    for _ in 0..rt::random_u64() % 5 {
                        let place = at(len.min(2000));
                        bytes[place] = rt::random_u64().to_le_bytes()[0];
                    }
                    bytes.drain(..at(4) * 72);
                    bytes.truncate(at(len) + 1);
                    host.send(&bytes).await;
                    rt::sleep(Duration::from_millis(rt::random_u64() % 20)).await;
                }
                still_serves(&bench, &association).await;
                association.close().await;
                let opened = bench.exported.opened.get();
                bench.until("all sessions are closed", || bench.exported.closed.get() == opened).await;
            },
        );
    }
}

#[test]
fn a_host_that_does_not_read_its_answers_is_not_listened_to() {
    Bench::run(
        1,
        |_| {},
        async |bench| {
            let good = bench.connect(|_| {}).await;
            let (mut admin, _) = RawHost::admin(bench.address, PLAIN).await;
            let mut get = fabrics::property_get(property::CSTS, false);
            let chunk: Vec<u8> = (0..1000_u16)
                .flat_map(|cid| {
                    get.cid = cid.into();
                    admin.sealer.command(&get, 0).to_vec()
                })
                .collect();
            let sent = std::cell::Cell::new(0);
            let sending = async {
                while sent.get() < 200 {
                    admin.send(&chunk).await;
                    sent.set(sent.get() + 1);
                }
            };
            assert!(
                rt::timeout(Duration::from_secs(5), sending).await.is_err(),
                "14 MB of commands were taken"
            );
            assert!(sent.get() > 10, "{}", sent.get());
            still_serves(&bench, &good).await;
        },
    );
}

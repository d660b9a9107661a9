//! Every PDU that the Linux kernel's initiator and target sent (`tests/golden`) is decoded and encoded again, and must
//! come out byte for byte; the interesting ones are also built from what they mean.

use nvmf::wire::command::{Cqe, DatasetRange, Sgl, Sqe, admin, io};
use nvmf::wire::digest::crc32c;
use nvmf::wire::fabrics::{self, Connect, ConnectData};
use nvmf::wire::frame::{Frame, Framing, Parsed, Pdu, Phase, Role};
use nvmf::wire::identify::{self, IdentifyController, IdentifyNamespace};
use nvmf::wire::log::{self, LogRequest};
use nvmf::wire::pdu::{Digests, IcReq, IcResp, Sealer, flag};
use nvmf::wire::status::StatusCode;
use std::path::Path;
use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

pub(crate) const SUBNQN: &str = "nqn.2026-01.io.orlop:golden";
const HOSTNQN: &str = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
const HOSTID: Uuid = Uuid::from_u128(0x1111_1111_2222_3333_4444_5555_5555_5555);
const NAMESPACE: Uuid = Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
const SCENES: [&str; 10] = [
    "discovery.0",
    "connect.0",
    "connect.1",
    "io.0",
    "io.1",
    "digests.0",
    "digests.1",
    "errors.0",
    "errors.1",
    "errors.2",
];

/// One PDU of a recorded stream.
struct Recorded {
    pdu: Pdu,
    data: Vec<u8>,
}

/// Decodes a recorded stream, checking that each PDU encodes to the very same bytes.
fn stream(name: &str, role: Role) -> Vec<Recorded> {
    let end = if role == Role::Controller { "host" } else { "controller" };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.{end}.bin"));
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let on = name.starts_with("digests");
    let mut framing = Framing {
        role,
        phase: Phase::Initializing,
        digests: Digests::default(),
        in_capsule_max: 16384,
        data_max: 0x0040_0000,
    };
    let mut rest = &bytes[..];
    let mut recorded = Vec::new();
    while !rest.is_empty() {
        let frame = match framing.parse(rest) {
            Ok(Parsed::Frame(frame)) => frame,
            other => panic!("{name}.{end}: PDU {} of {} bytes left: {other:?}", recorded.len(), rest.len()),
        };
        let data = &rest[frame.head_len..frame.head_len + frame.data_len as usize];
        let mut encoded = encode(&frame, framing.digests);
        encoded.extend_from_slice(data);
        if frame.data_digest {
            encoded.extend_from_slice(&crc32c(data).to_le_bytes());
        }
        assert_eq!(encoded, rest[..encoded.len()], "{name}.{end}: PDU {} {:?}", recorded.len(), frame.pdu);
        recorded.push(Recorded { pdu: frame.pdu, data: data.to_vec() });
        rest = &rest[encoded.len()..];
        framing.phase = Phase::Running;
        framing.digests = Digests { header: on, data: on };
    }
    recorded
}

fn encode(frame: &Frame, digests: Digests) -> Vec<u8> {
    let sealer = Sealer { digests, data_align: 4 };
    let flags = |last, success| if last { flag::LAST } else { 0 } | if success { flag::SUCCESS } else { 0 };
    let known = |dgst| Digests::from_dgst(dgst).expect("the kernel sets no unknown bits");
    match frame.pdu {
        Pdu::IcReq(req) => IcReq::new(known(req.dgst)).as_bytes().to_vec(),
        Pdu::IcResp(resp) => IcResp::new(known(resp.dgst), resp.maxh2cdata.get()).as_bytes().to_vec(),
        Pdu::TermReq(_) => panic!("the kernel recorded no termination"),
        Pdu::Command(sqe) => sealer.command(&sqe, frame.data_len as usize).to_vec(),
        Pdu::Response(cqe) => sealer.response(&cqe).to_vec(),
        Pdu::H2cData(d) => sealer.h2c_data(d.cid, d.ttag, d.offset, d.len, flags(d.last, false)).to_vec(),
        Pdu::C2hData(d) => sealer.c2h_data(d.cid, d.offset, d.len, flags(d.last, d.success)).to_vec(),
        Pdu::R2t { cid, ttag, offset, len } => sealer.r2t(cid, ttag, offset, len).to_vec(),
    }
}

/// A command of the kernel's initiator with everything that the kernel's target answered.
pub(crate) struct Exchange {
    pub(crate) sqe: Sqe,
    pub(crate) sent: Vec<u8>,
    pub(crate) received: Vec<u8>,
    pub(crate) cqe: Cqe,
    r2ts: usize,
}

/// The commands of one connection, in order of their answers.
pub(crate) fn exchanges(name: &str) -> Vec<Exchange> {
    let mut commands: Vec<(Sqe, Vec<u8>)> = Vec::new();
    for recorded in stream(name, Role::Controller) {
        match recorded.pdu {
            Pdu::Command(sqe) => commands.push((sqe, recorded.data)),
            Pdu::H2cData(data) => {
                let of_command = |(sqe, _): &(Sqe, Vec<u8>)| sqe.cid.get() == data.cid;
                let at = commands.iter().rposition(of_command).expect("a command");
                assert_eq!(data.offset as usize, commands[at].1.len());
                commands[at].1.extend_from_slice(&recorded.data);
            }
            _ => {}
        }
    }
    let mut received: Vec<(u16, Vec<u8>)> = Vec::new();
    let mut r2ts = Vec::new();
    let mut exchanges = Vec::new();
    for recorded in stream(name, Role::Host) {
        match recorded.pdu {
            Pdu::C2hData(data) => {
                assert!(!data.success, "the kernel's target sends responses while flow control is on");
                received.push((data.cid, recorded.data));
            }
            Pdu::R2t { cid, .. } => r2ts.push(cid),
            Pdu::Response(cqe) => {
                let cid = cqe.cid.get();
                let at = commands.iter().position(|(sqe, _)| sqe.cid.get() == cid).expect("it was sent");
                let (sqe, sent) = commands.remove(at);
                let data = received.extract_if(.., |(other, _)| *other == cid).flat_map(|d| d.1).collect();
                let r2ts = r2ts.extract_if(.., |other| *other == cid).count();
                exchanges.push(Exchange { sqe, sent, received: data, cqe, r2ts });
            }
            _ => {}
        }
    }
    exchanges
}

fn find(exchanges: &[Exchange], opcode: u8) -> impl Iterator<Item = &Exchange> {
    exchanges.iter().filter(move |exchange| exchange.sqe.opcode == opcode)
}

fn identified(exchanges: &[Exchange], cns: u32) -> &[u8] {
    let found = find(exchanges, admin::IDENTIFY).find(|e| e.sqe.cdw(10) & 0xff == cns);
    &found.unwrap_or_else(|| panic!("Identify {cns:02X}h")).received
}

/// Our command with the identifier and the SGL that the kernel chose, to compare what it means.
fn with_kernels_choices(mut ours: Sqe, kernel: &Sqe) -> Sqe {
    ours.cid = kernel.cid;
    ours.sgl = kernel.sgl;
    ours
}

fn text(field: &[u8]) -> &str {
    let len = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    std::str::from_utf8(&field[..len]).expect("text").trim_end()
}

#[test]
fn every_pdu_comes_out_as_it_went_in() {
    let of = |scene| stream(scene, Role::Controller).len() + stream(scene, Role::Host).len();
    let count: usize = SCENES.into_iter().map(of).sum();
    assert!(count > 400, "{count} PDUs"); // The table in tests/golden/README.md.
}

#[test]
fn connect_as_the_kernel_sends_it() {
    for (scene, qid) in [("connect.0", 0), ("connect.1", 1), ("digests.0", 0), ("io.1", 1)] {
        let exchanges = exchanges(scene);
        let connect = &exchanges[0];
        let fields = Connect::parse(&connect.sqe);
        assert_eq!((fields.qid, fields.recfmt), (qid, 0), "{scene}");
        assert_eq!(with_kernels_choices(fields.sqe(), &connect.sqe), connect.sqe, "{scene}");
        assert_eq!(connect.sqe.sgl, Sgl::in_capsule(1024));
        let data = ConnectData::read_from_bytes(&connect.sent).expect("1024 bytes");
        assert_eq!((data.subnqn(), data.hostnqn()), (Some(SUBNQN), Some(HOSTNQN)));
        assert_eq!(data, ConnectData::new(HOSTID, data.cntlid.get(), SUBNQN, HOSTNQN));
        assert_eq!(data.cntlid.get() == fabrics::CNTLID_DYNAMIC, qid == 0, "{scene}");
        assert!(connect.cqe.outcome().is_ok());
    }
}

#[test]
fn controller_initialization_as_the_kernel_does_it() {
    let exchanges = exchanges("connect.0");
    let is_get = |e: &&Exchange| e.sqe.fabrics_type() == fabrics::kind::PROPERTY_GET;
    let gets: Vec<_> = find(&exchanges, 0x7f).filter(is_get).collect();
    assert!(gets.len() >= 2);
    for get in gets {
        let (offset, wide) = fabrics::property_of(&get.sqe).expect("4 or 8 bytes");
        assert_eq!(with_kernels_choices(fabrics::property_get(offset, wide), &get.sqe), get.sqe);
    }
    let controller = IdentifyController::read_from_bytes(identified(&exchanges, 1)).expect("4096 bytes");
    assert_eq!(text(&controller.subnqn), SUBNQN);
    assert_eq!(text(&controller.serial), "ORLOPGOLDEN");
    assert_eq!((controller.sqes, controller.cqes), (0x66, 0x44));
    assert_eq!(controller.ioccsz.get(), (64 + 16384) / 16);
    assert_eq!(u64::from(controller.cntlid.get()), exchanges[0].cqe.result.get() & 0xffff);
    assert_eq!(identify::parse_descriptors(identified(&exchanges, 3)), Some(NAMESPACE));
    assert_eq!(identify::parse_namespace_list(identified(&exchanges, 2)), [1]);
    assert_eq!(identify::namespace_list([1], 0), identified(&exchanges, 2));
    let namespace = IdentifyNamespace::read_from_bytes(identified(&exchanges, 0)).expect("4096 bytes");
    assert_eq!((namespace.nsze.get(), namespace.lbaf[0].lbads), (64 * 1024 * 1024 / 4096, 12));
}

#[test]
fn io_as_the_kernel_does_it() {
    for (scene, pattern) in [("io.1", "plain"), ("digests.1", "digested")] {
        let exchanges = exchanges(scene);
        let writes: Vec<_> = find(&exchanges, io::WRITE).collect();
        let expected = [(1, 1, 0, 0), (8, 4, 0, 0), (16, 6, 0, 1), (2, 1, io::FUA, 0)];
        assert_eq!(writes.len(), expected.len(), "{scene}");
        for (write, (lba, blocks, control, r2ts)) in writes.iter().zip(expected) {
            let ours = Sqe::blocks(io::WRITE, 1, lba, blocks, control);
            assert_eq!(with_kernels_choices(ours, &write.sqe), write.sqe);
            assert_eq!((write.sqe.slba(), write.sqe.block_count()), (lba, blocks));
            assert_eq!(write.r2ts, r2ts, "{scene}: 24 KiB are more than a capsule of that target holds");
            let len = u32::try_from(write.sent.len()).expect("small");
            assert_eq!(write.sqe.sgl, if r2ts > 0 { Sgl::transport(24576) } else { Sgl::in_capsule(len) });
            for (block, bytes) in write.sent.chunks(4096).enumerate() {
                let text = format!("{pattern} block {block} ");
                assert!(bytes.len() == 4096 && bytes.starts_with(text.as_bytes()), "{scene}: {text}");
            }
        }
        let read = find(&exchanges, io::READ).last().expect("a read");
        assert_eq!(read.sqe.sgl.kind, Sgl::TRANSPORT);
        let flush = find(&exchanges, io::FLUSH).next().expect("a flush");
        assert_eq!(with_kernels_choices(Sqe::new(io::FLUSH, 1, [0; 6]), &flush.sqe), flush.sqe);
    }
    let exchanges = exchanges("io.1");
    let zeroes = find(&exchanges, io::WRITE_ZEROES).next().expect("write-zeroes");
    assert_eq!((zeroes.sqe.slba(), zeroes.sqe.block_count()), (8, 2));
    let dataset = find(&exchanges, io::DATASET_MANAGEMENT).next().expect("a discard");
    assert_eq!((dataset.sqe.cdw(10), dataset.sqe.cdw(11)), (1, io::DATASET_DEALLOCATE));
    let range = |n: usize| DatasetRange::read_from_bytes(&dataset.sent[n * 16..][..16]).expect("16 bytes");
    assert_eq!((range(0).slba.get(), range(0).blocks.get()), (16, 2));
    assert_eq!((range(1).slba.get(), range(1).blocks.get()), (20, 1));
}

#[test]
fn discovery_as_the_kernel_does_it() {
    let exchanges = exchanges("discovery.0");
    let mut entries = Vec::new();
    for get in find(&exchanges, admin::GET_LOG_PAGE) {
        let request = LogRequest::parse(&get.sqe);
        assert_eq!(request.len_bytes, get.received.len() as u64);
        assert_eq!(request.sqe().cdw10_15, get.sqe.cdw10_15);
        if request.id != log::id::DISCOVERY || request.len_bytes <= 1024 {
            continue;
        }
        let records = if request.offset_bytes == 0 { &get.received[1024..] } else { &get.received[..] };
        entries = log::parse_discovery_records(records);
        for (record, entry) in records.chunks(1024).zip(&entries) {
            let ours = log::DiscoveryRecord::new(entry);
            let kernels = log::DiscoveryRecord::read_from_bytes(record).expect("1024 bytes");
            assert_eq!(
                (ours.trtype, ours.adrfam, ours.subtype),
                (kernels.trtype, kernels.adrfam, kernels.subtype)
            );
            assert_eq!((ours.subnqn, ours.cntlid), (kernels.subnqn, kernels.cntlid));
            assert_eq!(text(&ours.traddr), text(&kernels.traddr));
            assert_eq!(text(&ours.trsvcid), text(&kernels.trsvcid));
        }
    }
    assert!(entries.iter().any(|entry| entry.subnqn == SUBNQN && entry.port == 4420), "{entries:?}");
}

#[test]
fn errors_as_the_kernel_answers_them() {
    let refused = exchanges("errors.0");
    assert_eq!(refused[0].cqe.outcome(), Err(StatusCode::CONNECT_INVALID_PARAMETERS));
    assert_eq!(refused[0].cqe.result.get() & 0xffff_ffff, (1 << 16) | 256, "the name of the subsystem");
    let admin_queue = exchanges("errors.1");
    let unknown = find(&admin_queue, admin::GET_LOG_PAGE).find(|e| e.sqe.cdw(10) & 0xff == 0x7f);
    assert!(unknown.expect("a log").cqe.outcome().is_err());
    assert!(find(&admin_queue, admin::KEEP_ALIVE).all(|e| e.cqe.outcome() == Ok(0)));
    let io_queue = exchanges("errors.2");
    assert!(find(&io_queue, 0xc1).all(|e| e.cqe.outcome() == Err(StatusCode::INVALID_OPCODE)));
    let beyond = find(&io_queue, io::READ).find(|e| e.sqe.slba() == 16384).expect("a read beyond the end");
    // That target's null_blk gives "internal error" here; ours says "LBA out of range".
    assert!(beyond.cqe.outcome().is_err());
}

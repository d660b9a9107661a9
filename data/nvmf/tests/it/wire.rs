//! Properties of the formats: what is encoded is decoded again, and no bytes at all make the parser panic or believe a
//! length that it does not allow.

use nvmf::wire::command::{Cqe, Sqe};
use nvmf::wire::digest::crc32c;
use nvmf::wire::fabrics::{Connect, ConnectData, is_nqn};
use nvmf::wire::frame::{Frame, Framing, HEAD_LEN_MAX, Parsed, Pdu, Phase, Role, Violation};
use nvmf::wire::identify;
use nvmf::wire::log::{LogRequest, parse_discovery_records};
use nvmf::wire::pdu::{Digests, IcReq, Sealer, fes, flag, kind, term_req};
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

const IN_CAPSULE_MAX: u32 = 8192;
const DATA_MAX: u32 = 1 << 20;

const fn framing(role: Role, phase: Phase, digests: Digests) -> Framing {
    Framing { role, phase, digests, in_capsule_max: IN_CAPSULE_MAX, data_max: DATA_MAX }
}

fn frame(framing: &Framing, bytes: &[u8]) -> Frame {
    match framing.parse(bytes) {
        Ok(Parsed::Frame(frame)) => frame,
        other => panic!("{other:?}"),
    }
}

prop_compose! {
    fn any_digests()(header in any::<bool>(), data in any::<bool>()) -> Digests {
        Digests { header, data }
    }
}

/// One end, and the head of a valid PDU that it may receive.
fn any_pdu() -> impl Strategy<Value = (Framing, Vec<u8>)> {
    let ids = (any::<u16>(), any::<u16>(), any::<u32>(), 1..=DATA_MAX, any::<bool>());
    let align = prop_oneof![Just(4_u8), Just(16), Just(128)];
    (any::<[u8; 64]>(), ids, 0..6_u8, any_digests(), align).prop_map(
        |(bytes, ids, which, digests, data_align)| {
            let (cid, ttag, offset, len, last) = ids;
            let sealer = Sealer { digests, data_align };
            let flags = if last { flag::LAST } else { 0 };
            let sqe = || Sqe::read_from_bytes(&bytes).expect("64 bytes");
            let cqe = || Cqe::read_from_bytes(&bytes[..16]).expect("16 bytes");
            let (role, pdu) = match which {
                0 => {
                    (Role::Controller, sealer.command(&sqe(), (len % (IN_CAPSULE_MAX + 1)) as usize).to_vec())
                }
                1 => (Role::Controller, sealer.h2c_data(cid, ttag, offset, len, flags).to_vec()),
                2 => (Role::Controller, term_req(kind::H2C_TERM_REQ, cid, offset, &bytes)),
                3 => (Role::Host, sealer.response(&cqe()).to_vec()),
                4 => (Role::Host, sealer.c2h_data(cid, offset, len, flags).to_vec()),
                _ => (Role::Host, sealer.r2t(cid, ttag, offset, len).to_vec()),
            };
            (framing(role, Phase::Running, digests), pdu)
        },
    )
}

/// An error, a need for at most 256 bytes, or a frame within the limits.
fn check_bounded(framing: &Framing, bytes: &[u8]) -> Result<(), TestCaseError> {
    match framing.parse(bytes) {
        Ok(Parsed::Need(need)) => prop_assert!(need > bytes.len() && need <= HEAD_LEN_MAX),
        Ok(Parsed::Frame(frame)) => {
            prop_assert!(frame.head_len <= HEAD_LEN_MAX && frame.head_len <= bytes.len());
            let max = match frame.pdu {
                Pdu::Command(_) => IN_CAPSULE_MAX,
                Pdu::H2cData(_) | Pdu::C2hData(_) => DATA_MAX,
                Pdu::TermReq(_) => 128,
                _ => 0,
            };
            prop_assert!(frame.data_len <= max, "{:?}", frame);
        }
        Err(violation) => prop_assert!((1..=6).contains(&violation.fes)),
    }
    Ok(())
}

proptest! {
    #[test]
    fn commands_and_data_come_back(
        bytes in any::<[u8; 64]>(), digests in any_digests(), len in 0..=IN_CAPSULE_MAX,
        cid in any::<u16>(), ttag in any::<u16>(), offset in any::<u32>(),
    ) {
        let sealer = Sealer { digests, data_align: 4 };
        let controller = framing(Role::Controller, Phase::Running, digests);
        let sqe = Sqe::read_from_bytes(&bytes).expect("64 bytes");
        let head = sealer.command(&sqe, len as usize);
        let parsed = frame(&controller, &head);
        prop_assert_eq!(parsed.pdu, Pdu::Command(sqe));
        prop_assert_eq!((parsed.head_len, parsed.data_len), (head.len(), len));
        prop_assert_eq!(parsed.data_digest, digests.data && len > 0);
        let Pdu::H2cData(data) = frame(&controller, &sealer.h2c_data(cid, ttag, offset, len + 1, flag::LAST)).pdu
            else { return Err(TestCaseError::fail("not H2CData")) };
        prop_assert_eq!((data.cid, data.ttag, data.offset, data.len), (cid, ttag, offset, len + 1));
        prop_assert!(data.last && !data.success);
        let host = framing(Role::Host, Phase::Running, digests);
        let r2t = frame(&host, &sealer.r2t(cid, ttag, offset, len + 1)).pdu;
        prop_assert_eq!(r2t, Pdu::R2t { cid, ttag, offset, len: len + 1 });
    }

    /// However the bytes are cut, the parser asks for more until it has exactly the head.
    #[test]
    fn prefixes_need_more((framing, pdu) in any_pdu()) {
        let whole = frame(&framing, &pdu);
        for cut in 0..whole.head_len {
            match framing.parse(&pdu[..cut]) {
                Ok(Parsed::Need(need)) => prop_assert!(need > cut && need <= whole.head_len),
                other => prop_assert!(false, "{}: {:?}", cut, other),
            }
        }
    }

    #[test]
    fn garbage_is_bounded(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..300), digests in any_digests(), host in any::<bool>(),
        first in prop_oneof![0..10_u8, any::<u8>()], initializing in any::<bool>(),
        hlen in prop_oneof![Just(24_u8), Just(72), Just(128), any::<u8>()], plen in prop_oneof![0..5000_u32, any::<u32>()],
    ) {
        if bytes.len() >= 8 {
            bytes[0] = first;
            bytes[2] = hlen;
            bytes[4..8].copy_from_slice(&plen.to_le_bytes());
        }
        let phase = if initializing { Phase::Initializing } else { Phase::Running };
        check_bounded(&framing(if host { Role::Host } else { Role::Controller }, phase, digests), &bytes)?;
    }

    /// A valid PDU with one byte changed; with header digests the change is always seen.
    #[test]
    fn damage_is_seen((framing, mut pdu) in any_pdu(), at in 0..24_usize, flip in 1..=255_u8) {
        let digested = framing.digests.header && pdu[0] != kind::H2C_TERM_REQ;
        pdu[at] ^= flip;
        check_bounded(&framing, &pdu)?;
        if digested && pdu[0] != kind::H2C_TERM_REQ && pdu[0] != kind::C2H_TERM_REQ {
            prop_assert!(!matches!(framing.parse(&pdu), Ok(Parsed::Frame(_))));
        }
    }

    #[test]
    fn connect_comes_back(
        qid in any::<u16>(), sqsize in any::<u16>(), cattr in any::<u8>(), kato_ms in any::<u32>(),
        hostid in any::<u128>(), name in "nqn\\.[a-z0-9.:-]{0,219}",
    ) {
        let connect = Connect { recfmt: 0, qid, sqsize, cattr, kato_ms };
        prop_assert_eq!(Connect::parse(&connect.sqe()), connect);
        let data = ConnectData::new(uuid::Uuid::from_u128(hostid), qid, &name, &name);
        prop_assert_eq!((data.subnqn(), data.hostnqn()), (Some(&name[..]), Some(&name[..])));
        prop_assert_eq!(data.hostid, hostid.to_be_bytes());
    }

    #[test]
    fn log_requests_come_back(
        id in any::<u8>(), retain_event in any::<bool>(), dwords in 1..=0xFFFF_FFFF_u64, offset_bytes in any::<u64>(),
    ) {
        let request = LogRequest { id, retain_event, len_bytes: dwords * 4, offset_bytes };
        prop_assert_eq!(LogRequest::parse(&request.sqe()), request);
    }

    #[test]
    fn block_commands_come_back(lba in any::<u64>(), count in 1..=65536_u64) {
        let sqe = Sqe::blocks(1, 1, lba, count, 0);
        prop_assert_eq!((sqe.slba(), sqe.block_count()), (lba, count));
    }

    /// Lists, descriptors, records and names made of any bytes.
    #[test]
    fn hostile_structures_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
        prop_assert!(identify::parse_namespace_list(&bytes).len() <= bytes.len() / 4);
        prop_assert!(identify::parse_descriptors(&bytes).is_none() || bytes.len() >= 20);
        prop_assert!(parse_discovery_records(&bytes).len() <= bytes.len() / 1024);
        if let Ok((data, _)) = ConnectData::read_from_prefix(&bytes) {
            prop_assert!(data.subnqn().is_none_or(is_nqn) && data.hostnqn().is_none_or(is_nqn));
        }
    }
}

/// Every lie about a length, and what it is answered with.
#[test]
fn lies_are_named() {
    let controller = framing(Role::Controller, Phase::Running, Digests::default());
    let sealer = Sealer { digests: Digests::default(), data_align: 4 };
    let command = sealer.command(&Sqe::new(1, 1, [0; 6]), 4096);
    let data = sealer.h2c_data(1, 2, 0, 4096, flag::LAST);
    let check = |what: &str, original: &[u8], changes: &[(usize, u8)], expected: Violation| {
        let mut bytes = original.to_vec();
        for &(at, value) in changes {
            bytes[at] = value;
        }
        assert_eq!(controller.parse(&bytes), Err(expected), "{what}");
    };
    check("an unknown type", &command, &[(0, 0x0a)], Violation::field(0));
    check("a type of the other direction", &command, &[(0, kind::CAPSULE_RESP)], Violation::SEQUENCE);
    check("a second ICReq", IcReq::new(Digests::default()).as_bytes(), &[], Violation::SEQUENCE);
    check("a header length too short", &command, &[(2, 71)], Violation::field(2));
    check("a header length too long", &command, &[(2, 73)], Violation::field(2));
    check("an unagreed header digest", &command, &[(1, flag::HEADER_DIGEST)], Violation::field(1));
    check("an unagreed data digest", &command, &[(1, flag::DATA_DIGEST)], Violation::field(1));
    check("data inside the header", &command, &[(3, 8)], Violation::field(3));
    check("data at an odd offset", &command, &[(3, 73)], Violation::field(3));
    check("a PDU shorter than its header", &command, &[(4, 71), (5, 0)], Violation::field(4));
    check("a PDU shorter than its data offset", &command, &[(3, 76), (4, 74), (5, 0)], Violation::field(4));
    check("more in-capsule data than allowed", &command, &[(6, 1)], Violation::LIMIT);
    check("a PDU of almost 4 GiB", &command, &[(4, 255), (5, 255), (6, 255), (7, 255)], Violation::LIMIT);
    check("a data length unlike the PDU's", &data, &[(17, 0x0f)], Violation::field(16));
    check("data of length zero", &data, &[(4, 24), (5, 0), (17, 0)], Violation::field(16));
    let before = framing(Role::Controller, Phase::Initializing, Digests::default());
    assert_eq!(before.parse(&command), Err(Violation::SEQUENCE), "a command before ICReq");
    let digests = Digests { header: true, data: false };
    let mut digested = Sealer { digests, data_align: 4 }.command(&Sqe::new(1, 1, [0; 6]), 0).to_vec();
    let sent = crc32c(&digested[..72]);
    digested[20] ^= 1;
    let expected = Violation { fes: fes::HEADER_DIGEST_ERROR, fei: sent };
    assert_eq!(framing(Role::Controller, Phase::Running, digests).parse(&digested), Err(expected));
}

#[test]
fn terminations_carry_their_cause() {
    let bytes = term_req(kind::C2H_TERM_REQ, fes::INVALID_HEADER_FIELD, 0x0102_0304, &[7; 200]);
    assert_eq!(bytes.len(), 152, "at most 128 bytes of the PDU in error");
    let host = framing(Role::Host, Phase::Running, Digests { header: true, data: true });
    let parsed = frame(&host, &bytes);
    assert_eq!((parsed.head_len, parsed.data_len), (24, 128));
    let Pdu::TermReq(term) = parsed.pdu else { panic!("{:?}", parsed.pdu) };
    assert_eq!((term.fes.get(), term.fei()), (1, 0x0102_0304));
}

//! Authentication between real ends over the simulated network: who has the key gets in on every queue, and who has not
//! reaches nothing: no session is opened for it, and no command of it is run.

use crate::raw::{RawHost, blocks, connect, data, fabrics_command};
use crate::support::{Bench, HOSTNQN, SUBNQN, stamped};
use device::{Device, Lba};
use nvmf::wire::auth::{Body, Challenge, Message, Reason};
use nvmf::wire::command::{Sgl, Sqe, admin, io};
use nvmf::wire::fabrics::{self, AUTH_LEN_MAX, AUTHREQ_ATR, CNTLID_DYNAMIC, DISCOVERY_NQN, cc, property};
use nvmf::wire::frame::Pdu;
use nvmf::wire::pdu::Digests;
use nvmf::wire::status::StatusCode;
use nvmf::{ErrorKind, Key, Unauthenticated};
use proptest::prelude::*;
use rt::{DmaBuf, Durability};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

const PLAIN: Digests = Digests { header: false, data: false };

/// What the bench's target asks of `hostnqn`.
fn key_of(secret: &Key, subnqn: &str, hostnqn: &str) -> Key {
    secret.derive(&[subnqn.as_bytes(), hostnqn.as_bytes()])
}

fn secret() -> Key {
    Key::new([0x5E; nvmf::KEY_LEN])
}

/// Runs `test` against a target that asks for keys.
fn locked<F: Future<Output = ()>>(seed: u64, test: impl FnOnce(Rc<Bench>) -> F) {
    Bench::run(
        seed,
        |_| {},
        |bench| {
            bench.exported.secret.replace(Some(secret()));
            test(bench)
        },
    );
}

#[test]
fn who_has_the_key_is_served_on_all_queues() {
    for (seed, digests) in [(1, false), (2, true)] {
        locked(seed, async move |bench| {
            let key = Some(key_of(&secret(), SUBNQN, HOSTNQN));
            let association = bench
                .connect(|options| {
                    options.key = key;
                    options.queues = 3;
                    (options.header_digest, options.data_digest) = (digests, digests);
                })
                .await;
            let namespace = association.namespace(1);
            for lba in 0..6 {
                namespace.write(Lba(lba), stamped(lba, 1, 9), Durability::Cached).await.expect("write");
                let read = namespace.read(Lba(lba), DmaBuf::new(4096)).await.expect("read");
                assert!(read[..] == stamped(lba, 1, 9)[..]);
            }
            let key = Some(key_of(&secret(), DISCOVERY_NQN, HOSTNQN));
            let found = nvmf::discover(bench.address, HOSTNQN, crate::support::HOSTID, key).await;
            assert_eq!(found.expect("discovers").len(), 2);
        });
    }
}

#[test]
fn who_has_not_the_key_is_refused_and_told_why() {
    locked(3, async |bench| {
        let refused = Unauthenticated::Refused(Reason::FAILED);
        let cases = [
            ("no key", None, Unauthenticated::NoKey, "give this host|secret of the cluster"),
            ("a wrong key", Some(Key::new([1; nvmf::KEY_LEN])), refused, "does not accept this host's key"),
            ("the secret itself", Some(secret()), refused, "made for this host's name"),
            ("another host's key", Some(key_of(&secret(), SUBNQN, "nqn.other")), refused, "key"),
            ("another volume's key", Some(key_of(&secret(), "nqn.other", HOSTNQN)), refused, "key"),
        ];
        for (what, key, why, says) in cases {
            let mut options = bench.options();
            options.key = key;
            let error = bench.try_connect(options).await.err().expect(what);
            assert_eq!(error.kind(), ErrorKind::Unauthenticated(why), "{what}");
            let text = error.to_string();
            assert!(says.split('|').any(|part| text.contains(part)), "{what}: {text}");
        }
        assert_eq!(bench.exported.opened.get(), 0, "nothing was opened for any of them");
    });
}

/// A host that has a key does not hand its data to a target that asks for none: it may be anybody.
#[test]
fn a_target_that_asks_for_nothing_is_not_trusted() {
    Bench::run(
        4,
        |_| {},
        async |bench| {
            let mut options = bench.options();
            options.key = Some(secret());
            let error = bench.try_connect(options).await.err().expect("refused");
            assert_eq!(error.kind(), ErrorKind::Unauthenticated(Unauthenticated::NotAsked));
        },
    );
}

/// Commands that would be answered on a connected queue; none may be on one without proof.
fn forbidden() -> Vec<(Sqe, Vec<u8>)> {
    let mut identify = Sqe::new(admin::IDENTIFY, 0, [1, 0, 0, 0, 0, 0]);
    identify.sgl = Sgl::transport(4096);
    vec![
        (fabrics::property_get(property::CAP, true), vec![]),
        (fabrics::property_set(property::CC, cc::EN | cc::ENTRY_SIZES), vec![]),
        (identify, vec![]),
        (Sqe::new(admin::KEEP_ALIVE, 0, [0; 6]), vec![]),
        (Sqe::new(admin::ASYNC_EVENT_REQUEST, 0, [0; 6]), vec![]),
        (blocks(io::READ, 0, 1, false), vec![]),
        (blocks(io::WRITE, 0, 1, true), vec![0xEE; 4096]),
        (Sqe::new(0xC0, 1, [0; 6]), vec![]),
        (fabrics_command(fabrics::kind::DISCONNECT), vec![]),
    ]
}

#[test]
fn nothing_but_the_proof_is_answered_before_it() {
    locked(5, async |bench| {
        let key = Some(key_of(&secret(), SUBNQN, HOSTNQN));
        let good = bench.connect(|options| options.key = key).await;
        let opened = bench.exported.opened.get();
        for qid in [0, 1] {
            // The good host's own association, should the I/O queue join it by guessing.
            let cntlid = if qid == 0 { CNTLID_DYNAMIC } else { 1 };
            for (sqe, payload) in forbidden() {
                let mut host = RawHost::initialized(bench.address, PLAIN).await;
                let result = host.connect(&connect(qid), &data(cntlid)).await.expect("Connect");
                assert_eq!(result >> 16, u64::from(AUTHREQ_ATR));
                let answer = host.command(sqe, &payload).await;
                assert_eq!(answer, Err(StatusCode::AUTHENTICATION_REQUIRED), "queue {qid}: {sqe:?}");
            }
        }
        let disk = bench.exported.disk.read(Lba(0), DmaBuf::new(4096)).await.expect("read");
        assert!(disk.iter().all(|&byte| byte == 0), "nothing was written");
        assert_eq!(bench.exported.opened.get(), opened, "no session was opened");
        assert!(!good.is_dead(), "an association is not disturbed by who claims to belong to it");
    });
}

/// Sends a message of the host.
async fn say(host: &mut RawHost, bytes: &[u8]) -> Result<u64, StatusCode> {
    let len = u32::try_from(bytes.len()).expect("short");
    let mut sqe = fabrics::auth_send(len);
    sqe.sgl = Sgl::in_capsule(len);
    host.command(sqe, bytes).await
}

/// Fetches a message of the target.
async fn hear(host: &mut RawHost) -> Body {
    let mut sqe = fabrics::auth_receive(AUTH_LEN_MAX);
    sqe.sgl = Sgl::transport(AUTH_LEN_MAX);
    host.start(sqe, &[]).await;
    let Some((Pdu::C2hData(_), bytes)) = host.next().await else { panic!("no message") };
    assert_eq!(host.response().await.outcome(), Ok(0));
    Message::parse(&bytes).expect("a message").body
}

fn message(body: Body) -> Vec<u8> {
    Message { transaction: 7, body }.encode()
}

fn negotiate() -> Vec<u8> {
    message(Body::Negotiate { secure_channel: 0, hashes: vec![3, 1], groups: vec![0, 1] })
}

async fn connected(bench: &Bench) -> RawHost {
    let mut host = RawHost::initialized(bench.address, PLAIN).await;
    host.connect(&connect(0), &data(CNTLID_DYNAMIC)).await.expect("Connect");
    host
}

/// A reply without the key, one that was overheard before, and messages that come at the wrong time.
#[test]
fn each_broken_exchange_is_refused_with_a_reason() {
    locked(6, async |bench| {
        let (response, second) = ([9; 32], Challenge { sequence: 1, value: [8; 32] });
        let reply = message(Body::Reply { response, challenge: Some(second) });
        let cases: [(&str, Vec<Vec<u8>>, Reason); 5] = [
            ("success at once", vec![message(Body::Success2)], Reason::INCORRECT_MESSAGE),
            ("a reply to no challenge", vec![reply.clone()], Reason::INCORRECT_MESSAGE),
            ("negotiating twice", vec![negotiate(), negotiate()], Reason::INCORRECT_MESSAGE),
            ("half a message", vec![negotiate()[..20].to_vec()], Reason::INCORRECT_PAYLOAD),
            (
                "no hash that is spoken",
                vec![message(Body::Negotiate { secure_channel: 0, hashes: vec![2, 3], groups: vec![0] })],
                Reason::HASH_NOT_USABLE,
            ),
        ];
        for (what, messages, reason) in cases {
            let mut host = connected(&bench).await;
            for bytes in messages {
                assert_eq!(say(&mut host, &bytes).await, Ok(0), "{what}");
            }
            assert_eq!(hear(&mut host).await, Body::Failure1(reason), "{what}");
            assert!(host.closes_within(Duration::from_secs(5)).await, "{what}");
        }
        // The same reply to two challenges, as somebody who listens would try.
        let mut challenges = Vec::new();
        for _ in 0..2 {
            let mut host = connected(&bench).await;
            say(&mut host, &negotiate()).await.expect("taken");
            challenges.push(hear(&mut host).await);
            say(&mut host, &reply).await.expect("taken");
            assert_eq!(hear(&mut host).await, Body::Failure1(Reason::FAILED));
            assert!(host.closes_within(Duration::from_secs(5)).await);
        }
        assert_ne!(challenges[0], challenges[1]);
        assert_eq!(bench.exported.opened.get(), 0);
    });
}

#[test]
fn a_proof_ends_in_time_and_after_a_few_commands() {
    locked(7, async |bench| {
        let mut silent = connected(&bench).await;
        let limit = nvmf::TargetConfig::new(bench.address).handshake_limit;
        assert!(silent.closes_within(limit + Duration::from_secs(1)).await, "a silent host");
        let mut chatty = connected(&bench).await;
        let mut answered = 0;
        loop {
            chatty.start(Sqe::new(admin::KEEP_ALIVE, 0, [0; 6]), &[]).await;
            match chatty.next().await {
                Some((Pdu::Response(_), _)) => answered += 1,
                Some(other) => panic!("{other:?}"),
                None => break,
            }
        }
        assert_eq!(answered, 16);
        // Lengths and places of data that are not those of the two commands.
        for (len, sgl) in [(0, 0), (AUTH_LEN_MAX + 1, AUTH_LEN_MAX + 1), (64, 4096), (4096, 64)] {
            let mut sqe = fabrics::auth_receive(len);
            sqe.sgl = Sgl::transport(sgl);
            let mut host = connected(&bench).await;
            assert_eq!(host.command(sqe, &[]).await, Err(StatusCode::INVALID_FIELD));
        }
        let mut by_r2t = fabrics::auth_send(64);
        by_r2t.sgl = Sgl::transport(64);
        let mut host = connected(&bench).await;
        assert_eq!(host.command(by_r2t, &[]).await, Err(StatusCode::SGL_TYPE_INVALID));
    });
}

/// Many hosts that never prove anything keep no controller id and no memory of the target.
#[test]
fn a_host_that_leaves_early_leaves_nothing() {
    Bench::run(
        8,
        |config| config.controller_ids = 1..=2,
        async |bench| {
            bench.exported.secret.replace(Some(secret()));
            for _ in 0..5 {
                let (one, two) = (connected(&bench).await, connected(&bench).await);
                drop((one, two));
                rt::sleep(Duration::from_secs(1)).await;
            }
            let key = Some(key_of(&secret(), SUBNQN, HOSTNQN));
            bench.connect(|options| options.key = key).await;
        },
    );
}

/// A volume that is not there, or busy, is said to a host with the key as well.
#[test]
fn what_opening_refuses_is_said_after_the_proof() {
    locked(9, async |bench| {
        let mut options = bench.options();
        options.hostnqn = "nqn.2026-11.io.orlop:stranger".into();
        options.key = Some(key_of(&secret(), SUBNQN, &options.hostnqn));
        let error = bench.try_connect(options).await.err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::Refused(StatusCode::CONNECT_INVALID_HOST));
    });
}

fn any_body() -> impl Strategy<Value = Body> {
    let bytes = any::<[u8; 32]>();
    let list = || prop::collection::vec(any::<u8>(), 0..=30);
    let challenge =
        || (1_u32.., any::<[u8; 32]>()).prop_map(|(sequence, value)| Challenge { sequence, value });
    prop_oneof![
        (any::<u8>(), list(), list()).prop_map(|(secure_channel, hashes, groups)| Body::Negotiate {
            secure_channel,
            hashes,
            groups
        }),
        challenge().prop_map(Body::Challenge),
        (bytes, prop::option::of(challenge()))
            .prop_map(|(response, challenge)| Body::Reply { response, challenge }),
        prop::option::of(bytes).prop_map(|response| Body::Success1 { response }),
        Just(Body::Success2),
        any::<u8>().prop_map(|reason| Body::Failure1(Reason(reason))),
        any::<u8>().prop_map(|reason| Body::Failure2(Reason(reason))),
    ]
}

proptest! {
    #[test]
    fn a_message_survives_the_wire(transaction: u16, body in any_body(), padding in 0_usize..64) {
        let message = Message { transaction, body };
        let mut bytes = message.encode();
        bytes.resize(bytes.len() + padding, 0xFF);
        prop_assert_eq!(Message::parse(&bytes), Ok(message));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), start in any_body(), cut in 0_usize..100) {
        let _whatever = Message::parse(&bytes);
        let mut damaged = Message { transaction: 1, body: start }.encode();
        damaged.truncate(cut);
        let at = bytes.first().map_or(0, |&byte| usize::from(byte));
        if let Some(byte) = damaged.get_mut(at) {
            *byte ^= 0x55;
        }
        let _whatever = Message::parse(&damaged);
        let _whatever = Key::parse(&String::from_utf8_lossy(&bytes));
    }
}

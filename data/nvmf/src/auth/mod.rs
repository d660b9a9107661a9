//! The two ends of a DH-HMAC-CHAP exchange, as states without I/O: messages in, messages out.
//!
//! ```text
//! host                                           controller
//!  | -- Negotiate: hashes, groups --------------> |
//!  | <----------------- Challenge: C1, number --  |
//!  | -- Reply: HMAC over C1; C2, number --------> |  lets the host in if the HMAC holds
//!  | <---------------- Success1: HMAC over C2 --  |
//!  | -- Success2 -------------------------------> |  the queue serves
//! ```
//!
//! # Invariants
//! 1. A challenge is random, is answered once, and only in the exchange that it was made for.
//! 2. What proves a host never proves a controller, nor the same host another name, nor for another subsystem.
//! 3. Each proof is compared in constant time, and nothing is said about how far it was right.
//!
//! # Spec
//! NVMe Base 2.0, section 8.13.5.

mod controller;
mod host;

pub(crate) use controller::{Controller, Step};
pub(crate) use host::Host;

use crate::key::{Key, mac};
use crate::wire::auth::{Challenge, HASH_LEN};
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// The two ends, and the key that they share.
#[derive(Clone, Debug)]
pub(crate) struct Parties {
    pub(crate) key: Key,
    pub(crate) hostnqn: String,
    pub(crate) subnqn: String,
}

impl Parties {
    /// What the host has to answer.
    fn host_proof(&self, transaction: u16, challenge: &Challenge) -> Hmac<Sha256> {
        let (host, controller) = (self.hostnqn.as_bytes(), self.subnqn.as_bytes());
        proof(&self.key.of(&self.hostnqn), transaction, challenge, [b"HostHost", host, controller])
    }

    /// What the controller has to answer.
    fn controller_proof(&self, transaction: u16, challenge: &Challenge) -> Hmac<Sha256> {
        let (host, controller) = (self.hostnqn.as_bytes(), self.subnqn.as_bytes());
        proof(&self.key.of(&self.subnqn), transaction, challenge, [b"Controller", controller, host])
    }
}

fn proof(
    key: &[u8; HASH_LEN],
    transaction: u16,
    challenge: &Challenge,
    [role, first, second]: [&[u8]; 3],
) -> Hmac<Sha256> {
    let numbers = (challenge.sequence.to_le_bytes(), transaction.to_le_bytes());
    // The zeroes: no TLS follows; the end of the first name.
    mac(key, &[&challenge.value, &numbers.0, &numbers.1, &[0], role, first, &[0], second])
}

fn response(proof: Hmac<Sha256>) -> [u8; HASH_LEN] {
    proof.finalize().into_bytes().into()
}

/// A new challenge (invariant 1).
pub(crate) fn challenge() -> Challenge {
    let mut value = [0; HASH_LEN];
    rt::random_bytes(&mut value);
    let mut sequence = [0; 4];
    rt::random_bytes(&mut sequence);
    Challenge { sequence: u32::from_le_bytes(sequence).max(1), value }
}

#[cfg(test)]
mod tests {
    use super::controller::Controller;
    use super::*;
    use crate::error::Unauthenticated;
    use crate::wire::auth::{Body, Message, Reason};

    const HOST: &str = "nqn.2026-11.io.orlop:host";
    const SUBSYSTEM: &str = "nqn.2026-11.io.orlop:volume";

    fn parties(key: u8, hostnqn: &str) -> Parties {
        Parties { key: Key::new([key; HASH_LEN]), hostnqn: hostnqn.into(), subnqn: SUBSYSTEM.into() }
    }

    fn numbered(number: u8) -> Challenge {
        Challenge { sequence: number.into(), value: [number; HASH_LEN] }
    }

    fn ends(host: Parties, controller: Parties) -> (Host, Controller) {
        (Host::new(host, 9, numbered(1)), Controller::new(controller, numbered(2)))
    }

    /// Runs the exchange to its end; how the host and the controller see it.
    fn exchange(host: &Host, controller: &mut Controller) -> (Result<(), Unauthenticated>, Step) {
        assert_eq!(controller.send(&host.negotiate()), Step::Next);
        let (challenge, step) = controller.receive();
        assert_eq!(step, Step::Next);
        let reply = host.reply(&challenge).expect("a challenge");
        assert_eq!(controller.send(&reply), Step::Next);
        let (success, step) = controller.receive();
        let verdict = host.judge(&success);
        if step != Step::Next {
            return (verdict, step);
        }
        let last = host.verdict(verdict.is_ok());
        (verdict, controller.send(&last))
    }

    #[test]
    fn the_same_key_lets_in_and_another_does_not() {
        let (host, mut controller) = ends(parties(1, HOST), parties(1, HOST));
        assert_eq!(exchange(&host, &mut controller), (Ok(()), Step::Admitted));
        // Another key, and the same key under another name.
        for other in [parties(2, HOST), parties(1, "nqn.2026-11.io.orlop:other")] {
            let (host, mut controller) = ends(other, parties(1, HOST));
            let refused = (Err(Unauthenticated::Refused(Reason::FAILED)), Step::Refused(Reason::FAILED));
            assert_eq!(exchange(&host, &mut controller), refused);
        }
    }

    /// An exchange that was overheard is of no use in the next one.
    #[test]
    fn a_replayed_reply_is_refused() {
        let (host, mut controller) = ends(parties(1, HOST), parties(1, HOST));
        controller.send(&host.negotiate());
        let overheard = host.reply(&controller.receive().0).expect("a challenge");
        assert_eq!(controller.send(&overheard), Step::Next);
        // Twice in one exchange, and in another one.
        assert_eq!(controller.send(&overheard), Step::Next);
        assert_eq!(controller.receive().1, Step::Refused(Reason::INCORRECT_MESSAGE));
        let mut next = Controller::new(parties(1, HOST), numbered(3));
        next.send(&host.negotiate());
        next.receive();
        next.send(&overheard);
        assert_eq!(next.receive().1, Step::Refused(Reason::FAILED));
    }

    /// A host that does not ask the controller for a proof is let in with the answer to its own.
    #[test]
    fn a_host_may_be_content_with_proving_itself() {
        let (host, mut controller) = ends(parties(1, HOST), parties(1, HOST));
        controller.send(&host.negotiate());
        let reply =
            Message::parse(&host.reply(&controller.receive().0).expect("a challenge")).expect("a reply");
        let Body::Reply { response, .. } = reply.body else { panic!("{reply:?}") };
        let reply = Message { body: Body::Reply { response, challenge: None }, ..reply };
        assert_eq!(controller.send(&reply.encode()), Step::Next);
        let (success, step) = controller.receive();
        assert_eq!(step, Step::Admitted);
        assert_eq!(Message::parse(&success).expect("a message").body, Body::Success1 { response: None });
    }

    #[test]
    fn a_controller_that_proves_nothing_or_something_else_is_not_trusted() {
        let (host, mut controller) = ends(parties(1, HOST), parties(1, HOST));
        controller.send(&host.negotiate());
        let challenge = controller.receive().0;
        let reply = Message::parse(&host.reply(&challenge).expect("a challenge")).expect("a reply");
        let Body::Reply { response, .. } = reply.body else { panic!("{reply:?}") };
        // Its own proof comes back to it.
        for response in [None, Some(response), Some([0; HASH_LEN])] {
            let success = Message { body: Body::Success1 { response }, ..reply };
            assert_eq!(host.judge(&success.encode()), Err(Unauthenticated::Impostor));
        }
        let other = Message { transaction: 8, body: Body::Success1 { response: None } };
        assert_eq!(host.judge(&other.encode()), Err(Unauthenticated::Nonsense));
        assert_eq!(host.reply(&other.encode()), Err(Unauthenticated::Nonsense));
        assert_eq!(host.reply(&[]), Err(Unauthenticated::Nonsense));
    }

    #[test]
    fn what_comes_at_the_wrong_time_ends_the_exchange() {
        let message = |body| Message { transaction: 9, body }.encode();
        let (host, _) = ends(parties(1, HOST), parties(1, HOST));
        let new = || Controller::new(parties(1, HOST), numbered(2));
        assert_eq!(new().receive().1, Step::Refused(Reason::INCORRECT_MESSAGE), "nothing to receive yet");
        let reply = Body::Reply { response: [0; HASH_LEN], challenge: None };
        for (what, bytes, reason) in [
            ("success before all", message(Body::Success2), Reason::INCORRECT_MESSAGE),
            ("a reply before all", message(reply), Reason::INCORRECT_MESSAGE),
            ("a controller's message", message(Body::Success1 { response: None }), Reason::INCORRECT_MESSAGE),
            ("nothing", vec![], Reason::INCORRECT_PAYLOAD),
            ("noise", vec![0xAB; 80], Reason::INCORRECT_MESSAGE),
            ("SHA-512 only", offer(0, &[3], &[0]), Reason::HASH_NOT_USABLE),
            ("groups only", offer(0, &[1], &[1, 2]), Reason::GROUP_NOT_USABLE),
            ("TLS to follow", offer(1, &[1], &[0]), Reason::SECURE_CHANNEL_MISMATCH),
        ] {
            let mut controller = new();
            assert_eq!(controller.send(&bytes), Step::Next, "{what}");
            let (failure, step) = controller.receive();
            assert_eq!(step, Step::Refused(reason), "{what}");
            let failure = Message::parse(&failure).expect("a message");
            assert_eq!(failure.body, Body::Failure1(reason), "{what}");
        }
        let mut controller = new();
        controller.send(&host.negotiate());
        controller.receive();
        assert_eq!(controller.receive().1, Step::Refused(Reason::INCORRECT_MESSAGE), "the challenge twice");
        let mut controller = new();
        controller.send(&host.negotiate());
        controller.receive();
        assert_eq!(controller.send(&message(Body::Success2)), Step::Next, "success instead of a reply");
        assert_eq!(controller.receive().1, Step::Refused(Reason::INCORRECT_MESSAGE));
        let mut controller = new();
        let failure = message(Body::Failure2(Reason::FAILED));
        assert_eq!(controller.send(&failure), Step::Refused(Reason::FAILED), "the host gives up");
    }

    fn offer(secure_channel: u8, hashes: &[u8], groups: &[u8]) -> Vec<u8> {
        let body = Body::Negotiate { secure_channel, hashes: hashes.to_vec(), groups: groups.to_vec() };
        Message { transaction: 9, body }.encode()
    }

    /// The HMAC of the specification, written down once more: interoperation depends on every byte.
    #[test]
    fn a_proof_is_what_the_specification_says() {
        let key = Key::new([1; HASH_LEN]);
        let parties = parties(1, HOST);
        let transformed = response(mac(&[1; HASH_LEN], &[format!("{HOST}NVMe-over-Fabrics").as_bytes()]));
        assert_eq!(key.of(HOST), transformed);
        let mut message = vec![2; HASH_LEN];
        message.extend([2, 0, 0, 0, 9, 0, 0]);
        message.extend(format!("HostHost{HOST}\0{SUBSYSTEM}").bytes());
        let expected = response(mac(&transformed, &[&message]));
        assert_eq!(response(parties.host_proof(9, &numbered(2))), expected);
    }
}

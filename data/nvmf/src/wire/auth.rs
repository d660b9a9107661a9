//! Messages of DH-HMAC-CHAP, the authentication of NVMe over Fabrics, as they travel in `AUTH_SEND` and `AUTH_RECEIVE`.
//!
//! Orlop speaks SHA-256 and the NULL group (no Diffie-Hellman): its keys are 256 random bits, which nobody guesses from
//! what is overheard.
//!
//! # Spec
//! NVMe Base 2.0, section 8.13.5 (DH-HMAC-CHAP protocol), figures 446 to 459.

use super::wire_struct;
use std::fmt;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

/// Length of a response and of a challenge, in bytes: those of SHA-256.
pub const HASH_LEN: usize = 32;
/// The hash function SHA-256.
pub const SHA_256: u8 = 1;
/// The Diffie-Hellman group NULL.
pub const GROUP_NULL: u8 = 0;
/// The longest list of hash functions or groups in a negotiation.
pub const LIST_LEN_MAX: usize = 30;

const COMMON_MESSAGES: u8 = 0;
const DHCHAP_MESSAGES: u8 = 1;
const DHCHAP: u8 = 1;
/// The reason code of every failure; the explanation is the interesting part.
const FAILED: u8 = 1;

mod id {
    pub(super) const NEGOTIATE: u8 = 0x00;
    pub(super) const CHALLENGE: u8 = 0x01;
    pub(super) const REPLY: u8 = 0x02;
    pub(super) const SUCCESS1: u8 = 0x03;
    pub(super) const SUCCESS2: u8 = 0x04;
    pub(super) const FAILURE2: u8 = 0xF0;
    pub(super) const FAILURE1: u8 = 0xF1;
}

/// Why an exchange has failed: the explanation in a failure message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason(pub u8);

macro_rules! reasons {
    ($($name:ident = $code:literal, $text:literal;)*) => {
        impl Reason {
            $(#[doc = $text]
            pub const $name: Self = Self($code);)*
        }
        impl fmt::Display for Reason {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self.0 {
                    $($code => $text,)*
                    _ => "another reason",
                })
            }
        }
    };
}

reasons! {
    FAILED = 0x01, "authentication failed";
    PROTOCOL_NOT_USABLE = 0x02, "authentication protocol not usable";
    SECURE_CHANNEL_MISMATCH = 0x03, "secure channel concatenation mismatch";
    HASH_NOT_USABLE = 0x04, "hash function not usable";
    GROUP_NOT_USABLE = 0x05, "Diffie-Hellman group not usable";
    INCORRECT_PAYLOAD = 0x06, "incorrect payload";
    INCORRECT_MESSAGE = 0x07, "incorrect protocol message";
}

/// A random number that the other end has to answer, with the number of the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// Not 0.
    pub sequence: u32,
    /// Never the same twice.
    pub value: [u8; HASH_LEN],
}

/// A message with the transaction that the host has chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The same in all messages of one exchange.
    pub transaction: u16,
    /// What it says.
    pub body: Body,
}

/// What a message says. The names are those of the specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// The host begins, and offers hash functions and groups.
    Negotiate {
        /// 0: no TLS shall follow.
        secure_channel: u8,
        /// At most [`LIST_LEN_MAX`].
        hashes: Vec<u8>,
        /// At most [`LIST_LEN_MAX`].
        groups: Vec<u8>,
    },
    /// The controller asks for a proof, by SHA-256 and the NULL group.
    Challenge(Challenge),
    /// The host proves, and may ask for a proof itself.
    Reply {
        /// The proof.
        response: [u8; HASH_LEN],
        /// What the controller has to prove.
        challenge: Option<Challenge>,
    },
    /// The controller lets the host in, with its own proof if that was asked for.
    Success1 {
        /// The proof.
        response: Option<[u8; HASH_LEN]>,
    },
    /// The host accepts the controller's proof.
    Success2,
    /// The controller has ended the exchange.
    Failure1(Reason),
    /// The host has ended the exchange.
    Failure2(Reason),
}

wire_struct! {
/// The start of every message.
struct Head [6] {
    kind: u8,
    id: u8,
    reserved: U16,
    transaction: U16,
}
}

wire_struct! {
struct NegotiateHead [2] {
    secure_channel: u8,
    descriptors: u8,
}
}

wire_struct! {
struct Descriptor [64] {
    protocol: u8,
    reserved: u8,
    hash_count: u8,
    group_count: u8,
    hashes: [u8; LIST_LEN_MAX],
    groups: [u8; LIST_LEN_MAX],
}
}

wire_struct! {
/// What Challenge, Reply and Success1 have after their start; `valid` is the hash function in Challenge.
struct Proof [10] {
    hash_len: u8,
    reserved: u8,
    valid: u8,
    group: u8,
    group_len: U16,
    sequence: U32,
}
}

impl Message {
    /// Reads a message; what follows it (a buffer that was longer) is not looked at.
    ///
    /// # Errors
    /// What to say to the other end.
    pub fn parse(bytes: &[u8]) -> Result<Self, Reason> {
        let (head, rest) = Head::read_from_prefix(bytes).map_err(|_| Reason::INCORRECT_PAYLOAD)?;
        let body = match (head.kind, head.id) {
            (COMMON_MESSAGES, id::NEGOTIATE) => negotiate(rest)?,
            (DHCHAP_MESSAGES, id::CHALLENGE) => challenge(rest)?,
            (DHCHAP_MESSAGES, id::REPLY) => reply(rest)?,
            (DHCHAP_MESSAGES, id::SUCCESS1) => success1(rest)?,
            (DHCHAP_MESSAGES, id::SUCCESS2) => Body::Success2,
            (COMMON_MESSAGES | DHCHAP_MESSAGES, id::FAILURE1) => Body::Failure1(reason(rest)?),
            (COMMON_MESSAGES | DHCHAP_MESSAGES, id::FAILURE2) => Body::Failure2(reason(rest)?),
            _ => return Err(Reason::INCORRECT_MESSAGE),
        };
        Ok(Self { transaction: head.transaction.get(), body })
    }

    /// The bytes of the message.
    ///
    /// # Panics
    /// When a list of a negotiation is too long.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, id) = match &self.body {
            Body::Negotiate { .. } => (COMMON_MESSAGES, id::NEGOTIATE),
            Body::Challenge(_) => (DHCHAP_MESSAGES, id::CHALLENGE),
            Body::Reply { .. } => (DHCHAP_MESSAGES, id::REPLY),
            Body::Success1 { .. } => (DHCHAP_MESSAGES, id::SUCCESS1),
            Body::Success2 => (DHCHAP_MESSAGES, id::SUCCESS2),
            Body::Failure1(_) => (COMMON_MESSAGES, id::FAILURE1),
            Body::Failure2(_) => (COMMON_MESSAGES, id::FAILURE2),
        };
        let head = Head { kind, id, reserved: U16::ZERO, transaction: self.transaction.into() };
        let mut bytes = head.as_bytes().to_vec();
        let mut put = |part: &[u8]| bytes.extend_from_slice(part);
        match &self.body {
            Body::Negotiate { secure_channel, hashes, groups } => {
                put(NegotiateHead { secure_channel: *secure_channel, descriptors: 1 }.as_bytes());
                put(Descriptor::offering(hashes, groups).as_bytes());
            }
            Body::Challenge(challenge) => {
                let sequence = challenge.sequence.into();
                put(Proof { valid: SHA_256, group: GROUP_NULL, sequence, ..Proof::EMPTY }.as_bytes());
                put(&challenge.value);
            }
            Body::Reply { response, challenge } => {
                let valid = u8::from(challenge.is_some());
                let sequence = challenge.map_or(0, |challenge| challenge.sequence).into();
                put(Proof { valid, sequence, ..Proof::EMPTY }.as_bytes());
                put(response);
                // Without a challenge its place is there all the same.
                put(&challenge.map_or([0; HASH_LEN], |challenge| challenge.value));
            }
            Body::Success1 { response } => {
                put(Proof { valid: u8::from(response.is_some()), ..Proof::EMPTY }.as_bytes());
                put(&response.unwrap_or_default());
            }
            Body::Success2 => put(&[0; 10]),
            Body::Failure1(reason) | Body::Failure2(reason) => put(&[FAILED, reason.0]),
        }
        bytes
    }
}

impl Descriptor {
    fn offering(hashes: &[u8], groups: &[u8]) -> Self {
        let count = |list: &[u8]| u8::try_from(list.len()).expect("at most 30");
        let mut descriptor = Self {
            protocol: DHCHAP,
            reserved: 0,
            hash_count: count(hashes),
            group_count: count(groups),
            hashes: [0; LIST_LEN_MAX],
            groups: [0; LIST_LEN_MAX],
        };
        descriptor.hashes[..hashes.len()].copy_from_slice(hashes);
        descriptor.groups[..groups.len()].copy_from_slice(groups);
        descriptor
    }
}

#[expect(clippy::cast_possible_truncation, reason = "32")]
impl Proof {
    const EMPTY: Self = Self {
        hash_len: HASH_LEN as u8,
        reserved: 0,
        valid: 0,
        group: 0,
        group_len: U16::ZERO,
        sequence: U32::ZERO,
    };

    /// Reads it, and the hash values behind it.
    fn parse<const N: usize>(bytes: &[u8]) -> Result<(Self, [[u8; HASH_LEN]; N]), Reason> {
        let (proof, rest) = Self::read_from_prefix(bytes).map_err(|_| Reason::INCORRECT_PAYLOAD)?;
        if proof.hash_len != Self::EMPTY.hash_len {
            return Err(Reason::INCORRECT_PAYLOAD);
        }
        let (values, _) =
            <[[u8; HASH_LEN]; N]>::read_from_prefix(rest).map_err(|_| Reason::INCORRECT_PAYLOAD)?;
        Ok((proof, values))
    }

    /// The challenge that it carries.
    fn challenge(&self, value: [u8; HASH_LEN]) -> Result<Challenge, Reason> {
        // The NULL group has no value, and 0 numbers no question.
        if self.group_len.get() != 0 || self.sequence.get() == 0 {
            return Err(Reason::INCORRECT_PAYLOAD);
        }
        Ok(Challenge { sequence: self.sequence.get(), value })
    }
}

fn negotiate(bytes: &[u8]) -> Result<Body, Reason> {
    let incorrect = Reason::INCORRECT_PAYLOAD;
    let (head, rest) = NegotiateHead::read_from_prefix(bytes).map_err(|_| incorrect)?;
    let (descriptors, _) = <[Descriptor]>::ref_from_prefix_with_elems(rest, usize::from(head.descriptors))
        .map_err(|_| incorrect)?;
    let ours = descriptors.iter().find(|descriptor| descriptor.protocol == DHCHAP);
    let ours = ours.ok_or(Reason::PROTOCOL_NOT_USABLE)?;
    let hashes = ours.hashes.get(..usize::from(ours.hash_count)).ok_or(incorrect)?.to_vec();
    let groups = ours.groups.get(..usize::from(ours.group_count)).ok_or(incorrect)?.to_vec();
    Ok(Body::Negotiate { secure_channel: head.secure_channel, hashes, groups })
}

fn challenge(bytes: &[u8]) -> Result<Body, Reason> {
    let (head, _) = Proof::read_from_prefix(bytes).map_err(|_| Reason::INCORRECT_PAYLOAD)?;
    if head.valid != SHA_256 {
        return Err(Reason::HASH_NOT_USABLE);
    }
    if head.group != GROUP_NULL {
        return Err(Reason::GROUP_NOT_USABLE);
    }
    let (proof, [value]) = Proof::parse(bytes)?;
    Ok(Body::Challenge(proof.challenge(value)?))
}

fn reply(bytes: &[u8]) -> Result<Body, Reason> {
    let (proof, [response, value]) = Proof::parse(bytes)?;
    let challenge = match proof.valid {
        0 => None,
        1 => Some(proof.challenge(value)?),
        _ => return Err(Reason::INCORRECT_PAYLOAD),
    };
    Ok(Body::Reply { response, challenge })
}

fn success1(bytes: &[u8]) -> Result<Body, Reason> {
    let (proof, [response]) = Proof::parse(bytes)?;
    match proof.valid {
        0 => Ok(Body::Success1 { response: None }),
        1 => Ok(Body::Success1 { response: Some(response) }),
        _ => Err(Reason::INCORRECT_PAYLOAD),
    }
}

fn reason(bytes: &[u8]) -> Result<Reason, Reason> {
    bytes.get(1).copied().map(Reason).ok_or(Reason::INCORRECT_PAYLOAD)
}

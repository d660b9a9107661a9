//! The controller's side of an exchange.

use super::{Parties, response};
use crate::wire::auth::{Body, Challenge, GROUP_NULL, HASH_LEN, Message, Reason, SHA_256};
use hmac::Mac;

/// One exchange, as the controller sees it.
pub(crate) struct Controller {
    parties: Parties,
    challenge: Challenge,
    transaction: u16,
    state: State,
}

/// What has to happen next.
#[derive(Clone, Copy)]
enum State {
    Negotiate,
    /// The host fetches the challenge.
    Challenge,
    Reply,
    /// The host has proved itself and fetches that, with our own proof if it wants one.
    Success1(Option<[u8; HASH_LEN]>),
    Success2,
    /// The host fetches why it is not let in.
    Failure1(Reason),
}

/// How the exchange goes on after a command of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// With the next command.
    Next,
    /// It is over: the host is who it says.
    Admitted,
    /// It is over: the host is not let in.
    Refused(Reason),
}

impl Controller {
    /// Waits for the host to begin; `challenge` is used for nothing else (invariant 1).
    pub(crate) fn new(parties: Parties, challenge: Challenge) -> Self {
        Self { parties, challenge, transaction: 0, state: State::Negotiate }
    }

    /// The host sends a message.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Step {
        match Message::parse(bytes).and_then(|message| self.take(message)) {
            Ok(step) => step,
            Err(reason) => {
                self.state = State::Failure1(reason);
                Step::Next
            }
        }
    }

    /// The message that the host fetches.
    pub(crate) fn receive(&mut self) -> (Vec<u8>, Step) {
        let (body, step) = match self.state {
            State::Challenge => {
                self.state = State::Reply;
                (Body::Challenge(self.challenge), Step::Next)
            }
            State::Success1(None) => (Body::Success1 { response: None }, Step::Admitted),
            State::Success1(response) => {
                self.state = State::Success2;
                (Body::Success1 { response }, Step::Next)
            }
            State::Failure1(reason) => (Body::Failure1(reason), Step::Refused(reason)),
            State::Negotiate | State::Reply | State::Success2 => {
                let reason = Reason::INCORRECT_MESSAGE;
                self.state = State::Failure1(reason);
                (Body::Failure1(reason), Step::Refused(reason))
            }
        };
        (Message { transaction: self.transaction, body }.encode(), step)
    }

    fn take(&mut self, message: Message) -> Result<Step, Reason> {
        if let Body::Failure2(reason) = message.body {
            self.state = State::Failure1(reason);
            return Ok(Step::Refused(reason));
        }
        if !matches!(self.state, State::Negotiate) && message.transaction != self.transaction {
            return Err(Reason::INCORRECT_PAYLOAD);
        }
        match (self.state, message.body) {
            (State::Negotiate, Body::Negotiate { secure_channel, hashes, groups }) => {
                self.transaction = message.transaction;
                acceptable(secure_channel, &hashes, &groups)?;
                self.state = State::Challenge;
                Ok(Step::Next)
            }
            (State::Reply, Body::Reply { response: proof, challenge }) => {
                let expected = self.parties.host_proof(self.transaction, &self.challenge);
                expected.verify_slice(&proof).map_err(|_| Reason::FAILED)?; // 3
                let ours = challenge
                    .map(|challenge| response(self.parties.controller_proof(self.transaction, &challenge)));
                self.state = State::Success1(ours);
                Ok(Step::Next)
            }
            (State::Success2, Body::Success2) => Ok(Step::Admitted),
            _ => Err(Reason::INCORRECT_MESSAGE),
        }
    }
}

/// Whether a host offers what Orlop speaks.
fn acceptable(secure_channel: u8, hashes: &[u8], groups: &[u8]) -> Result<(), Reason> {
    if secure_channel != 0 {
        return Err(Reason::SECURE_CHANNEL_MISMATCH);
    }
    if !hashes.contains(&SHA_256) {
        return Err(Reason::HASH_NOT_USABLE);
    }
    if !groups.contains(&GROUP_NULL) {
        return Err(Reason::GROUP_NOT_USABLE);
    }
    Ok(())
}

//! The host's side of an exchange. It always asks for the controller's proof as well.

use super::{Parties, response};
use crate::error::Unauthenticated;
use crate::wire::auth::{Body, Challenge, GROUP_NULL, Message, Reason, SHA_256};
use hmac::Mac;

/// One exchange, as the host sees it.
pub(crate) struct Host {
    parties: Parties,
    transaction: u16,
    /// For the controller.
    challenge: Challenge,
}

impl Host {
    /// An exchange with this number; `challenge` is used for nothing else (invariant 1).
    pub(crate) fn new(parties: Parties, transaction: u16, challenge: Challenge) -> Self {
        Self { parties, transaction, challenge }
    }

    /// The first message.
    pub(crate) fn negotiate(&self) -> Vec<u8> {
        let (hashes, groups) = (vec![SHA_256], vec![GROUP_NULL]);
        self.message(Body::Negotiate { secure_channel: 0, hashes, groups })
    }

    /// The answer to the controller's challenge.
    pub(crate) fn reply(&self, bytes: &[u8]) -> Result<Vec<u8>, Unauthenticated> {
        let Body::Challenge(theirs) = self.read(bytes)? else { return Err(Unauthenticated::Nonsense) };
        let response = response(self.parties.host_proof(self.transaction, &theirs));
        Ok(self.message(Body::Reply { response, challenge: Some(self.challenge) }))
    }

    /// Whether the controller has let us in, and is who it says.
    pub(crate) fn judge(&self, bytes: &[u8]) -> Result<(), Unauthenticated> {
        let Body::Success1 { response } = self.read(bytes)? else { return Err(Unauthenticated::Nonsense) };
        let expected = self.parties.controller_proof(self.transaction, &self.challenge);
        expected
            .verify_slice(&response.ok_or(Unauthenticated::Impostor)?)
            .map_err(|_| Unauthenticated::Impostor)
    }

    /// The last message.
    pub(crate) fn verdict(&self, trusted: bool) -> Vec<u8> {
        self.message(if trusted { Body::Success2 } else { Body::Failure2(Reason::FAILED) })
    }

    fn message(&self, body: Body) -> Vec<u8> {
        Message { transaction: self.transaction, body }.encode()
    }

    /// What the controller says in this exchange.
    fn read(&self, bytes: &[u8]) -> Result<Body, Unauthenticated> {
        let message = Message::parse(bytes).map_err(|_| Unauthenticated::Nonsense)?;
        match message.body {
            Body::Failure1(reason) => Err(Unauthenticated::Refused(reason)),
            body if message.transaction == self.transaction => Ok(body),
            _ => Err(Unauthenticated::Nonsense),
        }
    }
}

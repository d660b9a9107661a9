//! What engine and holder say to each other: one datagram each way over a `SOCK_SEQPACKET` socket, with at most one
//! descriptor beside it.
//!
//! | request | bytes | answer |
//! |---|---|---|
//! | put | `P`, volume (16), connection (u32, little endian), state | `K` |
//! | take | `T`, volume | `F`, state, with the descriptor; or `N` |
//! | release | `R`, volume | `K` |
//! | anything else | | `E` |
//!
//! # Invariants
//! 1. A message is at most [`MESSAGE_LEN_MAX`] bytes; a longer one is cut by the kernel and then refused.
//! 2. Descriptors that come with a message that does not ask for them are closed.

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use uuid::Uuid;

const MESSAGE_LEN_MAX: usize = 512;
/// Longest state that can travel with a descriptor.
pub(crate) const STATE_LEN_MAX: usize = MESSAGE_LEN_MAX - 32;

/// What the engine asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Hold the descriptor that comes along.
    Put { volume: Uuid, connection: u32, state: Vec<u8> },
    /// Give a copy of the descriptor back, and go on holding it.
    Take { volume: Uuid },
    /// Close the descriptor.
    Release { volume: Uuid },
}

/// What the holder answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    /// The descriptor comes along.
    Found {
        state: Vec<u8>,
    },
    NotHeld,
    Refused,
}

impl Request {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Put { volume, connection, state } => {
                [&b"P"[..], volume.as_bytes(), &connection.to_le_bytes(), state].concat()
            }
            Self::Take { volume } => [&b"T"[..], volume.as_bytes()].concat(),
            Self::Release { volume } => [&b"R"[..], volume.as_bytes()].concat(),
        }
    }

    /// The volume it is about.
    pub(crate) const fn volume(&self) -> Uuid {
        match self {
            Self::Put { volume, .. } | Self::Take { volume } | Self::Release { volume } => *volume,
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let (volume, rest) = rest.split_first_chunk::<16>()?;
        let volume = Uuid::from_bytes(*volume);
        match kind {
            b'P' => {
                let (connection, state) = rest.split_first_chunk::<4>()?;
                let connection = u32::from_le_bytes(*connection);
                (state.len() <= STATE_LEN_MAX).then(|| Self::Put { volume, connection, state: state.into() })
            }
            b'T' if rest.is_empty() => Some(Self::Take { volume }),
            b'R' if rest.is_empty() => Some(Self::Release { volume }),
            _ => None,
        }
    }
}

impl Answer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Done => b"K".into(),
            Self::Found { state } => [&b"F"[..], state].concat(),
            Self::NotHeld => b"N".into(),
            Self::Refused => b"E".into(),
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes {
            b"K" => Some(Self::Done),
            b"N" => Some(Self::NotHeld),
            b"E" => Some(Self::Refused),
            [b'F', state @ ..] => Some(Self::Found { state: state.into() }),
            _ => None,
        }
    }
}

/// Sends one message.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], descriptor: Option<&OwnedFd>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptor.iter().map(AsFd::as_fd).collect();
    if !descriptors.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)), "there is space for one");
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(&socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)
    })
    .map(drop)
}

/// Receives one message; an empty one means that the other side is gone.
pub(crate) fn receive(socket: impl AsFd) -> Result<(Vec<u8>, Option<OwnedFd>), Errno> {
    let mut bytes = vec![0; MESSAGE_LEN_MAX];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        rustix::net::recvmsg(&socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut descriptor = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            descriptor = descriptors.last().or(descriptor);
        }
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(Errno::MSGSIZE);
    }
    bytes.truncate(received.bytes);
    Ok((bytes, descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    fn pair() -> (OwnedFd, OwnedFd) {
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .unwrap()
    }

    #[test]
    fn a_descriptor_travels_with_its_message() {
        let (one, two) = pair();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let put = Request::Put { volume: Uuid::from_u128(1), connection: 7, state: b"state".into() };
        send(&one, &put.encode(), Some(&write)).unwrap();
        drop(write);
        let (bytes, descriptor) = receive(&two).unwrap();
        assert_eq!(Request::decode(&bytes), Some(put));
        rustix::io::write(descriptor.unwrap(), b"through").unwrap();
        let mut buffer = [0; 16];
        assert_eq!(rustix::io::read(&read, &mut buffer).unwrap(), 7);
    }

    #[test]
    fn the_end_is_an_empty_message_and_a_long_one_is_refused() {
        let (one, two) = pair();
        send(&one, &[b'P'; MESSAGE_LEN_MAX + 1], None).unwrap();
        assert_eq!(receive(&two).unwrap_err(), Errno::MSGSIZE);
        drop(one);
        assert_eq!(receive(&two).unwrap().0, b"");
    }

    proptest! {
        #[test]
        fn requests_keep_their_contents(volume: u128, connection: u32, state in proptest::collection::vec(any::<u8>(), 0..STATE_LEN_MAX)) {
            let volume = Uuid::from_u128(volume);
            for request in
                [Request::Put { volume, connection, state: state.clone() }, Request::Take { volume }, Request::Release { volume }]
            {
                prop_assert_eq!(Request::decode(&request.encode()), Some(request));
            }
            let answer = Answer::Found { state };
            prop_assert_eq!(Answer::decode(&answer.encode()), Some(answer));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            drop(Request::decode(&bytes));
            drop(Answer::decode(&bytes));
        }
    }
}

//! The receiving half of a connection, as typed PDUs: [`crate::wire::frame`] over a socket.
//!
//! # Invariants
//! 1. Only headers are buffered here, at most [`HEAD_LEN_MAX`] bytes; data goes straight to the buffer of its command.

use crate::wire::digest::{DIGEST_LEN, crc32c};
use crate::wire::frame::{Frame, Framing, HEAD_LEN_MAX, Parsed, Violation};
use crate::wire::pdu::{HEADER_LEN_MAX, term_req};
use rt::net::ReceiveHalf;
use rt::{DmaBuf, Errno};

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The connection is lost.
    Lost(Errno),
    /// The other end closed it.
    Closed,
    /// The other end broke the protocol.
    Violation(Violation),
    /// The other end says that this one broke the protocol; its fatal error status.
    Terminated(u16),
    /// It took too long.
    TimedOut,
}

impl From<Errno> for Broken {
    fn from(errno: Errno) -> Self {
        Self::Lost(errno)
    }
}

impl From<Violation> for Broken {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

/// Reads PDUs.
pub(crate) struct Reader {
    receive: ReceiveHalf,
    /// What this end allows.
    pub(crate) framing: Framing,
    /// The start of the PDU that is being received, or was received last.
    head: [u8; HEAD_LEN_MAX],
    head_len: usize,
}

impl Reader {
    pub(crate) fn new(receive: ReceiveHalf, framing: Framing) -> Self {
        Self { receive, framing, head: [0; HEAD_LEN_MAX], head_len: 0 }
    }

    /// Waits for the next PDU's header. The caller must then receive its data, if it has any.
    pub(crate) async fn next(&mut self) -> Result<Frame, Broken> {
        self.head_len = 0;
        let mut need = 1;
        loop {
            let arrived = self.receive.fill().await?;
            if arrived.is_empty() {
                return Err(if self.head_len == 0 { Broken::Closed } else { Broken::Lost(Errno::CONNRESET) });
            }
            // All of a header that is there at once; of one that comes in pieces no more than it needs, because what
            // lies behind it must stay in the socket's buffer.
            let wanted = if self.head_len == 0 { HEADER_LEN_MAX + DIGEST_LEN } else { need - self.head_len };
            let count = arrived.len().min(wanted);
            let bytes = if self.head_len == 0 {
                &arrived[..count]
            } else {
                self.head[self.head_len..self.head_len + count].copy_from_slice(&arrived[..count]);
                &self.head[..self.head_len + count]
            };
            let parsed = self.framing.parse(bytes);
            let kept = match parsed {
                Ok(Parsed::Frame(frame)) => frame.head_len,
                Ok(Parsed::Need(_)) => bytes.len(),
                Err(_) => bytes.len().min(HEADER_LEN_MAX),
            };
            if self.head_len == 0 {
                self.head[..kept].copy_from_slice(&arrived[..kept]);
                self.receive.consume(kept);
            } else {
                self.receive.consume(count);
            }
            self.head_len = kept;
            match parsed? {
                Parsed::Frame(frame) => return Ok(frame),
                Parsed::Need(more) => need = more,
            }
        }
    }

    /// Receives the data of `frame` into `buf` (of exactly its length), and its digest; says whether that holds.
    pub(crate) async fn data(&mut self, frame: &Frame, buf: DmaBuf) -> Result<(DmaBuf, bool), Broken> {
        assert_eq!(buf.len(), frame.data_len as usize, "the buffer is made for the frame");
        let buf = self.receive.read_exact_dma(buf).await?;
        if !frame.data_digest {
            return Ok((buf, true));
        }
        let mut digest = [0; DIGEST_LEN];
        self.receive.read_exact(&mut digest).await?;
        let holds = u32::from_le_bytes(digest) == crc32c(&buf);
        Ok((buf, holds))
    }

    /// Takes and forgets what the other end still sends, until it closes.
    pub(crate) async fn drain(&mut self) {
        loop {
            let count = match self.receive.fill().await {
                Ok(bytes) if !bytes.is_empty() => bytes.len(),
                _ => return,
            };
            self.receive.consume(count);
        }
    }

    /// What to say before the connection closes because of `violation`: a termination request of type `kind`.
    pub(crate) fn last_words(&self, kind: u8, violation: Violation) -> Vec<u8> {
        term_req(kind, violation.fes, violation.fei, &self.head[..self.head_len.min(HEADER_LEN_MAX)])
    }
}

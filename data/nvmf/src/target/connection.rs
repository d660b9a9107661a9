//! A connection from accept to close: the handshake, then commands and data until either end leaves.

use super::handshake::Handshake;
use super::queue::Queue;
use super::{Counted, Shared};
use crate::limits;
use crate::link::{Broken, Reader};
use crate::outbox::Outbox;
use crate::subsystem::Subsystems;
use crate::wire::frame::{Frame, Framing, Pdu, Phase, Role, Violation};
use crate::wire::pdu::{Digests, kind};
use rt::DmaBuf;
use rt::net::TcpStream;
use std::net::IpAddr;
use std::rc::Rc;

/// Serves one connection until it ends.
pub(super) async fn run<S: Subsystems>(counted: Counted<S>, stream: TcpStream) {
    let shared = &counted.0;
    let TcpStream { receive, send, peer } = stream;
    let outbox = Rc::new(Outbox::new());
    let sender = rt::spawn({
        let outbox = Rc::clone(&outbox);
        async move { outbox.send_all(send).await }
    });
    let framing = Framing {
        role: Role::Controller,
        phase: Phase::Initializing,
        digests: Digests::default(),
        in_capsule_max: limits::ADMIN_IN_CAPSULE_BYTES,
        data_max: shared.config.data_bytes_max,
    };
    let mut reader = Reader::new(receive, framing);
    let stopping = async {
        shared.stopping().await;
        Broken::Closed
    };
    let broken = rt::race(stopping, serve(shared, &mut reader, &outbox, peer.ip())).await;
    if let Broken::Violation(violation) = broken {
        tracing::warn!(%peer, fes = violation.fes, fei = violation.fei, "host broke the protocol");
        outbox.push(&reader.last_words(kind::C2H_TERM_REQ, violation));
    }
    outbox.close();
    // The bytes that it still sends are taken, else its end would be reset before it has read the last words.
    let last_words = async {
        let _sent = sender.await;
        if let Broken::Violation(_) = broken {
            reader.drain().await;
        }
    };
    let _in_time = rt::timeout(limits::LAST_WORDS_LIMIT, last_words).await;
}

async fn serve<S: Subsystems>(
    shared: &Rc<Shared<S>>,
    reader: &mut Reader,
    outbox: &Rc<Outbox>,
    peer: IpAddr,
) -> Broken {
    let limit = shared.config.handshake_limit;
    let queue = match rt::timeout(limit, Handshake::new(shared, reader, outbox, peer).run()).await {
        Ok(Ok(queue)) => queue,
        Ok(Err(broken)) => return broken,
        Err(rt::Elapsed) => return Broken::TimedOut,
    };
    let farewell = async {
        queue.association.farewell(queue.qid).await;
        Broken::Closed
    };
    let broken = rt::race(farewell, pump(&queue, reader, outbox)).await;
    queue.disconnected();
    broken
}

/// Receives commands and data until the connection breaks.
async fn pump<S: Subsystems>(queue: &Rc<Queue<S>>, reader: &mut Reader, outbox: &Outbox) -> Broken {
    loop {
        let step = async {
            outbox.room().await;
            let frame = reader.next().await?;
            match frame.pdu {
                Pdu::Command(sqe) => {
                    let data = in_capsule_data(reader, &frame).await?;
                    Ok(queue.arrive(sqe, data)?)
                }
                Pdu::H2cData(data) => queue.receive(reader, &frame, data).await,
                other => Err(unexpected(&other)),
            }
        };
        if let Err(broken) = step.await {
            return broken;
        }
    }
}

/// The data that comes with a command, and whether it is intact.
pub(super) async fn in_capsule_data(
    reader: &mut Reader,
    frame: &Frame,
) -> Result<Option<(DmaBuf, bool)>, Broken> {
    if frame.data_len == 0 {
        return Ok(None);
    }
    Ok(Some(reader.data(frame, DmaBuf::new(frame.data_len as usize)).await?))
}

/// What becomes of a PDU that may not come now.
pub(super) fn unexpected(pdu: &Pdu) -> Broken {
    match pdu {
        Pdu::TermReq(term) => Broken::Terminated(term.fes.get()),
        _ => Violation::SEQUENCE.into(),
    }
}

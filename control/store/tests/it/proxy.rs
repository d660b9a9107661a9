//! What can happen on the way between a client and its store: connections that are cut, requests that are held up,
//! answers of which half arrives. It knows requests by the beginning of their first line.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// How the requests begin that matter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requests {
    /// A watch.
    pub(crate) watch: &'static str,
    /// Writes, each of them with one of these.
    pub(crate) write: &'static [&'static str],
}

struct State {
    upstream: SocketAddr,
    requests: Requests,
    cuts: watch::Sender<u64>,
    hold_watches: watch::Sender<bool>,
    held: watch::Sender<u64>,
    watches: watch::Sender<u64>,
    lose_answers: AtomicBool,
}

/// A port that leads to the store; closed when this is dropped.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

impl Proxy {
    pub(crate) async fn start(upstream: SocketAddr, requests: Requests) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            upstream,
            requests,
            cuts: watch::Sender::new(0),
            hold_watches: watch::Sender::new(false),
            held: watch::Sender::new(0),
            watches: watch::Sender::new(0),
            lose_answers: AtomicBool::new(false),
        });
        let accepted = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&accepted).carry(client));
            }
        });
        Self { address, state, accepting }
    }

    /// Cuts all connections that there are.
    pub(crate) fn cut(&self) {
        self.state.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Whether requests of watches are held up on their way.
    pub(crate) fn hold_watches(&self, hold: bool) {
        self.state.held.send_replace(0);
        self.state.hold_watches.send_replace(hold);
    }

    /// Waits until one is.
    pub(crate) async fn watch_is_held(&self) {
        self.state.held.subscribe().wait_for(|held| *held > 0).await.unwrap();
    }

    /// Waits until connections of so many watches are open.
    pub(crate) async fn watches_are(&self, count: u64) {
        self.state.watches.subscribe().wait_for(|watches| *watches == count).await.unwrap();
    }

    /// Whether connections are cut in the middle of the answer to a write.
    pub(crate) fn lose_answers(&self, lose: bool) {
        self.state.lose_answers.store(lose, Ordering::SeqCst);
    }
}

impl State {
    /// One connection, until either end or a cut closes it.
    async fn carry(self: Arc<Self>, client: TcpStream) {
        let mut cuts = self.cuts.subscribe();
        let Ok(server) = TcpStream::connect(self.upstream).await else { return };
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let lost = AtomicBool::new(false);
        tokio::select! {
            _ = cuts.changed() => {}
            () = self.forward(from_client, to_server, &lost) => {}
            () = back(from_server, to_client, &lost) => {}
        }
    }

    async fn forward(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, lost: &AtomicBool) {
        let mut watching = Watching { watches: &self.watches, begun: false };
        while let Some(bytes) = next(&mut from).await {
            if bytes.starts_with(self.requests.watch.as_bytes()) {
                watching.begin();
                let mut hold = self.hold_watches.subscribe();
                if *hold.borrow_and_update() {
                    self.held.send_modify(|held| *held += 1);
                }
                hold.wait_for(|hold| !hold).await.unwrap();
            }
            let write = self.requests.write.iter().any(|start| bytes.starts_with(start.as_bytes()));
            if write && self.lose_answers.load(Ordering::SeqCst) {
                lost.store(true, Ordering::SeqCst);
            }
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    }
}

/// A connection that counts as a watch from its first request for one to its end.
struct Watching<'a> {
    watches: &'a watch::Sender<u64>,
    begun: bool,
}

impl Watching<'_> {
    fn begin(&mut self) {
        if !self.begun {
            self.begun = true;
            self.watches.send_modify(|watches| *watches += 1);
        }
    }
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        if self.begun {
            self.watches.send_modify(|watches| *watches -= 1);
        }
    }
}

/// Carries answers; half of the one that is to be lost.
async fn back(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, lost: &AtomicBool) {
    while let Some(bytes) = next(&mut from).await {
        let lost = lost.load(Ordering::SeqCst);
        let kept = if lost { bytes.len() / 2 } else { bytes.len() };
        if to.write_all(&bytes[..kept]).await.is_err() || lost {
            return;
        }
    }
}

async fn next(from: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 64 << 10];
    let length = from.read(&mut bytes).await.ok().filter(|length| *length > 0)?;
    bytes.truncate(length);
    Some(bytes)
}

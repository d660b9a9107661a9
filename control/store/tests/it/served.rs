//! The store over HTTP: a server that goes away and comes back.

use crate::{
    conformance::{by_key, conforms, follow, node},
    open,
    proxy::{Proxy, Requests},
};
use model::Node;
use std::net::SocketAddr;
use store::{Change, Client, ErrorKind, Remote, routes};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

/// A server of a store, on a port of its own.
struct Served {
    address: SocketAddr,
    closing: watch::Sender<bool>,
    server: JoinHandle<()>,
}

impl Served {
    async fn start(client: &Client) -> Self {
        Self::start_at(client, "127.0.0.1:0".parse().unwrap()).await
    }

    async fn start_at(client: &Client, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (closing, closed) = watch::channel(false);
        let routes = routes(client.clone(), closed.clone());
        let server = tokio::spawn(async move {
            let mut closed = closed;
            let shutdown = async move { drop(closed.wait_for(|closing| *closing).await) };
            axum::serve(listener, routes).with_graceful_shutdown(shutdown).await.unwrap();
        });
        Self { address, closing, server }
    }

    fn client(&self) -> Client {
        Client::new(Remote::new(&format!("http://{}", self.address)))
    }

    /// Ends in order, which the watches must not prevent.
    async fn stop(self) {
        self.closing.send_replace(true);
        self.server.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn remote_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(&open(folder.path())).await;
    let requests =
        Requests { watch: "GET /store/v1/watch/", write: &["PUT /store/v1/", "DELETE /store/v1/"] };
    let proxy = Proxy::start(served.address, requests).await;
    conforms(&Client::new(Remote::new(&format!("http://{}", proxy.address))), Some(&proxy)).await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_survives_its_server() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let served = Served::start(&store).await;
    let address = served.address;
    let client = served.client();

    let mut watch = client.watch::<Node>();
    assert_eq!(watch.next().await, Some(Change::Relist(Vec::new())));
    client.create(&node("before", 1)).await.unwrap();
    let mut seen = by_key(Vec::new());
    follow(&mut watch, &mut seen, "before").await;

    served.stop().await;
    let error = client.get::<Node>("before").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let error = client.create(&node("never", 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "no connection, hence nothing was done: {error}");
    store.create(&node("meanwhile", 1)).await.unwrap();

    let served = Served::start_at(&store, address).await;
    follow(&mut watch, &mut seen, "meanwhile").await;
    assert_eq!(seen, by_key(client.list::<Node>().await.unwrap()));
    served.stop().await;
}

/// A server that takes a request and never answers leaves the outcome of a write open.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_is_unknown() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            connection.readable().await.unwrap();
            drop(connection);
        }
    });
    let client = Client::new(Remote::new(&base));
    let error = client.create(&node("n1", 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unknown, "{error}");
    let error = client.get::<Node>("n1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "a question changes nothing: {error}");
    server.abort();
}

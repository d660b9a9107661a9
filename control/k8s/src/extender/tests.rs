//! The extender asked over HTTP, as kube-scheduler asks it, and as nobody should.

use super::*;
use axum::body::Body;
use http_body_util::BodyExt;
use hyper::Method;
use kube::Config;
use serde_json::{Value, json};
use store::Embedded;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tower::ServiceExt;

/// An extender's router where nobody answers for the API server; the folder is the store's.
fn alone() -> (Router, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let client = Client::new(Embedded::open(&folder.path().join("store")).unwrap());
    let kubernetes = Kubernetes::new(&Config::new("http://127.0.0.1:9".parse().unwrap())).unwrap();
    (router(Whereabouts::follow(kubernetes, client)), folder)
}

async fn ask(router: &Router, method: Method, path: &str, body: Vec<u8>) -> (u16, String) {
    let request = Request::builder().method(method).uri(path).body(Body::from(body)).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn question() -> Value {
    let volume = json!({ "name": "v", "persistentVolumeClaim": { "claimName": "data" } });
    let pod =
        json!({ "metadata": { "namespace": "default" }, "spec": { "containers": [], "volumes": [volume] } });
    json!({ "Pod": pod, "Nodes": null, "NodeNames": ["n1", "n2"] })
}

/// Invariant 1.
#[tokio::test]
async fn without_an_api_server_every_node_is_as_good_as_any() {
    let (router, _folder) = alone();
    let body = question().to_string().into_bytes();
    let (status, answer) = ask(&router, Method::POST, "/filter", body.clone()).await;
    assert_eq!(status, 200, "{answer}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer, json!({ "NodeNames": ["n1", "n2"], "FailedAndUnresolvableNodes": {} }));
    let (status, answer) = ask(&router, Method::POST, "/prioritize", body).await;
    assert_eq!(status, 200, "{answer}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer, json!([{ "Host": "n1", "Score": 0 }, { "Host": "n2", "Score": 0 }]));
}

/// Invariant 2.
#[tokio::test]
async fn what_is_no_question_is_refused() {
    let (router, _folder) = alone();
    for path in ["/filter", "/prioritize"] {
        let (status, why) = ask(&router, Method::POST, path, b"{\"Pod\":".to_vec()).await;
        assert_eq!(status, 400);
        assert!(why.contains("no ExtenderArgs"), "{why}");
        assert_eq!(ask(&router, Method::POST, path, vec![b' '; BODY_BYTES_MAX + 1]).await.0, 413);
        assert_eq!(ask(&router, Method::GET, path, Vec::new()).await.0, 405);
    }
    assert_eq!(ask(&router, Method::POST, "/bind", Vec::new()).await.0, 404);
}

/// An extender that these may ask.
async fn started(from: &[&str]) -> (Extender, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let client = Client::new(Embedded::open(&folder.path().join("store")).unwrap());
    let kubernetes = Kubernetes::new(&Config::new("http://127.0.0.1:9".parse().unwrap())).unwrap();
    let from = from.iter().map(|range| range.parse().unwrap()).collect();
    (Extender::start("127.0.0.1:0".parse().unwrap(), from, kubernetes, client).await.unwrap(), folder)
}

/// As a scheduler asks: several questions on one connection.
#[tokio::test]
async fn connections_are_kept() {
    let (extender, _folder) = started(&["127.0.0.1"]).await;
    let mut stream = TcpStream::connect(extender.address()).await.unwrap();
    answered(&mut stream).await;
    answered(&mut stream).await;
}

/// Invariant 2: as a pod of anybody asks.
#[tokio::test]
async fn strangers_get_nothing_and_are_in_nobodys_way() {
    let (extender, _folder) = started(&["10.0.0.0/8", "127.0.0.1"]).await;
    let mut strangers = Vec::new();
    for _ in 0..=CONNECTIONS_MAX {
        let stranger = TcpSocket::new_v4().unwrap();
        stranger.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        strangers.push(stranger.connect(extender.address()).await.unwrap());
    }
    answered(&mut TcpStream::connect(extender.address()).await.unwrap()).await;
    for stranger in strangers {
        nothing(stranger).await;
    }
    let (extender, _folder) = started(&[]).await;
    nothing(TcpStream::connect(extender.address()).await.unwrap()).await;
}

fn asked() -> String {
    let body = json!({ "Pod": {}, "NodeNames": ["only-one"] }).to_string();
    format!("POST /prioritize HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Asks, and gets an answer.
async fn answered(stream: &mut TcpStream) {
    stream.write_all(asked().as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(br#"[{"Host":"only-one","Score":0}]"#) {
        let got = stream.read_buf(&mut answer).await.unwrap();
        assert_ne!(got, 0, "{}", String::from_utf8_lossy(&answer));
    }
    assert!(answer.starts_with(b"HTTP/1.1 200 "));
}

/// Asks the same, and is cut off, before or while it does.
async fn nothing(mut stream: TcpStream) {
    let _cut_off = stream.write_all(asked().as_bytes()).await;
    let mut answer = Vec::new();
    let _cut_off = stream.read_to_end(&mut answer).await;
    assert_eq!(answer, b"", "{}", String::from_utf8_lossy(&answer));
}

//! What the store promises, checked on each implementation of it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod conformance;
mod crash;
mod served;

use model::{Node, NodeState};
use std::path::Path;
use store::{Client, Embedded};
use uuid::Uuid;

fn open(folder: &Path) -> Client {
    Client::new(Embedded::open(&folder.join("store.redb")).unwrap())
}

fn node(name: &str, heartbeat: u64) -> Node {
    Node {
        name: name.into(),
        state: NodeState::Ready,
        address: "127.0.0.1:4420".into(),
        metrics_address: None,
        pid: 7,
        boot_id: Uuid::from_u128(1),
        version: "0.1.0".into(),
        heartbeat,
    }
}

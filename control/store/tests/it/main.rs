//! What the store promises, checked on each implementation of it that needs nothing installed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod conformance;
mod crash;
mod proxy;
mod served;

use conformance::{conforms, node};
use std::path::Path;
use store::{Client, Embedded};

fn open(folder: &Path) -> Client {
    Client::new(Embedded::open(&folder.join("store.redb")).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_conforms() {
    let folder = tempfile::tempdir().unwrap();
    conforms(&open(folder.path()), None).await;
}

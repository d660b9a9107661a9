//! The `OpenAPI` document is checked in: a change of the API is seen in review.

use crate::cluster::Cluster;
use std::{fs, path::Path};

const UPDATE: &str = "ORLOP_UPDATE_OPENAPI";

#[tokio::test]
async fn the_document_is_the_one_checked_in() {
    let cluster = Cluster::start(0).await;
    let served = cluster.ask("GET", "/openapi.json", "").await;
    assert_eq!(served.json()["openapi"], "3.1.0");
    let text = format!("{}\n", serde_json::to_string_pretty(&api::openapi()).unwrap());
    assert_eq!(served.json(), serde_json::from_str::<serde_json::Value>(&text).unwrap());

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    if std::env::var_os(UPDATE).is_some() {
        fs::write(&path, &text).unwrap();
    }
    let checked_in = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        checked_in == text,
        "{} is not what the code says; look at the change, then run: {UPDATE}=1 cargo test -p orlop-api document",
        path.display()
    );
    cluster.server.stop().await;
}

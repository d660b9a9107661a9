//! `orlop controller`: the process that has the store open, decides where bytes live, and answers the API.
//!
//! Invariants:
//! 1. Volumes go on while it is away: nothing here is on the path of a byte.

use crate::arguments::Controller;
use crate::failure::{Failure, OrFail, Outcome};
use crate::process;
use std::time::Duration;
use store::{Client, Embedded};
use tokio::signal::unix::{SignalKind, signal};

/// Runs the controller until it is asked to end.
pub(crate) fn run(arguments: &Controller) -> Outcome {
    if let Some(parent) = arguments.parent {
        process::die_with(parent)?;
    }
    process::log_to_stderr();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.or_fail(|| "cannot start".into())?.block_on(serve(arguments))
}

async fn serve(arguments: &Controller) -> Outcome {
    let mut terminate = signal(SignalKind::terminate()).or_fail(|| "cannot listen for signals".into())?;
    std::fs::create_dir_all(&arguments.data)
        .or_fail(|| format!("cannot make {}", arguments.data.display()))?;
    let file = arguments.data.join("store.redb");
    let embedded = Embedded::open(&file).map_err(|error| Failure::new(error.to_string()))?;
    let client = Client::new(embedded);
    let cluster = manager::ensure_cluster(&client).await.map_err(|error| Failure::new(error.to_string()))?;
    let mut patience = manager::Config::default();
    patience.replace_after = arguments.replace_after.map_or(patience.replace_after, Duration::from_secs);
    let manager = manager::start(client.clone(), patience);
    let config = api::ApiConfig { listen: arguments.listen, client, overcommit: manager::OVERCOMMIT_DEFAULT };
    let server = api::serve(config).await.map_err(|error| Failure::new(error.to_string()))?;
    tracing::info!(address = %server.address(), cluster = %cluster.uuid, "controller runs");
    terminate.recv().await;
    server.stop().await;
    manager.stop().await;
    tracing::info!("controller ends");
    Ok(())
}

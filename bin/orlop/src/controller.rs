//! `orlop controller`: the process that decides where bytes live, and answers the API; it has the store open, unless
//! that is elsewhere.
//!
//! Invariants:
//! 1. Volumes go on while it is away: nothing here is on the path of a byte.

use crate::arguments::Controller;
use crate::failure::{Failure, OrFail, Outcome};
use crate::{process, stores};
use k8s::Kubernetes;
use std::path::Path;
use std::time::Duration;
use store::{Client, Embedded};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

/// How often volumes are looked for that people have applied.
const ADOPT_INTERVAL: Duration = Duration::from_secs(5);

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
    let client = match (&arguments.data, &arguments.store) {
        (Some(folder), _) => embedded(folder)?,
        (None, address) => elsewhere(address.as_deref().unwrap_or_default()).await?,
    };
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

/// A store that is not this process's own. In Kubernetes the kinds are made known first, and volumes that people have
/// applied are made whole.
async fn elsewhere(address: &str) -> Outcome<Client> {
    let opened = stores::open(address).await?;
    if let Some(kubernetes) = opened.kubernetes {
        kubernetes.install().await.map_err(|error| Failure::new(error.to_string()))?;
        tokio::spawn(adopt(kubernetes));
    }
    Ok(opened.client)
}

async fn adopt(kubernetes: Kubernetes) {
    loop {
        match kubernetes.adopt().await {
            Ok(names) if names.is_empty() => {}
            Ok(names) => tracing::info!(volumes = names.join(" "), "volumes that were applied are there"),
            Err(error) => tracing::warn!(%error, "volumes that were applied are looked for again"),
        }
        sleep(ADOPT_INTERVAL).await;
    }
}

fn embedded(folder: &Path) -> Outcome<Client> {
    std::fs::create_dir_all(folder).or_fail(|| format!("cannot make {}", folder.display()))?;
    let store = Embedded::open(&folder.join("store.redb"));
    store.map(Client::new).map_err(|error| Failure::new(error.to_string()))
}

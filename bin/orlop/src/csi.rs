//! `orlop csi`: the process by which an orchestrator of containers asks for volumes, one per node.
//!
//! Invariants:
//! 1. It holds nothing: killed and started again at any point, it goes on (`::csi`).

use crate::arguments::Csi;
use crate::failure::{Failure, OrFail, Outcome};
use crate::{process, stores};
use ::csi::Config;
use api::client::Client;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::signal::unix::{SignalKind, signal};

/// Serves until it is asked to end.
pub(crate) fn run(arguments: &Csi) -> Outcome {
    if let Some(parent) = arguments.parent {
        process::die_with(parent)?;
    }
    process::log_to_stderr();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.or_fail(|| "cannot start".into())?;
    let served = runtime.block_on(serve(arguments));
    // A mkfs that is under way is not waited for: it ends with this process, and is begun again by the next one.
    runtime.shutdown_background();
    served
}

async fn serve(arguments: &Csi) -> Outcome {
    let Csi { node, socket, .. } = arguments;
    let mut terminate = signal(SignalKind::terminate()).or_fail(|| "cannot listen for signals".into())?;
    let (api, _server) = api(arguments).await?;
    let config = Config { node: node.clone(), socket: socket.clone(), api };
    tracing::info!(node, socket = %socket.display(), "csi plugin runs");
    let end = async move {
        terminate.recv().await;
    };
    ::csi::serve(config, end).await.map_err(|error| Failure::new(error.to_string()))?;
    tracing::info!("csi plugin ends");
    Ok(())
}

/// The API: another process's, or with a store this one's own, on loopback, for nobody else.
async fn api(arguments: &Csi) -> Outcome<(Client, Option<api::Server>)> {
    let Some(store) = &arguments.store else {
        return Ok((Client::new(arguments.api.as_deref().unwrap_or_default())?, None));
    };
    let client = stores::open(store).await?.client;
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    // Volumes are made and grown by the controllers, who are told how much to promise; nobody asks this one for that.
    let config = api::ApiConfig { listen, client, overcommit: manager::OVERCOMMIT_DEFAULT };
    let server = api::serve(config).await.map_err(|error| Failure::new(error.to_string()))?;
    Ok((Client::new(&format!("http://{}", server.address()))?, Some(server)))
}

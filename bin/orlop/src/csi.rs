//! `orlop csi`: the process by which an orchestrator of containers asks for volumes, one per node.
//!
//! Invariants:
//! 1. It holds nothing: killed and started again at any point, it goes on (`::csi`).

use crate::arguments::Csi;
use crate::failure::{Failure, OrFail, Outcome};
use crate::process;
use ::csi::Config;
use api::client::Client;
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
    let Csi { node, socket, api, .. } = arguments;
    let mut terminate = signal(SignalKind::terminate()).or_fail(|| "cannot listen for signals".into())?;
    let config = Config { node: node.clone(), socket: socket.clone(), api: Client::new(api)? };
    tracing::info!(node, socket = %socket.display(), "csi plugin runs");
    let end = async move {
        terminate.recv().await;
    };
    ::csi::serve(config, end).await.map_err(|error| Failure::new(error.to_string()))?;
    tracing::info!("csi plugin ends");
    Ok(())
}

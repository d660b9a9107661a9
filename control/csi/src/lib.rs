//! The Container Storage Interface: what an orchestrator of containers asks becomes wishes in the API, then mounts on a
//! node. It is off the path of a byte: it makes the device appear, and is gone when bytes flow.
//!
//! `controller` turns requests into wishes (any instance can), `node` mounts what is attached on its own machine, and
//! `identity` says who this is. Everything pure is in modules of its own: `parameters`, `capability`, `capacity`, `id`,
//! and, of a node, `contents` and `mounts`.
//!
//! 1. Nothing is remembered: what is so is read from the API, from the device and from the table of mounts. A plugin
//!    that is killed at any point and started again goes on with the next repetition of the request.
//! 2. Requests for one volume are answered one after the other (`locks`).
//! 3. Every refusal names the object, the cause and what to do, under the code that the specification gives it.
//!
//! # Spec
//! Container Storage Interface 1.12.0 (`proto/`).

mod capability;
mod capacity;
#[cfg(feature = "client")]
pub mod client;
mod controller;
mod filesystem;
mod id;
mod identity;
mod locks;
mod node;
mod parameters;
mod refusal;

use api::client::Client;
use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{net::UnixListener, sync::watch, time::sleep};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

/// What `proto/csi.proto` defines.
#[allow(
    warnings,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod v1 {
    tonic::include_proto!("csi.v1");
}

/// The name of the driver.
pub const DRIVER: &str = "csi.orlop.io";
/// The label under which a node is known to schedulers.
pub const TOPOLOGY_KEY: &str = "topology.csi.orlop.io/node";

/// What a plugin needs.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node that it serves.
    pub node: String,
    /// Where it listens.
    pub socket: PathBuf,
    /// The cluster.
    pub api: Client,
}

/// Why a plugin cannot serve.
#[derive(Debug)]
pub struct Error {
    context: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.context, self.source)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self.source.as_ref())
    }
}

/// How long requests that are under way at the end have. Who keeps an idle connection has no say.
const GRACE: Duration = Duration::from_secs(2);

/// Serves all three services on one socket until `end`.
pub async fn serve(config: Config, end: impl Future<Output = ()>) -> Result<(), Error> {
    let Config { node, socket, api } = config;
    let listener = listen(&socket).map_err(|source| Error {
        context: format!("cannot listen on {}", socket.display()),
        source: source.into(),
    })?;
    let (ending, mut ended) = watch::channel(false);
    let end = async move {
        end.await;
        ending.send_replace(true);
    };
    let serving = Server::builder()
        .add_service(identity::service(api.clone()))
        .add_service(controller::service(api.clone()))
        .add_service(node::service(node, api))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), end);
    let out_of_time = async {
        // An error: the server is gone, and that is seen by itself.
        drop(ended.wait_for(|ended| *ended).await);
        sleep(GRACE).await;
    };
    let served = tokio::select! {
        served = serving => served,
        () = out_of_time => Ok(()),
    };
    // Somebody else's by now, or gone: both are fine.
    let _gone = std::fs::remove_file(&socket);
    served.map_err(|source| Error { context: format!("{} failed", socket.display()), source: source.into() })
}

/// Listens on `socket`, in place of whoever did so before: one that was killed has left its socket behind.
fn listen(socket: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut draft = socket.as_os_str().to_owned();
    draft.push(".new");
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&draft)?;
    std::fs::rename(&draft, socket)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_keeps_its_connection_does_not_keep_the_plugin() {
        let temp = tempfile::tempdir().unwrap();
        let socket = temp.path().join("csi.sock");
        let api = Client::new("http://127.0.0.1:9").unwrap();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let config = Config { node: "node-1".into(), socket: socket.clone(), api };
        let serving = tokio::spawn(serve(config, async { drop(ended.await) }));
        let silent = loop {
            match tokio::net::UnixStream::connect(&socket).await {
                Ok(connection) => break connection,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        end.send(()).unwrap();
        serving.await.unwrap().unwrap();
        drop(silent);
    }

    #[tokio::test]
    async fn a_socket_that_was_left_behind_is_taken_over() {
        let temp = tempfile::tempdir().unwrap();
        let socket = temp.path().join("node-1/csi.sock");
        drop(listen(&socket).unwrap());
        assert!(socket.exists(), "what a killed plugin leaves");
        let listener = listen(&socket).unwrap();
        let (there, here) = tokio::join!(tokio::net::UnixStream::connect(&socket), listener.accept());
        assert!(there.is_ok() && here.is_ok());
    }
}

//! REST with `OpenAPI` 3.1: the door for people and programs. It writes wishes; engines and the manager make them so.
//!
//! One server answers `/api/v1` (this crate), `/store/v1` (the store, for engines), `/openapi.json`, `/metrics` and
//! `/healthz`. Every failure is a problem (RFC 9457) that names the object, the cause and what to do.

mod capacity;
pub mod client;
mod live;
mod metrics;
mod nodes;
mod problem;
mod recovery;
mod removal;
mod requests;
mod volumes;
mod wait;

pub use capacity::{Capacity, Room};
pub use nodes::{DiskList, NodeList, PoolList, UpdateNode, UpdateNodeSpec};
pub use problem::Problem;
pub use requests::parse_duration;
pub use volumes::{AttachVolume, CreateVolume, ResizeVolume, VolumeList};

use axum::{Router, extract::FromRef, middleware, routing::get};
use metrics::Metrics;
use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};
use store::Client;
use tokio::{
    net::TcpListener,
    sync::{Mutex, watch},
    task::JoinHandle,
    time::timeout,
};
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

/// How long a request may go on after the server was asked to end.
const GRACE: Duration = Duration::from_secs(5);

/// What the server needs.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// Where to listen; port 0 for any.
    pub listen: SocketAddr,
    /// The store, which it also serves to engines.
    pub client: Client,
    /// How much more may be promised of a pool than it has.
    pub overcommit: u64,
}

/// Why the server did not start, or ended.
#[derive(Debug)]
pub struct Error {
    context: String,
    source: io::Error,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// A server that runs. Dropping it without [`Server::stop`] leaves it running until the runtime ends.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    closing: watch::Sender<bool>,
    task: JoinHandle<io::Result<()>>,
}

impl Server {
    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends in order: watches and waits end now, other requests get a few seconds.
    pub async fn stop(mut self) {
        self.closing.send_replace(true);
        match timeout(GRACE, &mut self.task).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the API ended with an error"),
            Ok(Err(error)) => tracing::error!(%error, "the API has failed"),
            Err(_) => {
                tracing::warn!("requests to the API were cut off");
                self.task.abort();
            }
        }
    }
}

/// Starts the server.
///
/// # Errors
/// The address cannot be listened on: it is in use, or not of this machine.
pub async fn serve(config: ApiConfig) -> Result<Server, Error> {
    let listen = config.listen;
    let failed = |source: io::Error| {
        let why = match source.kind() {
            io::ErrorKind::AddrInUse => "is in use; stop the program that listens there".to_owned(),
            _ => format!("cannot be listened on ({source})"),
        };
        Error { context: format!("address {listen} {why}, or choose another with --listen"), source }
    };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let (closing, closed) = watch::channel(false);
    let router = router(config, closed.clone());
    let task = tokio::spawn(async move {
        let mut closed = closed;
        // The sender is gone only with the whole server: that is an end as well.
        let shutdown = async move { drop(closed.wait_for(|closing| *closing).await) };
        axum::serve(listener, router).with_graceful_shutdown(shutdown).await
    });
    Ok(Server { address, closing, task })
}

/// What the handlers share.
#[derive(Clone)]
struct App {
    client: Client,
    overcommit: u64,
    metrics: Metrics,
    closing: watch::Receiver<bool>,
    live: live::Lazy,
    /// Space is promised by one request at a time.
    placing: Arc<Mutex<()>>,
    /// What was promised.
    promised: capacity::Sum,
}

impl FromRef<App> for Client {
    fn from_ref(app: &App) -> Self {
        app.client.clone()
    }
}

fn router(config: ApiConfig, closing: watch::Receiver<bool>) -> Router {
    let app = App {
        metrics: Metrics::new(&config.client),
        client: config.client,
        overcommit: config.overcommit,
        closing: closing.clone(),
        live: live::Lazy::default(),
        placing: Arc::default(),
        promised: capacity::Sum::default(),
    };
    let (api, document) = api().split_for_parts();
    api.with_state(app.clone())
        .merge(store::routes(app.client.clone(), closing))
        .route("/openapi.json", get(async move || axum::Json(document.clone())))
        .fallback(problem::no_such_path)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(middleware::from_fn_with_state(app.metrics, metrics::count))
}

#[derive(OpenApi)]
#[openapi(info(
    title = "Orlop",
    description = "Replicated block storage: nodes, disks, pools and volumes. Errors are problems (RFC 9457).",
    license(name = "Apache-2.0", identifier = "Apache-2.0")
))]
struct Document;

fn api() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(nodes::list_nodes))
        .routes(routes!(nodes::get_node, nodes::update_node, removal::delete_node))
        .routes(routes!(nodes::list_pools))
        .routes(routes!(nodes::get_pool, removal::delete_pool))
        .routes(routes!(nodes::list_disks))
        .routes(routes!(nodes::get_disk))
        .routes(routes!(volumes::list_volumes, volumes::create_volume))
        .routes(routes!(capacity::get_capacity))
        .routes(routes!(volumes::get_volume, volumes::delete_volume))
        .routes(routes!(volumes::attach_volume))
        .routes(routes!(volumes::detach_volume))
        .routes(routes!(volumes::resize_volume))
        .routes(routes!(recovery::recover_volume))
        .routes(routes!(metrics::show))
        .routes(routes!(metrics::healthz))
}

/// The document at `/openapi.json`.
pub fn openapi() -> utoipa::openapi::OpenApi {
    api().into_openapi()
}

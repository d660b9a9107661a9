//! A scheduler extender: kube-scheduler asks which nodes are good for a pod, and those that hold a copy of its volumes
//! are (docs/decisions/0020). Beside the manager, in each controller, whoever leads.
//!
//! 1. Scheduling goes on without it, and whatever fails here is an answer that changes nothing: no pod waits for more
//!    than a moment, none is refused everywhere.
//! 2. Who asks from an address that was not named gets nothing (`askers`). For those who may ask connections, requests,
//!    bytes and time are bounded, nothing is written, and what is told is about nodes and claims that the asker names.

mod askers;
mod judge;
mod whereabouts;
mod wire;

pub use askers::Cidr;

use crate::Kubernetes;
use askers::Askers;
use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::post,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use store::Client;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use whereabouts::Whereabouts;
use wire::{FilterResult, HostPriority, Question};

/// A scheduler holds one, or as many as it has pods on their way.
const CONNECTIONS_MAX: usize = 32;
/// Five thousand names and the largest pod are half of it.
const BODY_BYTES_MAX: usize = 4 << 20;
/// From the first byte of a body to the last of an answer.
const REQUEST: Duration = Duration::from_secs(2);
/// For the head of a request, also the first on a connection that was kept.
const HEAD: Duration = Duration::from_secs(60);
/// After a failure to take a connection: there may be too many files open.
const RETRY: Duration = Duration::from_millis(100);

/// A running extender; dropping it ends it.
#[derive(Debug)]
pub struct Extender {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Extender {
    /// Listens, and begins to follow the engines. Only who connects from one of the ranges is answered.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn start(
        listen: SocketAddr,
        from: Vec<Cidr>,
        kubernetes: Kubernetes,
        client: Client,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let router = router(Whereabouts::follow(kubernetes, client));
        Ok(Self { address, task: tokio::spawn(serve(listener, Askers::new(from), router)) })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Extender {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn router(whereabouts: Whereabouts) -> Router {
    Router::new()
        .route("/filter", post(filter))
        .route("/prioritize", post(prioritize))
        .with_state(Arc::new(whereabouts))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn(bounded))
}

/// Invariant 2. The connections end with this future.
async fn serve(listener: TcpListener, mut askers: Askers, router: Router) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, peer)) if askers.admit(peer.ip()) => {
                drop(connections.spawn(connection(stream, router.clone())));
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "a connection of the scheduler is not taken");
                sleep(RETRY).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, router: Router) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD);
    let service = TowerToHyperService::new(router);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection of the scheduler has ended");
    }
}

async fn bounded(request: Request, next: Next) -> Response {
    let late = |_| (StatusCode::REQUEST_TIMEOUT, "the request took too long").into_response();
    timeout(REQUEST, next.run(request)).await.unwrap_or_else(late)
}

/// Why a request is not answered.
struct Refusal(String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (StatusCode::BAD_REQUEST, self.0).into_response()
    }
}

async fn filter(
    State(whereabouts): State<Arc<Whereabouts>>,
    body: Bytes,
) -> Result<Json<FilterResult>, Refusal> {
    let question = Question::parse(&body).map_err(Refusal)?;
    let volumes = whereabouts.volumes(&question).await;
    let refused = whereabouts.see(|engines| judge::refused(engines, &volumes, &question.nodes));
    let mut left = question.nodes;
    left.retain(|node| !refused.contains_key(node));
    Ok(Json(FilterResult { node_names: left, failed_and_unresolvable_nodes: refused }))
}

async fn prioritize(
    State(whereabouts): State<Arc<Whereabouts>>,
    body: Bytes,
) -> Result<Json<Vec<HostPriority>>, Refusal> {
    let question = Question::parse(&body).map_err(Refusal)?;
    let volumes = whereabouts.volumes(&question).await;
    let nodes = question.nodes.into_iter();
    Ok(Json(whereabouts.see(|engines| {
        nodes.map(|host| HostPriority { score: judge::score(engines, &volumes, &host), host }).collect()
    })))
}

#[cfg(test)]
mod tests;

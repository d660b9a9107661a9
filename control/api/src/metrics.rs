//! `/metrics` and `/healthz` of the controller. What the store holds is counted when it is asked for.

use crate::{App, Problem};
use axum::{
    extract::{MatchedPath, Request, State},
    http::{Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use manager::View;
use model::{ClusterInfo, NodeState, PoolState, VolumeState};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use std::{sync::Arc, time::Instant};
use store::Client;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VolumeLabels {
    volume: String,
    state: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    node: String,
    pool: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    path: String,
    status: u16,
}

/// What the controller exports.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    registry: Arc<Registry>,
    volumes: Family<StateLabels, Gauge>,
    volume_state: Family<VolumeLabels, Gauge>,
    nodes: Family<StateLabels, Gauge>,
    pool_capacity: Family<PoolLabels, Gauge>,
    pool_used: Family<PoolLabels, Gauge>,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Histogram,
}

impl Metrics {
    pub(crate) fn new(client: &Client) -> Self {
        let mut registry = Registry::default();
        let volumes = Family::default();
        let volume_state = Family::default();
        let nodes = Family::default();
        let pool_capacity = Family::default();
        let pool_used = Family::default();
        let requests = Family::default();
        let request_seconds =
            Histogram::new([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0]);
        registry.register("orlop_volumes", "Volumes by state", volumes.clone());
        registry.register(
            "orlop_volume_state",
            "1 for the state that the volume is in",
            volume_state.clone(),
        );
        registry.register("orlop_nodes", "Nodes by state", nodes.clone());
        let bytes = || Unit::Bytes;
        registry.register_with_unit("orlop_pool_capacity", "Room for data", bytes(), pool_capacity.clone());
        registry.register_with_unit("orlop_pool_used", "Given out to replicas", bytes(), pool_used.clone());
        registry.register("orlop_http_requests", "Requests by their path and outcome", requests.clone());
        registry.register_with_unit(
            "orlop_http_request",
            "How long requests take, those that wait on purpose and watches included",
            Unit::Seconds,
            request_seconds.clone(),
        );
        client.metrics().register(&mut registry);
        Self {
            registry: Arc::new(registry),
            volumes,
            volume_state,
            nodes,
            pool_capacity,
            pool_used,
            requests,
            request_seconds,
        }
    }

    fn refresh(&self, view: &View) {
        let state = |state: &dyn std::fmt::Display| StateLabels { state: state.to_string() };
        for each in [NodeState::Ready, NodeState::NotReady] {
            let count = view.nodes.values().filter(|node| node.value.state == each).count();
            self.nodes.get_or_create(&state(&each)).set(gauge(count));
        }
        let around = view.surroundings();
        let mut states = Vec::new();
        self.volume_state.clear();
        for volume in view.volumes.values().map(|volume| &volume.value) {
            let record = view.record(volume.uuid).map(|record| &record.value);
            let reported = view.status(volume.uuid).map(|status| &status.value);
            let found = model::explain(volume, record, reported, &around).state;
            let labels = VolumeLabels { volume: volume.name.clone(), state: found.to_string() };
            self.volume_state.get_or_create(&labels).set(1);
            states.push(found);
        }
        for each in VolumeState::ALL {
            let count = states.iter().filter(|found| **found == each).count();
            self.volumes.get_or_create(&state(&each)).set(gauge(count));
        }
        self.pool_capacity.clear();
        self.pool_used.clear();
        // One that is gone may have a successor of the same name.
        let pools = view.pools.values().map(|pool| &pool.value);
        for pool in pools.filter(|pool| pool.state != PoolState::Gone) {
            let labels = PoolLabels { node: pool.node.clone(), pool: pool.name.clone() };
            self.pool_capacity.get_or_create(&labels).set(gauge(pool.capacity_bytes));
            self.pool_used.get_or_create(&labels).set(gauge(pool.used_bytes));
        }
    }
}

fn gauge(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

/// Counts each request by the pattern of its path, so that the labels are bounded.
pub(crate) async fn count(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let method = match *request.method() {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    };
    let start = Instant::now();
    let response = next.run(request).await;
    metrics.request_seconds.observe(start.elapsed().as_secs_f64());
    let labels = RequestLabels { method, path, status: response.status().as_u16() };
    metrics.requests.get_or_create(&labels).inc();
    response
}

/// What Prometheus scrapes.
#[utoipa::path(get, path = "/metrics", tag = "controller", responses((status = 200, body = String)))]
pub(crate) async fn show(State(app): State<App>) -> Result<Response, Problem> {
    app.live().await?.see(|view| app.metrics.refresh(view));
    let mut text = String::new();
    // Writing to a string does not fail.
    if encode(&mut text, &app.metrics.registry).is_err() {
        text.clear();
    }
    let format = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, format)], text).into_response())
}

/// Whether the controller can use its store.
#[utoipa::path(
    get, path = "/healthz", tag = "controller",
    responses((status = 200, body = String), (status = 503, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn healthz(State(app): State<App>) -> Result<&'static str, Problem> {
    app.client.get::<ClusterInfo>(ClusterInfo::KEY).await?;
    Ok("ok")
}

//! `/metrics` of a node: the engine's figures, asked for at each scrape, in the text format of Prometheus.

use crate::failure::{Failure, Outcome};
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use engine::{Engine, EngineMetrics};
use model::PoolState;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use rt::mailbox;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// Where the engine's answer goes.
pub(super) type Question = mailbox::Sender<EngineMetrics>;

/// A scrape waits no longer for a reactor.
const PATIENCE: Duration = Duration::from_secs(2);

/// Serves `/metrics` and `/healthz` at `address`.
pub(super) async fn serve(
    address: SocketAddr,
    node: String,
    questions: mailbox::Sender<Question>,
) -> Outcome {
    let listener = tokio::net::TcpListener::bind(address).await.map_err(|error| {
        Failure::new(format!("cannot serve metrics on {address}: {error}"))
            .hint("choose another address with --metrics")
    })?;
    let scrape = async move || match gather(&questions).await {
        Some(metrics) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text(&node, &metrics)).into_response()
        }
        None => (StatusCode::SERVICE_UNAVAILABLE, "the engine does not answer\n").into_response(),
    };
    let router = Router::new().route("/metrics", get(scrape)).route("/healthz", get(async || "ok\n"));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "metrics are no longer served");
        }
    });
    Ok(())
}

/// Answers on the reactor, for as long as anybody can ask.
pub(super) async fn answer(engine: Engine, asked: mailbox::Receiver<Question>) {
    while let Ok(question) = asked.recv().await {
        // A scrape that gave up does not listen any more.
        drop(question.try_send(engine.metrics()));
    }
}

async fn gather(questions: &mailbox::Sender<Question>) -> Option<EngineMetrics> {
    let (question, answer) = mailbox::bounded(1);
    let ask = async {
        questions.send(question).await.ok()?;
        answer.recv().await.ok()
    };
    tokio::time::timeout(PATIENCE, ask).await.ok()?
}

/// Labels of one volume on this node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VolumeLabels {
    node: String,
    volume: String,
}

/// Labels of one copy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MemberLabels {
    volume: String,
    member: String,
    state: String,
}

/// Labels of one pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    node: String,
    pool: String,
}

type Figures<L> = Family<L, Gauge<u64, AtomicU64>>;

/// The figures in the `OpenMetrics` text format.
fn text(node: &str, metrics: &EngineMetrics) -> String {
    let mut registry = Registry::with_prefix("orlop");
    volumes(&mut registry, node, metrics);
    pools(&mut registry, node, metrics);
    let mut text = String::new();
    encode(&mut text, &registry).expect("a string takes everything");
    text
}

fn volumes(registry: &mut Registry, node: &str, metrics: &EngineMetrics) {
    let figure = |registry: &mut Registry, name: &str, help: &str| {
        let figures = Figures::<VolumeLabels>::default();
        registry.register(name, help, figures.clone());
        figures
    };
    let epoch = figure(registry, "volume_epoch", "Epoch of the nexus that runs on this node");
    let retired = figure(registry, "volume_members_retired", "Members made stale since the nexus opened");
    let rebuilt = figure(registry, "volume_rebuilds_finished", "Rebuilds finished since the nexus opened");
    let resumed = figure(registry, "volume_rebuilds_resumed", "Rebuilds that went on where they had stopped");
    let copied = figure(registry, "volume_copied_bytes", "Bytes sent to make members equal");
    let overlaps = figure(registry, "volume_overlaps", "Operations that waited for an overlapping one");
    let refused = figure(registry, "volume_refused_for_space", "Writes refused for want of space");
    let waits = figure(registry, "volume_lease_waits", "Reads that waited for the lease");
    let store = figure(registry, "volume_store_errors", "Times the store did not answer");
    let up = Figures::<MemberLabels>::default();
    registry.register("member_up", "Whether the nexus has a connection to the member", up.clone());
    let owed = Figures::<MemberLabels>::default();
    registry.register("member_owed_extents", "Extents that the member is still owed", owed.clone());
    for volume in &metrics.volumes {
        let labels = VolumeLabels { node: node.to_owned(), volume: volume.name.clone() };
        let status = &volume.status;
        for (figures, value) in [
            (&epoch, status.record.epoch),
            (&retired, status.retired),
            (&rebuilt, status.rebuilt),
            (&resumed, status.resumed),
            (&copied, status.copied_bytes),
            (&overlaps, status.overlaps),
            (&refused, status.refused_for_space),
            (&waits, status.lease_waits),
            (&store, status.store_errors),
        ] {
            figures.get_or_create(&labels).set(value);
        }
        for member in &status.members {
            let labels = MemberLabels {
                volume: volume.name.clone(),
                member: member.node.clone(),
                state: model::MemberPhase::from(member.state).to_string(),
            };
            up.get_or_create(&labels).set(u64::from(member.up));
            owed.get_or_create(&labels).set(member.owed_extents);
        }
    }
}

fn pools(registry: &mut Registry, node: &str, metrics: &EngineMetrics) {
    let figure = |registry: &mut Registry, name: &str, help: &str| {
        let figures = Figures::<PoolLabels>::default();
        registry.register_with_unit(name, help, Unit::Bytes, figures.clone());
        figures
    };
    let capacity = figure(registry, "pool_capacity", "Room for data");
    let used = figure(registry, "pool_used", "Given out to replicas");
    let free = figure(registry, "pool_free", "Can still be given out");
    let online = Figures::<PoolLabels>::default();
    registry.register("pool_online", "Whether the pool is open and well", online.clone());
    for pool in &metrics.pools {
        let labels = PoolLabels { node: node.to_owned(), pool: pool.name.clone() };
        capacity.get_or_create(&labels).set(pool.capacity_bytes);
        used.get_or_create(&labels).set(pool.used_bytes);
        free.get_or_create(&labels).set(pool.free_bytes);
        online.get_or_create(&labels).set(u64::from(pool.state == PoolState::Online));
    }
}

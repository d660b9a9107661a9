//! `/metrics` of a node: the engine's figures, asked for at each scrape, in the text format of Prometheus.

use crate::failure::{Failure, Outcome};
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use engine::{Engine, EngineMetrics, VolumeMetrics};
use model::{MemberState, PoolState};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use rt::mailbox;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;
use store::Client;

/// Where the engine's answer goes.
pub(super) type Question = mailbox::Sender<EngineMetrics>;

/// A scrape waits no longer for a reactor.
const PATIENCE: Duration = Duration::from_secs(2);

/// Serves `/metrics` and `/healthz` at `address`.
pub(super) async fn serve(
    address: SocketAddr,
    node: String,
    questions: mailbox::Sender<Question>,
    client: Client,
) -> Outcome {
    let listener = tokio::net::TcpListener::bind(address).await.map_err(|error| {
        Failure::new(format!("cannot serve metrics on {address}: {error}"))
            .hint("choose another address with --metrics")
    })?;
    let scrape = async move || match gather(&questions).await {
        Some(metrics) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text(&node, metrics, &client)).into_response()
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

/// The figures in the `OpenMetrics` text format.
fn text(node: &str, engine: EngineMetrics, client: &Client) -> String {
    let mut registry = Registry::with_prefix("orlop");
    registry.register_collector(Box::new(Scrape { node: node.to_owned(), engine }));
    let mut store = Registry::default();
    client.metrics().register(&mut store);
    let (mut text, mut of_store) = (String::new(), String::new());
    encode(&mut text, &registry).expect("a string takes everything");
    encode(&mut of_store, &store).expect("a string takes everything");
    // Each ends with `# EOF`; only the last one may.
    text.truncate(text.trim_end().trim_end_matches("# EOF").len());
    text + &of_store
}

/// What the engine counted, written out once.
#[derive(Debug)]
struct Scrape {
    node: String,
    engine: EngineMetrics,
}

/// A figure of each volume: its name, what it means, where it is.
type VolumeFigure = (&'static str, &'static str, fn(&VolumeMetrics) -> u64);

const VOLUME_COUNTERS: &[VolumeFigure] = &[
    ("volume_members_retired", "Members made stale since the nexus opened", |v| v.status.retired),
    ("volume_rebuilds_finished", "Rebuilds finished since the nexus opened", |v| v.status.rebuilt),
    ("volume_rebuilds_resumed", "Rebuilds that went on where they had stopped", |v| v.status.resumed),
    ("volume_overlaps", "Operations that waited for an overlapping one", |v| v.status.overlaps),
    ("volume_refused_for_space", "Writes refused for want of space", |v| v.status.refused_for_space),
    ("volume_lease_waits", "Reads that waited for the lease", |v| v.status.lease_waits),
    ("volume_store_errors", "Times the store did not answer the nexus", |v| v.status.store_errors),
];

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.volumes(&mut encoder)?;
        self.io(&mut encoder)?;
        self.members(&mut encoder)?;
        self.pools(&mut encoder)
    }
}

impl Scrape {
    fn volumes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let volumes = &self.engine.volumes;
        let labels = |volume: &VolumeMetrics| [("node", self.node.clone()), ("volume", volume.name.clone())];
        for (name, help, figure) in VOLUME_COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for volume in volumes {
                counter(&mut family.encode_family(&labels(volume))?, figure(volume))?;
            }
        }
        let help = "Bytes sent to make members equal";
        let mut family =
            encoder.encode_descriptor("volume_copied", help, Some(&Unit::Bytes), MetricType::Counter)?;
        for volume in volumes {
            counter(&mut family.encode_family(&labels(volume))?, volume.status.copied_bytes)?;
        }
        let help = "Epoch of the nexus that runs on this node";
        let mut family = encoder.encode_descriptor("volume_epoch", help, None, MetricType::Gauge)?;
        for volume in volumes {
            family.encode_family(&labels(volume))?.encode_gauge(&volume.status.record.epoch)?;
        }
        let help = "Longest that a write has waited since the nexus opened, or still waits";
        let (name, unit) = ("volume_write_stall_max", Some(&Unit::Seconds));
        let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for volume in volumes {
            let seconds = volume.write_stall_max.as_secs_f64();
            family.encode_family(&labels(volume))?.encode_gauge(&seconds)?;
        }
        Ok(())
    }

    /// What the hosts of volumes did.
    fn io(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let flows: Vec<_> = self
            .engine
            .volumes
            .iter()
            .flat_map(|volume| volume.io.iter().map(move |io| (volume, io)))
            .map(|(volume, io)| {
                let operation = ("operation", io.operation.to_owned());
                ([("node", self.node.clone()), ("volume", volume.name.clone()), operation], io)
            })
            .collect();
        let help = "How long operations of hosts took, by the operation";
        let (name, unit) = ("volume_io", Some(&Unit::Seconds));
        let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Histogram)?;
        for (labels, io) in &flows {
            let count = io.buckets.iter().map(|(_, count)| count).sum();
            let mut series = family.encode_family(labels)?;
            series.encode_histogram::<NoLabelSet>(io.seconds, count, &io.buckets, None)?;
        }
        let help = "Bytes that hosts read and wrote";
        let mut family =
            encoder.encode_descriptor("volume_io", help, Some(&Unit::Bytes), MetricType::Counter)?;
        for (labels, io) in &flows {
            counter(&mut family.encode_family(labels)?, io.bytes)?;
        }
        let help = "Operations of hosts that failed";
        let mut family = encoder.encode_descriptor("volume_io_errors", help, None, MetricType::Counter)?;
        for (labels, io) in &flows {
            counter(&mut family.encode_family(labels)?, io.errors)?;
        }
        Ok(())
    }

    /// The copies of the volumes whose nexus runs here, and how far their rebuilds are.
    fn members(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Figure = (&'static str, &'static str, Option<Unit>, fn(&nexus::MemberStatus) -> u64);
        let figures: [Figure; 4] = [
            ("member_up", "Whether the nexus has a connection to the member", None, |m| u64::from(m.up)),
            ("member_in_sync", "Whether the member has every acknowledged write", None, |m| {
                u64::from(m.state == MemberState::InSync)
            }),
            ("member_owed", "What a rebuild has still to compare", Some(Unit::Bytes), |m| {
                m.owed_extents * pool::EXTENT_SIZE
            }),
            ("member_rebuild", "What the last rebuild has to compare in all", Some(Unit::Bytes), |m| {
                m.total_extents * pool::EXTENT_SIZE
            }),
        ];
        for (name, help, unit, figure) in figures {
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            for volume in &self.engine.volumes {
                for member in &volume.status.members {
                    let labels = [
                        ("node", self.node.clone()),
                        ("volume", volume.name.clone()),
                        ("member", member.node.clone()),
                    ];
                    family.encode_family(&labels)?.encode_gauge(&figure(member))?;
                }
            }
        }
        Ok(())
    }

    fn pools(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Figure = (&'static str, &'static str, Option<Unit>, fn(&model::Pool) -> u64);
        let figures: [Figure; 4] = [
            ("pool_capacity", "Room for data", Some(Unit::Bytes), |p| p.capacity_bytes),
            ("pool_used", "Given out to replicas", Some(Unit::Bytes), |p| p.used_bytes),
            ("pool_free", "Can still be given out", Some(Unit::Bytes), |p| p.free_bytes),
            ("pool_online", "Whether the pool is open and well", None, |p| {
                u64::from(p.state == PoolState::Online)
            }),
        ];
        for (name, help, unit, figure) in figures {
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            for pool in &self.engine.pools {
                let labels = [("node", self.node.clone()), ("pool", pool.name.clone())];
                family.encode_family(&labels)?.encode_gauge(&figure(pool))?;
            }
        }
        Ok(())
    }
}

fn counter(series: &mut MetricEncoder<'_>, value: u64) -> fmt::Result {
    series.encode_counter::<NoLabelSet, u64, f64>(&value, None)
}

//! `orlop bench`: drives a device as hard as asked and says how it went.
//!
//! Everything that can be opened as a device is driven in the same way, so that figures of a disk, of a target and of a
//! volume can be compared.

mod drive;
mod histogram;
mod stamp;
mod subject;

use crate::arguments::Bench;
use crate::failure::{Failure, Kind, OrFail, Outcome};
use crate::{opened, output, secrets};
use api::client::Client;
use device::{Device, DeviceUri, Geometry};
use drive::{Measured, Plan};
use serde::Serialize;
use stamp::Stamp;
use std::os::unix::fs::FileTypeExt;
use std::time::Duration;
use subject::Subject;

/// What the benchmark does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lower")]
pub(crate) enum Pattern {
    /// Reads at random places.
    #[default]
    RandRead,
    /// Writes at random places; overwrites what is there.
    RandWrite,
    /// Reads from the first block on.
    Read,
    /// Writes from the first block on; overwrites what is there.
    Write,
}

impl Pattern {
    fn writes(self) -> bool {
        matches!(self, Self::RandWrite | Self::Write)
    }

    fn is_random(self) -> bool {
        matches!(self, Self::RandRead | Self::RandWrite)
    }
}

/// The result as programs see it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    target: String,
    rw: Pattern,
    block_size: u64,
    depth: u32,
    seconds: f64,
    ios: u64,
    iops: f64,
    /// Millions of bytes per second.
    megabytes_per_second: f64,
    latency_microseconds: Latency,
    /// Of this process, user and system.
    cpu_seconds: f64,
}

#[derive(Debug, Serialize)]
struct Latency {
    mean: f64,
    p50: f64,
    p99: f64,
    #[serde(rename = "p99.9")]
    p99_9: f64,
    max: f64,
}

/// Runs `orlop bench`.
pub(crate) fn run(arguments: &Bench) -> Outcome {
    let uri = target(arguments)?;
    let reactor =
        rt::os::Reactor::new(rt::os::Config::default()).or_fail(|| "cannot start the I/O engine".into())?;
    let report = reactor.run(measure(uri, arguments.clone()))?;
    report.map_or(Ok(()), |report| output::show(arguments.output.output, &report, table))
}

/// What the user means: a URI, the path of a file or block device, or a volume.
fn target(arguments: &Bench) -> Outcome<DeviceUri> {
    let target = arguments.target.as_str();
    if target.contains("://") {
        return opened::parse(target);
    }
    if !target.starts_with('/') {
        return crate::wait_for(device_of(target, &arguments.api.api));
    }
    let kind = std::fs::metadata(target).or_fail(|| format!("cannot open {target}"))?.file_type();
    let scheme = if kind.is_block_device() { "disk" } else { "file" };
    // What a URI gives a meaning to is written as bytes.
    let escape = |path: &str| path.replace('%', "%25").replace('?', "%3F");
    opened::parse(&format!("{scheme}://{}", escape(target)))
}

/// The device of an attached volume.
async fn device_of(volume: &str, api: &str) -> Outcome<DeviceUri> {
    let seen = Client::new(api)?.volume(volume).await?;
    match seen.status.device {
        Some(path) if path.starts_with('/') => {
            opened::parse(&format!("disk://{path}?block_size={}", seen.spec.block_size))
        }
        Some(uri) => opened::parse(&uri),
        None => Err(Failure::new(format!("volume {volume:?} has no device"))
            .hint(format!("run `orlop volume attach {volume}` first"))),
    }
}

/// Measures, or serves, which gives no report.
async fn measure(uri: DeviceUri, arguments: Bench) -> Outcome<Option<Report>> {
    let stamp = arguments.verify.then(|| Stamp { seed: rt::random_u64() });
    let fill = arguments.fill || arguments.verify;
    let writes = arguments.rw.writes() || fill || arguments.serve.is_some();
    let access = if writes { rt::Access::Write } else { rt::Access::Read };
    let key = arguments.key.as_deref().map(secrets::read).transpose()?;
    let device = Subject::open(&uri, access, arguments.pool, key).await?;
    let failed = |(status, lba): drive::Failed| {
        Failure::new(format!("{} at block {}: {status}", arguments.target, lba.0))
    };
    if fill {
        drive::fill(&device, stamp).await.map_err(failed)?;
    }
    if let Some(listen) = arguments.serve {
        return device.serve(listen).await.map(|()| None);
    }
    let plan = Plan { stamp, ..plan(device.geometry(), &arguments)? };
    let measured = drive::drive(device.clone(), plan).await.map_err(failed)?;
    if let Some(stamp) = stamp {
        let wrong = drive::check(&device, stamp).await.map_err(failed)?;
        if let Some(lba) = wrong {
            let target = &arguments.target;
            return Err(Failure::new(format!("{target}: block {} does not hold what was written", lba.0)));
        }
    }
    device.close().await?;
    Ok(Some(report(&arguments, &measured)))
}

/// Checks that the question fits the device.
fn plan(geometry: Geometry, arguments: &Bench) -> Outcome<Plan> {
    let block_size = arguments.block_size;
    let usage = |what: String| Failure::new(what).kind(Kind::Usage);
    let unit = u64::from(geometry.block_size);
    if block_size.0 == 0 || !block_size.0.is_multiple_of(unit) {
        return Err(usage(format!("--block-size {block_size} is not a multiple of {unit} bytes"))
            .hint(format!("{} has blocks of {unit} bytes", arguments.target)));
    }
    if block_size.0 > geometry.size().0 || block_size.0 > BLOCK_SIZE_MAX {
        return Err(usage(format!("--block-size {block_size} is too large"))
            .hint(format!("at most 64 MiB, and not above the size of the device, {}", geometry.size())));
    }
    Ok(Plan {
        pattern: arguments.rw,
        block_len: usize::try_from(block_size.0).or_fail(|| "block size".into())?,
        depth: arguments.depth,
        duration: Duration::from_secs(arguments.seconds.into()),
        stamp: None,
    })
}

const BLOCK_SIZE_MAX: u64 = 64 << 20;

#[expect(clippy::cast_precision_loss, reason = "figures for people: 52 bits are enough")]
fn report(arguments: &Bench, measured: &Measured) -> Report {
    let Measured { latencies, seconds, cpu_seconds } = measured;
    let total = latencies.total();
    let per_second = total as f64 / seconds;
    let microseconds = |nanos: u64| nanos as f64 / 1000.0;
    Report {
        target: arguments.target.clone(),
        rw: arguments.rw,
        block_size: arguments.block_size.0,
        depth: arguments.depth,
        seconds: *seconds,
        ios: total,
        iops: per_second,
        megabytes_per_second: per_second * arguments.block_size.0 as f64 / 1e6,
        latency_microseconds: Latency {
            mean: latencies.mean() / 1000.0,
            p50: microseconds(latencies.per_mille(500)),
            p99: microseconds(latencies.per_mille(990)),
            p99_9: microseconds(latencies.per_mille(999)),
            max: microseconds(latencies.max()),
        },
        cpu_seconds: *cpu_seconds,
    }
}

fn table(report: &Report) -> String {
    let Report { iops, megabytes_per_second, latency_microseconds: latency, cpu_seconds, seconds, .. } =
        report;
    let row = vec![
        format!("{iops:.0}"),
        format!("{megabytes_per_second:.1}"),
        format!("{:.1}", latency.mean),
        format!("{:.1}", latency.p50),
        format!("{:.1}", latency.p99),
        format!("{:.1}", latency.p99_9),
        format!("{:.1}", latency.max),
        format!("{cpu_seconds:.2} of {seconds:.2}"),
    ];
    output::table(
        &["IOPS", "MB/S", "MEAN US", "P50 US", "P99 US", "P99.9 US", "MAX US", "CPU SECONDS"],
        vec![row],
        "",
    )
}

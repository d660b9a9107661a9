//! `orlop check`: verifies a pool that no node has open. It takes the disk's lock and writes nothing.

use crate::arguments::Check;
use crate::failure::{Failure, OrFail, Outcome};
use crate::opened;
use crate::output;
use device::{ByteCount, DeviceUri};
use pool::CheckReport;
use rt::Access;
use serde::Serialize;
use std::fmt::Write;
use std::time::Duration;
use uuid::Uuid;

/// What was found, as programs see it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    uri: String,
    name: String,
    pool: Uuid,
    cluster: Uuid,
    /// Closed in order; otherwise the journal was replayed, in memory.
    clean: bool,
    used_bytes: u64,
    replicas: Vec<Replica>,
    problems: Vec<Problem>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Replica {
    uuid: Uuid,
    volume: Uuid,
    volume_name: String,
    size_bytes: u64,
    used_bytes: u64,
    /// Blocks of 4 KiB whose contents no copy had any more when this one was rebuilt.
    bad_blocks: u64,
    epoch: u64,
    stable: model::Generation,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Problem {
    object: String,
    offset_bytes: u64,
    what: String,
    repairable: bool,
}

/// Runs `orlop check`.
pub(crate) fn run(arguments: &Check) -> Outcome {
    let mut uri = opened::parse(&arguments.uri)?;
    if let DeviceUri::File { size, .. } = &mut uri {
        // A size would make a file that is not there.
        *size = None;
    }
    let reactor =
        rt::os::Reactor::new(rt::os::Config::default()).or_fail(|| "cannot start the I/O engine".into())?;
    let checked = reactor.run(async {
        let device = opened::open(&uri, Access::Write, Duration::ZERO).await?;
        pool::check(&device).await.map_err(|error| Failure::new(format!("{}: {error}", arguments.uri)))
    })?;
    let report = report(&arguments.uri, checked);
    output::show(arguments.output.output, &report, table)?;
    match report.problems.iter().filter(|problem| !problem.repairable).count() {
        0 => Ok(()),
        1 => Err(Failure::new(format!("{}: 1 problem", arguments.uri))
            .hint("keep a copy of the disk; its volumes rebuild from their other copies on another disk")),
        problems => Err(Failure::new(format!("{}: {problems} problems", arguments.uri))
            .hint("keep a copy of the disk; its volumes rebuild from their other copies on another disk")),
    }
}

fn report(uri: &str, checked: CheckReport) -> Report {
    let replica = |info: pool::ReplicaInfo| Replica {
        uuid: info.config.replica,
        volume: info.config.volume,
        volume_name: info.config.volume_name,
        size_bytes: info.config.size_bytes,
        used_bytes: info.used_bytes,
        bad_blocks: info.bad_blocks,
        epoch: info.fence.epoch,
        stable: info.stable,
    };
    let problem = |problem: pool::Problem| Problem {
        object: problem.object,
        offset_bytes: problem.offset_bytes,
        what: problem.what,
        repairable: problem.repairable,
    };
    Report {
        uri: uri.to_owned(),
        name: checked.name,
        pool: checked.pool,
        cluster: checked.cluster,
        clean: checked.clean,
        used_bytes: checked.used_bytes,
        replicas: checked.replicas.into_iter().map(replica).collect(),
        problems: checked.problems.into_iter().map(problem).collect(),
    }
}

fn table(report: &Report) -> String {
    let closed = if report.clean { "closed in order" } else { "not closed in order, journal replayed" };
    let mut text = format!(
        "pool {} ({}) of cluster {}: {closed}, {} used\n\n",
        report.name,
        report.pool,
        report.cluster,
        ByteCount(report.used_bytes)
    );
    let row = |replica: &Replica| {
        vec![
            replica.volume_name.clone(),
            replica.uuid.to_string(),
            ByteCount(replica.size_bytes).to_string(),
            ByteCount(replica.used_bytes).to_string(),
            replica.epoch.to_string(),
            replica.stable.to_string(),
        ]
    };
    let header = ["VOLUME", "REPLICA", "SIZE", "USED", "EPOCH", "STABLE"];
    text.push_str(&output::table(&header, report.replicas.iter().map(row).collect(), "no replicas"));
    for replica in report.replicas.iter().filter(|replica| replica.bad_blocks > 0) {
        let (volume, bad) = (&replica.volume_name, replica.bad_blocks);
        let _never_fails = write!(
            text,
            "\nlost: {bad} blocks of 4 KiB of volume {volume}: no copy had them any more; reads of them fail until they are written"
        );
    }
    for Problem { object, offset_bytes, what, repairable } in &report.problems {
        let note = if *repairable { " (repaired when a node opens the pool)" } else { "" };
        let _never_fails = write!(text, "\nproblem: {object} at offset {offset_bytes}: {what}{note}");
    }
    text
}

//! `orlop wipe`: makes a disk blank again that is a pool which no node has open.
//!
//! 1. Nothing is written before the disk's lock is held and the pool's own UUID has been given.
//! 2. Afterwards a new pool can be made on it: all that [`pool::signature`] looks at is zero.

use crate::arguments::Wipe;
use crate::failure::{Failure, Kind, OrFail, Outcome};
use crate::{opened, output};
use device::DeviceUri;
use opened::Opened;
use pool::{Pool, PoolLabel, signature};
use rt::Access;
use serde::Serialize;
use std::time::Duration;
use uuid::Uuid;

/// What is there no more, as programs see it.
#[derive(Debug, Serialize)]
struct Report {
    uri: String,
    name: String,
    pool: Uuid,
    wiped: bool,
}

/// Runs `orlop wipe`.
pub(crate) fn run(arguments: &Wipe) -> Outcome {
    let mut uri = opened::parse(&arguments.uri)?;
    match &mut uri {
        // A size would make a file that is not there.
        DeviceUri::File { size, .. } => *size = None,
        DeviceUri::Disk { .. } => {}
        _ => {
            return Err(Failure::new(format!("{} is no disk of this machine", arguments.uri))
                .kind(Kind::Usage)
                .hint("write file:///PATH or disk:///dev/..."));
        }
    }
    let reactor =
        rt::os::Reactor::new(rt::os::Config::default()).or_fail(|| "cannot start the I/O engine".into())?;
    let PoolLabel { name, pool, .. } = reactor.run(async {
        let device = opened::open(&uri, Access::Write, Duration::ZERO).await?;
        let label = Pool::probe(&device).await.or_fail(|| arguments.uri.clone())?;
        if arguments.yes_destroy != Some(label.pool) {
            return Err(refused(&device, &label, arguments).await);
        }
        signature::blank(&device).await.or_fail(|| format!("{} cannot be written", arguments.uri))?;
        Ok(label)
    })?;
    let report = Report { uri: arguments.uri.clone(), name, pool, wiped: true };
    output::show(arguments.output.output, &report, |report| {
        format!("pool {} ({}) is gone; {} is blank at both ends", report.name, report.pool, report.uri)
    })
}

/// Says what would be destroyed, and how that is meant.
async fn refused(device: &Opened, label: &PoolLabel, arguments: &Wipe) -> Failure {
    let PoolLabel { cluster, pool, name, .. } = label;
    let holds = match pool::check(device).await {
        Ok(report) => {
            let replicas = report.replicas.iter();
            let volumes: Vec<&str> = replicas.map(|replica| replica.config.volume_name.as_str()).collect();
            if volumes.is_empty() {
                "of no volume".to_owned()
            } else {
                format!("of volumes {}", volumes.join(", "))
            }
        }
        Err(error) => format!("that cannot be told ({error})"),
    };
    let what = format!("{} is pool {name} ({pool}) of cluster {cluster}, with copies {holds}", arguments.uri);
    match arguments.yes_destroy {
        Some(other) => {
            Failure::new(format!("{what}, and not {other}: nothing was destroyed")).kind(Kind::Usage)
        }
        None => Failure::new(format!("{what}: nothing was destroyed"))
            .kind(Kind::Usage)
            .hint(format!("if nobody needs them, say so with --yes-destroy {pool}")),
    }
}

//! How fast a copy that was away is made equal, when all of it has changed, against writing the same through one
//! NVMe/TCP connection to a volume with one copy: link and disk together.

use super::Case;
use crate::bench::bed::Bed;
use crate::bench::cluster::Cluster;
use crate::bench::fio;
use crate::bench::line::{Budget, Line};
use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::time::{Duration, Instant};

pub(crate) const CASE: Case = Case {
    name: "rebuild",
    what: "a member comes back and is owed what was written meanwhile, against sequential writes to one copy",
    needs_root: true,
    run,
};

const LIMIT: Duration = Duration::from_secs(120);

fn run(bed: &Bed) -> Result<Vec<Line>> {
    let size = bed.pace.size / 2;
    let cluster = Cluster::start(bed, 3, bed.pace.size + bed.pace.size / 2 + (64 << 20))?;
    let device = cluster.volume("three", size, 3)?;
    cluster.volume("one", size, 1)?;
    let one = cluster.target_of("one")?;
    fio::fill(bed, Path::new(&device), size)?;
    let owner = cluster.owner("three")?.name;
    let copied = |cluster: &Cluster<'_>| {
        cluster.metric(&owner, "orlop_volume_copied_bytes_total", &["volume=\"three\""])
    };
    let mut rounds = Vec::new();
    for _ in bed.rounds("rebuild") {
        let nodes = cluster.nodes()?;
        let away = nodes.iter().find(|node| node.name != owner).context("three nodes")?;
        let pid = i32::try_from(away.pid).ok().and_then(Pid::from_raw).context("a node has a pid")?;
        let before = copied(&cluster)?;
        // A node that hangs: unlike one that was killed it stays away for as long as it takes to write everything anew.
        let stopped = Stopped::stop(pid)?;
        let filled = fio::fill(bed, Path::new(&device), size);
        let begun = Instant::now();
        drop(stopped);
        filled?;
        cluster.in_sync("three", LIMIT)?;
        let seconds = begun.elapsed().as_secs_f64();
        let megabytes = (copied(&cluster)? - before) / 1e6;
        ensure!(megabytes > 0.0, "nothing was copied: the member missed nothing");
        let link = bed.orlop_bench(&one, "write", 8, &["--block-size", "128KiB"])?.megabytes_per_second;
        rounds.push((megabytes / seconds, link));
    }
    fio::verify(bed, Path::new(&device), size)?;
    cluster.remove("three")?;
    cluster.remove("one")?;
    cluster.stop()?;
    Ok(vec![Line::beside("rebuild/everything changed", "MB/s", &rounds).budget(Budget::RatioAtLeast(0.7))])
}

/// A process that does nothing until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn stop(pid: Pid) -> Result<Self> {
        kill_process(pid, Signal::STOP).context("stop a node")?;
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kill_process(self.0, Signal::CONT).ok();
    }
}

//! What three copies add to a write. One NVMe/TCP round trip is a 4 KiB write through Orlop's initiator to a volume with
//! one copy, on the disk that the three copies are on, too.
//!
//! Inside the nexus (as it counts itself) a write of three copies takes the longest of its legs: that is what the budget
//! means. Through the initiator it is two round trips one after the other (host to nexus, nexus to copies); on the block
//! device it is one, behind loop and FUSE.

use super::Case;
use crate::bench::bed::Bed;
use crate::bench::cluster::Cluster;
use crate::bench::fio::{self, Rw};
use crate::bench::line::{Budget, Line};
use anyhow::Result;
use std::path::Path;

pub(crate) const CASE: Case = Case {
    name: "copies",
    what: "three copies on loopback, 4 KiB writes at depth 1, against one NVMe/TCP round trip",
    needs_root: false,
    run,
};

const BUDGET: Budget = Budget::RatioAtMost(1.25);
const MEMORY: &str = "mem://?size=64MiB";

fn run(bed: &Bed) -> Result<Vec<Line>> {
    let size = bed.pace.size / 4;
    let cluster = Cluster::start(bed, 3, bed.pace.size + (64 << 20))?;
    for (name, copies) in [("one", 1), ("three", 3)] {
        cluster.volume(name, size, copies)?;
    }
    let (one, three) = (cluster.target_of("one")?, cluster.target_of("three")?);
    let device = if bed.is_root { Some(cluster.volume("device", size, 3)?) } else { None };
    let memory = bed.serve(MEMORY)?;
    let write = |target: &str, more: &[&str]| -> Result<f64> {
        Ok(bed.orlop_bench(target, "randwrite", 1, more)?.mean_us)
    };
    for target in [&one, &three, &memory.uri] {
        write(target, &["--verify"])?;
    }
    if let Some(device) = &device {
        fio::fill(bed, Path::new(device), size)?;
    }
    let owner = cluster.owner("three")?.name;
    let inside = |what: &str| {
        let labels = ["volume=\"three\"", "operation=\"write\""];
        cluster.metric(&owner, &format!("orlop_volume_io_seconds_{what}"), &labels)
    };
    let (mut on_device, mut by_target, mut trips) = (Vec::new(), Vec::new(), Vec::new());
    let mut in_nexus = Vec::new();
    for _ in bed.rounds("copies randwrite depth 1") {
        let round_trip = write(&one, &[])?;
        let (seconds, count) = (inside("sum")?, inside("count")?);
        by_target.push((write(&three, &[])?, round_trip));
        in_nexus.push(((inside("sum")? - seconds) * 1e6 / (inside("count")? - count), round_trip));
        trips.push((round_trip, write(&memory.uri, &[])?));
        if let Some(device) = &device {
            let written = fio::measure(bed, Path::new(device), size, Rw::RandWrite, 1)?;
            on_device.push((written.mean_us, round_trip));
        }
    }
    for target in [&one, &three] {
        write(target, &["--verify"])?;
    }
    if let Some(device) = &device {
        fio::verify(bed, Path::new(device), size)?;
        cluster.remove("device")?;
    }
    cluster.remove("one")?;
    cluster.remove("three")?;
    cluster.stop()?;
    let mut lines = vec![
        Line::beside("copies/three inside the nexus, against one behind NVMe/TCP", "us", &in_nexus)
            .budget(BUDGET),
        Line::beside("copies/three behind NVMe/TCP, against one", "us", &by_target).budget(BUDGET),
        Line::beside("copies/one behind NVMe/TCP, against memory", "us", &trips),
    ];
    if !on_device.is_empty() {
        let line =
            Line::beside("copies/three as a block device, against one behind NVMe/TCP", "us", &on_device);
        lines.insert(1, line.budget(BUDGET));
    }
    Ok(lines)
}

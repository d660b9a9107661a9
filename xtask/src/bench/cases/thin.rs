//! The first write of a block, which takes space and journals a record, against an overwrite, which does neither.

use super::Case;
use crate::bench::bed::Bed;
use crate::bench::cluster::Cluster;
use crate::bench::fio;
use crate::bench::line::{Budget, Line};
use anyhow::Result;
use std::path::Path;

pub(crate) const CASE: Case = Case {
    name: "thin",
    what: "first writes into a thin volume with one copy against overwrites: 4 KiB random, depth 32 and 1",
    needs_root: true,
    run,
};

const BUDGET: Budget = Budget::RatioAtLeast(0.7);

fn run(bed: &Bed) -> Result<Vec<Line>> {
    let size = bed.pace.size;
    // Room for more than two volumes: a pool says a moment later that a deleted one has given its space back.
    let cluster = Cluster::start(bed, 1, size * 5)?;
    let full = cluster.volume("full", size, 1)?;
    fio::fill(bed, Path::new(&full), size)?;
    let mut lines = Vec::new();
    for (depth, bytes) in [(32, size / 8), (1, size / 64)] {
        let mut rounds = Vec::new();
        for round in bed.rounds(&format!("thin randwrite depth {depth}")) {
            let name = format!("thin-{depth}-{round}");
            let empty = cluster.volume(&name, size, 1)?;
            let first = fio::write_once(bed, Path::new(&empty), size, bytes, depth)?;
            let again = fio::write_once(bed, Path::new(&full), size, bytes, depth)?;
            rounds.push((first.iops, again.iops));
            cluster.remove(&name)?;
        }
        lines.push(Line::beside(format!("thin/first write-d{depth}"), "IOPS", &rounds).budget(BUDGET));
    }
    fio::verify(bed, Path::new(&full), size)?;
    cluster.remove("full")?;
    cluster.stop()?;
    Ok(lines)
}

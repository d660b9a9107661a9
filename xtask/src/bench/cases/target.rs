//! The NVMe/TCP target on memory, one reactor and so one core, driven by Orlop's initiator on another core; and what it
//! costs when nobody asks anything.

use super::Case;
use crate::bench::bed::Bed;
use crate::bench::line::{Budget, Line};
use crate::bench::procfs;
use anyhow::Result;
use std::time::{Duration, Instant};

pub(crate) const CASE: Case = Case {
    name: "target",
    what: "NVMe/TCP target on memory, one core: 4 KiB random reads, depth 1 and 32, and idle",
    needs_root: false,
    run,
};

const DEVICE: &str = "mem://?size=64MiB";
/// SPDK's target on one spinning core of a machine like the project's own test machine (DESIGN, section 11): reads per
/// second by depth, and core time per I/O. Recorded once; SPDK is not run here.
const SPDK: &str = "SPDK";
const SPDK_IOPS: [(u32, f64); 2] = [(1, 75_000.0), (32, 424_000.0)];
const SPDK_CORE_US: f64 = 2.2;
/// What an idle process may take: nothing that can be seen. # Units: percent of a core.
const IDLE_PERCENT: f64 = 0.1;

fn run(bed: &Bed) -> Result<Vec<Line>> {
    let target = bed.serve(DEVICE)?;
    bed.orlop_bench(&target.uri, "randwrite", 32, &["--verify"])?;
    let mut lines = Vec::new();
    for (depth, spdk) in SPDK_IOPS {
        let (mut iops, mut core_us) = (Vec::new(), Vec::new());
        for _ in bed.rounds(&format!("target randread depth {depth}")) {
            let before = procfs::cpu_seconds(target.pid)?;
            let report = bed.orlop_bench(&target.uri, "randread", depth, &[])?;
            iops.push(report.iops);
            core_us.push((procfs::cpu_seconds(target.pid)? - before) * 1e6 / report.ios);
        }
        let rate = Line::alone(format!("target/randread-d{depth}"), "IOPS", iops);
        lines.push(rate.recorded(spdk, SPDK).budget(Budget::RatioAtLeast(1.0)));
        let cost = Line::alone(format!("target/core time per I/O-d{depth}"), "us", core_us);
        lines.push(cost.recorded(SPDK_CORE_US, SPDK));
    }
    // The last verification of all that was written: reads change nothing, but the target may have.
    bed.orlop_bench(&target.uri, "randwrite", 32, &["--verify"])?;
    eprintln!("bench: target idle for {} s", bed.pace.idle_seconds);
    let (before, begun) = (procfs::cpu_seconds(target.pid)?, Instant::now());
    std::thread::sleep(Duration::from_secs(bed.pace.idle_seconds.into()));
    let percent = (procfs::cpu_seconds(target.pid)? - before) * 100.0 / begun.elapsed().as_secs_f64();
    lines.push(Line::alone("target/idle", "%", vec![percent]).budget(Budget::Below(IDLE_PERCENT)));
    Ok(lines)
}

//! What volumes cost that do nothing: core time and memory of the node processes, with none and with some attached.
//!
//! The budget is for 100 volumes; it is held against what some volumes take, and against 100 by a straight line through
//! the two measurements.

use super::Case;
use crate::bench::bed::Bed;
use crate::bench::cluster::{Cluster, Node};
use crate::bench::line::{Budget, Line};
use crate::bench::procfs;
use anyhow::Result;
use std::time::{Duration, Instant};

pub(crate) const CASE: Case = Case {
    name: "idle",
    what: "core time and memory of the node processes with idle attached volumes of three copies",
    needs_root: false,
    run,
};

const VOLUME_BYTES: u64 = 16 << 20;
const BUDGET_VOLUMES: f64 = 100.0;
const CPU: Budget = Budget::Below(1.0);
const MEMORY: Budget = Budget::Below(100.0);

/// The largest of the nodes, and all together.
struct Usage {
    cpu_percent: [f64; 2],
    memory_mib: [f64; 2],
}

fn run(bed: &Bed) -> Result<Vec<Line>> {
    let cluster = Cluster::start(bed, 3, (1 << 30).min(bed.pace.size))?;
    let none = usage(bed, &cluster, 0)?;
    let volumes = bed.pace.volumes;
    for index in 0..volumes {
        cluster.volume(&format!("idle-{index}"), VOLUME_BYTES, 3)?;
    }
    let some = usage(bed, &cluster, volumes)?;
    for index in 0..volumes {
        cluster.remove(&format!("idle-{index}"))?;
    }
    cluster.stop()?;
    let at_budget = |none: f64, some: f64| none + (some - none) * BUDGET_VOLUMES / f64::from(volumes);
    let line = |name: String, unit, value| Line::alone(name, unit, vec![value]);
    let mut lines = Vec::new();
    for (which, label) in ["busiest node", "three nodes"].into_iter().enumerate() {
        let (zero, value) = (none.cpu_percent[which], some.cpu_percent[which]);
        lines.push(line(format!("idle/cpu of {label}, no volumes"), "%", zero));
        lines.push(line(format!("idle/cpu of {label}, {volumes} volumes"), "%", value).budget(CPU));
        let scaled = at_budget(zero, value);
        lines.push(line(format!("idle/cpu of {label}, scaled to 100"), "%", scaled).budget(CPU));
    }
    for (which, label) in ["largest node", "three nodes"].into_iter().enumerate() {
        let (zero, value) = (none.memory_mib[which], some.memory_mib[which]);
        lines.push(line(format!("idle/memory of {label}, no volumes"), "MiB", zero));
        lines.push(line(format!("idle/memory of {label}, {volumes} volumes"), "MiB", value).budget(MEMORY));
        let scaled = at_budget(zero, value);
        lines.push(line(format!("idle/memory of {label}, scaled to 100"), "MiB", scaled).budget(MEMORY));
    }
    Ok(lines)
}

/// Looks at the node processes while nothing happens.
fn usage(bed: &Bed, cluster: &Cluster<'_>, volumes: u32) -> Result<Usage> {
    // What the last command set off ends first.
    std::thread::sleep(Duration::from_secs(if bed.pace.rounds > 1 { 5 } else { 1 }));
    eprintln!("bench: {volumes} volumes, idle for {} s", bed.pace.idle_seconds);
    let nodes = cluster.nodes()?;
    let times = || -> Result<Vec<f64>> { nodes.iter().map(|node| procfs::cpu_seconds(node.pid)).collect() };
    let (before, begun) = (times()?, Instant::now());
    std::thread::sleep(Duration::from_secs(bed.pace.idle_seconds.into()));
    let elapsed = begun.elapsed().as_secs_f64();
    let cpu: Vec<f64> =
        times()?.iter().zip(&before).map(|(now, then)| (now - then) * 100.0 / elapsed).collect();
    let memory = nodes.iter().map(memory_mib).collect::<Result<Vec<_>>>()?;
    Ok(Usage { cpu_percent: largest_and_sum(&cpu), memory_mib: largest_and_sum(&memory) })
}

#[expect(clippy::cast_precision_loss, reason = "memory of a process fits")]
fn memory_mib(node: &Node) -> Result<f64> {
    Ok(procfs::resident_bytes(node.pid)? as f64 / f64::from(1 << 20))
}

fn largest_and_sum(values: &[f64]) -> [f64; 2] {
    [values.iter().copied().fold(0.0, f64::max), values.iter().sum()]
}

//! How long writing stops when a node is killed: a member's, with the nexus alive, and the owner's, with the volume
//! attached elsewhere by command at once (so without the time that it takes to notice).

use super::Case;
use crate::bench::bed::Bed;
use crate::bench::cluster::{Cluster, Node};
use crate::bench::fio::{self, Rw};
use crate::bench::line::{Budget, Line};
use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::time::{Duration, Instant};

pub(crate) const CASE: Case = Case {
    name: "stall",
    what: "the longest write while a member is killed, and the time to the first write at a new owner",
    needs_root: true,
    run,
};

const MEMBER: Budget = Budget::AtMost(5.0);
const OWNER: Budget = Budget::AtMost(10.0);
/// Into the measurement the member dies.
const DELAY: Duration = Duration::from_millis(500);
const LIMIT: Duration = Duration::from_secs(120);
const BLOCK: u64 = 4096;

fn run(bed: &Bed) -> Result<Vec<Line>> {
    let size = bed.pace.size / 4;
    let cluster = Cluster::start(bed, 3, bed.pace.size + (64 << 20))?;
    let mut device = cluster.volume("stall", size, 3)?;
    fio::fill(bed, Path::new(&device), size)?;
    let (mut member, mut owner) = (Vec::new(), Vec::new());
    for _ in bed.rounds("stall, a member killed") {
        let (_, other) = owner_and_other(&cluster)?;
        let killer = std::thread::spawn(move || {
            std::thread::sleep(DELAY);
            kill(&other)
        });
        let measured = fio::measure(bed, Path::new(&device), size, Rw::RandWrite, 32)?;
        killer.join().map_err(|_| anyhow::anyhow!("the thread that kills panicked"))??;
        member.push(measured.max_us / 1e6);
        cluster.in_sync("stall", LIMIT)?;
    }
    for _ in bed.rounds("stall, the owner killed") {
        let (old, other) = owner_and_other(&cluster)?;
        let begun = Instant::now();
        kill(&old)?;
        let moved = cluster.orlop(&["volume", "attach", "stall", "--move", "--node", &other.name])?;
        moved.trim().clone_into(&mut device);
        fio::write_once(bed, Path::new(&device), size, BLOCK, 1)?;
        owner.push(begun.elapsed().as_secs_f64());
        ensure!(cluster.owner("stall")?.name == other.name, "the volume did not move to {}", other.name);
        cluster.in_sync("stall", LIMIT)?;
    }
    fio::verify(bed, Path::new(&device), size)?;
    cluster.remove("stall")?;
    cluster.stop()?;
    Ok(vec![
        Line::alone("stall/longest write, member killed", "s", member).budget(MEMBER),
        Line::alone("stall/first write elsewhere, owner killed", "s", owner).budget(OWNER),
    ])
}

fn owner_and_other(cluster: &Cluster<'_>) -> Result<(Node, Node)> {
    let owner = cluster.owner("stall")?;
    let other = cluster.nodes()?.into_iter().find(|node| node.name != owner.name);
    Ok((owner, other.context("there is one node only")?))
}

fn kill(node: &Node) -> Result<()> {
    let pid = i32::try_from(node.pid).ok().and_then(Pid::from_raw).context("a node has a pid")?;
    kill_process(pid, Signal::KILL).with_context(|| format!("kill {}", node.name))
}

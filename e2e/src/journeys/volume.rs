//! Volumes as a user meets them: nodes killed under verified load, many volumes at once.

use crate::cluster::Cluster;
use crate::journey::{Journey, Trip, need};
use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);
const ROUNDS: u32 = 3;
/// How long a node may take from its death until all copies are in sync again.
const REBUILD_LIMIT: Duration = Duration::from_secs(90);
const VOLUMES: u32 = 10;

pub(crate) const KILLS: Journey = Journey {
    name: "kills",
    what: "fio verifies every block on the device while each node in turn is killed, three rounds",
    run: kills,
};

pub(crate) const TEN: Journey = Journey {
    name: "ten",
    what: "ten volumes at once, each with its own verified data; deleted, nothing of them is left",
    run: ten,
};

/// Three rounds; in each, every node is killed once in the middle of a verified load.
fn kills(trip: &Trip) -> Result<()> {
    need(&[("fio", "fio")])?;
    let cluster = Cluster::start(trip, "2GiB")?;
    let device = cluster.volume("data", "512MiB")?;
    let nodes = cluster.nodes()?;
    for round in 1..=ROUNDS {
        for (index, node) in nodes.iter().enumerate() {
            let part = u32::try_from(index)? + 3 * (round - 1);
            let role = if cluster.owner("data")? == node.name { "the owner" } else { "a member" };
            let mut fio = trip.command("fio");
            let json = trip.folder.join(format!("fio-{part}.json"));
            // Paced, so that it is in the middle of its writes when the node dies; then every block is read back.
            fio.args(["--name=verify", "--direct=1", "--ioengine=io_uring", "--rw=randwrite", "--bs=4k"]);
            fio.args([
                "--iodepth=16",
                "--size=48m",
                "--rate_iops=,2000",
                "--verify=crc32c",
                "--verify_fatal=1",
            ]);
            fio.args(["--do_verify=1", "--output-format=json", &format!("--offset={}m", 48 * part)]);
            fio.arg(format!("--output={}", json.display())).arg(format!("--filename={device}"));
            fio.arg(format!("--randseed={part}"));
            let mut fio = trip.start(fio)?;
            std::thread::sleep(Duration::from_secs(2));
            ensure!(fio.runs(), "fio ended before the node was killed: {}", fio.output());
            cluster.kill(&node.name)?;
            let killed = Instant::now();
            fio.wait(MINUTE * 2)?.success("fio with verification")?;
            let stall = longest_write(&fs::read_to_string(&json)?)?;
            let ended = killed.elapsed();
            cluster.in_sync("data", REBUILD_LIMIT)?;
            trip.checked(format!(
                "round {round}: {} ({role}) killed; 48 MiB verified, no error; longest write {:.2} s; fio ended \
                 {:.1} s after the kill, all copies in sync {:.1} s after it",
                node.name,
                stall.as_secs_f64(),
                ended.as_secs_f64(),
                killed.elapsed().as_secs_f64()
            ));
        }
    }
    cluster.remove("data")?;
    cluster.stop()
}

/// The longest time that one write took, from fio's JSON.
fn longest_write(report: &str) -> Result<Duration> {
    let report: serde_json::Value = serde_json::from_str(report).context("fio's report")?;
    let job = &report["jobs"][0];
    ensure!(job["error"] == 0, "fio reports error {}", job["error"]);
    ensure!(job["read"]["total_ios"].as_u64() > Some(0), "fio verified nothing");
    let nanoseconds = job["write"]["clat_ns"]["max"].as_f64().context("the longest write")?;
    Ok(Duration::from_secs_f64(nanoseconds / 1e9))
}

fn ten(trip: &Trip) -> Result<()> {
    need(&[("fio", "fio")])?;
    let cluster = Cluster::start(trip, "2GiB")?;
    let begun = Instant::now();
    let mut job = String::from(
        "[global]\ndirect=1\nioengine=io_uring\nrw=randwrite\nbs=4k\niodepth=8\nsize=16m\nverify=pattern\n\
         verify_fatal=1\ndo_verify=1\n",
    );
    let mut devices = Vec::new();
    for number in 0..VOLUMES {
        let device = cluster.volume(&format!("volume-{number}"), "64MiB")?;
        // A byte of its own and the offset: neither a wrong volume nor a wrong place looks right.
        writeln!(job, "[volume-{number}]\nfilename={device}\nverify_pattern=0x{:02x}%o", 0xa0 + number)?;
        devices.push(device);
    }
    let distinct: std::collections::BTreeSet<_> = devices.iter().collect();
    ensure!(distinct.len() == devices.len(), "two volumes have one device: {devices:?}");
    trip.checked(format!("{VOLUMES} volumes created and attached in {:.1} s", begun.elapsed().as_secs_f64()));
    fs::write(trip.folder.join("ten.fio"), job)?;
    trip.sh("fio ten.fio", MINUTE * 3)?;
    trip.sh("fio ten.fio --verify_only", MINUTE * 3)?;
    trip.checked("fio on all at once: 16 MiB each, every volume holds its own pattern, read back twice");
    for number in 0..VOLUMES {
        cluster.remove(&format!("volume-{number}"))?;
    }
    let left = cluster.json(&["volume", "list"])?;
    ensure!(left.as_array().is_some_and(Vec::is_empty), "volumes that were deleted are still listed: {left}");
    cluster.stop()
}

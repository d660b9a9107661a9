//! A mounted file system outlives what is done to the engine under it: this is what a CSI plugin may rely on.
//!
//! 1. The file system is mounted once: its entry in the table of mounts is the same at the end.
//! 2. Every program that reads or writes it gets what it asks for; none gets an error.

use crate::cluster::Cluster;
use crate::journey::{Journey, Trip, need};
use crate::process::Process;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);
/// How long an engine is stopped: longer than any nexus waits for a member.
const PAUSE: Duration = Duration::from_secs(8);
/// How often a volume grows while its engine is killed.
const GROWTHS: u32 = 4;
const MIB: u64 = 1 << 20;

pub(crate) const UPKEEP: Journey = Journey {
    name: "upkeep",
    what: "a mounted xfs under load: its engine is restarted in order, stopped, killed while frozen and in the middle of \
           growing; no I/O error, no remount",
    run: upkeep,
};

fn upkeep(trip: &Trip) -> Result<()> {
    need(&[("fio", "fio"), ("mkfs.xfs", "xfsprogs"), ("fsfreeze", "util-linux")])?;
    let cluster = Cluster::start(trip, "3GiB")?;
    let device = cluster.volume("data", "512MiB")?;
    trip.sh(&format!("mkfs.xfs -q {device} && mkdir mnt && mount {device} mnt"), MINUTE)?;
    let entry = mount_entry(trip)?;
    let life = Life { trip, cluster: &cluster };

    life.under_load("SIGTERM, then started again (as in an upgrade)", |engine| {
        ensure!(engine.signal(Signal::TERM), "it had ended");
        engine.wait_end(MINUTE)
    })?;
    life.under_load("stopped for 8 s and woken", |engine| {
        ensure!(engine.signal(Signal::STOP), "it had ended");
        std::thread::sleep(PAUSE);
        ensure!(engine.signal(Signal::CONT), "it has ended while it was stopped");
        Ok(())
    })?;
    life.frozen()?;
    for growth in 1..=GROWTHS {
        life.grown(growth)?;
    }

    ensure!(mount_entry(trip)? == entry, "it was mounted anew");
    trip.sh("umount mnt", MINUTE)?;
    trip.sh(&format!("xfs_repair -n {device}"), MINUTE)?;
    trip.checked("one mount from the start to the end; xfs_repair -n finds nothing");
    cluster.remove("data")?;
    cluster.stop()
}

/// A file system in the middle of its life, and the cluster under it.
struct Life<'a> {
    trip: &'a Trip,
    cluster: &'a Cluster<'a>,
}

impl Life<'_> {
    /// The engine under the file system.
    fn engine(&self) -> Result<Process> {
        let owner = self.cluster.owner("data")?;
        let node = self.cluster.nodes()?.into_iter().find(|node| node.name == owner);
        node.and_then(|node| node.process).with_context(|| format!("{owner} has no process"))
    }

    /// Does something to the engine while fio writes and verifies.
    fn under_load(&self, what: &str, act: impl FnOnce(Process) -> Result<()>) -> Result<()> {
        let mut fio = self.trip.command("fio");
        fio.args(["--name=verify", "--filename=mnt/load", "--direct=1", "--ioengine=io_uring"]);
        fio.args(["--rw=randwrite", "--bs=4k", "--iodepth=16", "--size=48m", "--rate_iops=,1500"]);
        fio.args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1"]);
        let mut fio = self.trip.start(fio)?;
        std::thread::sleep(Duration::from_secs(2));
        ensure!(fio.runs(), "fio ended before anything was done: {}", fio.output());
        let begun = Instant::now();
        act(self.engine()?).with_context(|| what.to_owned())?;
        let done = begun.elapsed();
        fio.wait(MINUTE * 2)?.success(&format!("fio, {what}"))?;
        self.trip.checked(format!(
            "engine {what} in {:.1} s: 48 MiB verified {:.1} s after it began",
            done.as_secs_f64(),
            begun.elapsed().as_secs_f64()
        ));
        self.cluster.in_sync("data", MINUTE).map(drop)
    }

    /// Frozen, as for a snapshot; killed; thawed when it is there again.
    fn frozen(&self) -> Result<()> {
        self.trip.sh(
            "dd if=/dev/urandom of=mnt/frozen bs=1M count=16 status=none; sha256sum mnt/frozen >sum",
            MINUTE,
        )?;
        self.trip.sh("fsfreeze --freeze mnt", MINUTE)?;
        let engine = self.engine()?;
        ensure!(engine.signal(Signal::KILL), "it had ended");
        engine.wait_end(MINUTE)?;
        let begun = Instant::now();
        self.cluster.ready(MINUTE)?;
        self.trip.sh(
            "fsfreeze --unfreeze mnt; sha256sum --check --quiet sum; dd if=/dev/zero of=mnt/thawed bs=1M count=8 conv=fsync \
             status=none",
            MINUTE,
        )?;
        self.trip
            .checked(format!("killed while frozen; thawed {:.1} s later", begun.elapsed().as_secs_f64()));
        Ok(())
    }

    /// Grows by 128 MiB; the engine is killed a little later each time.
    fn grown(&self, growth: u32) -> Result<()> {
        let wanted = 512 + 128 * u64::from(growth);
        let engine = self.engine()?;
        let delay = Duration::from_millis(u64::from(growth) * 40);
        let resized = std::thread::scope(|scope| {
            let killer = scope.spawn(move || {
                std::thread::sleep(delay);
                engine.signal(Signal::KILL)
            });
            // It waits for the engine that comes back.
            let resized =
                self.cluster.orlop(&["volume", "resize", "data", "--size", &format!("{wanted}MiB")]);
            killer.join().is_ok_and(|killed| killed).then_some(resized)
        });
        resized.context("the engine had ended")??;
        self.cluster.ready(MINUTE)?;
        self.trip.sh("xfs_growfs -d mnt", MINUTE)?;
        let bytes: u64 = self.trip.sh("df -B1 --output=size mnt | tail -1", MINUTE)?.trim().parse()?;
        ensure!(bytes > (wanted - 80) * MIB, "{} MiB after growing to {wanted}", bytes / MIB);
        self.trip.sh(
            "dd if=/dev/urandom of=mnt/grown bs=1M count=64 conv=fsync status=none; sha256sum <mnt/grown >sum; \
             dd if=mnt/grown bs=1M iflag=direct status=none | sha256sum | cmp - sum",
            MINUTE,
        )?;
        self.trip.checked(format!(
            "grown to {wanted} MiB with the engine killed {} ms into it",
            delay.as_millis()
        ));
        Ok(())
    }
}

/// The number and the device of the mount, which another mount would not have.
fn mount_entry(trip: &Trip) -> Result<String> {
    let point = trip.folder.join("mnt");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let of_point = |line: &&str| line.split(' ').nth(4) == point.to_str();
    let line =
        mounts.lines().find(of_point).with_context(|| format!("{} is not mounted", point.display()))?;
    Ok(line.to_owned())
}

//! `orlop dev` when its parts die: an engine under a mounted file system, the controller, all of it at once.

use crate::cluster::Cluster;
use crate::journey::{Journey, Trip, need};
use crate::process::Running;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// DESIGN section 11: writes go on while the nexus is alive.
const STALL_LIMIT: Duration = Duration::from_secs(5);

pub(crate) const MOUNTED: Journey = Journey {
    name: "mounted",
    what: "the engine under a mounted ext4 is killed in a verified load: no error, no remount; Ctrl-C is refused once",
    run: mounted,
};

pub(crate) const CONTROLLER: Journey = Journey {
    name: "controller",
    what: "the controller is killed: I/O goes on, and commands work again",
    run: controller,
};

pub(crate) const ORPHANS: Journey = Journey {
    name: "orphans",
    what: "orlop dev is killed under a mounted ext4: no orphans, no hung process; started again, all is there",
    run: orphans,
};

pub(crate) const RETURNED: Journey = Journey {
    name: "returned",
    what: "a volume that was written elsewhere comes back to a node where its old mount still is: nothing of that goes on",
    run: returned,
};

/// fio on a file of the mounted file system: paced, so that something can happen to it, then verified.
fn load(trip: &Trip, target: &str) -> Result<Running> {
    let mut fio = trip.command("fio");
    fio.args([
        "--name=verify",
        "--direct=1",
        "--ioengine=io_uring",
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=8",
    ]);
    fio.args(["--size=64m", "--rate_iops=,2000", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1"]);
    fio.args(["--fsync=64", &format!("--filename={target}")]);
    trip.start(fio)
}

/// The owner stands still under a mounted file system, and wakes when another node has written to the volume.
fn returned(trip: &Trip) -> Result<()> {
    need(&[("mkfs.ext4", "e2fsprogs")])?;
    let cluster = Cluster::start(trip, "2GiB")?;
    cluster.orlop(&["volume", "create", "data", "--size", "256MiB"])?;
    let device = cluster.attach("data", Some("node-1"))?;
    trip.sh(
        &format!("mkdir old new; mkfs.ext4 -q {device}; mount {device} old; echo 1 >old/first; sync -f old"),
        MINUTE,
    )?;
    let nodes = cluster.nodes()?;
    let node = nodes.iter().find(|node| node.name == "node-1").and_then(|node| node.process);
    let node = node.context("node-1 runs")?;
    node.signal(Signal::STOP);
    let device = cluster.take("data", "node-2")?;
    trip.sh(&format!("mount {device} new; echo 2 >new/second; umount new"), MINUTE)?;
    node.signal(Signal::CONT);
    trip.checked("node-1 stood still under a mounted ext4; node-2 wrote to the volume; node-1 woke");

    let mut back = trip.command(trip.orlop()?);
    back.args(["volume", "attach", "data", "--node", "node-1", "--move", "--api", &cluster.url()]);
    let mut back = trip.start(back)?;
    std::thread::sleep(5 * SECOND);
    ensure!(back.runs(), "it is attached under the old mount: {}", back.output());
    let said = cluster.orlop(&["volume", "get", "data"])?;
    ensure!(
        said.contains("is mounted at") && said.contains("/old"),
        "it does not say what is in the way: {said}"
    );
    // What the old mount still remembers is not written any more.
    let stale = trip.sh("echo 3 >old/third && sync -f old", MINUTE);
    ensure!(stale.is_err(), "the old mount still takes writes");
    trip.sh("umount old", MINUTE)?;
    let device = back.wait(MINUTE)?.success("orlop volume attach")?.trim().to_owned();
    let check = format!(
        "e2fsck -p {device} || [ $? = 1 ]; mount {device} new; cat new/first new/second; ls new; umount new"
    );
    let there = trip.sh(&check, MINUTE)?;
    ensure!(
        there.contains("1\n2") && !there.contains("third"),
        "the files are not those that were written: {there}"
    );
    trip.checked(
        "back on node-1: refused until the old mount was gone, then everything that node-2 wrote is there",
    );
    cluster.remove("data")?;
    cluster.stop()
}

fn mounted(trip: &Trip) -> Result<()> {
    need(&[("fio", "fio"), ("mkfs.ext4", "e2fsprogs")])?;
    let mut cluster = Cluster::start(trip, "2GiB")?;
    let device = cluster.volume("data", "512MiB")?;
    trip.sh(&format!("mkdir mount; mkfs.ext4 -q {device}; mount {device} mount"), MINUTE)?;
    let before = trip.sh("grep /mount /proc/self/mountinfo", MINUTE)?;
    let mut fio = load(trip, "mount/file")?;
    std::thread::sleep(2 * SECOND);
    ensure!(fio.runs(), "fio ended too early: {}", fio.output());
    let owner = cluster.owner("data")?;
    cluster.kill(&owner)?;
    fio.wait(2 * MINUTE)?.success("fio with verification")?;
    ensure!(
        trip.sh("grep /mount /proc/self/mountinfo", MINUTE)? == before,
        "the file system was mounted anew"
    );
    trip.checked(format!(
        "{owner}, whose device is mounted, was killed: 64 MiB verified, no error, same mount"
    ));

    let dev = cluster.dev()?;
    dev.process.signal(Signal::INT);
    std::thread::sleep(2 * SECOND);
    ensure!(dev.runs(), "orlop dev ended under a mounted volume:\n{}", dev.output());
    let mount = trip.folder.join("mount").display().to_string();
    ensure!(dev.output().contains(&mount), "Ctrl-C did not name {mount}:\n{}", dev.output());
    trip.sh("dd if=/dev/urandom of=mount/more bs=1M count=4 conv=fsync status=none", MINUTE)?;
    trip.checked("Ctrl-C with a mounted volume: refused, the mount named, writes go on");
    trip.sh(&format!("umount mount; e2fsck -fn {device}"), MINUTE)?;
    cluster.remove("data")?;
    cluster.stop()
}

fn controller(trip: &Trip) -> Result<()> {
    need(&[("fio", "fio")])?;
    let cluster = Cluster::start(trip, "2GiB")?;
    let device = cluster.volume("data", "512MiB")?;
    let mut fio = load(trip, &device)?;
    std::thread::sleep(2 * SECOND);
    ensure!(fio.runs(), "fio ended too early: {}", fio.output());
    let process = cluster.controller()?;
    process.signal(Signal::KILL);
    process.wait_end(10 * SECOND)?;
    let begun = Instant::now();
    trip.sh(
        &format!("dd if=/dev/zero of={device} bs=4096 count=16 seek=100000 oflag=direct status=none"),
        MINUTE,
    )?;
    trip.checked(format!(
        "the controller was killed: 16 writes in {:.2} s without it",
        begun.elapsed().as_secs_f64()
    ));
    ensure!(begun.elapsed() < STALL_LIMIT, "writes waited for the controller");
    fio.wait(2 * MINUTE)?.success("fio with verification")?;
    trip.checked("the load beside it: 64 MiB verified, no error");
    let back = cluster.in_sync("data", MINUTE)?;
    trip.checked(format!("all nodes ready and all copies in sync {:.1} s later", back.as_secs_f64()));
    cluster.remove("data")?;
    cluster.stop()
}

fn orphans(trip: &Trip) -> Result<()> {
    need(&[("fio", "fio"), ("mkfs.ext4", "e2fsprogs")])?;
    let mut cluster = Cluster::start(trip, "2GiB")?;
    let device = cluster.volume("data", "512MiB")?;
    trip.sh(&format!("mkdir mount; mkfs.ext4 -q {device}; mount {device} mount"), MINUTE)?;
    trip.sh(
        "cp -r /usr/bin/[a-e]* mount/; sync; (cd mount && find . -type f | xargs sha1sum) >sums",
        MINUTE,
    )?;
    let files = trip.sh("wc -l <sums", MINUTE)?.trim().to_owned();
    let fio = load(trip, "mount/load")?;
    std::thread::sleep(2 * SECOND);
    let dev = cluster.dev()?.process;
    let killed = Instant::now();
    dev.signal(Signal::KILL);
    while !cluster.processes().is_empty() {
        ensure!(killed.elapsed() < 10 * SECOND, "orphans: {:?}", cluster.processes());
        std::thread::sleep(Duration::from_millis(20));
    }
    trip.checked(format!(
        "orlop dev was killed: none of its processes left {:.1} s later",
        killed.elapsed().as_secs_f64()
    ));
    let outcome = fio.wait(10 * SECOND)?;
    ensure!(outcome.code.is_some_and(|code| code != 0), "fio hangs, or saw no error: {:?}", outcome.code);
    let begun = Instant::now();
    trip.sh(&format!("umount mount; losetup -d {device} || true"), 5 * SECOND)?;
    let detached = begun.elapsed();
    let gone =
        || std::fs::read_to_string("/proc/mounts").is_ok_and(|table| !table.contains(&format!("{device} ")));
    ensure!(gone(), "{device} is still mounted");
    trip.checked(format!(
        "the load saw an error at once; unmounted and detached in {:.1} s",
        detached.as_secs_f64()
    ));

    let took = cluster.launch(&[])?;
    let device = cluster.attach("data", None)?;
    trip.sh(&format!("e2fsck -p {device} || [ $? = 1 ]; e2fsck -fn {device}; mount {device} mount"), MINUTE)?;
    trip.sh("cd mount && sha1sum --quiet -c ../sums", MINUTE)?;
    trip.sh("umount mount", MINUTE)?;
    trip.checked(format!(
        "started again, ready after {:.1} s: {files} synced files are the same",
        took.as_secs_f64()
    ));
    cluster.remove("data")?;
    cluster.stop()
}

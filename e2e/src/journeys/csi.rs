//! The container storage interface of `orlop dev --csi`: judged by csi-sanity, and by what a pod sees of its volume.

mod calls;
mod claim;
mod elsewhere;
mod repaired;
mod sanity;
mod shared;
mod unhurried;

use crate::cluster::Cluster;
use crate::journey::{Journey, Trip, need};
use crate::process::{Running, with_argument};
use anyhow::{Context, Result, anyhow, bail, ensure};
pub(crate) use calls::Calls;
use claim::{Caller, Claim, MIB, text};
use csi::client::{Code, Status};
use rustix::process::Signal;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);
/// Pods that come and go while their plugin is killed.
const KILLED_ROUNDS: u32 = 6;
/// What the journeys format with.
const PROGRAMS: [(&str, &str); 3] =
    [("mkfs.ext4", "e2fsprogs"), ("mkfs.xfs", "xfsprogs"), ("mkfs.btrfs", "btrfs-progs")];

pub(crate) const SANITY: Journey = Journey {
    name: "csi",
    what: "csi-sanity against two nodes: mount and block, three seeds, and a plugin killed between specs; no skip unlisted",
    run: sanity::sanity,
};

pub(crate) const VOLUME: Journey = Journey {
    name: "csi-volume",
    what: "a claim by CSI: written, grown and moved, on ext4, xfs, btrfs and raw, and read by two; what is damaged is repaired, nothing \
           foreign formatted, nothing mounted that another node has mounted",
    run: volume,
};

pub(crate) const KILLED: Journey = Journey {
    name: "csi-killed",
    what: "the plugin is killed at random under pods that come and go: every repetition goes on, and nothing is left",
    run: killed,
};

/// A refusal that was wanted: its code, and a word that has to be in it.
fn refused(outcome: Result<(), Status>, code: Code, word: &str) -> Result<()> {
    match outcome {
        Err(status) if status.code() == code && status.message().contains(word) => Ok(()),
        other => bail!("{code:?} with {word:?} was wanted, and not {other:?}"),
    }
}

/// Nothing of the plugins is left: no volume, no mount, no loop device.
fn nothing_left(trip: &Trip, cluster: &Cluster<'_>) -> Result<()> {
    let volumes = cluster.json(&["volume", "list"])?;
    ensure!(volumes.as_array().is_some_and(Vec::is_empty), "volumes are left: {volumes}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let folder = trip.folder.display().to_string();
    let left: Vec<&str> = mounts.lines().filter(|line| line.contains(&folder)).collect();
    ensure!(left.is_empty(), "mounts are left: {left:?}");
    let loops = trip.sh("losetup -l -n -O NAME,BACK-FILE", MINUTE)?;
    ensure!(!loops.contains(&folder), "loop devices are left: {loops}");
    Ok(())
}

fn volume(trip: &Trip) -> Result<()> {
    need(&PROGRAMS)?;
    let sockets = trip.folder.join("csi");
    let cluster = Cluster::start_with(trip, "2GiB", &["--csi", &text(&sockets)])?;
    let caller = Caller::new(sockets)?;
    caller.ready(&["node-1", "node-2", "node-3"])?;
    for filesystem in ["ext4", "xfs", "btrfs"] {
        live(trip, &Claim::new(trip, &caller, filesystem, Some(filesystem))?)?;
    }
    block(trip, &Claim::new(trip, &caller, "raw", None)?)?;
    foreign(trip, &caller)?;
    repaired::repaired(trip, &caller)?;
    elsewhere::elsewhere(trip, &caller, &cluster)?;
    shared::shared(trip, &caller, &cluster)?;
    nothing_left(trip, &cluster)?;
    cluster.stop()
}

/// Written, grown under the pod, moved to another node.
fn live(trip: &Trip, claim: &Claim<'_>) -> Result<()> {
    let name = &claim.name;
    let (here, there) = ("node-1", "node-2");
    claim.create(here, 320 * MIB)?;
    claim.up(here)?;
    let before = claim.total_bytes(here)?;
    let sum = |node: &str| trip.sh(&format!("sha256sum <{}/file", claim.target(node).display()), MINUTE);
    let target = claim.target(here);
    trip.sh(
        &format!("dd if=/dev/urandom of={}/file bs=1M count=32 conv=fsync status=none", target.display()),
        MINUTE,
    )?;
    let wanted = sum(here)?;
    if let Err(status) = claim.expand(here, 512 * MIB) {
        // Not every machine that is tried on lets root grow an ext4 under its users.
        ensure!(status.message().contains("CAP_SYS_RESOURCE"), "{name}: {status:?}");
        println!("  {status:?}");
        claim.down(here)?;
        claim.up(here)?;
        claim.expand(here, 512 * MIB)?;
    }
    let after = claim.total_bytes(here)?;
    ensure!(after - before > 150 * MIB, "{name}: {before} bytes before it grew, {after} after");
    ensure!(sum(here)? == wanted, "{name}: the file changed when it grew");
    trip.checked(format!("{name}: 32 MiB written; grown from {} to {} MiB", before / MIB, after / MIB));

    let second = claim.folder.join("read-only");
    claim.publish_at(here, &second, true)?;
    let touched = trip.sh(&format!("touch {}/x", second.display()), MINUTE);
    ensure!(
        touched.is_err_and(|error| error.to_string().contains("Read-only")),
        "{name}: it is not read only"
    );
    claim.unpublish_at(here, &second)?;
    refused(claim.attach(there), Code::FailedPrecondition, here)?;
    refused(claim.delete(here), Code::FailedPrecondition, here)?;
    claim.down(here)?;
    claim.down(here)?;
    ensure!(!target.exists(), "{name}: {} is left", target.display());
    claim.up(there)?;
    ensure!(sum(there)? == wanted, "{name}: the file is another one on {there}");
    claim.down(there)?;
    claim.delete(there)?;
    claim.delete(there)?;
    trip.checked(format!(
        "{name}: read only where asked; one node at a time; the file is the same on {there}"
    ));
    Ok(())
}

/// The same for a block device.
fn block(trip: &Trip, claim: &Claim<'_>) -> Result<()> {
    let (here, there) = ("node-2", "node-3");
    claim.create(here, 32 * MIB)?;
    claim.up(here)?;
    claim.up(here)?;
    let target = text(&claim.target(here));
    trip.sh("dd if=/dev/urandom of=wanted bs=1M count=16 status=none", MINUTE)?;
    trip.sh(&format!("dd if=wanted of={target} bs=1M conv=fsync status=none"), MINUTE)?;
    read_only_block(trip, claim, here)?;
    claim.expand(here, 64 * MIB)?;
    ensure!(claim.total_bytes(here)? == 64 * MIB, "the block device has {} bytes", claim.total_bytes(here)?);
    claim.down(here)?;
    claim.up(there)?;
    trip.sh(&format!("cmp -n 16777216 wanted {}", claim.target(there).display()), MINUTE)?;
    claim.down(there)?;
    claim.delete(there)?;
    trip.checked("a block device: 16 MiB written, grown under the pod, the same on another node");
    Ok(())
}

/// A second pod on the node that may only read: its device refuses, whoever it is that writes.
fn read_only_block(trip: &Trip, claim: &Claim<'_>, node: &str) -> Result<()> {
    let second = claim.folder.join("read-only");
    claim.publish_at(node, &second, true)?;
    claim.publish_at(node, &second, true)?;
    let path = text(&second);
    trip.sh(&format!("cmp -n 16777216 wanted {path}"), MINUTE)?;
    let written = trip.sh(
        &format!("blockdev --setrw {path}; dd if=/dev/zero of={path} bs=4096 count=1 conv=fsync"),
        MINUTE,
    );
    ensure!(written.is_err(), "{path} was written to");
    trip.sh(&format!("cmp -n 16777216 wanted {}", claim.target(node).display()), MINUTE)?;
    claim.unpublish_at(node, &second)?;
    ensure!(!second.exists(), "{path} is left");
    trip.checked("a block device that is published read only is read, and refuses writes as root");
    Ok(())
}

/// What carries something is not formatted.
fn foreign(trip: &Trip, caller: &Caller) -> Result<()> {
    let node = "node-1";
    let raw = Claim::new(trip, caller, "foreign", None)?;
    raw.create(node, 320 * MIB)?;
    for (write, word) in [
        ("printf 'LUKS\\xba\\xbe' | dd of=TARGET conv=fsync status=none", "LUKS"),
        (
            "dd if=/dev/zero of=TARGET bs=1M count=1 status=none; echo x | dd of=TARGET bs=1 seek=200000 status=none",
            "unknown",
        ),
        ("mkfs.xfs -q -f TARGET", "xfs"),
    ] {
        raw.up(node)?;
        let target = text(&raw.target(node));
        trip.sh(&write.replace("TARGET", &target), MINUTE)?;
        // Where a mkfs would write first, and last.
        let sum = || {
            let line = format!("head -c 64M {target} | sha256sum; tail -c 8M {target} | sha256sum");
            trip.sh(&line, MINUTE)
        };
        let wanted = sum()?;
        raw.down(node)?;
        let mounted = Claim { filesystem: Some("ext4"), ..Claim::new(trip, caller, &raw.name, None)? };
        mounted.attach(node)?;
        refused(mounted.stage(node), Code::FailedPrecondition, word)?;
        mounted.detach(node)?;
        raw.up(node)?;
        ensure!(sum()? == wanted, "{word}: it was written to");
        raw.down(node)?;
    }
    raw.delete(node)?;
    trip.checked("LUKS, xfs and unknown data are named and not formatted over; not a bit of them changed");
    Ok(())
}

/// A plugin that the journey itself starts, to kill it at will.
struct Victim<'a> {
    trip: &'a Trip,
    api: String,
    socket: PathBuf,
    node: &'static str,
}

impl Victim<'_> {
    fn start(&self) -> Result<Running> {
        let mut command = self.trip.command(self.trip.orlop()?);
        command.args(["csi", "--node", self.node, "--api", &self.api, "--socket"]).arg(&self.socket);
        self.trip.start(command)
    }

    /// The same, and it listens.
    fn start_and_wait(&self) -> Result<Running> {
        // One that was killed has left its socket behind: it would look as if this one listened already.
        let _gone = std::fs::remove_file(&self.socket);
        let mut plugin = self.start()?;
        let begun = Instant::now();
        while UnixStream::connect(&self.socket).is_err() {
            ensure!(plugin.runs() && begun.elapsed() < MINUTE, "it does not listen: {}", plugin.output());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(plugin)
    }
}

/// Numbers that are random enough to kill by (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// How often the plugin was killed, and how often in the middle of a mkfs.
#[derive(Clone, Copy, Debug, Default)]
struct Kills {
    all: u32,
    in_mkfs: u32,
}

fn killed(trip: &Trip) -> Result<()> {
    need(&PROGRAMS)?;
    let cluster = Cluster::start(trip, "2GiB")?;
    let caller = Caller::new(trip.folder.join("csi"))?;
    let node = "node-1";
    let victim = Victim { trip, api: cluster.url(), socket: caller.socket(node), node };
    let mut kills = Kills::default();
    for round in 0..KILLED_ROUNDS {
        let filesystem = ["ext4", "xfs", "btrfs"][(round % 3) as usize];
        let claim = Claim::new(trip, &caller, &format!("claim-{round}"), Some(filesystem))?;
        let mut random = Random(u64::from(std::process::id()) << 8 | u64::from(round) | 1);
        let stop = AtomicBool::new(false);
        let (pod, killer) = std::thread::scope(|scope| {
            // Commands are counted by one thread only, and the calls are the other's.
            let pod = scope.spawn(|| {
                let outcome = come_and_go(&claim, node);
                stop.store(true, Ordering::Relaxed);
                outcome
            });
            let killer = kill_until(&victim, &stop, &mut random, &mut kills);
            stop.store(true, Ordering::Relaxed);
            (pod.join(), killer)
        });
        killer?;
        let pod = pod.map_err(|_| anyhow!("the pod's thread panicked"))?;
        pod.with_context(|| format!("{filesystem}, round {round}, after {kills:?}"))?;
    }
    trip.checked(format!(
        "{KILLED_ROUNDS} pods came and went while their plugin was killed {} times, {} times in a mkfs",
        kills.all, kills.in_mkfs
    ));
    ensure!(kills.all >= KILLED_ROUNDS && kills.in_mkfs > 0, "{kills:?}: nothing was tried");
    for filesystem in [Some("ext4"), Some("xfs"), Some("btrfs"), None] {
        let name = filesystem.unwrap_or("raw");
        after_each_step(&Claim::new(trip, &caller, name, filesystem)?, node, &victim)?;
        trip.checked(format!(
            "{name}: the plugin was killed after each step, growing too, and each was repeated"
        ));
    }
    nothing_left(trip, &cluster)?;
    cluster.stop()
}

/// Kills the plugin again and again, once as soon as there is a mkfs; starts it again each time.
fn kill_until(victim: &Victim<'_>, stop: &AtomicBool, random: &mut Random, kills: &mut Kills) -> Result<()> {
    let mut seen_mkfs = false;
    loop {
        let plugin = victim.start()?;
        let until = Instant::now() + Duration::from_millis(20 + random.below(1500));
        let mut mkfs = Vec::new();
        while Instant::now() < until && mkfs.is_empty() {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(2));
            if !seen_mkfs {
                mkfs = with_argument("mkfs.")
                    .into_iter()
                    .filter(|(_, line)| line.contains("/dev/loop"))
                    .collect();
            }
        }
        ensure!(plugin.process.signal(Signal::KILL), "the plugin ended by itself: {}", plugin.output());
        plugin.process.wait_end(MINUTE)?;
        kills.all += 1;
        if !mkfs.is_empty() {
            seen_mkfs = true;
            kills.in_mkfs += 1;
        }
        for (process, line) in mkfs {
            process
                .wait_end(Duration::from_secs(5))
                .with_context(|| format!("{line} outlives its plugin"))?;
        }
    }
}

/// One pod's life: the plugin is killed after each step, and the next one is asked for the same again.
fn after_each_step(claim: &Claim<'_>, node: &str, victim: &Victim<'_>) -> Result<()> {
    let (small, large) = (320 * MIB, 400 * MIB);
    let step = |what: &str, request: &dyn Fn() -> Result<(), Status>| {
        for time in ["at first", "again"] {
            let plugin = victim.start_and_wait()?;
            request().map_err(|status| anyhow!("{}: {what} {time}: {status:?}", claim.name))?;
            ensure!(plugin.process.signal(Signal::KILL), "the plugin ended by itself: {}", plugin.output());
            plugin.process.wait_end(MINUTE)?;
        }
        Ok(())
    };
    let grown = || {
        let total = claim.total_bytes(node)?;
        // A file system keeps some of its device for itself.
        let is_grown = if claim.filesystem.is_some() { total > small } else { total == large };
        if is_grown { Ok(()) } else { Err(Status::internal(format!("it has {total} bytes"))) }
    };
    let grow_on_node = || match claim.expand_on_node(node, large) {
        // As in `live`: it grows when it is staged the next time.
        Err(status) if status.message().contains("CAP_SYS_RESOURCE") => {
            claim.unpublish(node)?;
            claim.unstage(node)?;
            claim.stage(node)?;
            claim.publish(node)?;
            claim.expand_on_node(node, large)
        }
        outcome => outcome,
    };
    step("create", &|| claim.create(node, small))?;
    step("attach", &|| claim.attach(node))?;
    step("stage", &|| claim.stage(node))?;
    step("publish", &|| claim.publish(node))?;
    step("grow the volume", &|| claim.expand_in_controller(node, large))?;
    step("grow on the node", &grow_on_node)?;
    step("look at its size", &grown)?;
    step("unpublish", &|| claim.unpublish(node))?;
    step("unstage", &|| claim.unstage(node))?;
    step("detach", &|| claim.detach(node))?;
    step("delete", &|| claim.delete(node))
}

/// One pod's life, each step repeated until it is done, as an orchestrator does it.
fn come_and_go(claim: &Claim<'_>, node: &str) -> Result<()> {
    let file = claim.target(node).join("file");
    persist("create", || claim.create(node, 320 * MIB))?;
    persist("attach", || claim.attach(node))?;
    persist("stage", || claim.stage(node))?;
    persist("publish", || claim.publish(node))?;
    let wanted: Vec<u8> =
        (0..4_000_000_u32).map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    std::fs::write(&file, &wanted)?;
    if claim.filesystem != Some("ext4") {
        persist("expand", || claim.expand(node, 400 * MIB))?;
    }
    persist("unpublish", || claim.unpublish(node))?;
    persist("unstage", || claim.unstage(node))?;
    persist("detach", || claim.detach(node))?;
    persist("attach again", || claim.attach(node))?;
    persist("stage again", || claim.stage(node))?;
    persist("publish again", || claim.publish(node))?;
    ensure!(std::fs::read(&file)? == wanted, "{} is not what was written", file.display());
    persist("unpublish again", || claim.unpublish(node))?;
    persist("unstage again", || claim.unstage(node))?;
    persist("detach again", || claim.detach(node))?;
    persist("delete", || claim.delete(node))
}

/// Repeats a request while its failure says that this may help.
fn persist(what: &str, request: impl Fn() -> Result<(), Status>) -> Result<()> {
    let begun = Instant::now();
    loop {
        let status = match request() {
            Ok(()) => return Ok(()),
            Err(status) => status,
        };
        let hopeless = [
            Code::InvalidArgument,
            Code::NotFound,
            Code::AlreadyExists,
            Code::OutOfRange,
            Code::FailedPrecondition,
        ];
        ensure!(!hopeless.contains(&status.code()), "{what}: {status:?}");
        ensure!(begun.elapsed() < 2 * MINUTE, "{what} is not done after two minutes: {status:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

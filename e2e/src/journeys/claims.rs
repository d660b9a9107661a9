//! Disks that a selector takes and leaves, with real processes over loop devices: none of them is ever formatted that
//! somebody may miss, and each is found again by what it says of itself.
//!
//! 1. Only devices of this journey are allowed, each by its own path: others use loop devices of this machine, too.

use crate::journey::{Journey, Trip, free_port, need};
use crate::process::{Running, tail};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);
const SELECTOR: &str = "select://?class=SSD,HDD,NVMe&min_size=256MiB";

pub(crate) const CLAIMS: Journey = Journey {
    name: "claims",
    what: "a selector takes the blank disks that match and no other, finds them again under other names; no second claim",
    run: claims,
};

/// The files under the loop devices: name, size, what is done to it (`DEV` is the device).
const DISKS: [(&str, &str, &str); 6] = [
    ("blank-1", "512M", "true"),
    ("blank-2", "512M", "true"),
    ("small", "64M", "true"),
    ("ext4", "512M", "mkfs.ext4 -q DEV"),
    ("mounted", "512M", "mkfs.ext4 -q DEV; mkdir place; mount DEV place; echo 1 >place/first"),
    ("divided", "512M", "echo 'label: gpt\n,' | sfdisk --quiet DEV; partx --update DEV"),
];

fn claims(trip: &Trip) -> Result<()> {
    need(&[("mkfs.ext4", "e2fsprogs"), ("losetup", "mount"), ("sfdisk", "fdisk")])?;
    let mut bench = Bench::new(trip)?;
    let before = trip.sh("sha256sum ext4 divided", MINUTE)?;

    let node = bench.node("n1", &[SELECTOR])?;
    let pools = bench.pools(&["blank-1", "blank-2"], MINUTE)?;
    bench.says("n1", "small", "Available", "it has 64 MiB, less than 256 MiB")?;
    bench.says("n1", "ext4", "InUse", "carries an ext2, ext3 or ext4 file system")?;
    bench.says("n1", "mounted", "InUse", "is mounted at ")?;
    bench.says("n1", "divided", "InUse", "is divided into loop")?;
    let after = trip.sh("test $(cat place/first) = 1; sha256sum ext4 divided", MINUTE)?;
    ensure!(before == after, "a disk that was refused has changed:\n{before}{after}");
    trip.checked("two blank disks are pools; one is too small, one formatted, one mounted, one divided: all as they were");
    bench.orlop(&["volume", "create", "data", "--size", "64MiB", "--copies", "1"])?;

    let second = bench.node("n2", &[SELECTOR])?;
    for disk in ["blank-1", "blank-2"] {
        bench.says("n2", disk, "InUse", &format!("is the pool {} of the node n1", pools[disk]))?;
    }
    end(second)?;
    let third = bench.node("n3", &[&format!("disk://{}", bench.device("blank-1")?)])?;
    let said = third.wait(MINUTE)?;
    ensure!(said.code != Some(0) && said.output.contains("in use by"), "no refusal: {}", said.output);
    trip.checked(
        "a second node sees whose they are; one that is told to use one anyway ends, for it is in use",
    );

    ensure!(node.process.signal(Signal::KILL), "n1 had ended: {}", tail(&node.output(), 10));
    node.process.wait_end(MINUTE)?;
    bench.ended()?;
    let node = bench.node("n1", &[SELECTOR])?;
    ensure!(bench.pools(&["blank-1", "blank-2"], MINUTE)? == pools, "other pools after kill -9");
    trip.checked("killed and started again: the same pools");

    trip.sh(&format!("blkdiscard --zeroout {}", bench.device("ext4")?), MINUTE)?;
    let more = bench.pools(&["blank-1", "blank-2", "ext4"], 2 * MINUTE)?;
    ensure!(pools.iter().all(|(disk, pool)| more[disk] == *pool), "other pools beside the new one: {more:?}");
    trip.checked("a disk that was blanked is a pool while the node runs");

    end(node)?;
    bench.ended()?;
    let bench = bench.renamed()?;
    let node = bench.node("n1", &[SELECTOR])?;
    ensure!(bench.pools(&["blank-1", "blank-2", "ext4"], MINUTE)? == more, "other pools under other names");
    bench.available("data")?;
    end(node)?;
    trip.checked("under other names of the kernel: the same pools, and the volume");

    let other = Bench { controller: start_controller(trip, "other")?, ..bench };
    let named = format!("disk://{}", other.device("blank-1")?);
    let said = other.node("n1", &[&named])?.wait(MINUTE)?;
    ensure!(
        said.code != Some(0) && said.output.contains("belongs to cluster"),
        "no refusal: {}",
        said.output
    );
    let node = other.node("n1", &[SELECTOR])?;
    other.says("n1", "blank-1", "InUse", "of the cluster")?;
    end(node)?;
    trip.checked("another cluster is refused, named and selected");
    one_bad_disk(trip, &other)?;
    a_part_of_a_disk(trip)?;
    trip.sh("umount place", MINUTE)?;
    other.detach()
}

/// A disk that cannot be opened does not take its node's others away, is not given up for gone, and is used once it can be.
fn one_bad_disk(trip: &Trip, bench: &Bench<'_>) -> Result<()> {
    let uris = ["one", "two"].map(|file| format!("file://{}?size=128MiB", trip.folder.join(file).display()));
    let uris = uris.each_ref().map(String::as_str);
    let node = bench.node("n4", &uris)?;
    let before = [bench.state(uris[0], "Online", |_| true)?, bench.state(uris[1], "Online", |_| true)?];
    end(node)?;
    trip.sh("mv two kept; truncate --size 64M two", MINUTE)?;
    let node = bench.node("n4", &uris)?;
    let failed = bench.state(uris[1], "Failed", |_| true)?;
    let fresh = |pool: &Value| before.iter().all(|known| known["incarnation"] != pool["incarnation"]);
    bench.state(uris[0], "Online", fresh)?;
    // There is a file all the time: one that is not there would be made.
    trip.sh("truncate --size 32M other; mv other two", MINUTE)?;
    let other = bench.state(uris[1], "Failed", |pool| pool["message"] != failed["message"])?;
    trip.checked(format!(
        "its message follows the reason ({})",
        other["message"].as_str().unwrap_or_default()
    ));
    trip.sh("mv kept two", MINUTE)?;
    let again = bench.state(uris[1], "Online", fresh)?;
    let same = [&failed, &again].into_iter().all(|pool| pool["uuid"] == before[1]["uuid"]);
    ensure!(same, "another pool: {failed} {again}");
    end(node)?;
    trip.checked(format!(
        "a node starts without a disk that cannot be opened ({}), and uses it once it can",
        failed["message"].as_str().unwrap_or_default()
    ));
    Ok(())
}

/// A partition is made beside one that is mounted, and becomes a pool; the other one stays as it is, byte for byte.
fn a_part_of_a_disk(trip: &Trip) -> Result<()> {
    trip.sh("truncate --size 512M shared; mkdir -p part", MINUTE)?;
    let disk = attach(trip, "shared")?;
    let setup = "printf 'label: gpt\\n,200M\\n' | sfdisk --quiet DEV; partx --update DEV; mkfs.ext4 -q DEVp1";
    trip.sh(&setup.replace("DEV", &disk), MINUTE)?;
    trip.sh(&format!("mount -o ro,noload {disk}p1 part"), MINUTE)?;
    let sum = |disk: &str| trip.sh(&format!("sha256sum <{disk}p1"), MINUTE);
    let before = sum(&disk)?;
    let controller = start_controller(trip, "third")?;
    let devices = BTreeMap::from([("shared".to_owned(), disk.clone())]);
    let mut bench = Bench { trip, devices, over: BTreeSet::new(), controller };

    let planned: Value =
        serde_json::from_str(&bench.orlop(&["disk", "partition", &disk, "--dry-run", "-o", "json"])?)?;
    ensure!(planned["made"] == false && sum(&disk)? == before, "a plan has made something: {planned}");
    let made = bench.orlop(&["disk", "partition", &disk, "--size", "256MiB", "--yes", "-o", "json"])?;
    let made: Value = serde_json::from_str(&made)?;
    ensure!(made["device"] == format!("{disk}p2") && made["made"] == true, "another partition: {made}");
    let node = bench.node("n1", &[SELECTOR])?;
    let pool = bench.state(&format!("disk://{disk}p2"), "Online", |_| true)?;
    bench.says("n1", "shared", "InUse", "is mounted at ")?;
    bench.orlop(&["volume", "create", "kept", "--size", "64MiB", "--copies", "1"])?;
    bench.available("kept")?;
    ensure!(sum(&disk)? == before, "the other partition has changed");
    trip.checked("a partition is made beside a mounted one, is a pool, and a volume lives on it");

    ensure!(node.process.signal(Signal::KILL), "n1 had ended: {}", tail(&node.output(), 10));
    node.process.wait_end(MINUTE)?;
    trip.sh(&format!("umount part; losetup --detach {disk}"), MINUTE)?;
    // Another device takes the name meanwhile.
    trip.sh("truncate --size 64M other", MINUTE)?;
    let other = attach(trip, "other")?;
    let disk = attach(trip, "shared")?;
    trip.sh(&format!("partx --update {disk}"), MINUTE)?;
    bench.devices.insert("shared".to_owned(), disk.clone());
    let node = bench.node("n1", &[SELECTOR])?;
    let fresh = |found: &Value| found["uuid"] == pool["uuid"] && found["incarnation"] != pool["incarnation"];
    bench.state(&format!("disk://{disk}p2"), "Online", fresh)?;
    bench.available("kept")?;
    end(node)?;
    ensure!(sum(&disk)? == before, "the other partition has changed");
    trip.sh(&format!("losetup --detach {other}; losetup --detach {disk}"), MINUTE)?;
    trip.checked("killed, and the disk under another name: the same pool, and the other partition as it was");
    Ok(())
}

fn end(node: Running) -> Result<()> {
    ensure!(node.process.signal(Signal::TERM), "the node had ended: {}", tail(&node.output(), 10));
    node.wait(MINUTE)?.success("a node that is asked to end")?;
    Ok(())
}

/// Loop devices and a controller.
struct Bench<'a> {
    trip: &'a Trip,
    /// By the names of their files.
    devices: BTreeMap<String, String>,
    /// Openings that are over: a report of one of these says nothing.
    over: BTreeSet<String>,
    controller: Controller,
}

struct Controller {
    api: String,
    /// Ends with the journey.
    _process: Running,
}

impl<'a> Bench<'a> {
    fn new(trip: &'a Trip) -> Result<Self> {
        let mut devices = BTreeMap::new();
        for (file, size, setup) in DISKS {
            trip.sh(&format!("truncate --size {size} {file}"), MINUTE)?;
            let device = attach(trip, file)?;
            trip.sh(&setup.replace("DEV", &device), MINUTE)?;
            devices.insert(file.to_owned(), device);
        }
        let controller = start_controller(trip, "first")?;
        Ok(Self { trip, devices, over: BTreeSet::new(), controller })
    }

    fn device(&self, file: &str) -> Result<&str> {
        self.devices.get(file).map(String::as_str).with_context(|| format!("no device over {file}"))
    }

    /// A node that may look at all devices of the journey.
    fn node(&self, name: &str, disks: &[&str]) -> Result<Running> {
        let mut command = self.trip.command(self.trip.orlop()?);
        command.args(["node", "run", "--name", name, "--run-id", &self.trip.id.0]);
        command.arg("--data").arg(self.trip.folder.join(name));
        command.args(disks.iter().flat_map(|disk| ["--disk", disk]));
        command.args(self.devices.values().flat_map(|device| ["--disks-allow", device]));
        for option in ["--listen", "--metrics"] {
            command.args([option, &format!("127.0.0.1:{}", free_port()?)]);
        }
        command.args(["--store", &self.controller.api]);
        std::fs::create_dir_all(self.trip.folder.join(name))?;
        self.trip.start(command)
    }

    fn orlop(&self, arguments: &[&str]) -> Result<String> {
        let mut command: Command = self.trip.command(self.trip.orlop()?);
        command.args(arguments).env("ORLOP_API", &self.controller.api);
        self.trip.run(command, MINUTE)?.success(&arguments.join(" "))
    }

    fn list(&self, noun: &str) -> Result<Vec<Value>> {
        Ok(serde_json::from_str(&self.orlop(&[noun, "list", "-o", "json"])?)?)
    }

    /// Waits until these disks are pools of n1, open, and no others are; their UUIDs.
    fn pools(&self, files: &[&str], limit: Duration) -> Result<BTreeMap<String, String>> {
        let begun = Instant::now();
        loop {
            let pools = self.list("pool")?;
            let disks = self.list("disk")?;
            let mut found = BTreeMap::new();
            for file in files {
                let device = self.device(file)?;
                let is = |disk: &&Value| {
                    disk["device"] == device && disk["node"] == "n1" && disk["state"] == "Pool"
                };
                let disk = disks.iter().find(is).and_then(|disk| disk["pool"].as_str());
                let uri = format!("disk://{device}");
                let is_over =
                    |pool: &Value| pool["incarnation"].as_str().is_none_or(|drawn| self.over.contains(drawn));
                let open = |pool: &&Value| {
                    pool["state"] == "Online" && pool["uri"] == uri.as_str() && !is_over(pool)
                };
                let pool = pools.iter().find(open).and_then(|pool| pool["uuid"].as_str());
                found.extend(
                    pool.filter(|pool| disk == Some(pool)).map(|pool| ((*file).to_owned(), pool.to_owned())),
                );
            }
            if found.len() == files.len() {
                ensure!(pools.len() == files.len(), "there are other pools: {pools:?}");
                return Ok(found);
            }
            ensure!(begun.elapsed() < limit, "not the pools {files:?}: {pools:?}, {disks:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until the pool at `uri` is in this state and as wished.
    fn state(&self, uri: &str, state: &str, wished: impl Fn(&Value) -> bool) -> Result<Value> {
        let begun = Instant::now();
        loop {
            let pools = self.list("pool")?;
            let is_it = |pool: &&Value| pool["uri"] == uri && pool["state"] == state && wished(pool);
            if let Some(pool) = pools.iter().find(is_it) {
                return Ok(pool.clone());
            }
            ensure!(begun.elapsed() < MINUTE, "{uri} is not {state}: {pools:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The node has ended: what was reported so far is not what the next one has opened.
    fn ended(&mut self) -> Result<()> {
        let pools = self.list("pool")?;
        self.over.extend(pools.iter().filter_map(|pool| Some(pool["incarnation"].as_str()?.to_owned())));
        Ok(())
    }

    /// Waits until a volume is as wished.
    fn available(&self, volume: &str) -> Result<()> {
        let begun = Instant::now();
        loop {
            let said = self.orlop(&["volume", "get", volume, "-o", "json"])?;
            let is: Value = serde_json::from_str(&said)?;
            if is["status"]["state"] == "Available" {
                return Ok(());
            }
            ensure!(begun.elapsed() < MINUTE, "volume {volume} is not there: {said}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until the node says this of a disk.
    fn says(&self, node: &str, file: &str, state: &str, why: &str) -> Result<()> {
        let device = self.device(file)?;
        let begun = Instant::now();
        loop {
            let disks = self.list("disk")?;
            let found = disks.iter().find(|disk| disk["device"] == device && disk["node"] == node);
            let says = |disk: &Value| disk["message"].as_str().is_some_and(|message| message.contains(why));
            if found.is_some_and(|disk| disk["state"] == state && says(disk)) {
                return Ok(());
            }
            ensure!(begun.elapsed() < MINUTE, "{node} does not say {state} {why:?} of {file}: {found:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The same disks under other names, the mounted one aside; no node runs.
    fn renamed(self) -> Result<Self> {
        let mut devices = self.devices.clone();
        let moved: Vec<String> = devices.keys().filter(|file| *file != "mounted").cloned().collect();
        for file in &moved {
            self.trip.sh(&format!("losetup --detach {}", self.device(file)?), MINUTE)?;
        }
        for file in moved.iter().rev() {
            devices.insert(file.clone(), attach(self.trip, file)?);
        }
        ensure!(devices != self.devices, "the kernel gave the same names again: {devices:?}");
        Ok(Self { devices, ..self })
    }

    fn detach(&self) -> Result<()> {
        for device in self.devices.values() {
            self.trip.sh(&format!("losetup --detach {device}"), MINUTE)?;
        }
        Ok(())
    }
}

fn attach(trip: &Trip, file: &str) -> Result<String> {
    let line = format!("losetup --find --show --partscan {file}");
    Ok(trip.sh(&line, MINUTE)?.trim().to_owned())
}

fn start_controller(trip: &Trip, name: &str) -> Result<Controller> {
    let address = format!("127.0.0.1:{}", free_port()?);
    let mut command = trip.command(trip.orlop()?);
    let folder = trip.folder.join(format!("controller-{name}"));
    std::fs::create_dir_all(&folder)?;
    command.args(["controller", "--listen", &address]).arg("--data").arg(folder);
    let process = trip.start(command)?;
    let begun = Instant::now();
    while std::net::TcpStream::connect(&address).is_err() {
        ensure!(begun.elapsed() < MINUTE, "the controller does not listen: {}", tail(&process.output(), 10));
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(Controller { api: format!("http://{address}"), _process: process })
}

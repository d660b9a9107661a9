//! The Linux kernel's initiator, in the guest, against Orlop's target on this machine, and against one in the guest that
//! makes its block devices by it.

use crate::cluster::Cluster;
use crate::guest::Guest;
use crate::journey::{Journey, Trip, free_port};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const SCRIPT: &str = include_str!("../../vm/interop.sh");
const TARGET_SCRIPT: &str = include_str!("../../vm/target.sh");
const DEVICE_SCRIPT: &str = include_str!("../../vm/device.sh");
const CSI_SCRIPT: &str = include_str!("../../vm/csi.sh");
/// What the last two have in common: they read it.
const CLUSTER_SCRIPT: &str = include_str!("../../vm/cluster.sh");
const LIMIT: Duration = Duration::from_secs(600);
const MINUTE: Duration = Duration::from_secs(60);

/// The judge is fit: guest and script accept the kernel's own target.
pub(crate) const BASELINE: Journey = Journey {
    name: "guest",
    what: "the Linux guest boots, and its initiator gets all it asks for from its own kernel's target",
    run: baseline,
};

pub(crate) const INTEROP: Journey = Journey {
    name: "kernel",
    what: "the Linux kernel's initiator: discover, connect, ext4, fio verify, digests, disconnect",
    run: interop,
};

pub(crate) const VOLUME: Journey = Journey {
    name: "export",
    what: "the same for a volume with three copies: the Linux kernel's initiator on the nexus's target",
    run: volume,
};

pub(crate) const INITIATOR: Journey = Journey {
    name: "initiator",
    what: "Orlop's initiator against the Linux kernel's target: every command, with and without digests",
    run: initiator,
};

pub(crate) const DEVICE: Journey = Journey {
    name: "nvme",
    what: "volumes as NVMe/TCP devices of the kernel: engine killed, growth, little memory, moved away, secret; else FUSE",
    run: device,
};

pub(crate) const CSI: Journey = Journey {
    name: "nvme-csi",
    what: "claims by CSI on NVMe/TCP devices: ext4 and raw, grown in use, plugin, engine and all of it killed; nothing is left",
    run: claims,
};

/// Nothing of Orlop takes part: what was found once holds until the guest or the script is another.
fn baseline(trip: &Trip) -> Result<()> {
    let finding = Guest::ready()?.finding(SCRIPT);
    if let Ok(found) = fs::read_to_string(&finding) {
        trip.checked(format!("this guest and this script passed before: {}", found.trim()));
        return Ok(());
    }
    let verdict = judge(
        trip,
        &Target { address: "self", advertised: "127.0.0.1", port: 4420, whole: true },
        "nqn.2026-01.io.orlop:self",
    )?;
    fs::write(finding, format!("{verdict}\n"))?;
    Ok(())
}

/// Where the guest finds a target.
struct Target<'a> {
    address: &'a str,
    /// Where the discovery log says that the subsystem is.
    advertised: &'a str,
    port: u16,
    /// The whole script, or without its longest parts.
    whole: bool,
}

/// Boots the guest once; every line that it prints is something that held.
fn judge(trip: &Trip, target: &Target<'_>, nqn: &str) -> Result<String> {
    let Target { address, advertised, port, whole } = target;
    let shared = trip.folder.join("vm");
    fs::create_dir_all(&shared)?;
    fs::write(
        shared.join("target"),
        format!(
            "ADDRESS={address}\nADVERTISED={advertised}\nPORT={port}\nNQN={nqn}\nWHOLE={}\n",
            i32::from(*whole)
        ),
    )?;
    let guest = Guest::ready()?;
    let verdict = guest.run(&shared, SCRIPT, LIMIT)?;
    for line in verdict.output.lines() {
        println!("    {line}");
    }
    ensure!(
        verdict.code == 0,
        "the kernel's initiator did not get what it asked for: exit code {}",
        verdict.code
    );
    ensure!(verdict.output.lines().any(|line| line == "interop: ok"), "the script ended early");
    let kernel = guest.versions()?.lines().next().unwrap_or_default().to_owned();
    let judged = format!("{kernel}: {verdict}");
    trip.checked(&judged);
    Ok(judged)
}

/// Against the target of `data/nvmf`, over a device in memory.
fn interop(trip: &Trip) -> Result<()> {
    let port = free_port()?;
    let mut command = trip.command(example(trip, "mem_target")?);
    command.args([&format!("127.0.0.1:{port}"), "400MiB", "4096", "10.0.2.2"]);
    let mut target = trip.start(command)?;
    let begun = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(target.runs() && begun.elapsed() < MINUTE, "the target does not start:\n{}", target.output());
        std::thread::sleep(Duration::from_millis(50));
    }
    // The journey `export` meets the same target with the whole of the script.
    let found = Target { address: "10.0.2.2", advertised: "10.0.2.2", port, whole: false };
    let verdict = judge(trip, &found, "nqn.2026-11.io.orlop:mem");
    ensure!(target.runs(), "the target ended:\n{}", target.output());
    target.process.signal(Signal::INT);
    target.wait(MINUTE).context("the target's end")?;
    verdict.map(drop)
}

/// Against the target of the node that runs the nexus of a volume.
fn volume(trip: &Trip) -> Result<()> {
    let cluster = Cluster::start(trip, "2GiB")?;
    cluster.volume("data", "512MiB")?;
    let status = cluster.status("data")?;
    let target = status["target"].as_str().with_context(|| format!("the volume has no target: {status}"))?;
    // nvme+tcp://HOST:PORT/NQN
    let (address, nqn) = target
        .strip_prefix("nvme+tcp://")
        .and_then(|rest| rest.split_once('/'))
        .with_context(|| format!("{target} is not the URI of a target"))?;
    let nqn = nqn.split('?').next().unwrap_or(nqn);
    let port = address.parse::<SocketAddr>().with_context(|| format!("the address in {target}"))?.port();
    judge(trip, &Target { address: "10.0.2.2", advertised: "127.0.0.1", port, whole: true }, nqn)?;
    cluster.remove("data")?;
    cluster.stop()
}

/// The initiator of `data/nvmf` on this machine, against the kernel's target in the guest.
fn initiator(trip: &Trip) -> Result<()> {
    let program = example(trip, "initiator_check")?;
    let (shared, port) = (trip.folder.join("vm"), free_port()?);
    let guest = Guest::ready()?;
    let mut booted = guest.start(&shared, TARGET_SCRIPT, Some(port))?;
    booted.wait_for("listening", MINUTE * 2)?;
    let address = format!("127.0.0.1:{port}");
    let nqn = "nqn.2026-01.io.orlop:kernel";
    let mut discover = trip.command(&program);
    discover.arg(&address);
    let offered = trip.run(discover, MINUTE)?.success("discovery")?;
    ensure!(offered.contains(nqn), "the discovery log does not name {nqn}:\n{offered}");
    let mut command = trip.command(&program);
    command.args([&address, nqn]);
    let outcome = trip.run(command, MINUTE * 3)?;
    for line in outcome.output.lines() {
        println!("    {line}");
    }
    let output = outcome.success("Orlop's initiator")?;
    ensure!(output.lines().last() == Some("initiator: ok"), "it ended early");
    fs::write(shared.join("done"), "")?;
    let verdict = booted.verdict(LIMIT)?;
    ensure!(verdict.code == 0, "the guest: exit code {}:\n{}", verdict.code, verdict.output);
    for line in verdict.output.lines() {
        // What the kernel's target says of a host that makes a mistake.
        let blames =
            ["error", "unexpected", "invalid", "unhandled", "expired"].iter().any(|word| line.contains(word));
        ensure!(!blames, "the kernel's target complains: {line}");
    }
    let kernel = guest.versions()?.lines().next().unwrap_or_default().to_owned();
    trip.checked(format!("{kernel}: no complaint; {verdict}"));
    Ok(())
}

/// A node with its volumes, all in the guest, whose kernel has an initiator.
fn device(trip: &Trip) -> Result<()> {
    in_guest(trip, DEVICE_SCRIPT, "device")
}

/// The same, where an orchestrator asks for them: this program in the guest.
fn claims(trip: &Trip) -> Result<()> {
    let shared = trip.folder.join("vm");
    fs::create_dir_all(&shared)?;
    let program = std::env::current_exe().context("find this program's own file")?;
    fs::copy(program, shared.join("orlop-e2e")).context("share this program with the guest")?;
    in_guest(trip, CSI_SCRIPT, "csi")
}

/// Boots the guest with `orlop` and the script, whose last line is `NAME: ok`.
fn in_guest(trip: &Trip, script: &str, name: &str) -> Result<()> {
    let shared = trip.folder.join("vm");
    fs::create_dir_all(&shared)?;
    // The guest's C library is newer than this machine's.
    fs::copy(trip.orlop()?, shared.join("orlop")).context("share the program with the guest")?;
    fs::write(shared.join("cluster.sh"), CLUSTER_SCRIPT)?;
    let guest = Guest::ready()?;
    let verdict = guest.run(&shared, script, LIMIT)?;
    for line in verdict.output.lines() {
        println!("    {line}");
    }
    ensure!(verdict.code == 0, "{name} by NVMe/TCP: exit code {}", verdict.code);
    ensure!(verdict.output.lines().any(|line| line == format!("{name}: ok")), "the script ended early");
    trip.checked(format!("{}: {verdict}", guest.versions()?.lines().next().unwrap_or_default()));
    Ok(())
}

/// An example of `data/nvmf`, built in release mode beside `orlop`.
fn example(trip: &Trip, name: &str) -> Result<PathBuf> {
    let program = trip.orlop_folder().join("examples").join(name);
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Beside `orlop`, so that the packages have the same features and nothing is compiled twice.
    cargo.args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "orlop",
        "--package",
        "orlop-nvmf",
        "--example",
        name,
    ]);
    let built = cargo.arg("--manifest-path").arg(manifest).status().context("run cargo")?;
    ensure!(built.success() && program.is_file(), "there is no {} after cargo's {built}", program.display());
    Ok(program)
}

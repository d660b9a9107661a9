//! The Linux kernel's initiator, in the guest, against Orlop's target on this machine.

use crate::cluster::Cluster;
use crate::guest::Guest;
use crate::journey::{Journey, Trip};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const SCRIPT: &str = include_str!("../../vm/interop.sh");
const TARGET_SCRIPT: &str = include_str!("../../vm/target.sh");
const LIMIT: Duration = Duration::from_secs(600);
const MINUTE: Duration = Duration::from_secs(60);

/// The judge is fit: guest and script accept the kernel's own target.
pub(crate) const BASELINE: Journey = Journey {
    name: "guest",
    what: "the Linux guest boots, and its initiator gets all it asks for from its own kernel's target",
    run: |trip| judge(trip, ("self", "127.0.0.1"), 4420, "nqn.2026-01.io.orlop:self"),
};

pub(crate) const INTEROP: Journey = Journey {
    name: "kernel",
    what: "the Linux kernel's initiator: discover, connect, ext4, XFS, fio verify, digests, disconnect",
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

/// Boots the guest once; every line that it prints is something that held.
/// `advertised` is where the discovery log says that the subsystem is.
fn judge(trip: &Trip, (address, advertised): (&str, &str), port: u16, nqn: &str) -> Result<()> {
    let shared = trip.folder.join("vm");
    fs::create_dir_all(&shared)?;
    fs::write(
        shared.join("target"),
        format!("ADDRESS={address}\nADVERTISED={advertised}\nPORT={port}\nNQN={nqn}\n"),
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
    trip.checked(format!("{kernel}: {verdict}"));
    Ok(())
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
    let verdict = judge(trip, ("10.0.2.2", "10.0.2.2"), port, "nqn.2026-11.io.orlop:mem");
    ensure!(target.runs(), "the target ended:\n{}", target.output());
    target.process.signal(Signal::INT);
    target.wait(MINUTE).context("the target's end")?;
    verdict
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
    judge(trip, ("10.0.2.2", "127.0.0.1"), port, nqn)?;
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

/// An example of `data/nvmf`, built in release mode beside `orlop`.
fn example(trip: &Trip, name: &str) -> Result<PathBuf> {
    let program = trip.orlop_folder().join("examples").join(name);
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--release", "--package", "orlop-nvmf", "--example", name]);
    let built = cargo.arg("--manifest-path").arg(manifest).status().context("run cargo")?;
    ensure!(built.success() && program.is_file(), "there is no {} after cargo's {built}", program.display());
    Ok(program)
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

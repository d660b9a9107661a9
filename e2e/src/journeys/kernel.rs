//! The Linux kernel's initiator, in the guest, against Orlop's target on this machine.

use crate::guest::Guest;
use crate::journey::{Journey, Trip};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const SCRIPT: &str = include_str!("../../vm/interop.sh");
const LIMIT: Duration = Duration::from_secs(600);
const MINUTE: Duration = Duration::from_secs(60);

/// The judge is fit: guest and script accept the kernel's own target.
pub(crate) const BASELINE: Journey = Journey {
    name: "guest",
    what: "the Linux guest boots, and its initiator gets all it asks for from its own kernel's target",
    run: |trip| judge(trip, "self", 4420, "nqn.2026-01.io.orlop:self"),
};

pub(crate) const INTEROP: Journey = Journey {
    name: "kernel",
    what: "the Linux kernel's initiator: discover, connect, ext4, XFS, fio verify, digests, disconnect",
    run: interop,
};

/// Boots the guest once; every line that it prints is something that held.
fn judge(trip: &Trip, address: &str, port: u16, nqn: &str) -> Result<()> {
    let shared = trip.folder.join("vm");
    fs::create_dir_all(&shared)?;
    fs::write(shared.join("target"), format!("ADDRESS={address}\nPORT={port}\nNQN={nqn}\n"))?;
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
    let program = trip.orlop()?.with_file_name("examples").join("mem_target");
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--release", "--package", "orlop-nvmf", "--example", "mem_target"]);
    let built = cargo.arg("--manifest-path").arg(manifest).status().context("run cargo")?;
    ensure!(built.success() && program.is_file(), "there is no {} after cargo's {built}", program.display());
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let nqn = "nqn.2026-11.io.orlop:mem";
    let mut command = trip.command(program);
    command.args([&format!("127.0.0.1:{port}"), "400MiB", "4096", "10.0.2.2"]);
    let mut target = trip.start(command)?;
    let begun = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(target.runs() && begun.elapsed() < MINUTE, "the target does not start:\n{}", target.output());
        std::thread::sleep(Duration::from_millis(50));
    }
    let verdict = judge(trip, "10.0.2.2", port, nqn);
    ensure!(target.runs(), "the target ended:\n{}", target.output());
    target.process.signal(rustix::process::Signal::INT);
    target.wait(MINUTE).context("the target's end")?;
    verdict
}

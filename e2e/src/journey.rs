//! What every journey has at hand: its folder, commands with a limit, a line for each thing that was checked.

use crate::guard::{RUN_VARIABLE, RunId};
use crate::guest;
use crate::process::{Outcome, Running};
use anyhow::{Context, Result, bail, ensure};
use std::cell::Cell;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// One thing that a user does, start to end.
pub(crate) struct Journey {
    /// How it is called on the command line.
    pub(crate) name: &'static str,
    /// What holds if it passes.
    pub(crate) what: &'static str,
    pub(crate) run: fn(&Trip) -> Result<()>,
}

/// One run of one journey.
pub(crate) struct Trip {
    pub(crate) id: RunId,
    /// Its own folder, below the run's.
    pub(crate) folder: PathBuf,
    orlop: PathBuf,
    begun: Instant,
    commands: Cell<u32>,
}

impl Trip {
    /// A fresh trip with its folder.
    pub(crate) fn new(id: &RunId, name: &str, orlop: &Path) -> Result<Self> {
        let folder = id.folder().join(name);
        fs::create_dir_all(&folder)?;
        Ok(Self {
            id: id.clone(),
            folder,
            orlop: orlop.to_owned(),
            begun: Instant::now(),
            commands: Cell::new(0),
        })
    }

    /// The release build of `orlop`.
    pub(crate) fn orlop(&self) -> Result<&Path> {
        ensure!(self.orlop.is_file(), "there is no {}: `cargo xtask e2e` builds it", self.orlop.display());
        Ok(&self.orlop)
    }

    /// Where cargo puts its release builds.
    pub(crate) fn orlop_folder(&self) -> &Path {
        self.orlop.parent().unwrap_or(&self.orlop)
    }

    /// Prints what was just checked, with the seconds since the journey began.
    pub(crate) fn checked(&self, what: impl AsRef<str>) {
        println!("  {:6.1} s  {}", self.begun.elapsed().as_secs_f64(), what.as_ref());
    }

    /// A command in the folder of the trip, known by the run's id.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.folder).env(RUN_VARIABLE, &self.id.0);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C");
        // The same on every machine, and what the guard can take away; the journey `nvme` has a kernel of its own.
        command.env("ORLOP_FRONTEND", "fuse");
        command
    }

    /// Starts a command beside the trip; its output goes to a file of its own.
    pub(crate) fn start(&self, command: Command) -> Result<Running> {
        let number = self.commands.get();
        self.commands.set(number + 1);
        let program =
            Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        Running::start(command, &self.folder.join(format!("{number:03}-{program}.log")))
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, command: Command, limit: Duration) -> Result<Outcome> {
        self.start(command)?.wait(limit)
    }

    /// Runs a line of shell that has to succeed; its output.
    pub(crate) fn sh(&self, line: &str, limit: Duration) -> Result<String> {
        let mut command = self.command("bash");
        command.args(["-e", "-o", "pipefail", "-c", line]);
        self.run(command, limit)?.success(line)
    }
}

/// Installs what is missing: pairs of a program and the Debian package that brings it.
pub(crate) fn need(programs: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> = programs
        .iter()
        .filter(|(program, _)| guest::which(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("  installing {}", missing.join(" "));
    // A program is what is wanted, not a service that starts with it and stays.
    let line = format!(
        "export DEBIAN_FRONTEND=noninteractive; policy=/usr/sbin/policy-rc.d; \
         if [ ! -e $policy ]; then trap 'rm -f $policy' EXIT; printf '#!/bin/sh\\nexit 101\\n' >$policy; \
         chmod +x $policy; fi; apt-get update -qq && \
         apt-get install -qq -y --no-remove --no-install-recommends {} >/dev/null",
        missing.join(" ")
    );
    // The run beside this one may install something, too; and what it installs may be what is missing here.
    let status =
        Command::new("flock").args(["/var/lib/dpkg", "sh", "-c", &line]).status().context("run apt-get")?;
    if !status.success() {
        bail!("apt-get could not install {}", missing.join(" "));
    }
    Ok(())
}

/// A free port of loopback, from those that the kernel gives to no outgoing connection and `orlop dev` to no node: it
/// stays free until it is listened on.
pub(crate) fn free_port() -> Result<u16> {
    let random = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    let random = u16::from_str_radix(random.get(..4).context("the kernel's uuid is short")?, 16)?;
    let port = (0..10_000).map(|offset| 10_000 + (random % 10_000 + offset) % 10_000);
    let mut free = port.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.next().context("no port of 127.0.0.1 from 10000 to 19999 is free")
}

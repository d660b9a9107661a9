//! `orlop demo` as its users run it: to its end, interrupted at any moment, beside others.

use crate::cluster::Cluster;
use crate::guard::{Leftovers, RUN_VARIABLE, RunId};
use crate::journey::{Journey, Trip, need};
use crate::process::{Running, tail};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// What is promised: from its start to `demo: ok`, on two cores.
const DEMO_LIMIT: Duration = Duration::from_secs(120);
/// The same for three clusters at once on the same cores.
const CROWDED_LIMIT: Duration = Duration::from_secs(300);
/// From the signal to the end, with everything removed.
const END_LIMIT: Duration = Duration::from_secs(30);
/// The user `nobody` of Debian.
const NOBODY: u32 = 65_534;

pub(crate) const DEMO: Journey =
    Journey { name: "demo", what: "orlop demo as root ends with `demo: ok` and leaves nothing", run: demo };

pub(crate) const UNPRIVILEGED: Journey = Journey {
    name: "unprivileged",
    what: "orlop demo as a user without rights, from a copied folder, ends with `demo: ok` and leaves nothing",
    run: unprivileged,
};

pub(crate) const FLIPPED: Journey = Journey {
    name: "flipped",
    what: "one bit of one copy flipped behind everybody's back: the demo finds it, names it and fails",
    run: flipped,
};

pub(crate) const INTERRUPTED: Journey = Journey {
    name: "interrupted",
    what: "orlop demo, as root and without rights, ended by signals at many moments of its story, leaves nothing",
    run: interrupted,
};

pub(crate) const BESIDE: Journey = Journey {
    name: "beside",
    what: "two demos at once beside an orlop dev with an attached volume: all end well, the volume is as it was",
    run: beside,
};

fn demo(trip: &Trip) -> Result<()> {
    need(&[("mkfs.ext4", "e2fsprogs")])?;
    fs::create_dir(trip.folder.join("tmp"))?;
    let mut command = trip.command(trip.orlop()?);
    command.arg("demo").env("TMPDIR", trip.folder.join("tmp"));
    check_demo(trip, command)?;
    ensure!(fs::read_dir(trip.folder.join("tmp"))?.next().is_none(), "it left something in its TMPDIR");
    Ok(())
}

fn unprivileged(trip: &Trip) -> Result<()> {
    check_demo(trip, demo_of_nobody(trip)?)?;
    ensure!(fs::read_dir(trip.folder.join("copy/tmp"))?.next().is_none(), "it left something in its TMPDIR");
    Ok(())
}

/// A moment of the story: this is in the output, and so much later.
struct Moment {
    after: &'static str,
    delay: Duration,
    signal: Signal,
}

const fn moment(after: &'static str, delay_ms: u64, signal: Signal) -> Moment {
    Moment { after, delay: Duration::from_millis(delay_ms), signal }
}

/// The worst are those in the copy: a thread writes files, or blocks, without pause.
const MOMENTS_OF_ROOT: [Moment; 6] = [
    moment("", 300, Signal::INT),
    moment("three nodes run", 50, Signal::TERM),
    moment(" attached on", 100, Signal::INT),
    moment(" attached on", 1000, Signal::INT),
    moment(" attached on", 3000, Signal::TERM),
    moment("which owned the volume, killed", 50, Signal::TERM),
];
const MOMENTS_OF_NOBODY: [Moment; 3] = [
    moment("", 300, Signal::TERM),
    moment(" attached on", 1000, Signal::INT),
    moment("copied to raw blocks", 300, Signal::TERM),
];

fn interrupted(trip: &Trip) -> Result<()> {
    need(&[("mkfs.ext4", "e2fsprogs"), ("setpriv", "util-linux")])?;
    for (number, moment) in MOMENTS_OF_ROOT.iter().enumerate() {
        let mut command = trip.command(trip.orlop()?);
        command.arg("demo");
        interrupt(trip, &format!("root-{number}"), command, moment)?;
    }
    for (number, moment) in MOMENTS_OF_NOBODY.iter().enumerate() {
        interrupt(trip, &format!("nobody-{number}"), demo_of_nobody(trip)?, moment)?;
    }
    Ok(())
}

/// Runs a demo until `moment`, sends it the signal, and looks for what it left.
fn interrupt(trip: &Trip, name: &str, mut command: Command, moment: &Moment) -> Result<()> {
    // What belongs to this demo alone is known by the name of its temporary folder.
    let id = RunId(format!("{}/interrupted/{name}", trip.id.0));
    let temporary = id.folder();
    fs::create_dir_all(&temporary)?;
    std::os::unix::fs::chown(&temporary, Some(NOBODY), Some(NOBODY))?;
    command.env("TMPDIR", &temporary).env(RUN_VARIABLE, &id.0);
    let mut demo = trip.start(command)?;
    let begun = Instant::now();
    while !demo.output().contains(moment.after) {
        ensure!(demo.runs() && begun.elapsed() < DEMO_LIMIT, "no {:?}:\n{}", moment.after, demo.output());
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(moment.delay);
    let step = tail(&demo.output(), 1);
    let seen: String = step.chars().take(48).collect();
    ensure!(demo.process.signal(moment.signal), "{name}: the demo ended before the signal: {step}");
    let signalled = Instant::now();
    let device = device_of(&demo);
    let outcome = demo.wait(END_LIMIT)?;
    let took = signalled.elapsed().as_secs_f64();
    let output = outcome.output;
    ensure!(
        outcome.code == Some(1),
        "{name}: exit code {:?} {took:.1} s after the signal:\n{output}",
        outcome.code
    );
    ensure!(
        output.contains("the demo was interrupted") && !output.contains("demo: ok"),
        "{name}: it says:\n{output}"
    );
    let left: Vec<_> = fs::read_dir(&temporary)?.flatten().map(|entry| entry.path()).collect();
    ensure!(left.is_empty(), "{name}: it left {left:?}; it said:\n{output}");
    let leftovers = Leftovers::find(&id, &[]);
    ensure!(leftovers.is_empty(), "{name}: it left {leftovers}");
    if let Some(device) = device {
        ensure!(!is_orphan(&device), "{name}: it left {device}");
    }
    let signal = if moment.signal == Signal::INT { "SIGINT" } else { "SIGTERM" };
    trip.checked(format!("{name}: {signal} after \"{seen}\": ended {took:.2} s later, nothing left"));
    Ok(())
}

/// The block device of a demo, once it has one.
fn device_of(demo: &Running) -> Option<String> {
    let output = demo.output();
    let device = output.rsplit(" as /dev/").next().filter(|_| output.contains(" as /dev/"))?;
    Some(device.split(' ').next()?.to_owned())
}

/// Whether a loop device lies over a file whose file system is gone: nothing but its name says whose it was.
fn is_orphan(device: &str) -> bool {
    let file = fs::read_to_string(format!("/sys/block/{device}/loop/backing_file"));
    file.is_ok_and(|file| !Path::new(file.trim()).exists())
}

fn beside(trip: &Trip) -> Result<()> {
    need(&[("mkfs.ext4", "e2fsprogs")])?;
    let cluster = Cluster::start(trip, "1GiB")?;
    let device = cluster.volume("data", "128MiB")?;
    trip.sh(&format!("mkdir mount; mkfs.ext4 -q {device}; mount {device} mount"), MINUTE)?;
    trip.sh(
        "cp -r /usr/include/linux mount/; sync; (cd mount && find . -type f | xargs sha1sum) >sums",
        MINUTE,
    )?;
    let mut demos = Vec::new();
    for number in 1..=2 {
        let temporary = trip.folder.join(format!("tmp-{number}"));
        fs::create_dir(&temporary)?;
        let mut command = trip.command(trip.orlop()?);
        command.arg("demo").env("TMPDIR", &temporary);
        demos.push((trip.start(command)?, temporary));
    }
    for (number, (demo, temporary)) in (1..).zip(demos) {
        let outcome = demo.wait(CROWDED_LIMIT)?;
        let seconds = outcome.elapsed.as_secs_f64();
        let output = outcome.success(&format!("demo {number} beside another one"))?;
        ensure!(output.ends_with("demo: ok\n"), "demo {number} says:\n{}", tail(&output, 30));
        ensure!(
            fs::read_dir(&temporary)?.next().is_none(),
            "demo {number} left something in {}",
            temporary.display()
        );
        trip.checked(format!("demo {number} of two at once: {seconds:.1} s, ok"));
    }
    trip.sh("cd mount && sha1sum --quiet -c ../sums && echo more >more && sync", MINUTE)?;
    let back = cluster.in_sync("data", 10 * SECOND)?;
    trip.sh(&format!("umount mount; e2fsck -fn {device}"), MINUTE)?;
    trip.checked(format!(
        "the volume of orlop dev is as it was, all copies in sync ({:.1} s)",
        back.as_secs_f64()
    ));
    cluster.remove("data")?;
    cluster.stop()
}

fn flipped(trip: &Trip) -> Result<()> {
    let mut command = demo_of_nobody(trip)?;
    command.arg("--plant-flip");
    let outcome = trip.run(command, DEMO_LIMIT)?;
    let last = outcome.output.lines().last().unwrap_or_default();
    ensure!(outcome.code == Some(1), "the demo ended with {:?}: {last}", outcome.code);
    let says = last.starts_with("orlop: the copies on ") && last.contains(" differ at byte ");
    ensure!(says, "it does not say what differs:\n{}", tail(&outcome.output, 5));
    ensure!(!outcome.output.contains("demo: ok"), "it says that all is well");
    let left: Vec<_> = fs::read_dir(trip.folder.join("copy/tmp"))?.collect();
    ensure!(left.is_empty(), "it left something behind: {left:?}");
    trip.checked(format!("exit code 1; {last}"));
    Ok(())
}

/// The demo as a user without rights runs it, from a folder of its own.
fn demo_of_nobody(trip: &Trip) -> Result<Command> {
    let copy = trip.folder.join("copy");
    fs::create_dir_all(copy.join("tmp"))?;
    fs::copy(trip.orlop()?, copy.join("orlop")).context("copy the program")?;
    trip.sh(&format!("chown -R {NOBODY}:{NOBODY} copy"), MINUTE)?;
    let mut command = trip.command("setpriv");
    let user = NOBODY.to_string();
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--no-new-privs", "--inh-caps=-all"]);
    command.arg("--bounding-set=-all").arg("--").arg(copy.join("orlop")).arg("demo").current_dir(&copy);
    command.env("TMPDIR", copy.join("tmp")).env("HOME", &copy);
    Ok(command)
}

/// Runs a demo to its end; what it printed says what it checked.
fn check_demo(trip: &Trip, command: Command) -> Result<()> {
    let outcome = trip.run(command, DEMO_LIMIT)?;
    let seconds = outcome.elapsed.as_secs_f64();
    let output = outcome.success("orlop demo")?;
    ensure!(
        output.lines().last() == Some("demo: ok"),
        "its last line is not `demo: ok`:\n{}",
        tail(&output, 30)
    );
    for line in tail(&output, 40).lines() {
        println!("    {line}");
    }
    trip.checked(format!("orlop demo: {seconds:.1} s, exit code 0"));
    Ok(())
}

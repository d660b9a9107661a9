//! csi-sanity, the judge of the standard: built once, run, and what it skips compared with a list.
//!
//! 1. Every spec that it skips is on the list `csi-sanity-skips.txt`, and every line there is skipped: what is
//!    advertised is tested, and nothing is left out in silence.
//! 2. A plugin that is killed between two specs is missed by none: it remembers nothing.

use super::claim::{Caller, MIB, text};
use super::{MINUTE, Victim, nothing_left, unhurried};
use crate::cache::cache;
use crate::cluster::Cluster;
use crate::journey::{Trip, need};
use crate::process::Outcome;
use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The judge, and its version.
const JUDGE: &str = "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity";
const JUDGE_VERSION: &str = "v5.6.0";
const EXAM_LIMIT: Duration = Duration::from_secs(600);
const SKIPS: &str = include_str!("../../../csi-sanity-skips.txt");

pub(super) fn sanity(trip: &Trip) -> Result<()> {
    need(&[("mkfs.ext4", "e2fsprogs")])?;
    let judge = judge(trip)?;
    let sockets = trip.folder.join("csi");
    let cluster = Cluster::start_with(trip, "2GiB", &["--csi", &text(&sockets)])?;
    let caller = Caller::new(sockets)?;
    caller.ready(&["node-1", "node-2"])?;
    let ways = [("node-1", "node-1"), ("node-2", "node-2"), ("node-1", "node-2")];
    for (access, (controller, node)) in
        ["mount", "block"].into_iter().flat_map(|access| ways.map(|way| (access, way)))
    {
        let seed = seed()?;
        let exam = Exam { seed, access, controller: caller.socket(controller), node: caller.socket(node) };
        let outcome = trip.run(exam.command(trip, &judge)?, EXAM_LIMIT)?;
        let verdict = exam.verdict(trip, outcome)?;
        trip.checked(format!("{access}, controller of {controller}, {node}, seed {seed}: {verdict}"));
    }
    between_specs(trip, &judge, &cluster.url())?;
    nothing_left(trip, &cluster)?;
    cluster.stop()
}

/// A random order of the judge's specs: it is printed, and `csi-sanity -ginkgo.seed` repeats it.
fn seed() -> Result<u16> {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    Ok(u16::from_str_radix(uuid.get(..4).context("the kernel's uuid is short")?, 16)?)
}

/// One run of the judge.
struct Exam {
    seed: u16,
    access: &'static str,
    controller: PathBuf,
    node: PathBuf,
}

impl Exam {
    fn report(&self, trip: &Trip) -> PathBuf {
        trip.folder.join(format!("sanity-{}.json", self.seed))
    }

    fn command(&self, trip: &Trip, judge: &Path) -> Result<Command> {
        let mut command = trip.command(judge);
        for (option, socket) in [("endpoint", &self.node), ("controllerendpoint", &self.controller)] {
            let front = trip.folder.join(format!("{option}-{}.sock", self.seed));
            unhurried::listen(&front, socket.clone())?;
            command.arg(format!("-csi.{option}=unix://{}", front.display()));
        }
        for (option, folder) in [("mountdir", "pod"), ("stagingdir", "stage")] {
            let folder = trip.folder.join(format!("{folder}-{}", self.seed));
            command.arg(format!("-csi.{option}={}", folder.display()));
        }
        command.arg(format!("-csi.testvolumeaccesstype={}", self.access));
        command.arg(format!("-ginkgo.seed={}", self.seed));
        command.args([
            format!("-csi.testvolumesize={}", 64 * MIB),
            format!("-csi.testvolumeexpandsize={}", 128 * MIB),
        ]);
        command.args(["-ginkgo.randomize-all", "-ginkgo.no-color"]);
        command.arg(format!("-ginkgo.json-report={}", self.report(trip).display()));
        Ok(command)
    }

    /// What it said, if that is what is wanted.
    fn verdict(&self, trip: &Trip, outcome: Outcome) -> Result<String> {
        let seconds = outcome.elapsed.as_secs();
        outcome.success(&format!("csi-sanity, {}, seed {}", self.access, self.seed))?;
        let (passed, skipped) = specs(&serde_json::from_slice(&std::fs::read(self.report(trip))?)?);
        compare(&skipped)?;
        ensure!(passed > 0, "csi-sanity passed nothing");
        Ok(format!(
            "csi-sanity {JUDGE_VERSION}: {passed} passed, {} skipped as listed, in {seconds} s",
            skipped.len()
        ))
    }
}

/// The judge's own commands for its folders, of which it runs one before every spec. Before some of them this one asks
/// for the plugin's death, and waits until the next plugin listens.
const MAKE_FOLDER: &str = r#"#!/bin/bash -e
if ((RANDOM % 2)); then
    echo kill > "${0%/*}/ask"
    read -r _ < "${0%/*}/answer"
fi
mkdir "$1"
echo "$1"
"#;
const LOOK: &str = r"#!/bin/bash
if [[ -d $1 ]]; then echo directory; elif [[ -f $1 ]]; then echo file
elif [[ -e $1 ]]; then echo other; else echo not_found; fi
";

/// The same with a plugin that is killed, at random, between specs.
fn between_specs(trip: &Trip, judge: &Path, api: &str) -> Result<()> {
    let folder = trip.folder.join("between");
    std::fs::create_dir_all(&folder)?;
    trip.sh("mkfifo between/ask between/answer", MINUTE)?;
    // Open both ways, so that neither side ever waits for the other to open it.
    let open = |name: &str| File::options().read(true).write(true).open(folder.join(name));
    let (ask, mut answer) = (open("ask")?, open("answer")?);
    let mut asked = BufReader::new(&ask).lines();
    let make = script(&folder.join("make"), MAKE_FOLDER)?;
    let look = script(&folder.join("look"), LOOK)?;

    let socket = folder.join("node-1/csi.sock");
    let victim = Victim { trip, api: api.to_owned(), socket: socket.clone(), node: "node-1" };
    let seed = seed()?;
    let exam = Exam { seed, access: "mount", controller: socket.clone(), node: socket };
    let mut plugin = victim.start_and_wait()?;
    let mut command = exam.command(trip, judge)?;
    command.arg(format!("-csi.createmountpathcmd={make}")).arg(format!("-csi.checkpathcmd={look}"));
    let judging = trip.start(command)?;
    let mut kills = 0;
    let outcome = std::thread::scope(|scope| {
        let judging = scope.spawn(|| {
            let outcome = judging.wait(EXAM_LIMIT);
            // Whoever waits for a question is told that there will be none.
            (&ask).write_all(b"end\n").map(|()| outcome)
        });
        while asked.next().transpose()?.is_some_and(|word| word == "kill") {
            plugin.process.signal(Signal::KILL);
            plugin.process.wait_end(MINUTE)?;
            plugin = victim.start_and_wait()?;
            kills += 1;
            answer.write_all(b"go on\n")?;
        }
        judging.join().map_err(|_| anyhow!("the judge's thread panicked"))??
    })?;
    let verdict = exam.verdict(trip, outcome)?;
    ensure!(kills >= 10, "the plugin was killed {kills} times only");
    trip.checked(format!("mount, node-1, seed {seed}, plugin killed {kills} times between specs: {verdict}"));
    Ok(())
}

/// Writes a program; its path.
fn script(path: &Path, lines: &str) -> Result<String> {
    std::fs::write(path, lines)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(text(path))
}

/// The judge of this version, built once into the cache.
fn judge(trip: &Trip) -> Result<PathBuf> {
    let cache = cache()?.join("go");
    let folder = cache.join("bin").join(format!("csi-sanity-{JUDGE_VERSION}"));
    let program = folder.join("csi-sanity");
    if program.is_file() {
        return Ok(program);
    }
    println!("  building csi-sanity {JUDGE_VERSION}");
    let mut go = trip.command("go");
    go.args(["install", &format!("{JUDGE}@{JUDGE_VERSION}")])
        .env("GOBIN", &folder)
        .env("GOFLAGS", "-modcacherw");
    go.env("GOMODCACHE", cache.join("mod")).env("GOCACHE", cache.join("build"));
    trip.run(go, MINUTE * 30)?.success("go install (Go 1.24 or newer has to be in the path)")?;
    Ok(program)
}

/// From ginkgo's report: how many specs passed, and which were left out.
fn specs(report: &Value) -> (usize, BTreeSet<String>) {
    let suites = report.as_array().map_or(&[][..], Vec::as_slice);
    let specs =
        suites.iter().flat_map(|suite| suite["SpecReports"].as_array().map_or(&[][..], Vec::as_slice));
    let (mut passed, mut skipped) = (0, BTreeSet::new());
    for spec in specs.filter(|spec| spec["LeafNodeType"] == "It") {
        match spec["State"].as_str().unwrap_or_default() {
            "passed" => passed += 1,
            "skipped" | "pending" => {
                let outer = spec["ContainerHierarchyTexts"].as_array().map_or(&[][..], Vec::as_slice);
                let words = outer.iter().chain([&spec["LeafNodeText"]]).filter_map(Value::as_str);
                skipped.insert(words.collect::<Vec<_>>().join(" "));
            }
            _ => {}
        }
    }
    (passed, skipped)
}

/// Invariant 1.
fn compare(skipped: &BTreeSet<String>) -> Result<()> {
    let lines = SKIPS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let listed: BTreeSet<String> = lines.map(str::to_owned).collect();
    let unlisted: Vec<_> = skipped.difference(&listed).collect();
    ensure!(unlisted.is_empty(), "skipped, and not in csi-sanity-skips.txt:\n{unlisted:#?}");
    let done: Vec<_> = listed.difference(skipped).collect();
    ensure!(done.is_empty(), "in csi-sanity-skips.txt, and not skipped any more:\n{done:#?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_are_read_from_the_report() {
        let report = serde_json::json!([{ "SpecReports": [
            { "LeafNodeType": "BeforeSuite", "State": "passed", "LeafNodeText": "" },
            { "LeafNodeType": "It", "State": "passed", "LeafNodeText": "works", "ContainerHierarchyTexts": ["A"] },
            { "LeafNodeType": "It", "State": "skipped", "LeafNodeText": "c", "ContainerHierarchyTexts": ["A", "b"] },
            { "LeafNodeType": "It", "State": "pending", "LeafNodeText": "d", "ContainerHierarchyTexts": null },
        ] }]);
        let (passed, skipped) = specs(&report);
        assert_eq!((passed, skipped), (1, BTreeSet::from(["A b c".to_owned(), "d".to_owned()])));
        assert!(compare(&BTreeSet::from(["never heard of".to_owned()])).is_err());
        assert!(compare(&BTreeSet::new()).is_err(), "the list is not empty");
    }
}

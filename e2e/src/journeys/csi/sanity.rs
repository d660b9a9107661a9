//! csi-sanity, the judge of the standard: built once, run, and what it skips compared with a list.
//!
//! 1. Every spec that it skips is on the list `csi-sanity-skips.txt`, and every line there is skipped: what is
//!    advertised is tested, and nothing is left out in silence.

use super::claim::{Caller, MIB, text};
use super::{MINUTE, nothing_left};
use crate::cluster::Cluster;
use crate::journey::{Trip, need};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The judge, and its version.
const JUDGE: &str = "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity";
const JUDGE_VERSION: &str = "v5.4.0";
const SKIPS: &str = include_str!("../../../csi-sanity-skips.txt");

pub(super) fn sanity(trip: &Trip) -> Result<()> {
    need(&[("mkfs.ext4", "e2fsprogs")])?;
    let judge = judge(trip)?;
    let sockets = trip.folder.join("csi");
    let cluster = Cluster::start_with(trip, "2GiB", &["--csi", &text(&sockets)])?;
    let caller = Caller::new(sockets)?;
    caller.ready(&["node-1", "node-2"])?;
    for (seed, access, controller, node) in [
        (101, "mount", "node-1", "node-1"),
        (102, "block", "node-2", "node-2"),
        (103, "mount", "node-1", "node-2"),
    ] {
        let report = trip.folder.join(format!("sanity-{seed}.json"));
        let mut command = trip.command(&judge);
        command.arg(format!("-csi.endpoint=unix://{}", caller.socket(node).display()));
        command.arg(format!("-csi.controllerendpoint=unix://{}", caller.socket(controller).display()));
        command.arg(format!("-csi.mountdir={}", trip.folder.join(format!("pod-{seed}")).display()));
        command.arg(format!("-csi.stagingdir={}", trip.folder.join(format!("stage-{seed}")).display()));
        command.args([format!("-csi.testvolumeaccesstype={access}"), format!("-ginkgo.seed={seed}")]);
        command.args([
            format!("-csi.testvolumesize={}", 64 * MIB),
            format!("-csi.testvolumeexpandsize={}", 128 * MIB),
        ]);
        command.args(["-ginkgo.randomize-all", "-ginkgo.no-color"]);
        command.arg(format!("-ginkgo.json-report={}", report.display()));
        let outcome = trip.run(command, MINUTE * 10)?;
        let seconds = outcome.elapsed.as_secs();
        outcome.success(&format!("csi-sanity, {access}, seed {seed}"))?;
        let (passed, skipped) = specs(&serde_json::from_slice(&std::fs::read(&report)?)?);
        compare(&skipped)?;
        trip.checked(format!(
            "csi-sanity {JUDGE_VERSION}, {access}, controller of {controller}, {node}, seed {seed}: {passed} passed, \
             {} skipped as listed, in {seconds} s",
            skipped.len()
        ));
    }
    nothing_left(trip, &cluster)?;
    cluster.stop()
}

/// The judge of this version, built once into the cache.
fn judge(trip: &Trip) -> Result<PathBuf> {
    let home = std::env::var_os("HOME").context("HOME is not set: it names the cache")?;
    let cache = Path::new(&home).join(".cache/orlop/go");
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

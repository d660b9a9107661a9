//! The programs are taken away and installed again, by the plain manifests and by the chart: what is on the disks is
//! there, as the guide says.

use super::{MINUTE, claim, forget, places, pod, said, shown::Blank};
use crate::journey::Trip;
use crate::kubernetes::{Lab, chart};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

const MANIFESTS: &str = "deploy/manifests/orlop.yaml";
/// What the manifests tell the engines of their disks, and a user writes anew.
const DISK: &str = "\"--disk=file:///var/lib/orlop/disk?size=20GiB\"";
const ALLOWED: &str = "\"--disks-allow=*\"";

/// A claim outlives the programs of the chart, and those of the manifests after them. The chart comes back by the command
/// `install`; then the claim goes.
pub(super) fn again(trip: &Trip, lab: &Lab<'_>, install: &str, blank: &Blank) -> Result<()> {
    let write = "dd if=/dev/urandom of=/data/file bs=1M count=8 conv=fsync && md5sum /data/file";
    let items = [
        forget::class("outlives"),
        claim("outlives", "outlives", "Filesystem", "32Mi"),
        pod("outlives", write, "Filesystem"),
    ];
    lab.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string())?;
    lab.wait_for("pod/outlives", ".status.phase", "Succeeded", 2 * MINUTE)?;
    let sum = said(lab, "pod/outlives", "/data/file")?;
    detached(lab)?;

    let began = Instant::now();
    let [programs, _] = chart::commands("k8s", "docs/guides/uninstall.md")?;
    for command in &programs {
        lab.documented(command)?;
    }
    by_manifests(trip, lab, blank, &sum)?;
    lab.documented(install)?;
    is_there(lab, &sum)?;
    lab.kubectl(&["delete", "pvc/outlives", "storageclass/outlives"], 2 * MINUTE)?;
    trip.checked(format!(
        "the chart was uninstalled and installed again: what a pod had written before is there: {:.1} s",
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// The plain manifests come and go, by the commands that they begin with; what was written is there meanwhile.
fn by_manifests(trip: &Trip, lab: &Lab<'_>, blank: &Blank, sum: &str) -> Result<()> {
    let began = Instant::now();
    let text = fs::read_to_string(chart::project().join(MANIFESTS)).context("read the manifests")?;
    let commands: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("#   ")).collect();
    let is_last = |command: &&str| command.starts_with("kubectl delete");
    let (last, first): (Vec<&str>, Vec<&str>) = commands.into_iter().partition(is_last);
    ensure!(first.len() == 3 && last.len() == 2, "{MANIFESTS} begin with {first:?} and {last:?}");
    let ours = of_lab(trip, &text, blank)?.display().to_string();
    // The chart's stays, as its guide says.
    lab.kubectl(&["delete", "namespace", chart::NAMESPACE], 2 * MINUTE)?;
    for command in first {
        lab.documented(&command.replace("orlop.yaml", &ours))?;
    }
    is_there(lab, sum)?;
    for command in last {
        lab.documented(command)?;
    }
    trip.checked(format!(
        "the manifests were applied where the chart had been, by the commands that they begin with: what a pod had written \
         before is there; and their programs were deleted: {:.1} s",
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// The manifests with the disks of the lab.
fn of_lab(trip: &Trip, text: &str, blank: &Blank) -> Result<PathBuf> {
    let disks = format!("{}\n            - \"--disk={}\"", DISK.replace("20GiB", "2GiB"), places::disk());
    let ours = text.replace(DISK, &disks).replace(ALLOWED, &format!("\"--disks-allow={}\"", blank.device));
    ensure!(text.contains(DISK) && text.contains(ALLOWED), "{MANIFESTS} do not say {DISK} and {ALLOWED}");
    let path = trip.folder.join("manifests.yaml");
    fs::write(&path, ours)?;
    Ok(path)
}

/// Its device would go with the engine.
fn detached(lab: &Lab<'_>) -> Result<()> {
    lab.kubectl(&["delete", "pod/outlives"], 2 * MINUTE)?;
    lab.kubectl(&["wait", "--for=delete", "volumeattachments", "--all", "--timeout=60s"], 2 * MINUTE)
        .map(drop)
}

/// A pod reads what was written.
fn is_there(lab: &Lab<'_>, sum: &str) -> Result<()> {
    lab.wait_orlop()?;
    for node in forget::KEPT {
        lab.wait_for(&format!("onode/{node}"), ".status.state", "Ready", MINUTE)?;
    }
    lab.apply(&pod("outlives", "md5sum /data/file", "Filesystem").to_string())?;
    lab.wait_for("pod/outlives", ".status.phase", "Succeeded", 3 * MINUTE)?;
    let read = said(lab, "pod/outlives", "/data/file")?;
    ensure!(sum.contains(read.trim()), "{sum} was written, and {read} is read");
    detached(lab)
}

//! The programs are taken away and installed again, by the plain manifests and by the chart: what is on the disks is
//! there, as the guide says.

use super::{MINUTE, claim, forget, places, pod, said};
use crate::journey::Trip;
use crate::kubernetes::{Lab, chart};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::time::Instant;

const MANIFESTS: &str = "deploy/manifests/orlop.yaml";
/// What the manifests say of disks.
const DISK: &str = "- \"--disk=file:///var/lib/orlop/disk?size=20GiB\"";
const ALLOWED: &str = "- \"--disks-allow=*\"";

/// A claim outlives the programs of the chart, which comes back by the command `install`; then the claim goes.
pub(super) fn again(trip: &Trip, lab: &Lab<'_>, install: &str) -> Result<()> {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": { "name": "outlives" },
        "provisioner": "csi.orlop.io",
        "parameters": { "copies": forget::KEPT.len().to_string() },
        "volumeBindingMode": "Immediate",
    });
    let write = "dd if=/dev/urandom of=/data/file bs=1M count=8 conv=fsync && md5sum /data/file";
    let items =
        [class, claim("outlives", "outlives", "Filesystem", "32Mi"), pod("outlives", write, "Filesystem")];
    lab.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string())?;
    lab.wait_for("pod/outlives", ".status.phase", "Succeeded", 2 * MINUTE)?;
    let sum = said(lab, "pod/outlives", "/data/file")?;
    detached(lab)?;

    let began = Instant::now();
    let [programs, _] = chart::commands("k8s", "docs/guides/uninstall.md")?;
    for command in &programs {
        lab.documented(command)?;
    }
    let (apply, delete) = manifests(trip)?;
    for command in &apply {
        lab.documented(command)?;
    }
    is_there(lab, &sum)?;
    trip.checked(format!(
        "the chart was uninstalled and the manifests were applied: what a pod had written is there: {:.1} s",
        began.elapsed().as_secs_f64()
    ));
    let began = Instant::now();
    for command in &delete {
        lab.documented(command)?;
    }
    lab.documented(install)?;
    is_there(lab, &sum)?;
    lab.kubectl(&["delete", "pvc/outlives", "storageclass/outlives"], 2 * MINUTE)?;
    trip.checked(format!(
        "the programs were deleted and the chart was installed: it still is: {:.1} s",
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// Its device would go with the engine.
fn detached(lab: &Lab<'_>) -> Result<()> {
    lab.kubectl(&["delete", "pod/outlives"], 2 * MINUTE)?;
    lab.kubectl(&["wait", "--for=delete", "volumeattachments", "--all", "--timeout=60s"], 2 * MINUTE)
        .map(drop)
}

/// The commands at the head of the manifests: to install, and to take the programs away. The disks are the lab's.
fn manifests(trip: &Trip) -> Result<(Vec<String>, Vec<String>)> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(MANIFESTS))?;
    ensure!(text.contains(DISK) && text.contains(ALLOWED), "{MANIFESTS} names other disks");
    let commands = text.lines().filter_map(|line| line.strip_prefix("#   kubectl "));
    let commands: Vec<String> = commands.map(|command| format!("kubectl {command}")).collect();
    let (apply, delete) = commands.split_at_checked(3).context("the manifests say how to apply them")?;
    let disks = ["disk?size=2GiB".to_owned(), format!("{}?size=256MiB&class=ssd", places::DISK)]
        .map(|disk| format!("- \"--disk=file:///var/lib/orlop/{disk}\""));
    let path = trip.folder.join("orlop.yaml");
    let text =
        text.replace(DISK, &disks.join("\n            ")).replace(ALLOWED, "- \"--disks-allow=/none\"");
    fs::write(&path, text)?;
    let named = apply.iter().map(|command| command.replace("orlop.yaml", &path.display().to_string()));
    Ok((named.collect(), delete.to_vec()))
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

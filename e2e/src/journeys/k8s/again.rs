//! The programs are taken away and installed again: what is on the disks is there, as the guide says.

use super::{MINUTE, claim, forget, pod, said};
use crate::journey::Trip;
use crate::kubernetes::{Lab, chart};
use anyhow::{Result, ensure};
use serde_json::json;
use std::time::Instant;

/// A claim outlives the programs of the chart, which comes back by the command `install`; then the claim goes.
pub(super) fn again(trip: &Trip, lab: &Lab<'_>, install: &str) -> Result<()> {
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
    lab.documented(install)?;
    is_there(lab, &sum)?;
    lab.kubectl(&["delete", "pvc/outlives", "storageclass/outlives"], 2 * MINUTE)?;
    trip.checked(format!(
        "the chart was uninstalled and installed again: what a pod had written before is there: {:.1} s",
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

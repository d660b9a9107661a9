//! A volume that one pod has written and that pods on several nodes then read at once, as the guide for classes says: by
//! a second claim with an access mode of its own.

use super::{MINUTE, NODES, claim, detached, pod, said};
use crate::journey::Trip;
use crate::kubernetes::Lab;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Who reads at once.
const READERS: [(&str, &str); 2] = [("reader-1", NODES[0]), ("reader-2", NODES[1])];
const SUM: &str = "md5sum /data/file";

/// Written by one, read by two; who wants to write meanwhile waits, and says for whom.
pub(super) fn readers(trip: &Trip, lab: &Lab<'_>) -> Result<()> {
    let began = Instant::now();
    let write = format!("dd if=/dev/urandom of=/data/file bs=1M count=8 conv=fsync && {SUM}");
    apply(lab, &[claim("once", "orlop", "Filesystem", "64Mi"), pod("once", &write, "Filesystem")])?;
    lab.wait_for("pod/once", ".status.phase", "Succeeded", 2 * MINUTE)?;
    let written = said(lab, "pod/once", "/data/file")?;
    let sum = written.lines().find(|line| line.ends_with("/data/file")).context("it says no sum")?;
    lab.kubectl(&["delete", "pod/once"], 2 * MINUTE)?;

    let volume = lab.kubectl(&["get", "pvc/once", "--output=jsonpath={.spec.volumeName}"], MINUTE)?;
    // Kubernetes knows a volume by its handle: a reader on the writer's node would take over the writer's attachment.
    detached(lab, &volume)?;
    let handle = "--output=jsonpath={.spec.csi.volumeHandle}";
    let handle = lab.kubectl(&["get", &format!("pv/{volume}"), handle], MINUTE)?;
    let mut items = read_only_claim(&handle).to_vec();
    items.extend(READERS.map(|(name, node)| {
        let line = format!("{SUM} && ! touch /data/other && echo untouched && sleep 100000");
        of_readers(name, &line, node)
    }));
    apply(lab, &items)?;
    for (name, node) in READERS {
        let object = format!("pod/{name}");
        lab.kubectl(&["wait", "--for=condition=Ready", &object, "--timeout=120s"], 3 * MINUTE)?;
        let read = said(lab, &object, "untouched")?;
        ensure!(read.contains(sum), "{name} on {node} reads {read}, and {sum} was written");
    }
    waits(lab)?;
    lab.kubectl(&["delete", "pod/reader-1", "pod/reader-2", "pvc/readers", "pv/readers"], 2 * MINUTE)?;
    lab.wait_for("pod/once", ".status.phase", "Succeeded", 3 * MINUTE)?;
    lab.kubectl(&["delete", "pod/once", "pvc/once"], 2 * MINUTE)?;
    trip.checked(format!(
        "written once, read on {} and {} at once; who wanted to write meanwhile waited, and said for whom: {:.1} s",
        READERS[0].1,
        READERS[1].1,
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

fn apply(lab: &Lab<'_>, items: &[Value]) -> Result<String> {
    lab.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string())
}

/// The volume once more, with its own access mode, and the claim for it.
fn read_only_claim(handle: &str) -> [Value; 2] {
    let mut wish = claim("readers", "", "Filesystem", "64Mi");
    wish["spec"]["accessModes"] = json!(["ReadOnlyMany"]);
    wish["spec"]["volumeName"] = "readers".into();
    let volume = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": { "name": "readers" },
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "capacity": { "storage": "64Mi" },
            "csi": { "driver": "csi.orlop.io", "volumeHandle": handle },
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
        },
    });
    [volume, wish]
}

fn of_readers(name: &str, line: &str, node: &str) -> Value {
    let mut pod = pod(name, line, "Filesystem");
    pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = "readers".into();
    pod["spec"]["nodeSelector"] = json!({ "kubernetes.io/hostname": node });
    pod
}

/// A pod of the first claim starts only when nobody reads any more.
fn waits(lab: &Lab<'_>) -> Result<()> {
    apply(lab, &[pod("once", "touch /data/other", "Filesystem")])?;
    let begun = Instant::now();
    loop {
        let events = lab.kubectl(&["events", "--for=pod/once", "--output=json"], MINUTE)?;
        // Kubernetes sees it by itself where no reader is on the pod's node.
        if ["is published read only on", "Multi-Attach error"].iter().any(|words| events.contains(words)) {
            break;
        }
        ensure!(begun.elapsed() < MINUTE, "the writer does not say for whom it waits: {events}");
        std::thread::sleep(Duration::from_millis(500));
    }
    let phase = lab.kubectl(&["get", "pod/once", "--output=jsonpath={.status.phase}"], MINUTE)?;
    ensure!(phase == "Pending", "the writer is {phase} beside readers");
    Ok(())
}

//! Claims as applications have them: of one pod alone, whose user is not root, mounted as their class says, read only, and
//! kept when the claim is deleted.

use super::{claim, pod, said};
use crate::journey::Trip;
use crate::kubernetes::Lab;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);
/// The pod's user and group, and the group that owns its volume.
const USER: u32 = 1000;
const GROUP: u32 = 2000;

/// One volume through all of it.
pub(super) fn kinds(trip: &Trip, lab: &Lab<'_>) -> Result<()> {
    let began = Instant::now();
    let class = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": { "name": "kept" },
        "provisioner": "csi.orlop.io",
        "parameters": { "copies": "2", "csi.storage.k8s.io/fstype": "btrfs" },
        "reclaimPolicy": "Retain",
        "mountOptions": ["noatime", "discard=async"],
        "volumeBindingMode": "WaitForFirstConsumer",
    });
    let items = [class, alone(claim("kinds", "kept", "Filesystem", "128Mi")), user()];
    lab.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string())?;
    lab.kubectl(&["wait", "--for=condition=Ready", "pod/kinds", "--timeout=120s"], 3 * MINUTE)?;
    said(lab, "pod/kinds", "mine")?;
    let mounted = lab.kubectl(&["exec", "kinds", "--", "grep", " /data ", "/proc/mounts"], MINUTE)?;
    ensure!(
        mounted.contains("btrfs") && mounted.contains("noatime") && mounted.contains("discard=async"),
        "it is mounted {mounted:?}"
    );
    refuses_a_second(lab)?;
    lab.kubectl(&["delete", "pod/kinds", "pod/second"], 2 * MINUTE)?;
    trip.checked(format!(
        "a btrfs of one pod alone, mounted as its class says, belongs to the group of the pod's user {USER}"
    ));
    read_only(lab)?;
    let volume = kept(lab)?;
    trip.checked(format!(
        "read only, nothing can be written; its claim was deleted, and its data is in a new claim on {volume}: {:.1} s in all",
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// The claim for one pod in the whole cluster.
fn alone(mut claim: Value) -> Value {
    claim["spec"]["accessModes"] = json!(["ReadWriteOncePod"]);
    claim
}

/// A pod whose user is not root writes to its volume.
fn user() -> Value {
    let line =
        "touch /data/file && stat -c %u:%g /data/file && stat -c %g /data && echo mine && sleep 100000";
    let mut pod = pod("kinds", line, "Filesystem");
    pod["spec"]["securityContext"] = json!({ "runAsUser": USER, "runAsGroup": USER, "fsGroup": GROUP });
    pod
}

/// A second pod does not get the claim, and the first one's files belong to whom they should.
fn refuses_a_second(lab: &Lab<'_>) -> Result<()> {
    let said = lab.kubectl(&["logs", "pod/kinds"], MINUTE)?;
    let group = GROUP.to_string();
    let [file, folder, _] = said.lines().collect::<Vec<_>>()[..] else {
        anyhow::bail!("the pod says {said:?}");
    };
    // The folder hands its group on.
    ensure!(file == format!("{USER}:{GROUP}") && folder == group, "a file of {file} in a folder of {folder}");
    let mut second = pod("second", "true", "Filesystem");
    second["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = "kinds".into();
    lab.apply(&second.to_string())?;
    let scheduled = r#".status.conditions[?(@.type=="PodScheduled")].reason"#;
    lab.wait_for("pod/second", scheduled, "Unschedulable", MINUTE).map(drop)
}

/// A pod that mounts it read only reads and writes nothing.
fn read_only(lab: &Lab<'_>) -> Result<()> {
    let line = "test -f /data/file && ! touch /data/other && ! rm /data/file && echo untouched";
    let mut pod = pod("kinds", line, "Filesystem");
    pod["spec"]["volumes"][0]["persistentVolumeClaim"]["readOnly"] = true.into();
    lab.apply(&pod.to_string())?;
    lab.wait_for("pod/kinds", ".status.phase", "Succeeded", 2 * MINUTE)?;
    said(lab, "pod/kinds", "untouched")?;
    lab.kubectl(&["delete", "pod/kinds"], 2 * MINUTE).map(drop)
}

/// The claim is deleted, and its volume taken by another one; then both go for good.
fn kept(lab: &Lab<'_>) -> Result<String> {
    let volume = lab.kubectl(&["get", "pvc/kinds", "--output=jsonpath={.spec.volumeName}"], MINUTE)?;
    let object = format!("pv/{volume}");
    lab.kubectl(&["delete", "pvc/kinds"], 2 * MINUTE)?;
    lab.wait_for(&object, ".status.phase", "Released", MINUTE)?;
    let forget = json!({ "spec": { "claimRef": null } }).to_string();
    lab.kubectl(&["patch", &object, "--patch", &forget], MINUTE)?;
    lab.wait_for(&object, ".status.phase", "Available", MINUTE)?;
    let mut again = alone(claim("again", "kept", "Filesystem", "128Mi"));
    again["spec"]["volumeName"] = volume.as_str().into();
    let items = [again, pod("again", "stat -c %u:%g /data/file", "Filesystem")];
    lab.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string())?;
    lab.wait_for("pod/again", ".status.phase", "Succeeded", 2 * MINUTE)?;
    said(lab, "pod/again", &format!("{USER}:{GROUP}"))?;
    let delete = json!({ "spec": { "persistentVolumeReclaimPolicy": "Delete" } }).to_string();
    lab.kubectl(&["patch", &object, "--patch", &delete], MINUTE)?;
    lab.kubectl(&["delete", "pod/again", "pvc/again", "storageclass/kept"], 2 * MINUTE)?;
    lab.kubectl(&["wait", "--for=delete", &object, "--timeout=60s"], 2 * MINUTE).context("it stays")?;
    Ok(volume)
}

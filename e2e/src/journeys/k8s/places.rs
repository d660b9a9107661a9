//! Copies where a class wants them: in different zones, on the first pod's node and nowhere else, on disks of a
//! medium. The nodes say where they are by labels, which they get while their engines run; what their disks are says
//! the chart.

use super::{NODES, claim, pod};
use crate::journey::Trip;
use crate::kubernetes::Lab;
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);
/// Of the nodes, in their order: two of three are in one zone.
const ZONES: [&str; 3] = ["a", "a", "b"];
const ZONE_KEY: &str = "topology.kubernetes.io/zone";
/// The only node of its zone.
const ALONE: &str = NODES[2];
/// Where the only copy of the strict volume is.
const STRICT: &str = NODES[1];

/// The file of each node that its operator calls an SSD; too small for what other steps need.
pub(super) const DISK: &str = "ssd";

/// That disk, as an engine is told.
pub(super) fn disk() -> String {
    format!("file:///var/lib/orlop/{DISK}?size=256MiB&class=ssd")
}

/// Of the chart: one more disk for each node, behind the README's.
pub(super) fn values() -> String {
    format!("--set-json 'node.disks[1]=\"{}\"'", disk())
}

/// Labels the nodes, makes volumes by three classes, and takes all of it away.
pub(super) fn places(trip: &Trip, lab: &Lab<'_>) -> Result<()> {
    let began = Instant::now();
    label(lab)?;
    let followed = began.elapsed();
    let items = [
        class("zoned", &json!({ "copies": "2", "placement": "zone" }), "WaitForFirstConsumer"),
        class("strict", &json!({ "copies": "1", "locality": "strict" }), "WaitForFirstConsumer"),
        class("nvme", &json!({ "copies": "1", "class": "nvme" }), "Immediate"),
        claim("zoned", "zoned", "Filesystem", "32Mi"),
        claim("strict", "strict", "Filesystem", "32Mi"),
        claim("nvme", "nvme", "Filesystem", "32Mi"),
        pod_on("zoned", "zoned", ALONE),
        pod_on("strict", "strict", STRICT),
    ];
    lab.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string())?;
    for name in ["zoned", "strict"] {
        lab.wait_for(&format!("pod/{name}"), ".status.phase", "Succeeded", 2 * MINUTE)?;
    }
    let (zoned, anywhere) = placed(lab, "zoned")?;
    let in_a = zoned.iter().filter(|node| NODES[..2].contains(&node.as_str())).count();
    let apart = zoned.len() == 2 && in_a == 1 && zoned.iter().any(|node| node == ALONE);
    ensure!(apart && anywhere.is_empty(), "a pod on {ALONE}: copies on {zoned:?}, reached from {anywhere:?}");
    let (strict, only) = placed(lab, "strict")?;
    ensure!(strict == [STRICT] && only == [STRICT], "copies on {strict:?}, reached from {only:?}");
    let far = pod_on("far", "strict", NODES[0]);
    lab.apply(&far.to_string())?;
    let scheduled = r#".status.conditions[?(@.type=="PodScheduled")].reason"#;
    lab.wait_for("pod/far", scheduled, "Unschedulable", MINUTE)?;
    refused(lab, "pvc/nvme", "1 copy needs as many nodes with disks of class NVMe, 0 can take one")?;

    lab.kubectl(&["delete", "pod/far", "pod/zoned", "pod/strict"], MINUTE)?;
    lab.kubectl(&["delete", "pvc/zoned", "pvc/strict", "pvc/nvme"], 2 * MINUTE)?;
    lab.kubectl(&["delete", "storageclass/zoned", "storageclass/strict", "storageclass/nvme"], MINUTE)?;
    for node in NODES {
        lab.kubectl(&["label", "node", node, &format!("{ZONE_KEY}-")], MINUTE)?;
    }
    trip.checked(format!(
        "nodes were labelled, and known to be in zones after {:.1} s: copies in both of them ({}); a strict volume on {STRICT} \
         only, and no pod of it elsewhere; no disk of class NVMe, and the claim says so: {:.1} s in all",
        followed.as_secs_f64(),
        zoned.join(", "),
        began.elapsed().as_secs_f64()
    ));
    on_ssds(trip, lab)
}

/// A claim for SSDs is granted and used, and its copies are in pools on nothing else.
fn on_ssds(trip: &Trip, lab: &Lab<'_>) -> Result<()> {
    let began = Instant::now();
    let items = [
        class("ssd", &json!({ "copies": "2", "class": "ssd" }), "Immediate"),
        claim("ssd", "ssd", "Filesystem", "32Mi"),
        pod("ssd", "date >/data/file", "Filesystem"),
    ];
    lab.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string())?;
    lab.wait_for("pod/ssd", ".status.phase", "Succeeded", 2 * MINUTE)?;
    let pools = members(lab, "ssd", "pool")?;
    ensure!(pools.len() == 2, "a volume with two copies has them in {pools:?}");
    for pool in &pools {
        let fields = "--output=jsonpath={.status.class} {.status.uri}";
        let told = lab.kubectl(&["get", &format!("opool/{pool}"), fields], MINUTE)?;
        let is_ssd = told.starts_with("SSD ") && told.contains(&format!("/var/lib/orlop/{DISK}?"));
        ensure!(is_ssd && !told.contains("class="), "a copy of a volume for SSDs is in a pool on {told:?}");
    }
    lab.kubectl(&["delete", "pod/ssd", "pvc/ssd", "storageclass/ssd"], 2 * MINUTE)?;
    trip.checked(format!(
        "a claim for SSDs has its copies in two of the pools whose disks `node.disks` calls so: {:.1} s",
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// Labels the nodes, and waits until Orlop knows of it.
fn label(lab: &Lab<'_>) -> Result<()> {
    let places = || NODES.into_iter().zip(ZONES);
    for (node, zone) in places() {
        lab.kubectl(&["label", "node", node, &format!("{ZONE_KEY}={zone}")], MINUTE)?;
    }
    for (node, zone) in places() {
        let path = format!(".status.topology.{}", ZONE_KEY.replace('.', r"\."));
        lab.wait_for(&format!("onode/{node}"), &path, zone, MINUTE)?;
    }
    Ok(())
}

fn class(name: &str, parameters: &Value, mode: &str) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": { "name": name },
        "provisioner": "csi.orlop.io",
        "parameters": parameters,
        "volumeBindingMode": mode,
    })
}

/// A pod that writes to a claim, on this node or nowhere.
fn pod_on(name: &str, claim: &str, node: &str) -> Value {
    let mut pod = pod(name, "date >/data/file", "Filesystem");
    pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = claim.into();
    pod["spec"]["nodeSelector"] = json!({ "kubernetes.io/hostname": node });
    pod
}

/// The nodes that have copies of a claim's volume, and those from which alone its pods reach it.
fn placed(lab: &Lab<'_>, claim: &str) -> Result<(Vec<String>, Vec<String>)> {
    let volume = field(lab, &format!("pvc/{claim}"), ".spec.volumeName")?;
    let terms = ".spec.nodeAffinity.required.nodeSelectorTerms[*].matchExpressions[*].values[*]";
    Ok((members(lab, claim, "node")?, words(&field(lab, &format!("pv/{volume}"), terms)?)))
}

/// A field of each copy of a claim's volume, as it is wished.
fn members(lab: &Lab<'_>, claim: &str, name: &str) -> Result<Vec<String>> {
    let volume = field(lab, &format!("pvc/{claim}"), ".spec.volumeName")?;
    let handle = field(lab, &format!("pv/{volume}"), ".spec.csi.volumeHandle")?;
    Ok(words(&field(lab, &format!("ovol/{handle}"), &format!(".status.intent.members[*].{name}"))?))
}

fn field(lab: &Lab<'_>, object: &str, path: &str) -> Result<String> {
    lab.kubectl(&["get", object, &format!("--output=jsonpath={{{path}}}")], MINUTE)
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Waits until the events of an object say this.
fn refused(lab: &Lab<'_>, object: &str, words: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        let events = lab.kubectl(&["events", "--for", object, "--output=json"], MINUTE)?;
        if events.contains(words) {
            return Ok(());
        }
        ensure!(begun.elapsed() < MINUTE, "{object} does not say {words:?}, but {events}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

//! A node that does not come back: it is forgotten by Kubernetes and by Orlop, as the guide says, and what is asked for
//! afterwards is had without it.
//!
//! 1. Before any command the cluster knows that the node is away: which controller's pod answers is then not left to
//!    chance, for one may be on that node.

use super::{MINUTE, NODES, claim, pod};
use crate::journey::Trip;
use crate::kubernetes::{Lab, chart};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The node that is lost.
pub(super) const LOST: &str = NODES[2];
/// Those that are left.
pub(super) const KEPT: &[&str] = &[NODES[0], NODES[1]];
/// Kubernetes takes a node for away after most of a minute, and gives up the pods of one that it was told to forget in
/// another one.
const AWAY: Duration = Duration::from_secs(180);
/// What Orlop has of its nodes.
const OBJECTS: [&str; 4] = ["nodes.orlop.io", "pools.orlop.io", "disks.orlop.io", "nodereplicas.orlop.io"];

/// The last node loses power for good, with no volume left in the cluster.
pub(super) fn forget(trip: &Trip, lab: &mut Lab<'_>) -> Result<()> {
    let [_, commands] = chart::commands("k8s", "docs/guides/lose-a-node.md")?;
    let (leave, forget) = commands.split_first().context("the guide has no commands for a lost node")?;
    for kind in &OBJECTS[..3] {
        ensure!(is_in(lab, kind)?, "nothing in {kind} is of {LOST}");
    }
    let began = Instant::now();
    lab.node(LOST)?.power_off()?;
    lab.wait_for(&format!("onode/{LOST}"), ".status.state", "NotReady", 2 * MINUTE)?;
    lost(lab)?;
    lab.documented(&leave.replace("NODE", LOST))?;
    controller(lab)?;
    for command in forget {
        lab.documented(&command.replace("NODE", LOST))?;
    }
    for kind in OBJECTS {
        ensure!(!is_in(lab, kind)?, "{LOST} is forgotten, and still in {kind}");
    }
    trip.checked(format!(
        "{LOST} lost power for good, and Kubernetes and Orlop have forgotten it by the commands of the guide: {:.1} s",
        began.elapsed().as_secs_f64()
    ));
    without(trip, lab)
}

/// Whether objects of a kind are of the lost node: by their names, or by what they say.
fn is_in(lab: &Lab<'_>, kind: &str) -> Result<bool> {
    let fields = "--output=jsonpath={.items[*].metadata.name} {.items[*].status.node}";
    Ok(lab.kubectl(&["get", kind, fields], MINUTE)?.split_whitespace().any(|word| word == LOST))
}

/// Waits until no pod of Orlop on the node counts any more.
fn lost(lab: &Lab<'_>) -> Result<()> {
    let of_node = format!("--field-selector=spec.nodeName={LOST}");
    let pods = ["pod", "--selector=app.kubernetes.io/name=orlop", &of_node];
    let until = ["--for=condition=Ready=False", "--timeout=150s"];
    lab.kubectl(&[&["--namespace", chart::NAMESPACE, "wait"], &pods[..], &until].concat(), AWAY).map(drop)
}

/// Waits until a controller's pod can be asked: both may have been on the node.
fn controller(lab: &Lab<'_>) -> Result<()> {
    let ready = ["get", "deployment/orlop-controller", "--output=jsonpath={.status.readyReplicas}"];
    let begun = Instant::now();
    while lab.kubectl(&[&["--namespace", chart::NAMESPACE], &ready[..]].concat(), MINUTE)?.trim().is_empty() {
        ensure!(begun.elapsed() < AWAY, "no controller is ready without {LOST}");
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// A class with as many copies as there are nodes now.
pub(super) fn class(name: &str) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": { "name": name },
        "provisioner": "csi.orlop.io",
        "parameters": { "copies": KEPT.len().to_string() },
        "volumeBindingMode": "Immediate",
    })
}

/// A claim with as many copies as there are nodes now is granted, used and deleted.
fn without(trip: &Trip, lab: &Lab<'_>) -> Result<()> {
    let began = Instant::now();
    let line = "dd if=/dev/urandom of=/data/file bs=1M count=8 conv=fsync && md5sum /data/file";
    let items = [
        class("without"),
        claim("without", "without", "Filesystem", "32Mi"),
        pod("without", line, "Filesystem"),
    ];
    lab.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string())?;
    lab.wait_for("pvc/without", ".status.phase", "Bound", 2 * MINUTE)?;
    lab.wait_for("pod/without", ".status.phase", "Succeeded", 2 * MINUTE)?;
    lab.kubectl(&["delete", "pod/without", "pvc/without", "storageclass/without"], 2 * MINUTE)?;
    trip.checked(format!(
        "a claim with {} copies was granted on the other nodes, written by a pod, and deleted: {:.1} s",
        KEPT.len(),
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

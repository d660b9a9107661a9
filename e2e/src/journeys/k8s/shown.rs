//! What an operator sees by kubectl: the disks of the nodes, everything of Orlop by one word, and what happened to a node
//! and its pods.

use super::{MINUTE, NODES, left};
use crate::journey::Trip;
use crate::kubernetes::{Held, Lab, chart};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::time::{Duration, Instant};

/// A blank disk. The nodes share a kernel, so each of them has it.
pub(super) struct Blank {
    pub(super) device: String,
}

impl Blank {
    pub(super) fn make(trip: &Trip) -> Result<Self> {
        let made = trip.sh("truncate -s 256M blank; losetup --find --show blank", MINUTE)?;
        Ok(Self { device: made.trim().to_owned() })
    }

    /// Of the chart: it is the only disk that is looked at, for the others are the developer's.
    pub(super) fn values(&self) -> String {
        format!("--set-json 'node.disksAllow=[\"{}\"]'", self.device)
    }

    pub(super) fn end(self, trip: &Trip) -> Result<()> {
        trip.sh(&format!("losetup --detach {}", self.device), MINUTE).map(drop)
    }

    /// Each node reports it, and nothing else.
    fn is_reported(&self, lab: &Lab<'_>) -> Result<bool> {
        let text = lab.kubectl(&["get", "odisk", "--output=json"], MINUTE)?;
        let found: Value = serde_json::from_str(&text)?;
        let disks = found["items"].as_array().context("a list has items")?;
        let ours = |disk: &&Value| {
            disk["status"]["device"] == self.device.as_str() && disk["status"]["state"] == "Available"
        };
        let foreign = disks.iter().find(|disk| disk["status"]["device"] != self.device.as_str());
        ensure!(foreign.is_none(), "a disk that is not allowed was looked at: {foreign:?}");
        let nodes = disks.iter().filter(ours).filter_map(|disk| disk["status"]["node"].as_str());
        Ok(NODES.iter().all(|node| nodes.clone().any(|found| found == *node)))
    }

    /// Waits until the nodes have reported it, and looks at everything by its category.
    pub(super) fn shown(&self, trip: &Trip, lab: &Lab<'_>) -> Result<()> {
        let begun = Instant::now();
        while !self.is_reported(lab)? {
            let said = lab.kubectl(&["get", "odisk", "--output=wide"], MINUTE)?;
            ensure!(
                begun.elapsed() < MINUTE,
                "{} is not an available disk of each node: {said}",
                self.device
            );
            std::thread::sleep(Duration::from_millis(500));
        }
        let all = lab.kubectl(&["get", "orlop"], MINUTE)?;
        for kind in ["node.orlop.io/", "pool.orlop.io/", "disk.orlop.io/", "volume.orlop.io/pvc-"] {
            ensure!(all.contains(kind), "kubectl get orlop shows no {kind}: {all}");
        }
        trip.checked(format!(
            "{} is an available disk of each node; `kubectl get orlop` shows all",
            self.device
        ));
        Ok(())
    }
}

/// No node shows a volume's file outside of Orlop's own pods: only staged and published mounts are the machine's. In the
/// pods it is found: what looks there for what is left at the end is not blind.
pub(super) fn nothing_shared(trip: &Trip, lab: &mut Lab<'_>, node: &str) -> Result<()> {
    let mounts = lab.node(node)?.sh("cat /proc/self/mountinfo", MINUTE)?;
    let staged = mounts.lines().filter(|line| line.contains("/csi.orlop.io/")).count();
    ensure!(staged > 0, "{node} has no staged volume to look at");
    let shared: Vec<&str> = mounts.lines().filter(|line| line.contains(" - fuse")).collect();
    ensure!(shared.is_empty(), "{node} shows what is the engine's own: {shared:?}");
    let held = Held::look(&lab.node(node)?.residents()?);
    // With the kernel's own initiator there is neither the one nor the other.
    let is_looped = !left::loops(trip)?.is_empty();
    ensure!(held.is_served() == is_looped, "loop devices: {is_looped}, and in the pods of {node}: {held:?}");
    Ok(())
}

/// What was done to nodes that were lost, and to volumes meanwhile, is told by events.
pub(super) fn told(trip: &Trip, lab: &Lab<'_>) -> Result<()> {
    let text = lab.kubectl(&["get", "events", "--all-namespaces", "--output=json"], MINUTE)?;
    let events: Value = serde_json::from_str(&text)?;
    let events = events["items"].as_array().context("a list has items")?;
    let mut seen = Vec::new();
    for (kind, reason) in
        [("Node", "FailoverBegins"), ("Pod", "FailedOver"), ("Node", "NotReady"), ("Volume", "Degraded")]
    {
        let is_it = |event: &&Value| {
            event["reason"] == reason
                && event["involvedObject"]["kind"] == kind
                // Kubernetes itself tells of nodes as well.
                && event.to_string().to_lowercase().contains("orlop")
        };
        let event = events.iter().find(is_it).with_context(|| format!("no event {reason} about a {kind}"))?;
        let (name, message) = (&event["involvedObject"]["name"], &event["message"]);
        ensure!(message.as_str().is_some_and(|message| !message.is_empty()), "{reason} says nothing");
        seen.push(format!("{kind} {}: {reason}", name.as_str().unwrap_or_default()));
    }
    trip.checked(format!("told by events: {}", seen.join("; ")));
    Ok(())
}

/// By now each plugin was asked by its probe often enough to be given up: none was.
pub(super) fn plugins_answer(lab: &Lab<'_>) -> Result<()> {
    let events = ["--namespace", chart::NAMESPACE, "get", "events", "--field-selector=reason=Killing"];
    let killed = lab.kubectl(&[&events[..], &["--output=jsonpath={.items[*].message}"]].concat(), MINUTE)?;
    ensure!(!killed.contains("Container csi failed liveness probe"), "a plugin was given up: {killed}");
    Ok(())
}

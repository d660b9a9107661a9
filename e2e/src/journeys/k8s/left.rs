//! What volumes leave behind when all of them are deleted: nothing that was not there before.

use super::{MINUTE, NODES};
use crate::journey::Trip;
use crate::kubernetes::{Held, Lab};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Of Kubernetes and of Orlop, all that is there for a volume.
const KINDS: &str =
    "persistentvolumes,volumeattachments,volumes.orlop.io,volumerecords.orlop.io,volumestatuses.orlop.io";

/// What was freed last counts as in use until a pool has something to do again, a few pieces of 32 KiB: far less than a
/// copy of any volume has that was written. That no piece is without an owner says `orlop check` of all pools when the engines are gone.
const LIMBO_BYTES: u64 = 512 << 10;

/// What there was before the first volume.
pub(super) struct Before {
    loops: Vec<String>,
    /// What was in use of each pool, in bytes, by the pool's object.
    used: BTreeMap<String, u64>,
}

impl Before {
    /// Before anything is installed.
    pub(super) fn of_machine(trip: &Trip) -> Result<Self> {
        Ok(Self { loops: loops(trip)?, used: BTreeMap::new() })
    }

    /// When the nodes are ready, and have so many pools each.
    pub(super) fn of_pools(&mut self, lab: &Lab<'_>, each: usize) -> Result<()> {
        let begun = Instant::now();
        loop {
            self.used = used(lab, &NODES)?;
            if self.used.len() == NODES.len() * each {
                return Ok(());
            }
            ensure!(begun.elapsed() < MINUTE, "pools that are online: {:?}", self.used);
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Waits until that is all there is, on these nodes.
    pub(super) fn is_all(&self, trip: &Trip, lab: &mut Lab<'_>, nodes: &[&str]) -> Result<()> {
        let begun = Instant::now();
        loop {
            let left = self.left(trip, lab, nodes)?;
            if left.is_empty() {
                break;
            }
            ensure!(begun.elapsed() < MINUTE, "left:\n{}", left.join("\n"));
            std::thread::sleep(Duration::from_millis(500));
        }
        for node in nodes {
            let mounts = lab.node(node)?.sh("cat /proc/self/mountinfo", MINUTE)?;
            let left: Vec<&str> = mounts.lines().filter(|line| line.contains("csi.orlop.io")).collect();
            ensure!(left.is_empty(), "{node} still has mounts: {left:?}");
        }
        trip.checked(
            "everything is deleted: no object, no mount, in the engines' pods neither, no descriptor of FUSE and no loop \
             device is left, and no pool has more in use than before the first volume",
        );
        Ok(())
    }

    /// All that was not there before.
    fn left(&self, trip: &Trip, lab: &mut Lab<'_>, nodes: &[&str]) -> Result<Vec<String>> {
        let objects = lab.kubectl(&["get", KINDS, "--output=name"], MINUTE)?;
        let mut left: Vec<String> = objects.lines().map(str::to_owned).collect();
        left.extend(loops(trip)?.into_iter().filter(|line| !self.loops.contains(line)));
        for (pool, bytes) in used(lab, nodes)? {
            let before = self.used.get(&pool).copied().with_context(|| format!("pool {pool} is new"))?;
            if bytes > before + LIMBO_BYTES {
                left.push(format!("pool {pool}: {bytes} bytes are in use, before it was {before}"));
            }
        }
        for node in nodes {
            let held = Held::look(&lab.node(node)?.residents()?);
            if !held.is_nothing() {
                left.push(format!("{node}: {held:?}"));
            }
        }
        Ok(left)
    }
}

/// The loop devices of this machine over volumes; of one whose mount is gone nothing but the last part is told.
pub(super) fn loops(trip: &Trip) -> Result<Vec<String>> {
    let all = trip.sh("losetup --list --noheadings --output NAME,BACK-FILE", MINUTE)?;
    let ours = |line: &&str| line.contains("/var/lib/orlop/") || line.trim_end().ends_with(" /volume");
    Ok(all.lines().filter(ours).map(str::to_owned).collect())
}

/// What is in use of each pool of these nodes that is online, as their engines say.
fn used(lab: &Lab<'_>, nodes: &[&str]) -> Result<BTreeMap<String, u64>> {
    let list: Value = serde_json::from_str(&lab.kubectl(&["get", "opool", "--output=json"], MINUTE)?)?;
    let pools = list["items"].as_array().context("a list has items")?;
    let here = |pool: &&Value| {
        let of_node = pool["status"]["node"].as_str().is_some_and(|node| nodes.contains(&node));
        of_node && pool["status"]["state"] == "Online"
    };
    let entry = |pool: &Value| {
        let name = pool["metadata"]["name"].as_str().context("an object has a name")?.to_owned();
        let bytes = pool["status"]["usedBytes"].as_u64().with_context(|| format!("{name} tells no use"))?;
        Ok((name, bytes))
    };
    pools.iter().filter(here).map(entry).collect()
}

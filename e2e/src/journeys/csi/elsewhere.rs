//! An xfs or btrfs that one node still has mounted is not mounted on another node of the same kernel.

use super::claim::{Caller, Claim, MIB, text};
use super::{MINUTE, persist, refused};
use crate::cluster::Cluster;
use crate::journey::Trip;
use anyhow::{Context, Result, ensure};
use csi::client::Code;
use rustix::process::Signal;
use std::time::{Duration, Instant};

const HERE: &str = "node-1";
const THERE: &str = "node-2";

pub(super) fn elsewhere(trip: &Trip, caller: &Caller, cluster: &Cluster<'_>) -> Result<()> {
    for filesystem in ["xfs", "btrfs"] {
        let name = format!("{filesystem}-elsewhere");
        // One on each node: whichever stands still, one is away.
        let parameters = &[("copies", "3")];
        lost(trip, &Claim { parameters, ..Claim::new(trip, caller, &name, Some(filesystem))? }, cluster)?;
    }
    Ok(())
}

/// The node stands still under the mounted file system, and wakes when another node has the volume.
fn lost(trip: &Trip, claim: &Claim<'_>, cluster: &Cluster<'_>) -> Result<()> {
    let name = &claim.name;
    claim.create(HERE, 320 * MIB)?;
    claim.up(HERE)?;
    let file = |node: &str| format!("{}/file", text(&claim.target(node)));
    trip.sh(&format!("dd if=/dev/urandom of={} bs=1M count=16 conv=fsync status=none", file(HERE)), MINUTE)?;
    let sum = |node: &str| trip.sh(&format!("sha256sum <{}", file(node)), MINUTE);
    let wanted = sum(HERE)?;
    let nodes = cluster.nodes()?;
    let engine = nodes.iter().find(|node| node.name == HERE).and_then(|node| node.process);
    let engine = engine.with_context(|| format!("{HERE} runs"))?;
    ensure!(engine.signal(Signal::STOP), "{HERE} had ended");
    let asleep = waits_for_old_mount(claim);
    engine.signal(Signal::CONT);
    asleep?;
    // Awake or not: it is still mounted.
    waits(claim)?;
    claim.unpublish(HERE)?;
    claim.unstage(HERE)?;
    persist("stage", || claim.stage(THERE))?;
    claim.publish(THERE)?;
    ensure!(sum(THERE)? == wanted, "{name}: the file is another one on {THERE}");
    copied(trip, claim)?;
    claim.down(THERE)?;
    cluster.ready(MINUTE)?;
    persist("delete", || claim.delete(THERE))?;
    trip.checked(format!(
        "{name}: {HERE} stood still under it; {THERE} named the old mount, waited for it, and has the same file"
    ));
    Ok(())
}

/// A copy of the device is mounted, on a device that answers.
fn copied(trip: &Trip, claim: &Claim<'_>) -> Result<()> {
    let (name, target) = (&claim.name, text(&claim.target(THERE)));
    let device =
        trip.sh(&format!("findmnt --noheadings --output SOURCE {target}"), MINUTE)?.trim().to_owned();
    claim.unpublish(THERE)?;
    claim.unstage(THERE)?;
    let line = format!(
        "dd if={device} of={name}.copy bs=1M conv=sparse status=none; mkdir {name}.mount; \
         losetup --find --show {name}.copy"
    );
    let copy = trip.sh(&line, MINUTE)?.trim().to_owned();
    trip.sh(&format!("mount {copy} {name}.mount"), MINUTE)?;
    let place = trip.folder.join(format!("{name}.mount"));
    let wanted = format!("is mounted on this machine already, from {copy} (mounted at {})", place.display());
    let outcome = refused(claim.stage(THERE), Code::Unavailable, &wanted);
    trip.sh(&format!("umount {name}.mount; losetup --detach {copy}"), MINUTE)?;
    outcome?;
    claim.stage(THERE)?;
    claim.publish(THERE)?;
    trip.checked(format!("{name}: not mounted beside a copy of its device, which is named"));
    Ok(())
}

/// Staged on the other node while the first one still has it mounted, and does not answer.
fn waits_for_old_mount(claim: &Claim<'_>) -> Result<()> {
    persist("detach", || claim.detach(HERE))?;
    persist("attach", || claim.attach(THERE))?;
    waits(claim)?;
    // All agree that somebody should look at it.
    let begun = Instant::now();
    loop {
        let conditions = claim.conditions(THERE)?;
        if conditions.iter().all(|condition| condition.abnormal && condition.message.contains("Degraded")) {
            return Ok(());
        }
        ensure!(begun.elapsed() < MINUTE, "a copy is away, and its condition is {conditions:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// It is refused for now, and the old mount is named.
fn waits(claim: &Claim<'_>) -> Result<()> {
    let place = format!("mounted at {}", text(&claim.folder));
    refused(claim.stage(THERE), Code::Unavailable, &place)
}

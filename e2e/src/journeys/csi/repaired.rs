//! An ext4 that is made as its class says, breaks under its pod, and is checked when it is staged.

use super::claim::{Caller, Claim, MIB, text};
use super::{MINUTE, refused};
use crate::journey::{Trip, need};
use anyhow::{Result, ensure};
use csi::client::Code;

const NODE: &str = "node-1";
const LABEL: &str = "as-it-says";

pub(super) fn repaired(trip: &Trip, caller: &Caller) -> Result<()> {
    need(&[("blkid", "util-linux"), ("dumpe2fs", "e2fsprogs"), ("debugfs", "e2fsprogs")])?;
    let parameters = &[("copies", "2"), ("mkfsOptions", "-L as-it-says -e remount-ro")];
    let claim = Claim { parameters, ..Claim::new(trip, caller, "repaired", Some("ext4"))? };
    let context = claim.create_volume(NODE, 64 * MIB)?.volume_context;
    let claim = Claim { context, ..claim };
    claim.up(NODE)?;
    let target = text(&claim.target(NODE));
    let device =
        trip.sh(&format!("findmnt --noheadings --output SOURCE {target}"), MINUTE)?.trim().to_owned();
    let label = trip.sh(&format!("blkid --probe --match-tag LABEL --output value {device}"), MINUTE)?;
    ensure!(label.trim() == LABEL, "its label is {label:?}");
    trip.checked("an ext4 has the label that mkfsOptions of its class names");

    broken(trip, &claim, &device)?;
    damaged(trip, &claim, &device)?;
    claim.down(NODE)?;
    claim.delete(NODE)?;
    Ok(())
}

/// What `dumpe2fs` says: `clean`, `clean with errors`, `not clean with errors`.
fn state(trip: &Trip, device: &str) -> Result<String> {
    let line = format!("dumpe2fs -h {device} 2>/dev/null | sed -n 's/^Filesystem state: *//p'");
    Ok(trip.sh(&line, MINUTE)?.trim().to_owned())
}

/// The kernel finds an error: the node says so, and the next stage repairs it.
fn broken(trip: &Trip, claim: &Claim<'_>, device: &str) -> Result<()> {
    let file = format!("{}/file", text(&claim.target(NODE)));
    trip.sh(&format!("echo kept >{file}; sync -f {file}"), MINUTE)?;
    let condition = claim.condition_on_node(NODE)?;
    ensure!(!condition.abnormal && condition.message == "Attached", "{condition:?}");
    let name = device.trim_start_matches("/dev/");
    trip.sh(&format!("echo 1 >/sys/fs/ext4/{name}/trigger_fs_error"), MINUTE)?;
    let condition = claim.condition_on_node(NODE)?;
    ensure!(condition.abnormal && condition.message.contains("read only after an error"), "{condition:?}");
    claim.unpublish(NODE)?;
    claim.unstage(NODE)?;
    let before = state(trip, device)?;
    ensure!(before.contains("with errors"), "it is {before:?}");
    claim.stage(NODE)?;
    claim.publish(NODE)?;
    let after = state(trip, device)?;
    ensure!(after == "clean", "it was {before:?}, and is {after:?}");
    trip.sh(&format!("grep kept {file}; echo more >>{file}"), MINUTE)?;
    ensure!(!claim.condition_on_node(NODE)?.abnormal, "it is still abnormal");
    trip.checked(format!(
        "an ext4 that turned read only after an error is abnormal; staged anew it is repaired ({before}, then {after})"
    ));
    Ok(())
}

/// What is not repaired without asking is not mounted, and says what to do; done by hand, it is.
fn damaged(trip: &Trip, claim: &Claim<'_>, device: &str) -> Result<()> {
    claim.unpublish(NODE)?;
    claim.unstage(NODE)?;
    let line = format!("debugfs -w -R 'clri <2>' {device}; debugfs -w -R 'set_super_value state 2' {device}");
    trip.sh(&line, MINUTE)?;
    for _time in 0..2 {
        refused(claim.stage(NODE), Code::FailedPrecondition, "run e2fsck -f")?;
    }
    trip.sh(&format!("e2fsck -fy {device} || [ $? = 1 ]"), MINUTE)?;
    claim.stage(NODE)?;
    claim.publish(NODE)?;
    trip.checked("an ext4 without its root folder is not mounted until e2fsck was run by hand");
    Ok(())
}

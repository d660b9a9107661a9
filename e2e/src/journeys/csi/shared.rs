//! A claim that is written once and then read on two nodes at once, while the node that has its nexus is killed.

use super::claim::{Caller, Claim, MIB, text};
use super::{MINUTE, refused};
use crate::cluster::Cluster;
use crate::journey::Trip;
use anyhow::{Result, ensure};
use csi::client::Code;
use csi::v1::volume_capability::access_mode::Mode;

const WRITER: &str = "node-1";
const READERS: [&str; 2] = ["node-2", "node-3"];
/// What is written at first.
const WRITTEN: &str = "16777216";

pub(super) fn shared(trip: &Trip, caller: &Caller, cluster: &Cluster<'_>) -> Result<()> {
    trip.sh("dd if=/dev/urandom of=wanted bs=1M count=16 status=none", MINUTE)?;
    for (name, filesystem) in [("shared", Some("ext4")), ("shared-raw", None)] {
        let claim = Claim::new(trip, caller, name, filesystem)?;
        let reader = Claim { mode: Mode::MultiNodeReaderOnly, ..Claim::new(trip, caller, name, filesystem)? };
        claim.create(WRITER, 64 * MIB)?;
        if filesystem.is_some() {
            reader.attach(READERS[0])?;
            refused(reader.stage(READERS[0]), Code::FailedPrecondition, "no file system yet")?;
            reader.detach(READERS[0])?;
        }
        claim.up(WRITER)?;
        trip.sh(&format!("dd if=wanted of={} bs=1M conv=fsync status=none", path(&claim, WRITER)), MINUTE)?;
        refused(reader.attach(READERS[0]), Code::FailedPrecondition, WRITER)?;
        claim.down(WRITER)?;
        read_by_two(trip, &reader, &claim, cluster)?;
        // What a writer does next is what readers see then.
        claim.up(WRITER)?;
        let last = path(&claim, WRITER);
        trip.sh(&format!("dd if=/dev/zero of={last} bs=1M count=1 conv=notrunc,fsync status=none"), MINUTE)?;
        claim.down(WRITER)?;
        reader.up(READERS[0])?;
        trip.sh(&format!("cmp -n 1048576 /dev/zero {}", path(&reader, READERS[0])), MINUTE)?;
        reader.down(READERS[0])?;
        claim.delete(WRITER)?;
    }
    Ok(())
}

/// Where the bytes are.
fn path(claim: &Claim<'_>, node: &str) -> String {
    let target = text(&claim.target(node));
    if claim.filesystem.is_some() { format!("{target}/file") } else { target }
}

fn read_by_two(trip: &Trip, reader: &Claim<'_>, writer: &Claim<'_>, cluster: &Cluster<'_>) -> Result<()> {
    let name = &reader.name;
    // Not what the kernel remembers, but what the volume says.
    let compare = |node: &str| {
        let line = format!(
            "dd if={} bs=1M count=16 iflag=direct status=none | cmp -n {WRITTEN} wanted -",
            path(reader, node)
        );
        trip.sh(&line, 2 * MINUTE)
    };
    for node in READERS {
        reader.up(node)?;
        reader.up(node)?;
        compare(node)?;
        let written = trip.sh(
            &format!("dd if=/dev/zero of={} bs=4096 count=1 conv=notrunc,fsync", path(reader, node)),
            MINUTE,
        );
        ensure!(written.is_err(), "{name}: it was written to on {node}");
    }
    refused(writer.attach(WRITER), Code::FailedPrecondition, "read only on node-2, node-3")?;
    refused(writer.delete(WRITER), Code::FailedPrecondition, "read only on node-2, node-3")?;
    let owner = cluster.owner(name)?;
    cluster.kill(&owner)?;
    for node in READERS {
        compare(node)?;
    }
    for node in READERS {
        reader.down(node)?;
        reader.down(node)?;
    }
    trip.checked(format!(
        "{name}: written once, read on two nodes, also when the owner {owner} is killed; no writer beside them"
    ));
    Ok(())
}

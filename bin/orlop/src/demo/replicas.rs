//! The copies of a volume, compared block by block from the disks themselves, with no node running.

use super::thread::Stop;
use crate::failure::{Failure, OrFail, Outcome};
use crate::opened;
use device::{Device, Lba};
use pool::ReplicaReader;
use rt::{Access, DmaBuf};
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;
use uuid::Uuid;

/// A copy: its node, the URI of its disk, and which replica it is.
pub(super) type Copy = (String, String, Uuid);

/// How much was compared.
#[derive(Clone, Copy, Debug)]
pub(super) struct Compared {
    /// Bytes of the volume that some copy holds.
    pub(super) bytes: u64,
}

/// Checks every pool, then compares every block that any copy holds.
pub(super) fn compare(copies: &[Copy], stop: &Stop) -> Outcome<Compared> {
    let reactor =
        rt::os::Reactor::new(rt::os::Config::default()).or_fail(|| "cannot start the I/O engine".into())?;
    reactor.run(async {
        let mut devices = Vec::new();
        for (node, uri, _) in copies {
            stop.check()?;
            let device = opened::open(&opened::parse(uri)?, Access::Write, Duration::ZERO).await?;
            let checked = pool::check(&device).await.or_fail(|| format!("the pool of {node}"))?;
            if let Some(problem) = checked.problems.first() {
                return Err(Failure::new(format!("the pool of {node}: {problem}")));
            }
            devices.push(device);
        }
        let mut readers = Vec::new();
        for ((node, _, replica), device) in copies.iter().zip(&devices) {
            let reader =
                ReplicaReader::open(device, *replica).await.or_fail(|| format!("the copy on {node}"))?;
            readers.push((node.as_str(), reader));
        }
        compare_blocks(&readers, stop).await
    })
}

async fn compare_blocks<D: Device>(
    readers: &[(&str, ReplicaReader<'_, D>)],
    stop: &Stop,
) -> Outcome<Compared> {
    let extents: BTreeSet<u64> = readers.iter().flat_map(|(_, reader)| reader.extents()).collect();
    let (first_node, first) = readers.first().ok_or_else(|| Failure::new("there is no copy to compare"))?;
    let size = first.geometry().size().0;
    let mut bytes = 0;
    for extent in extents {
        stop.check()?;
        let start = extent * pool::EXTENT_SIZE;
        let len =
            usize::try_from(pool::EXTENT_SIZE.min(size.saturating_sub(start))).expect("an extent is small");
        if len == 0 {
            continue;
        }
        let mut expected: Option<DmaBuf> = None;
        for (node, reader) in readers {
            let read = reader.read(Lba(start / 4096), DmaBuf::new(len)).await;
            let found = read.or_fail(|| format!("the copy on {node} at byte {start}"))?;
            match &expected {
                Some(expected) if found[..] != expected[..] => {
                    let at = found.iter().zip(expected.iter()).position(|(a, b)| a != b).unwrap_or(0);
                    let at = start + at as u64;
                    return Err(Failure::new(format!(
                        "the copies on {first_node} and {node} differ at byte {at} of the volume"
                    )));
                }
                Some(_) => {}
                None => expected = Some(found),
            }
        }
        bytes += len as u64;
    }
    Ok(Compared { bytes })
}

/// Flips one bit of a block with these contents on a disk: what the comparison must then find.
pub(super) fn flip(disk: &Path, block: &[u8]) -> Outcome {
    let fail = || format!("cannot flip a bit on {}", disk.display());
    let file = OpenOptions::new().read(true).write(true).open(disk).or_fail(fail)?;
    let len = file.metadata().or_fail(fail)?.len();
    let mut found = vec![0; block.len()];
    for offset in (0..len).step_by(4096) {
        if file.read_exact_at(&mut found, offset).is_ok() && found == block {
            found[0] ^= 1;
            file.write_all_at(&found, offset).or_fail(fail)?;
            return file.sync_all().or_fail(fail);
        }
    }
    Err(Failure::new(format!("{}: the block to flip is not on {}", fail(), disk.display())))
}

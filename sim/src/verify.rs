//! The checks when nothing fails any more: the volume heals, and its replicas are equal.

use crate::cluster::{BLOCK_SIZE, Cluster, DISK};
use device::{BlockCount, Device, Lba, Status};
use model::{MemberState, VolumeRecord};
use pool::ReplicaReader;
use rt::DmaBuf;
use std::time::Duration;

/// Blocks compared at once.
const BLOCKS_AT_ONCE: u64 = 64;

/// Waits until the volume is as large as wished, and all members are in sync and equal; an error if that takes too long.
pub(crate) async fn healed(cluster: &Cluster, within: Duration) -> Result<(), String> {
    let give_up = rt::now() + within;
    loop {
        let record = cluster.store.record(cluster.volume);
        let grown = record.size_bytes == cluster.store.wished_bytes(cluster.volume);
        let in_sync = record.members.iter().all(|member| member.state == MemberState::InSync);
        let wished = cluster.wished_owner();
        let serving = cluster.nexus_of(wished).is_some_and(|nexus| {
            let status = nexus.status();
            nexus.stopped().is_none()
                && status.members.iter().all(|member| member.up && member.owed_extents == 0)
        });
        if grown && in_sync && serving {
            return Ok(());
        }
        if rt::now() > give_up {
            return Err(stuck(cluster, &record, wished));
        }
        rt::sleep(Duration::from_millis(50)).await;
    }
}

/// What a volume that does not heal looks like.
fn stuck(cluster: &Cluster, record: &VolumeRecord, wished: usize) -> String {
    let members: Vec<_> = record.members.iter().map(|m| format!("{} {:?}", m.node, m.state)).collect();
    let owner = record.owner.as_ref().map_or("nobody", |owner| &owner.node);
    let seen = cluster.nexus_of(wished).map(|nexus| {
        let status = nexus.status();
        let members: Vec<_> = status
            .members
            .iter()
            .map(|m| format!("{} up {} owed {}", m.node, m.up, m.owed_extents))
            .collect();
        format!("stopped {:?}, {members:?}", nexus.stopped())
    });
    let wished = &cluster.machines[wished].name;
    format!(
        "stuck: epoch {}, {} bytes, owner {owner}, wished {wished}, record {members:?}, nexus {seen:?}",
        record.epoch, record.size_bytes
    )
}

/// What a block that is recorded as bad is read as here; no client writes it.
const BAD: u8 = 0xBA;
const BLOCK: usize = BLOCK_SIZE as usize;

/// Reads blocks of a replica, also where some are bad.
async fn read<D: Device>(
    reader: &ReplicaReader<'_, D>,
    start: u64,
    count: BlockCount,
) -> Result<DmaBuf, Status> {
    let len = usize::try_from(count.0).expect("small") * BLOCK;
    match reader.read(Lba(start), DmaBuf::new(len)).await {
        Err(Status::MediaRead) => {}
        other => return other,
    }
    let mut whole = DmaBuf::new(len);
    for (block, part) in (start..).zip(whole.chunks_mut(BLOCK)) {
        match reader.read(Lba(block), DmaBuf::new(BLOCK)).await {
            Ok(bytes) => part.copy_from_slice(&bytes),
            Err(Status::MediaRead) => part.fill(BAD),
            Err(status) => return Err(status),
        }
    }
    Ok(whole)
}

/// Whether what the store says of the members is on one of them, too (I12): that is what is left if the store is older.
fn record_is_kept<'a>(record: &VolumeRecord, copies: impl Iterator<Item = &'a [u8]>) -> Result<(), String> {
    let read = |bytes| serde_json::from_slice::<VolumeRecord>(bytes).map_err(|error| error.to_string());
    let copies = copies.map(read).collect::<Result<Vec<_>, _>>()?;
    let Some(newest) = copies.iter().max_by_key(|copy| (copy.epoch, copy.version)) else {
        return Err("no replica keeps a record".into());
    };
    if newest.members != record.members {
        return Err(format!("the record says {:?}, its newest copy {:?}", record.members, newest.members));
    }
    Ok(())
}

/// Stops the engines, opens the pools offline and compares the replicas block by block; returns how many.
pub(crate) async fn replicas_equal(cluster: &Cluster) -> Result<u64, String> {
    cluster.stop().await;
    let record = cluster.store.record(cluster.volume);
    let mut devices = Vec::new();
    for machine in &cluster.machines {
        cluster.world.crash(machine.id);
        let opening = cluster.world.spawn_on(machine.id, async {
            let uri = format!("disk://{DISK}").parse().expect("a valid URI");
            device::open(&uri).await.map_err(|error| error.to_string())
        });
        devices.push(opening.await?);
    }
    let mut readers = Vec::new();
    for ((machine, member), device) in cluster.machines.iter().zip(&record.members).zip(&devices) {
        let report = pool::check(device).await.map_err(|error| error.to_string())?;
        if let Some(problem) = report.problems.first() {
            return Err(format!("pool of {}: {problem}", machine.name));
        }
        let reader = ReplicaReader::open(device, member.replica).await.map_err(|error| error.to_string())?;
        readers.push((machine.name.clone(), reader));
    }
    record_is_kept(&record, readers.iter().filter_map(|(_, reader)| reader.record()))?;
    let (first, others) = readers.split_first().expect("a volume has replicas");
    let blocks = record.size_bytes / u64::from(BLOCK_SIZE);
    for start in (0..blocks).step_by(usize::try_from(BLOCKS_AT_ONCE).expect("small")) {
        let count = BlockCount(BLOCKS_AT_ONCE.min(blocks - start));
        let expected = read(&first.1, start, count).await.map_err(|s| format!("{}: {s}", first.0))?;
        for (name, reader) in others {
            let found = read(reader, start, count).await.map_err(|s| format!("{name}: {s}"))?;
            let blocks = (start..).zip(found.chunks(BLOCK).zip(expected.chunks(BLOCK)));
            // One that was recorded as bad on one replica says nothing of the other one.
            let differs = |(found, expected): &(&[u8], &[u8])| {
                found != expected && *found != [BAD; BLOCK] && *expected != [BAD; BLOCK]
            };
            if let Some((block, _)) = blocks.into_iter().find(|(_, pair)| differs(pair)) {
                return Err(format!("replicas of {} and {name} differ at block {block}", first.0));
            }
        }
    }
    Ok(readers.len() as u64)
}

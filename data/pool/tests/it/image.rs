//! Whole pools as bytes: one of each format version that must open for ever, and ones with rot in them.

use crate::{
    BLOCK, BOOT, NEXUS, REPLICA, blocks, buffer, config, format_options, generation, memory, simulated,
};
use device::{Device, Lba, Mem};
use pool::{ErrorKind, Fence, Pool, Progress, Replica, check};
use rt::{DmaBuf, DmaBytes, Durability};
use std::time::Duration;

const BYTES: u64 = 8 << 20;

/// A pool that was killed: with a checkpoint, a journal after it, and data that only checksums vouch for.
async fn killed_pool() -> Mem {
    let device = memory(BYTES);
    Pool::format(&device, &format_options()).await.expect("an empty device");
    let pool = Pool::open(device.clone(), BOOT).await.expect("just made");
    pool.create_replica(&config(REPLICA, 1 << 20)).await.expect("there is room");
    let replica = pool.replica(REPLICA).expect("just made");
    replica.accept_epoch(1, NEXUS).await.expect("the first epoch");
    replica.write(generation(1), Lba(1), blocks(1, 3), Durability::Durable).await.expect("written");
    pool.close().await.expect("closed");
    let pool = Pool::open(device.clone(), BOOT).await.expect("opens");
    let replica = pool.replica(REPLICA).expect("there");
    replica.write(generation(2), Lba(2), blocks(2, 1), Durability::Cached).await.expect("overwritten");
    replica.write(generation(2), Lba(100), blocks(3, 2), Durability::Cached).await.expect("written");
    rt::sleep(Duration::from_secs(1)).await;
    replica
        .write_zeroes(generation(3), Lba(3), device::BlockCount(1), Durability::Durable)
        .await
        .expect("zeroed");
    replica.set_stable(generation(3)).await.expect("durable");
    let progress = Progress { source_epoch: 1, cursor_extent: 2, received_since: generation(2) };
    replica.set_progress(Some(progress)).await.expect("durable");
    replica.set_record(b"the record").await.expect("durable");
    replica.write(generation(4), Lba(200), blocks(4, 1), Durability::Durable).await.expect("written");
    device
}

/// Checks that a replica is that of [`killed_pool`].
async fn verify(replica: &Replica<Mem>) {
    let whole = replica.read(Lba(0), buffer(256)).await.expect("readable");
    for (lba, block) in whole.chunks(BLOCK).enumerate() {
        let expected = match lba {
            1 => 1,
            2 => 2,
            100 | 101 => 3,
            200 => 4,
            _ => 0,
        };
        assert!(block.iter().all(|byte| *byte == expected), "block {lba}");
    }
    assert_eq!(replica.config(), config(REPLICA, 1 << 20));
    assert_eq!(replica.fence(), Fence { epoch: 1, nexus: NEXUS });
    assert_eq!(replica.stable(), generation(3));
    assert_eq!(replica.progress().expect("there").cursor_extent, 2);
    assert_eq!(replica.record().as_deref(), Some(&b"the record"[..]));
}

/// The blocks of a device that are not all zeroes.
async fn contents(device: &Mem) -> Vec<(u64, Vec<u8>)> {
    let mut found = Vec::new();
    for lba in 0..BYTES / BLOCK as u64 {
        let block = device.read(Lba(lba), DmaBuf::new(BLOCK)).await.expect("memory");
        if block.iter().any(|byte| *byte != 0) {
            found.push((lba, block.to_vec()));
        }
    }
    found
}

async fn device_of(contents: &[(u64, Vec<u8>)]) -> Mem {
    let device = memory(BYTES);
    for (lba, block) in contents {
        device.write(Lba(*lba), DmaBytes::copy_of(block), Durability::Cached).await.expect("memory");
    }
    device
}

/// A compact form: per block its number, the length without trailing repetitions of the last byte, and the bytes.
fn pack(contents: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut packed = Vec::new();
    for (lba, block) in contents {
        let last = block[BLOCK - 1];
        let len = block.iter().rposition(|byte| *byte != last).map_or(0, |place| place + 1);
        packed.extend_from_slice(&u32::try_from(*lba).expect("small").to_le_bytes());
        packed.extend_from_slice(&u16::try_from(len).expect("a block").to_le_bytes());
        packed.push(last);
        packed.extend_from_slice(&block[..len]);
    }
    packed
}

fn unpack(mut packed: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut contents = Vec::new();
    while let [a, b, c, d, low, high, last, rest @ ..] = packed {
        let len = usize::from(u16::from_le_bytes([*low, *high]));
        let mut block = vec![*last; BLOCK];
        block[..len].copy_from_slice(&rest[..len]);
        contents.push((u32::from_le_bytes([*a, *b, *c, *d]).into(), block));
        packed = &rest[len..];
    }
    contents
}

async fn opens(contents: &[(u64, Vec<u8>)]) {
    let device = device_of(contents).await;
    assert_eq!(check(&device).await.expect("a pool").problems, []);
    let pool = Pool::open(device.clone(), BOOT).await.expect("recovers");
    verify(&pool.replica(REPLICA).expect("there")).await;
    pool.close().await.expect("closed");
    let pool = Pool::open(device, BOOT).await.expect("opens");
    verify(&pool.replica(REPLICA).expect("there")).await;
}

#[test]
fn a_pool_of_version_1_opens_for_ever() {
    simulated(1, || async {
        opens(&unpack(include_bytes!("fixtures/pool-v1.packed"))).await;
    });
}

#[test]
fn a_pool_of_the_present_version_can_become_a_fixture() {
    simulated(1, || async {
        let packed = pack(&contents(&killed_pool().await).await);
        // A new version's fixture is this file, kept beside the others.
        let path = concat!(env!("CARGO_TARGET_TMPDIR"), "/pool-present.packed");
        std::fs::write(path, &packed).expect("the build folder can be written");
        opens(&unpack(&packed)).await;
    });
}

/// What kind of metadata a block is, by its magic.
fn kind(block: &[u8]) -> &[u8] {
    if block.starts_with(b"ORLOP") { &block[5..8] } else { b"data" }
}

#[test]
fn rot_is_repaired_or_named_and_never_believed() {
    simulated(2, || async {
        let clean = contents(&killed_pool().await).await;
        let (mut repaired, mut named) = (0, 0);
        for (place, (lba, block)) in clean.iter().enumerate().filter(|(_, (_, block))| kind(block) != b"data")
        {
            for _ in 0..24 {
                let mut rotten = clean.clone();
                let random = usize::try_from(rt::random_u64() % (BLOCK as u64 * 8)).expect("small");
                rotten[place].1[random / 8] ^= 1 << (random % 8);
                let device = device_of(&rotten).await;
                let report = check(&device).await.expect("one superblock is left");
                let result = Pool::open(device, BOOT).await;
                let bad: Vec<_> = report.problems.iter().filter(|problem| !problem.repairable).collect();
                assert_eq!(bad.is_empty(), result.is_ok(), "checking and opening agree: {bad:?}");
                match (kind(block), result) {
                    (b"OOL", Ok(pool)) => {
                        assert_eq!(report.problems[0].offset_bytes, lba * BLOCK as u64);
                        verify(&pool.replica(REPLICA).expect("there")).await;
                        repaired += 1;
                    }
                    (b"MAP" | b"MAN", Err(error)) => {
                        // Pages of the checkpoint before are nobody's.
                        assert_eq!(error.kind(), ErrorKind::Damaged);
                        assert!(
                            error.to_string().contains(&format!("offset {}", lba * BLOCK as u64)),
                            "{error}"
                        );
                        named += 1;
                    }
                    (b"MAP" | b"MAN", Ok(pool)) => verify(&pool.replica(REPLICA).expect("there")).await,
                    // The last batch looks as if a power cut had taken it; for earlier ones there is proof.
                    (b"JNL", Err(error)) => {
                        assert_eq!(error.kind(), ErrorKind::Damaged);
                        named += 1;
                    }
                    (b"JNL", Ok(_)) => {}
                    (kind, Err(error)) => panic!("{}: {error}", String::from_utf8_lossy(kind)),
                    (kind, Ok(_)) => panic!("{}", String::from_utf8_lossy(kind)),
                }
            }
        }
        assert!(repaired > 0 && named > 100, "{repaired} {named}");
    });
}

#[test]
fn any_bytes_after_the_magic_are_survived() {
    simulated(3, || async {
        let clean = contents(&killed_pool().await).await;
        for _ in 0..300 {
            let mut rotten = clean.clone();
            for _ in 0..=rt::random_u64() % 4 {
                let place = usize::try_from(rt::random_u64() % rotten.len() as u64).expect("small");
                let start = usize::try_from(rt::random_u64() % (BLOCK as u64 - 64)).expect("small");
                rt::random_bytes(&mut rotten[place].1[start..start + 64]);
            }
            let device = device_of(&rotten).await;
            let checked = check(&device).await;
            let opened = Pool::open(device, BOOT).await;
            let clean = checked.is_ok_and(|report| report.problems.iter().all(|problem| problem.repairable));
            assert_eq!(clean, opened.is_ok(), "checking and opening agree");
        }
    });
}

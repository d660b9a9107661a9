//! Pools through their public API, in the simulator.

mod bad;
mod basics;
mod crash;
mod faults;
mod fuse;
mod image;
mod real;
mod rules;

use device::{BlockCount, Geometry, Mem};
use model::Generation;
use pool::{FormatOptions, Pool, ReplicaConfig};
use rt::sim::World;
use rt::{DmaBuf, DmaBytes};
use std::future::Future;
use uuid::Uuid;

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;
/// The replica that most tests use.
pub(crate) const REPLICA: Uuid = Uuid::from_u128(0x1001);
/// The nexus that writes.
pub(crate) const NEXUS: Uuid = Uuid::from_u128(0x2001);
/// A boot of the machine.
pub(crate) const BOOT: Uuid = Uuid::from_u128(0x3001);

/// Runs `body` in a simulated world of one machine.
pub(crate) fn simulated<F: Future<Output = ()> + 'static>(seed: u64, body: impl FnOnce() -> F + 'static) {
    let world = World::new(seed);
    let node = world.add_node("n1");
    let task = world.spawn_on(node, async move { body().await });
    world.run(task);
}

/// An empty device in memory.
pub(crate) fn memory(bytes: u64) -> Mem {
    Mem::new(Geometry { block_size: 4096, blocks: BlockCount(bytes / 4096) })
}

/// How the tests' pools are made.
pub(crate) fn format_options() -> FormatOptions {
    FormatOptions {
        cluster: Uuid::from_u128(1),
        pool: Uuid::from_u128(2),
        name: "disk0".into(),
        node: Some("n1".into()),
        force: false,
    }
}

/// A replica's properties.
pub(crate) fn config(replica: Uuid, size_bytes: u64) -> ReplicaConfig {
    ReplicaConfig {
        replica,
        volume: Uuid::from_u128(3),
        volume_name: "data".into(),
        size_bytes,
        block_size: 4096,
        copies: 3,
    }
}

/// A generation of epoch 1.
pub(crate) fn generation(counter: u64) -> Generation {
    Generation::new(1, counter)
}

/// A fresh pool on `device` with the usual replica of `size_bytes`, ready for writes of epoch 1.
pub(crate) async fn fresh(device: &Mem, size_bytes: u64) -> Pool<Mem> {
    Pool::format(device, &format_options()).await.expect("an empty device");
    let pool = Pool::open(device.clone(), BOOT).await.expect("just made");
    pool.create_replica(&config(REPLICA, size_bytes)).await.expect("there is room");
    pool.replica(REPLICA).expect("just made").accept_epoch(1, NEXUS).await.expect("the first epoch");
    pool
}

/// `count` blocks full of `byte`.
pub(crate) fn blocks(byte: u8, count: usize) -> DmaBytes {
    DmaBytes::copy_of(&vec![byte; count * BLOCK])
}

/// A buffer for `count` blocks, full of rubbish.
pub(crate) fn buffer(count: usize) -> DmaBuf {
    DmaBuf::copy_of(&vec![0xee; count * BLOCK])
}

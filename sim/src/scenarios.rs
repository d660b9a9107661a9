//! Single stories on the simulated cluster, each told for one rule.

use crate::cluster::{Cluster, Sizes, secret};
use crate::{HEALED_WITHIN, verify};
use device::{Device, Lba};
use nexus::{Attachment, Planted};
use nvmf::{Association, ConnectOptions};
use rt::sim::World;
use rt::{DmaBuf, DmaBytes, Durability};
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;
use uuid::Uuid;

const SIZES: Sizes = Sizes { volume_bytes: 8 << 20, grown_bytes: 8 << 20, disk_bytes: [64 << 20; 3] };

/// Tells a story on three machines with an open volume.
fn tell<F: Future<Output = ()>>(seed: u64, story: impl FnOnce(Cluster) -> F) {
    let world = World::new(seed);
    world.set_time_limit(Duration::from_secs(600));
    let inside = world.clone();
    world.run(async move {
        let cluster = Cluster::new(&inside, SIZES, Planted::Nothing);
        (0..3).for_each(|index| cluster.start(index));
        cluster.create_volume(SIZES).await;
        verify::healed(&cluster, HEALED_WITHIN).await.expect("opened");
        story(cluster).await;
    });
}

/// Runs `work` on a machine, as a front-end there would.
async fn on<T: 'static>(cluster: &Cluster, index: usize, work: impl Future<Output = T> + 'static) -> T {
    cluster.world.spawn_on(cluster.machines[index].id, work).await
}

async fn attach(cluster: &Cluster, index: usize) -> Attachment {
    let nexus = cluster.nexus_of(index).expect("the volume is open there");
    on(cluster, index, async move { nexus.attach().await.expect("attached") }).await
}

fn block(byte: u8) -> DmaBytes {
    DmaBuf::copy_of(&[byte; 4096]).freeze()
}

/// A member that is stopped answers nothing and resets nothing: that is what `kill -STOP` does to a node. Writes wait for
/// it no longer than the budget of a failure (5 s).
#[test]
fn a_member_that_is_stopped_holds_writes_up_for_a_bounded_time() {
    for seed in 0..20 {
        tell(seed, |cluster| async move {
            let host = attach(&cluster, 0).await;
            let world = cluster.world.clone();
            let began = rt::now();
            let mut longest = Duration::ZERO;
            let mut stopped = false;
            while rt::now() - began < Duration::from_secs(15) {
                if !stopped && rt::now() - began > Duration::from_millis(3000 + seed * 97) {
                    world.pause(cluster.machines[1].id);
                    stopped = true;
                }
                let (host, asked) = (host.clone(), rt::now());
                let lba = Lba(rt::random_u64() % 2000);
                let written =
                    on(&cluster, 0, async move { host.write(lba, block(1), Durability::Cached).await });
                assert_eq!(written.await, Ok(()));
                longest = longest.max(rt::now() - asked);
                rt::sleep(Duration::from_millis(5)).await;
            }
            assert!(longest > Duration::from_secs(1), "it was noticed: {longest:?}");
            assert!(
                longest <= Duration::from_millis(4500),
                "seed {seed}: writes were held up for {longest:?}"
            );
            world.resume(cluster.machines[1].id);
            verify::healed(&cluster, HEALED_WITHIN).await.expect("it comes back");
        });
    }
}

const HOST: Uuid = Uuid::from_u128(0x4057);
const HOST_NQN: &str = "nqn.2026-11.io.orlop:test-host";
const VOLUME_NQN: &str = "nqn.2026-11.io.orlop:volume:vol";

/// Connects the host to the volume, however long that takes.
async fn connect(cluster: &Cluster) -> Association {
    let address = SocketAddr::new(cluster.world.address(cluster.machines[0].id), 4420);
    loop {
        let key = Some(engine::volume_key(&secret(), cluster.volume, HOST_NQN));
        let options = ConnectOptions { key, ..ConnectOptions::new(address, VOLUME_NQN, HOST_NQN, HOST) };
        match Association::connect(options).await {
            Ok(association) => return association,
            Err(_) => rt::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// All copies lose power with writes of a host that no flush had covered; its next writes and flushes fail until it has
/// detached, although the volume is open again and the host only reconnected (I10).
#[test]
fn a_host_that_reconnects_after_a_gap_is_told() {
    tell(7, |cluster| async move {
        let record = || cluster.store.record(cluster.volume);
        let association = connect(&cluster).await;
        let written = association.namespace(1).write(Lba(9), block(1), Durability::Cached).await;
        assert_eq!(written, Ok(()));
        let number = record().attachment;
        (0..3).for_each(|index| cluster.kill(index, true));
        rt::sleep(Duration::from_secs(1)).await;
        (0..3).for_each(|index| cluster.start(index));
        verify::healed(&cluster, HEALED_WITHIN).await.expect("opened again");
        assert_eq!(record().gap_through, number, "unflushed writes may be lost");

        let association = connect(&cluster).await;
        assert_eq!(record().hosts.len(), 1);
        assert_eq!(record().hosts[0].attachment, number, "a path that reconnects keeps its number");
        let namespace = association.namespace(1);
        assert!(namespace.write(Lba(9), block(2), Durability::Cached).await.is_err());
        assert!(namespace.flush().await.is_err());

        association.close().await;
        rt::sleep(Duration::from_secs(10)).await;
        assert!(record().hosts.is_empty(), "it has detached in order");
        let association = connect(&cluster).await;
        assert_eq!(record().hosts[0].attachment, number + 1);
        let namespace = association.namespace(1);
        assert_eq!(namespace.write(Lba(9), block(3), Durability::Cached).await, Ok(()));
        assert_eq!(namespace.flush().await, Ok(()));
    });
}

//! Single stories on the simulated cluster, each told for one rule.

use crate::cluster::{Cluster, Sizes};
use crate::{HEALED_WITHIN, verify};
use device::{Device, Lba};
use nexus::{Attachment, Planted};
use rt::sim::World;
use rt::{DmaBuf, DmaBytes, Durability};
use std::future::Future;
use std::time::Duration;

const SIZES: Sizes = Sizes { volume_bytes: 8 << 20, disk_bytes: [64 << 20; 3] };

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
                let written = on(&cluster, 0, async move { host.write(lba, block(1), Durability::Cached).await });
                assert_eq!(written.await, Ok(()));
                longest = longest.max(rt::now() - asked);
                rt::sleep(Duration::from_millis(5)).await;
            }
            assert!(longest > Duration::from_secs(1), "it was noticed: {longest:?}");
            assert!(longest <= Duration::from_millis(4500), "seed {seed}: writes were held up for {longest:?}");
            world.resume(cluster.machines[1].id);
            verify::healed(&cluster, HEALED_WITHIN).await.expect("it comes back");
        });
    }
}

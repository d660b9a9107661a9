//! A pool is known by its superblock, and whose it is.

use crate::machine::{CLUSTER, Machine, on_a_reactor};
use device::File;
use model::DiskState;
use pool::{FormatOptions, Pool};
use rt::Access;
use uuid::Uuid;

const POOL: Uuid = Uuid::from_u128(2);

/// A machine whose disk is a pool of this cluster, and of this node if one is named.
fn with_pool_of(cluster: Uuid, node: Option<&str>) -> Machine {
    let machine = Machine::with_one_disk();
    let (path, node) = (machine.path("dev/vdb"), node.map(str::to_owned));
    on_a_reactor(async move {
        let device = File::open(&path, None, 4096, Access::Write).await.expect("opened");
        let options = FormatOptions { cluster, pool: POOL, name: "pool-1".into(), node, force: false };
        Pool::format(&device, &options).await.expect("formatted");
    });
    machine
}

#[test]
fn a_pool_of_this_cluster_is_a_pool() {
    let mut machine = with_pool_of(CLUSTER, None);
    let disk = &machine.report()[0];
    assert_eq!((disk.state, disk.pool, disk.message.as_deref()), (DiskState::Pool, Some(POOL), None));
    assert_eq!(disk.signatures, ["an Orlop pool"]);
}

#[test]
fn a_pool_of_another_node_is_not_this_ones() {
    let mut machine = with_pool_of(CLUSTER, Some("n1"));
    assert_eq!(machine.report()[0].state, DiskState::Pool);
    let mut machine = with_pool_of(CLUSTER, Some("n2"));
    let disk = &machine.report()[0];
    assert_eq!((disk.state, disk.pool), (DiskState::InUse, Some(POOL)));
    let message = disk.message.as_deref().expect("a reason");
    assert!(message.contains(" of the node n2: "), "{message}");
}

#[test]
fn a_pool_of_another_cluster_is_not_free() {
    let mut machine = with_pool_of(Uuid::from_u128(9), Some("n1"));
    let disk = &machine.report()[0];
    assert_eq!((disk.state, disk.pool), (DiskState::InUse, Some(POOL)));
    let message = disk.message.as_deref().expect("a reason");
    assert!(message.contains("of the cluster 00000000-0000-0000-0000-000000000009"), "{message}");
}

#[test]
fn a_pool_that_is_damaged_is_not_free() {
    let mut machine = with_pool_of(CLUSTER, None);
    machine.put("dev/vdb", "100 ffffffff");
    assert_eq!(machine.report()[0].state, DiskState::Pool, "one copy is enough");
    machine.put("dev/vdb", "524388 ffffffff");
    let disk = &machine.report()[0];
    assert_eq!((disk.state, disk.pool), (DiskState::InUse, None));
    assert!(disk.message.as_deref().expect("a reason").contains("both superblocks are damaged"), "{disk:?}");
}

//! Every leaf device keeps the contract of [`Device`]; faults do what their rules say.

use device::fault::{Effect, Fault, Op, Rule};
use device::{AnyDevice, BlockCount, Device, ErrorKind, Geometry, Lba, Mem, Status, uri};
use rt::sim::World;
use rt::{DmaBuf, DmaBytes, Durability};
use std::rc::Rc;
use std::time::Duration;

const BLOCK: usize = 4096;

/// Runs `body` in a world where the machine has one disk of 16 MiB at `/disk0`.
fn simulated<F: Future<Output = ()> + 'static>(seed: u64, body: impl FnOnce() -> F + 'static) {
    let world = World::new(seed);
    let node = world.add_node("n1");
    world.add_disk(node, "/disk0", 16 << 20, 512);
    let task = world.spawn_on(node, async move { body().await });
    world.run(task);
}

async fn open(text: &str) -> AnyDevice {
    device::open(&uri::parse(text).expect(text)).await.expect(text)
}

fn block_of(byte: u8) -> DmaBytes {
    DmaBytes::copy_of(&[byte; BLOCK])
}

async fn first_bytes(device: &impl Device, lba: u64, count: usize) -> Vec<u8> {
    let buf = device.read(Lba(lba), DmaBuf::new(count * BLOCK)).await.expect("readable");
    buf.chunks(BLOCK)
        .map(|block| {
            assert!(block.iter().all(|b| *b == block[0]), "one block holds one byte value");
            block[0]
        })
        .collect()
}

/// A run of random operations against a plain vector.
async fn like_a_vector(device: &impl Device) {
    let geometry = device.geometry();
    assert_eq!(geometry.size().0, 16 << 20);
    let mut model = vec![0_u8; 64];
    for _ in 0..400 {
        let random = rt::random_u64();
        let lba = random % 60;
        let count = 1 + (random >> 8) % 4;
        let value = u8::try_from(1 + (random >> 16) % 255).expect("small");
        let range = usize::try_from(lba).expect("small")..usize::try_from(lba + count).expect("small");
        match (random >> 32) % 5 {
            0 => {
                device.write_zeroes(Lba(lba), BlockCount(count), Durability::Durable).await.expect("zeroed");
                model[range].fill(0);
            }
            1 => {
                device.unmap(Lba(lba), BlockCount(count)).await.expect("unmapped");
                model[range].fill(0);
            }
            2 => device.flush().await.expect("flushed"),
            _ => {
                let data = DmaBytes::copy_of(&vec![value; range.len() * BLOCK]);
                device.write(Lba(lba), data, Durability::Cached).await.expect("written");
                model[range].fill(value);
            }
        }
    }
    assert_eq!(first_bytes(device, 0, 64).await, model);
}

async fn refuses_what_does_not_fit(device: &impl Device) {
    let end = Lba(device.geometry().blocks.0);
    let read = |lba, len| device.read(lba, DmaBuf::zeroed(len));
    assert_eq!(read(end, BLOCK).await.err(), Some(Status::OutOfRange));
    assert_eq!(read(Lba(u64::MAX), BLOCK).await.err(), Some(Status::OutOfRange));
    assert_eq!(read(Lba(0), 0).await.err(), Some(Status::Invalid));
    assert_eq!(read(Lba(0), 100).await.err(), Some(Status::Invalid));
    let two = DmaBytes::copy_of(&[0; 2 * BLOCK]);
    let last = Lba(end.0 - 1);
    assert_eq!(device.write(last, two, Durability::Cached).await, Err(Status::OutOfRange));
    assert_eq!(device.unmap(last, BlockCount(2)).await, Err(Status::OutOfRange));
    assert_eq!(device.unmap(last, BlockCount(0)).await, Err(Status::Invalid));
    let zeroed = device.write_zeroes(Lba(1), BlockCount(u64::MAX), Durability::Cached).await;
    assert_eq!(zeroed, Err(Status::OutOfRange));
}

#[test]
fn memory_keeps_the_contract() {
    simulated(1, || async {
        let device = open("mem://?size=16MiB").await;
        like_a_vector(&device).await;
        refuses_what_does_not_fit(&device).await;
    });
}

#[test]
fn a_disk_keeps_the_contract() {
    simulated(2, || async {
        let device = open("disk:///disk0").await;
        like_a_vector(&device).await;
        refuses_what_does_not_fit(&device).await;
        let second = device::open(&uri::parse("file:///disk0").unwrap()).await.expect_err("it is locked");
        assert_eq!(second.kind(), ErrorKind::InUse);
        drop(device);
        let again = open("file:///disk0?size=16MiB").await;
        refuses_what_does_not_fit(&again).await;
    });
}

#[test]
fn faults_without_rules_keep_the_contract() {
    simulated(3, || async {
        let device = open("fault://?of=fault://?of=mem:%2F%2F%3Fsize=16MiB").await;
        like_a_vector(&device).await;
        refuses_what_does_not_fit(&device).await;
    });
}

#[test]
fn null_forgets() {
    simulated(4, || async {
        let device = open("null://?size=16MiB").await;
        device.write(Lba(3), block_of(7), Durability::Durable).await.expect("written");
        assert_eq!(first_bytes(&device, 3, 1).await, [0]);
        refuses_what_does_not_fit(&device).await;
    });
}

#[test]
fn memory_gives_space_back() {
    simulated(5, || async {
        let mem = Mem::new(Geometry { block_size: 4096, blocks: BlockCount(1 << 28) });
        assert_eq!(mem.allocated_bytes(), 0);
        mem.write(Lba(1 << 27), block_of(1), Durability::Cached).await.expect("written");
        assert_eq!(mem.allocated_bytes(), 64 << 10);
        mem.unmap(Lba(0), BlockCount(16)).await.expect("unmapped");
        mem.unmap(Lba(1 << 27), BlockCount(16)).await.expect("unmapped");
        assert_eq!(mem.allocated_bytes(), 0);
    });
}

#[test]
fn files_of_another_size_are_refused() {
    simulated(6, || async {
        for (text, kind) in [
            ("file:///disk0?size=1MiB", ErrorKind::WrongSize),
            ("disk:///nowhere", ErrorKind::NotFound),
            ("file:///nowhere", ErrorKind::NotFound),
            ("nvme+tcp://host/nqn.x", ErrorKind::Unsupported),
        ] {
            let error = device::open(&uri::parse(text).expect(text)).await.expect_err(text);
            assert_eq!(error.kind(), kind, "{error}");
        }
    });
}

#[test]
fn rules_choose_by_operation_range_and_count() {
    simulated(7, || async {
        let uri = "fault://?of=mem:%2F%2F%3Fsize=1MiB&rule=fail:media-write,on:write,lba:4-5,skip:1,times:2";
        let device = open(uri).await;
        let write = |lba| device.write(Lba(lba), block_of(1), Durability::Cached);
        assert_eq!(write(3).await, Ok(()));
        assert_eq!(write(4).await, Ok(()), "the first is spared");
        assert_eq!(write(5).await, Err(Status::MediaWrite));
        assert_eq!(write(4).await, Err(Status::MediaWrite));
        assert_eq!(write(4).await, Ok(()), "two were hit");
        assert_eq!(device.flush().await, Ok(()));
    });
}

#[test]
fn failing_before_and_after_differ_in_what_is_done() {
    simulated(8, || async {
        let device = Fault::new(open("mem://?size=1MiB").await);
        let rules = device.handle();
        let before = rules.add(Rule::on(Op::Write, Effect::Fail(Status::Gone)));
        assert_eq!(device.write(Lba(0), block_of(1), Durability::Cached).await, Err(Status::Gone));
        assert_eq!(first_bytes(&device, 0, 1).await, [0]);
        assert_eq!(rules.hits(before), 1);
        rules.remove(before);
        rules.add(Rule::on(Op::Write, Effect::FailAfter(Status::Gone)));
        assert_eq!(device.write(Lba(0), block_of(2), Durability::Cached).await, Err(Status::Gone));
        assert_eq!(first_bytes(&device, 0, 1).await, [2]);
    });
}

#[test]
fn delays_take_their_time_and_hangs_end_with_their_rule() {
    simulated(9, || async {
        let device = Rc::new(Fault::new(open("mem://?size=1MiB").await));
        let rules = device.handle();
        let start = rt::now();
        let delay = rules.add(Rule::every(Effect::Delay(Duration::from_secs(5))));
        device.flush().await.expect("flushed");
        assert!(start.elapsed() >= Duration::from_secs(5));
        rules.remove(delay);

        let hang = rules.add(Rule::on(Op::Write, Effect::Hang));
        let writer = Rc::clone(&device);
        let write = rt::spawn(async move { writer.write(Lba(0), block_of(9), Durability::Cached).await });
        rt::sleep(Duration::from_secs(60)).await;
        assert!(!write.is_finished());
        assert_eq!(first_bytes(&*device, 0, 1).await, [0]);
        rules.remove(hang);
        assert_eq!(write.await, Ok(()));
        assert_eq!(first_bytes(&*device, 0, 1).await, [9]);
    });
}

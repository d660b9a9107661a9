//! Tables made here, damaged, and added to with the power cut at every write.

use super::crc::crc32;
use super::read::{Gpt, read};
use super::table::{Copy, ENTRY_LEN, Entry, ORLOP};
use super::write::{ends, fresh, lay};
use super::{Plan, Wanted, add, plan};
use crate::{Content, Partition};
use device::fault::{Effect, Op, Rule};
use device::{BlockCount, ByteCount, Device, Fault, Geometry, Lba, Mem, Status};
use pool::signature::Ends;
use proptest::prelude::*;
use rt::sim::World;
use rt::{DmaBuf, Durability};
use std::future::Future;
use std::ops::Range;
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
/// What Linux puts on partitions of data.
const LINUX: Uuid = Uuid::from_u128(0x0fc6_3daf_8483_4772_8e79_3d69_d847_7de4);

/// Runs `body` in a simulated world of one machine.
fn simulated<F: Future<Output = ()> + 'static>(body: impl FnOnce() -> F + 'static) {
    let world = World::new(1);
    let node = world.add_node("n1");
    let task = world.spawn_on(node, async move { body().await });
    world.run(task);
}

fn memory(block_size: u32, size: u64) -> Mem {
    Mem::new(Geometry { block_size, blocks: BlockCount(size / u64::from(block_size)) })
}

fn foreign(number: u32, mib: Range<u64>) -> Entry {
    Entry {
        number,
        kind: LINUX,
        id: Uuid::from_u128(0xf00d_0000 + u128::from(number)),
        start_bytes: mib.start * MIB,
        size_bytes: (mib.end - mib.start) * MIB,
        label: format!("foreign-{number}"),
    }
}

/// Writes a table with these partitions, as another program would: with the array's checksum in both headers.
async fn divide(disk: &impl Device, entries: &[Entry]) {
    let Geometry { block_size, blocks } = disk.geometry();
    let Gpt { block, copies: [front, back], .. } =
        fresh(block_size.into(), blocks, Uuid::from_u128(7)).unwrap();
    let with_entries = |copy: Result<Copy, String>| {
        let mut copy = copy.unwrap();
        for entry in entries {
            copy.array[Copy::slot(entry.number)].copy_from_slice(&entry.encode(block));
        }
        copy.header.entries_crc = crc32(&copy.array);
        copy
    };
    lay(disk, &with_entries(front), &with_entries(back)).await.unwrap();
}

async fn table(disk: &impl Device) -> Result<Option<Gpt>, String> {
    let Geometry { block_size, .. } = disk.geometry();
    let size = disk.geometry().size().0;
    let (front, back) = ends(disk, &(0..size)).await.unwrap();
    read(&Ends { front: &front, back: &back, size }, block_size)
}

/// What the kernel sees where it has been told of all of the table.
fn seen(entries: &[Entry]) -> Vec<Partition> {
    let seen = entries.iter().map(|entry| Partition {
        kernel_name: format!("sda{}", entry.number),
        number: entry.number,
        start_bytes: entry.start_bytes,
        size_bytes: entry.size_bytes,
        label: None,
        read_only: false,
        links: Vec::new(),
        content: Content::default(),
    });
    seen.collect()
}

fn wanted(mib: u64) -> Wanted {
    Wanted { size: Some(ByteCount(mib * MIB)), label: None }
}

async fn planned(disk: &impl Device, mib: u64) -> Result<Plan, String> {
    let entries = table(disk).await?.map(|gpt| gpt.division().entries).unwrap_or_default();
    plan(disk, &seen(&entries), &wanted(mib)).await
}

/// Puts bytes into one block.
async fn put(disk: &impl Device, offset: u64, bytes: &[u8]) {
    let block = u64::from(disk.geometry().block_size);
    let zeroes = DmaBuf::zeroed(usize::try_from(block).unwrap());
    let mut buf = disk.read(Lba(offset / block), zeroes).await.unwrap();
    let within = usize::try_from(offset % block).unwrap();
    buf[within..within + bytes.len()].copy_from_slice(bytes);
    disk.write(Lba(offset / block), buf.freeze(), Durability::Durable).await.unwrap();
}

#[test]
fn a_blank_disk_gets_a_table_and_a_divided_one_an_entry() {
    simulated(|| async {
        for block in [512, 4096] {
            let disk = memory(block, SIZE);
            assert_eq!(table(&disk).await, Ok(None));
            let first = planned(&disk, 16).await.unwrap();
            assert!(first.new_table && first.carries.is_empty());
            let first = add(&disk, first).await.unwrap();
            assert_eq!((first.number, first.start_bytes, first.size_bytes), (1, MIB, 16 * MIB));
            assert_eq!((first.kind, first.label.as_str()), (ORLOP, "orlop-1"));
            let second = planned(&disk, 8).await.unwrap();
            assert!(!second.new_table);
            let second = add(&disk, second).await.unwrap();
            assert_eq!((second.number, second.start_bytes), (2, 17 * MIB));
            assert!(first.id != second.id && first.id.get_version_num() == 4);
            let found = table(&disk).await.unwrap().unwrap();
            assert_eq!((found.division().entries, found.damage), (vec![first, second], None));
        }
    });
}

#[test]
fn a_partition_takes_the_smallest_piece_that_has_room() {
    simulated(|| async {
        let disk = memory(512, SIZE);
        let entries = [foreign(1, 1..10), foreign(3, 20..30), foreign(2, 34..50)];
        divide(&disk, &entries).await;
        let by_number = [entries[0].clone(), entries[2].clone(), entries[1].clone()];
        let place = async |size: Option<u64>| {
            let wanted = Wanted { size: size.map(|mib| ByteCount(mib * MIB)), label: Some("here".into()) };
            plan(&disk, &seen(&by_number), &wanted).await.map(|plan| plan.entry)
        };
        for (size, start, len) in [(Some(4), 30, 4), (Some(5), 10, 5), (Some(11), 50, 11), (None, 50, 13)] {
            let entry = place(size).await.unwrap();
            assert_eq!((entry.number, entry.start_bytes, entry.size_bytes), (4, start * MIB, len * MIB));
            assert_eq!(entry.label, "here");
        }
        let refused = place(Some(14)).await.unwrap_err();
        assert_eq!(refused, "it has no room for 14 MiB: its largest free piece has 13 MiB");
    });
}

#[test]
fn what_cannot_be_done_safely_is_refused() {
    simulated(|| async {
        let disk = memory(512, SIZE);
        let entries = [foreign(1, 1..10)];
        divide(&disk, &entries).await;
        let refused = async |seen: &[Partition], wanted: &Wanted| {
            plan(&disk, seen, wanted).await.map(|plan| plan.entry).unwrap_err()
        };
        let known = seen(&entries);
        assert!(refused(&[], &wanted(8)).await.contains("its table and the kernel say different things"));
        let odd = Wanted { size: Some(ByteCount(MIB + 512)), label: None };
        assert!(refused(&known, &odd).await.contains("multiple of 1 MiB"));
        assert!(refused(&known, &wanted(1)).await.contains("a pool needs at least"));
        let label = Wanted { label: Some("a b".into()), ..wanted(8) };
        assert!(refused(&known, &label).await.contains("cannot be a partition's label"));
        put(&disk, 0x1_0040, b"_BHRfS_M").await;
        assert_eq!(refused(&known, &wanted(8)).await, "it carries a btrfs file system");
        let full = memory(512, SIZE);
        divide(&full, &[foreign(1, 1..63)]).await;
        assert_eq!(planned(&full, 8).await.map(|_| ()), Err("it has no free space".into()));
    });
}

#[test]
fn what_lay_in_free_space_is_said_and_left_alone() {
    simulated(|| async {
        let disk = memory(4096, SIZE);
        divide(&disk, &[foreign(1, 1..10)]).await;
        put(&disk, 10 * MIB, b"XFSB").await;
        let plan = planned(&disk, 8).await.unwrap();
        assert_eq!(plan.carries, ["an xfs file system"]);
        add(&disk, plan).await.unwrap();
        let there = disk.read(Lba(10 * MIB / 4096), DmaBuf::zeroed(4096)).await.unwrap();
        assert!(there.starts_with(b"XFSB"));
    });
}

/// Adds a partition to a disk with three foreign ones; the `cut`-th write or flush fails as `effect` says, and all after it.
/// Whether it was added nevertheless.
async fn crash(block: u32, cut: u64, effect: Effect) -> bool {
    let disk = memory(block, SIZE);
    let entries = [foreign(1, 1..10), foreign(2, 20..30), foreign(7, 34..50)];
    divide(&disk, &entries).await;
    let faulty = Fault::new(disk.clone());
    let plan = planned(&faulty, 8).await.unwrap();
    let rule = Rule { ops: vec![Op::Write, Op::Flush], skip: cut, ..Rule::every(effect) };
    faulty.handle().add(rule);
    let added = add(&faulty, plan).await;
    let gpt = table(&disk).await.unwrap().unwrap();
    assert_eq!(gpt.damage, None, "cut {cut}");
    for copy in &gpt.copies {
        // Both: Linux looks at the one in front only, firmware at any that is whole.
        let there = copy.as_ref().unwrap().entries(block.into());
        assert!(entries.iter().all(|entry| there.contains(entry)), "cut {cut}: {there:?}");
        let others = there.iter().filter(|entry| !entries.contains(entry));
        assert!(others.into_iter().all(|entry| entry.kind == ORLOP && entry.number == 3), "cut {cut}");
    }
    let after = table(&disk).await.unwrap().unwrap().division().entries;
    if after.len() == 3 {
        // Whoever tries again gets what was wanted, once.
        let again = planned(&disk, 8).await.unwrap();
        let again = add(&disk, again).await.unwrap();
        let gpt = table(&disk).await.unwrap().unwrap();
        for copy in &gpt.copies {
            let there = copy.as_ref().unwrap().entries(block.into());
            assert!(there.len() == 4 && there.contains(&again), "cut {cut}: {there:?}");
        }
    }
    added.is_ok()
}

#[test]
fn whenever_the_power_goes_all_partitions_are_in_both_copies() {
    simulated(|| async {
        for block in [512, 4096] {
            for effect in [Effect::Fail(Status::MediaWrite), Effect::FailAfter(Status::MediaWrite)] {
                let mut cut = 0;
                while !crash(block, cut, effect).await {
                    cut += 1;
                }
                assert_eq!(cut, 4, "one block in each copy, each flushed: no header is written");
            }
        }
    });
}

#[test]
fn who_ignores_the_lock_is_noticed() {
    simulated(|| async {
        let disk = memory(512, SIZE);
        divide(&disk, &[foreign(1, 1..10)]).await;
        let plan = planned(&disk, 8).await.unwrap();
        divide(&disk, &[foreign(1, 1..10), foreign(2, 10..20)]).await;
        let refused = add(&disk, plan).await.unwrap_err();
        assert!(refused.contains("somebody else is changing its table"), "{refused}");
        let entries = table(&disk).await.unwrap().unwrap().division().entries;
        assert_eq!(entries, [foreign(1, 1..10), foreign(2, 10..20)]);
    });
}

#[test]
fn damage_is_said() {
    simulated(|| async {
        let end = SIZE - 512;
        for (offset, bytes, says) in [
            (512, &b"X"[..], "the table in front: it has no header"),
            (end, b"X", "the table at the end: it has no header"),
            (512 + 60, b"X", "the table in front: its header has a wrong checksum"),
            (1024 + 3 * 128 + 1, b"X", "the table in front: its entries have a wrong checksum"),
            (end - 16384, b"X", "the table at the end: its entries have a wrong checksum"),
            (510, b"\0\0", "no protective MBR"),
            (446 + 16 + 4, b"\x83", "a hybrid MBR"),
        ] {
            let disk = memory(512, SIZE);
            let entries = [foreign(1, 1..10)];
            divide(&disk, &entries).await;
            put(&disk, offset, bytes).await;
            let gpt = table(&disk).await.unwrap().unwrap();
            let damage = gpt.damage.clone().unwrap_or_default();
            assert!(damage.contains(says), "{offset}: {damage}");
            assert_eq!(gpt.division().entries, entries, "the other copy tells what there is");
            assert_eq!(plan(&disk, &seen(&entries), &wanted(8)).await.map(|_| ()), Err(damage));
        }
        let disk = memory(512, SIZE);
        divide(&disk, &[foreign(1, 1..10)]).await;
        put(&disk, 512, b"X").await;
        put(&disk, end, b"X").await;
        assert_eq!(table(&disk).await, Ok(None), "nothing says that there is a table");
        put(&disk, 512, b"EFI PART").await;
        put(&disk, 512 + 40, b"X").await;
        assert!(table(&disk).await.unwrap_err().contains("; the table at the end: it has no header"));
    });
}

#[test]
fn tables_that_contradict_themselves_are_refused() {
    simulated(|| async {
        for (entries, says) in [
            (vec![foreign(1, 1..10), foreign(2, 9..12)], "its partitions 1 and 2 overlap"),
            (vec![foreign(1, 0..10)], "its partition 1 does not lie where partitions may"),
            (vec![foreign(1, 1..64)], "its partition 1 does not lie where partitions may"),
        ] {
            let disk = memory(512, SIZE);
            divide(&disk, &entries).await;
            let refused = table(&disk).await.unwrap_err();
            assert!(refused.contains(says), "{refused}");
        }
        // A disk that has grown, and a copy at the end that says something else.
        let small = memory(512, SIZE);
        divide(&small, &[foreign(1, 1..10)]).await;
        let (front, _) = ends(&small, &(0..SIZE)).await.unwrap();
        let back = vec![0; front.len()];
        let grown = Ends { front: &front, back: &back, size: 2 * SIZE };
        assert!(read(&grown, 512).unwrap_err().contains("the disk had another size"));
        let other = memory(512, SIZE);
        divide(&other, &[foreign(1, 1..11)]).await;
        let (_, back) = ends(&other, &(0..SIZE)).await.unwrap();
        let two = read(&Ends { front: &front, back: &back, size: SIZE }, 512).unwrap().unwrap();
        assert!(two.damage.unwrap().contains("say different things"));
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_lies_there_is_read_or_refused(
        noise in proptest::collection::vec(any::<u8>(), 0..70_000),
        header in any::<bool>(),
        block in prop_oneof![Just(512_u32), Just(4096), any::<u32>()],
        more in 0_u64..1 << 50,
    ) {
        let mut front = noise;
        if header && front.len() > 530 {
            front[512..528].copy_from_slice(b"EFI PART\0\0\x01\0\x5c\0\0\0");
        }
        let size = front.len() as u64 + more;
        if let Ok(Some(gpt)) = read(&Ends { front: &front, back: &front, size }, block) {
            gpt.division();
        }
    }

    #[test]
    fn no_flipped_bit_makes_another_table(at in 0_usize..20_000, bit in 0_u8..8, in_front in any::<bool>()) {
        simulated(move || async move {
            let disk = memory(512, SIZE);
            let entries = [foreign(1, 1..10), foreign(9, 20..30)];
            divide(&disk, &entries).await;
            let (mut front, mut back) = ends(&disk, &(0..SIZE)).await.unwrap();
            let place = if in_front { at } else { back.len() - 1 - at };
            let part = if in_front { &mut front } else { &mut back };
            part[place] ^= 1 << bit;
            let gpt = read(&Ends { front: &front, back: &back, size: SIZE }, 512).unwrap().unwrap();
            assert_eq!(gpt.division().entries, entries, "{at} {bit}");
        });
    }

    #[test]
    fn a_new_partition_lies_in_free_space(
        cuts in proptest::collection::btree_set(1_u64..63, 0..12),
        size in proptest::option::of(4_u64..40),
    ) {
        simulated(move || async move {
            let disk = memory(512, SIZE);
            let cuts: Vec<u64> = cuts.into_iter().collect();
            let parts = (1..).zip(cuts.chunks_exact(2));
            let entries: Vec<Entry> = parts.map(|(number, cut)| foreign(number, cut[0]..cut[1])).collect();
            divide(&disk, &entries).await;
            let wanted = Wanted { size: size.map(|mib| ByteCount(mib * MIB)), label: None };
            let Ok(plan) = plan(&disk, &seen(&entries), &wanted).await else { return };
            let new = add(&disk, plan).await.unwrap();
            let end = |entry: &Entry| entry.start_bytes + entry.size_bytes;
            assert!(new.start_bytes >= MIB && end(&new) <= SIZE - MIB && new.start_bytes % MIB == 0);
            assert!(entries.iter().all(|old| end(old) <= new.start_bytes || end(&new) <= old.start_bytes));
            assert!(size.is_none_or(|mib| new.size_bytes == mib * MIB));
            let gpt = table(&disk).await.unwrap().unwrap();
            let all = [entries, vec![new]].concat();
            assert!(gpt.damage.is_none() && gpt.division().entries == all);
            assert!(gpt.copies.iter().flatten().all(|copy| copy.array.len() == 128 * ENTRY_LEN));
        });
    }
}

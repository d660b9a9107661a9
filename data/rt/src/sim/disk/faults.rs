//! How a test breaks the disks of a world: rules, rot, silence, removal.

use super::{Disk, Latency, Medium};
use crate::sim::executor::Event;
use crate::sim::node::NodeId;
use crate::sim::trace::{Fate, Kind};
use crate::sim::world::World;
use std::ops::Range;
use std::path::Path;

/// What a rule makes go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFault {
    /// Reads fail with `EIO`.
    ReadError,
    /// Writes fail with `EIO`; they may have been applied.
    WriteError,
    /// Flushes fail with `EIO`; what they should have flushed may be lost.
    SyncError,
    /// Flushes and FUA claim success and leave the data volatile.
    SyncLie,
    /// Writes claim success and change nothing.
    LostWrite,
    /// Writes claim success and change other blocks than asked, anywhere on the disk.
    MisdirectedWrite,
}

#[derive(Debug)]
pub(super) struct Rule {
    pub(super) fault: DiskFault,
    pub(super) bytes: Range<u64>,
    pub(super) permille: u16,
}

impl World {
    /// Gives the node a disk of zeroes at `path`.
    ///
    /// # Shape
    /// `len_bytes` is a multiple of `block_size`, which is 512 or 4096. Memory is used for written blocks only.
    /// # Panics
    /// When the shape is wrong or the path taken.
    pub fn add_disk(&self, node: NodeId, path: impl AsRef<Path>, len_bytes: u64, block_size: u32) -> SimDisk {
        assert!(block_size == 512 || block_size == 4096, "a disk with blocks of {block_size} bytes");
        assert!(len_bytes.is_multiple_of(u64::from(block_size)), "{len_bytes} bytes are not whole blocks");
        let path = path.as_ref();
        let index = self.with_state(|state| {
            assert!(state.find_disk(node.0, path).is_none(), "{} exists", path.display());
            state.add_disk(node.0, path, len_bytes, block_size)
        });
        SimDisk { world: self.clone(), index }
    }

    /// The disk (or file) at `path` of the node, for giving it faults.
    ///
    /// # Panics
    /// When there is none.
    pub fn disk(&self, node: NodeId, path: impl AsRef<Path>) -> SimDisk {
        let path = path.as_ref();
        let index = self.with_state(|state| state.find_disk(node.0, path));
        let index = index.unwrap_or_else(|| panic!("{} has no {}", self.name(node), path.display()));
        SimDisk { world: self.clone(), index }
    }
}

/// A disk of a world, as the one who breaks it sees it.
#[derive(Clone)]
pub struct SimDisk {
    world: World,
    index: usize,
}

impl SimDisk {
    fn with<T>(&self, f: impl FnOnce(&mut Disk, &mut Fate) -> T) -> T {
        self.world.with_state(|state| f(&mut state.disks[self.index], &mut state.fate))
    }

    /// From now on operations that touch `bytes` go wrong `permille` times in a thousand.
    pub fn add_fault(&self, fault: DiskFault, bytes: Range<u64>, permille: u16) {
        self.with(|disk, fate| {
            fate.note(Kind::DiskFault, bytes.start, bytes.end);
            disk.rules.push(Rule { fault, bytes, permille });
        });
    }

    /// Removes all rules of [`Self::add_fault`]; rotten and unreadable blocks stay so.
    pub fn clear_faults(&self) {
        self.with(|disk, _| disk.rules.clear());
    }

    /// Flips a bit of the byte at `offset_bytes`, silently.
    pub fn flip_bit(&self, offset_bytes: u64) {
        self.with(|disk, fate| {
            let block_size = u64::from(disk.block_size);
            let byte = usize::try_from(offset_bytes % block_size).expect("within a block");
            let bit = byte * 8 + fate.rng.index(8);
            fate.counters.bits_flipped += 1;
            fate.note(Kind::DiskFault, offset_bytes, bit as u64);
            disk.medium.flip(offset_bytes / block_size, bit);
        });
    }

    /// Makes the block at `offset_bytes` fail reads with `EIO` until it is written again.
    pub fn lose_block(&self, offset_bytes: u64) {
        self.with(|disk, fate| {
            fate.note(Kind::DiskFault, offset_bytes, 0);
            disk.unreadable.insert(offset_bytes / u64::from(disk.block_size));
        });
    }

    /// Stops answering.
    pub fn hang(&self) {
        self.with(|disk, fate| {
            fate.counters.disk_hangs += 1;
            fate.note(Kind::DiskFault, 0, 1);
            disk.hangs = true;
        });
    }

    /// Answers again, what was held back included.
    pub fn release(&self) {
        let index = self.index;
        self.world.with_state(|state| {
            let disk = &mut state.disks[index];
            disk.hangs = false;
            for op in std::mem::take(&mut disk.held) {
                let delay = disk.latency.draw(&mut state.fate);
                state.clock.after(delay, Event::Disk { disk: index, op });
            }
        });
    }

    /// Pulls the disk out: its files fail from now on (`ENODEV`), its volatile cache is lost, and it cannot be opened.
    pub fn unplug(&self) {
        self.release();
        self.with(|disk, fate| {
            fate.counters.disks_unplugged += 1;
            fate.note(Kind::DiskFault, 0, 2);
            disk.interrupt(|_| true, fate);
            disk.opens.clear();
            disk.medium.lose_cache(u64::MAX, fate);
            disk.unplugged = true;
        });
    }

    /// Puts the disk back; it can be opened again.
    pub fn plug(&self) {
        self.with(|disk, _| disk.unplugged = false);
    }

    /// Exchanges the disk for a blank one of the same size; files that are open fail.
    pub fn replace(&self) {
        self.unplug();
        self.with(|disk, _| {
            disk.medium = Medium::new(disk.block_size as usize);
            disk.unreadable.clear();
            disk.unplugged = false;
        });
    }

    /// Sets how long operations take from now on.
    pub fn set_latency(&self, latency: Latency) {
        self.with(|disk, _| disk.latency = latency);
    }

    /// Whether a power cut now would take nothing.
    pub fn is_stable(&self) -> bool {
        self.with(|disk, _| disk.medium.is_stable())
    }
}

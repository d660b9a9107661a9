//! What a replica may hold after a crash: for each block the values that the rules allow.

use std::collections::BTreeMap;

/// Sector size in which a disk tears at the finest.
const SECTOR: usize = 512;

/// One value that a block was given.
#[derive(Clone, Debug)]
struct Version {
    /// What its bytes are made of; zero: zeroes. Several after a tear: each sector is made of one of them.
    stamps: Vec<u64>,
    counter: u64,
    /// When it was completed; none while in flight.
    done: Option<u64>,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    Crash,
    PowerCut,
}

/// The blocks of one replica.
#[derive(Debug)]
pub(crate) struct Model {
    blocks: Vec<Vec<Version>>,
    /// Ranges in flight, by their first block.
    busy: BTreeMap<u64, u64>,
    tick: u64,
    next_stamp: u64,
    /// The worst end since the pool was last open.
    pub(crate) worst: Option<End>,
    /// The generation that writes get now, and the last that is stable for sure, or perhaps.
    pub(crate) counter: u64,
    pub(crate) stable: u64,
    pub(crate) stable_maybe: u64,
}

impl Model {
    pub(crate) fn new(blocks: usize) -> Self {
        let base = Version { stamps: vec![0], counter: 0, done: Some(0) };
        Self {
            blocks: vec![vec![base]; blocks],
            busy: BTreeMap::new(),
            tick: 1,
            next_stamp: 1,
            worst: None,
            counter: 1,
            stable: 0,
            stable_maybe: 0,
        }
    }

    /// Takes a range for an operation, if none is in flight there.
    pub(crate) fn take(&mut self, first: u64, count: u64) -> bool {
        let clear =
            self.busy.range(..first + count).next_back().is_none_or(|(start, len)| start + len <= first);
        if clear {
            self.busy.insert(first, count);
        }
        clear
    }

    pub(crate) fn give_back(&mut self, first: u64) {
        self.busy.remove(&first);
    }

    /// A write begins; returns the stamp of its first block, whose successors have the following ones.
    pub(crate) fn begin(&mut self, first: u64, count: u64, zeroes: bool) -> u64 {
        let start = self.next_stamp;
        self.next_stamp += count;
        for (i, versions) in (0..count).zip(&mut self.blocks[index(first)..]) {
            let stamp = if zeroes { 0 } else { start + i };
            versions.push(Version { stamps: vec![stamp], counter: self.counter, done: None });
        }
        start
    }

    /// That write has completed, durably or not.
    pub(crate) fn complete(&mut self, first: u64, count: u64, durable: bool) {
        self.tick += 1;
        for versions in &mut self.blocks[index(first)..index(first + count)] {
            versions.last_mut().expect("begun").done = Some(self.tick);
            if durable {
                versions.drain(..versions.len() - 1);
            }
        }
    }

    /// That write was refused: nothing of it has been done.
    pub(crate) fn refuse(&mut self, first: u64, count: u64) {
        for versions in &mut self.blocks[index(first)..index(first + count)] {
            versions.pop();
        }
    }

    pub(crate) fn flush_begins(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    /// A flush that began at `tick` has ended.
    pub(crate) fn flushed(&mut self, tick: u64) {
        for versions in &mut self.blocks {
            if let Some(floor) =
                versions.iter().rposition(|version| version.done.is_some_and(|done| done <= tick))
            {
                versions.drain(..floor);
            }
        }
    }

    /// Whether a read of a block that nobody writes may return these bytes.
    pub(crate) fn reads_as(&self, lba: u64, bytes: &[u8]) -> bool {
        let stamps = &self.blocks[index(lba)].last().expect("at least one").stamps;
        bytes.chunks(SECTOR).all(|sector| stamp_of(sector).is_some_and(|stamp| stamps.contains(&stamp)))
    }

    /// The program has ended.
    pub(crate) fn ended(&mut self, end: End) {
        self.busy.clear();
        self.worst = self.worst.max(Some(end));
    }

    /// The pool is open again and this block was read: checks it, and returns the generation that its extent must have
    /// been reported with, at least.
    pub(crate) fn recover(&mut self, lba: u64, bytes: &[u8]) -> Result<u64, String> {
        let versions = &mut self.blocks[index(lba)];
        if self.worst != Some(End::PowerCut)
            && let Some(last) = versions.iter().rposition(|version| version.done.is_some())
        {
            versions.drain(..last);
        }
        let mut found = Version { stamps: Vec::new(), counter: 0, done: Some(self.tick) };
        for sector in bytes.chunks(SECTOR) {
            let stamp = stamp_of(sector)
                .ok_or_else(|| format!("block {lba} holds bytes that were never written there"))?;
            let version =
                versions.iter().find(|version| version.stamps.contains(&stamp)).ok_or_else(|| {
                    format!("block {lba} holds {stamp}, allowed is {versions:?} after {:?}", self.worst)
                })?;
            found.counter = found.counter.max(version.counter);
            if !found.stamps.contains(&stamp) {
                found.stamps.push(stamp);
            }
        }
        let counter = found.counter;
        *versions = vec![found];
        Ok(counter)
    }

    /// Every block has been read after opening.
    pub(crate) fn recovered(&mut self) {
        self.worst = None;
    }
}

/// What a sector is made of; none if not of one stamp.
fn stamp_of(sector: &[u8]) -> Option<u64> {
    let stamp = u64::from_le_bytes(sector[..8].try_into().expect("eight bytes"));
    sector.chunks(8).all(|word| word == stamp.to_le_bytes()).then_some(stamp)
}

/// A block full of `stamp`.
pub(crate) fn fill(block: &mut [u8], stamp: u64) {
    block.chunks_mut(8).for_each(|word| word.copy_from_slice(&stamp.to_le_bytes()));
}

fn index(value: u64) -> usize {
    usize::try_from(value).expect("small")
}

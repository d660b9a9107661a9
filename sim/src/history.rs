//! The history of each block, and whether it could have come from one block written by one writer at a time.
//!
//! Every write carries a value that no other write carries, so a read names the write that it saw. For such registers
//! linearizability has a simple test (Gibbons and Korach): group each write with the reads that saw it. If the first of
//! them to end ends before the last of them begins, the value was certainly there in between (a *forward* zone);
//! otherwise it was there at some moment (a *backward* zone). The history is linearizable exactly when no read precedes
//! its write, no two forward zones overlap, and no backward zone lies within a forward one.
//!
//! Operations whose answer was lost may have happened at any later time, or never. A power cut may take what was
//! completed and not flushed: [`Block::gap`] then closes an era, and the next one starts from any value that a flush had
//! not yet outdated.

use std::collections::BTreeMap;
use std::fmt;

/// A moment: the number of an event, so that any two differ.
pub type Moment = u64;

/// What a block holds: the number of the write, 0 for a block never written (zeroes).
pub type Value = u64;

/// Marks the value of a write of zeroes, which no read can tell from another one: a read of zeroes counts only where
/// nobody wrote any, while a value that comes back after zeroes were acknowledged is found as ever.
pub const ZEROES: Value = 1 << 63;

#[derive(Clone, Copy, Debug)]
struct Write {
    start: Moment,
    /// None while under way, and for ever if it failed or its answer was lost: then it may have happened.
    end: Option<Moment>,
    /// Acknowledged as durable by itself.
    durable: bool,
}

#[derive(Clone, Copy, Debug)]
struct Read {
    start: Moment,
    end: Moment,
    value: Value,
}

/// What is wrong with a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A read saw a value that nobody wrote to this block, or that no start of its era allows.
    Unwritten(Value),
    /// A read ended before the write that it saw began.
    FromTheFuture(Value),
    /// Two values were each certainly there in the same stretch of time, or one came back after it was gone.
    BackInTime(Value, Value),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unwritten(value) => write!(f, "value {value} was read and cannot have been there"),
            Self::FromTheFuture(value) => write!(f, "value {value} was read before it was written"),
            Self::BackInTime(a, b) => {
                write!(f, "values {a} and {b} were there in turns: a read went back in time")
            }
        }
    }
}

/// The history of one block since the last gap.
#[derive(Clone, Debug, Default)]
pub struct Block {
    writes: BTreeMap<Value, Write>,
    reads: Vec<Read>,
    /// The values that the era may have started with; empty stands for zeroes only.
    initial: Vec<Value>,
    /// When the last flush that completed was begun: what had ended before is safe from power cuts.
    flushed: Moment,
}

impl Block {
    /// A write begins.
    pub fn write_begins(&mut self, value: Value, start: Moment) {
        self.writes.insert(value, Write { start, end: None, durable: false });
    }

    /// A write was acknowledged.
    pub fn write_ends(&mut self, value: Value, end: Moment, durable: bool) {
        if let Some(write) = self.writes.get_mut(&value) {
            write.end = Some(end);
            write.durable = durable;
        }
    }

    /// A read returned `value`.
    pub fn read(&mut self, value: Value, start: Moment, end: Moment) {
        if value == 0 && self.writes.keys().any(|value| value & ZEROES != 0) {
            return;
        }
        self.reads.push(Read { start, end, value });
    }

    /// A flush that began at `start` was acknowledged.
    pub fn flushed(&mut self, start: Moment) {
        self.flushed = self.flushed.max(start);
    }

    /// Checks the era that ends now, and begins the next one, in which completed but unflushed writes may be missing.
    pub fn gap(&mut self, now: Moment) -> Result<(), Violation> {
        self.check()?;
        let survivors = self.possible_after_power_cut();
        *self = Self { initial: survivors, flushed: now, ..Self::default() };
        Ok(())
    }

    /// The values that may be there when all that was not flushed may be lost: those of writes that no other write
    /// certainly followed before the last flush began, and the start of the era if nothing was flushed.
    fn possible_after_power_cut(&self) -> Vec<Value> {
        let safe = |write: &Write| write.end.is_some_and(|end| write.durable || end < self.flushed);
        let latest_safe_start = self.writes.values().filter(|w| safe(w)).map(|w| w.start).max();
        let mut possible: Vec<Value> = self
            .writes
            .iter()
            .filter(|(_, write)| {
                // Gone for certain: it ended before a safe write began.
                latest_safe_start.is_none_or(|safe_start| write.end.is_none_or(|end| end >= safe_start))
            })
            .map(|(value, _)| if value & ZEROES == 0 { *value } else { 0 })
            .collect();
        if latest_safe_start.is_none() {
            possible.extend(self.initial.iter().copied());
            if self.initial.is_empty() {
                possible.push(0);
            }
        }
        possible
    }

    /// Whether the era's history is linearizable.
    pub fn check(&self) -> Result<(), Violation> {
        let mut zones: BTreeMap<Value, (Moment, Moment)> = BTreeMap::new();
        for (value, write) in &self.writes {
            zones.insert(*value, (write.end.unwrap_or(Moment::MAX), write.start));
        }
        let starts = if self.initial.is_empty() { vec![0] } else { self.initial.clone() };
        let mut started_with = None;
        for read in &self.reads {
            if let Some(write) = self.writes.get(&read.value) {
                if read.end < write.start {
                    return Err(Violation::FromTheFuture(read.value));
                }
            } else if !starts.contains(&read.value) {
                return Err(Violation::Unwritten(read.value));
            } else if *started_with.get_or_insert(read.value) != read.value {
                return Err(Violation::BackInTime(started_with.unwrap_or_default(), read.value));
            }
            // The era's start was "written" before everything.
            let zone = zones.entry(read.value).or_insert((0, 0));
            zone.0 = zone.0.min(read.end);
            zone.1 = zone.1.max(read.start);
        }
        // A write whose answer was lost or that failed, and that nobody saw, need not have happened.
        let unseen = |value: &Value| {
            self.writes.get(value).is_some_and(|w| w.end.is_none())
                && !self.reads.iter().any(|r| r.value == *value)
        };
        let zones: Vec<(Value, Moment, Moment)> = zones
            .into_iter()
            .filter(|(v, _)| !unseen(v))
            .map(|(v, (first_end, last_start))| (v, first_end, last_start))
            .collect();
        for (index, &(a, a_end, a_start)) in zones.iter().enumerate() {
            for &(b, b_end, b_start) in &zones[index + 1..] {
                let forward = a_end < a_start || b_end < b_start;
                let conflict = forward && a_end < b_start && b_end < a_start;
                if conflict {
                    return Err(Violation::BackInTime(a, b));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes as (value, start, end), reads as (value, start, end).
    fn check(
        writes: &[(Value, Moment, Option<Moment>)],
        reads: &[(Value, Moment, Moment)],
    ) -> Result<(), Violation> {
        block(writes, reads).check()
    }

    fn block(writes: &[(Value, Moment, Option<Moment>)], reads: &[(Value, Moment, Moment)]) -> Block {
        let mut block = Block::default();
        for &(value, start, end) in writes {
            block.write_begins(value, start);
            if let Some(end) = end {
                block.write_ends(value, end, false);
            }
        }
        for &(value, start, end) in reads {
            block.read(value, start, end);
        }
        block
    }

    #[test]
    fn what_one_writer_at_a_time_could_have_done_is_accepted() {
        assert_eq!(check(&[], &[(0, 1, 2)]), Ok(()));
        assert_eq!(check(&[(1, 1, Some(2)), (2, 3, Some(4))], &[(1, 2, 3), (2, 5, 6)]), Ok(()));
        // A read beside a write may see either.
        assert_eq!(check(&[(1, 1, Some(2)), (2, 3, Some(9))], &[(2, 4, 5), (2, 6, 7)]), Ok(()));
        assert_eq!(check(&[(1, 1, Some(2)), (2, 3, Some(9))], &[(1, 4, 5), (2, 6, 7)]), Ok(()));
        // A lost write may happen late, or never.
        assert_eq!(check(&[(1, 1, Some(2)), (2, 3, None)], &[(1, 4, 5), (1, 6, 7)]), Ok(()));
        assert_eq!(check(&[(1, 1, Some(2)), (2, 3, None)], &[(1, 4, 5), (2, 60, 70)]), Ok(()));
    }

    #[test]
    fn what_it_could_not_have_done_is_refused() {
        let back = |a, b| Err(Violation::BackInTime(a, b));
        assert_eq!(check(&[(1, 1, Some(2)), (2, 3, Some(4))], &[(1, 5, 6)]), back(1, 2)); // A lost write.
        assert_eq!(check(&[(1, 1, Some(2)), (2, 3, Some(9))], &[(2, 4, 5), (1, 6, 7)]), back(1, 2));
        assert_eq!(check(&[(1, 1, Some(2)), (2, 3, None)], &[(2, 4, 5), (1, 6, 7)]), back(1, 2));
        assert_eq!(check(&[(1, 5, Some(6))], &[(1, 1, 2)]), Err(Violation::FromTheFuture(1)));
        assert_eq!(check(&[], &[(7, 1, 2)]), Err(Violation::Unwritten(7)));
        assert_eq!(check(&[(1, 3, Some(4))], &[(0, 5, 6)]), back(0, 1));
    }

    #[test]
    fn a_power_cut_takes_only_what_no_flush_has_saved() {
        let mut unflushed = block(&[(1, 1, Some(2)), (2, 3, Some(4))], &[]);
        unflushed.gap(10).unwrap();
        assert_eq!((unflushed.read(0, 11, 12), unflushed.check()), ((), Ok(())));

        let mut flushed = block(&[(1, 1, Some(2)), (2, 5, Some(6))], &[]);
        flushed.flushed(3);
        flushed.gap(10).unwrap();
        let (mut old, mut gone) = (flushed.clone(), flushed.clone());
        old.read(1, 11, 12);
        assert_eq!(old.check(), Ok(()));
        gone.read(0, 11, 12);
        assert_eq!(gone.check(), Err(Violation::Unwritten(0)));
        // The new era has one start, whatever it was.
        old.read(2, 13, 14);
        assert_eq!(old.check(), Err(Violation::BackInTime(1, 2)));
    }
}

//! A device that fails on demand: wraps any [`Device`] and lets rules decide what happens to each operation.
//!
//! Rules are looked at in the order in which they were added; the first one that matches decides. They can be changed
//! while the device is in use, through a [`FaultHandle`].
//!
//! # Invariants
//! 1. An operation that a rule fails *before* never reaches the device; one that it fails *after* has been executed.
//! 2. A hanging operation has not been executed; it goes on when its rule is removed.

use crate::{BlockCount, Device, Geometry, Lba, Status};
use rt::{DmaBuf, DmaBytes, Durability, mailbox};
use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::Duration;

/// What is asked of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// [`Device::read`].
    Read,
    /// [`Device::write`].
    Write,
    /// [`Device::write_zeroes`].
    WriteZeroes,
    /// [`Device::unmap`].
    Unmap,
    /// [`Device::flush`].
    Flush,
}

impl Op {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Read, Self::Write, Self::WriteZeroes, Self::Unmap, Self::Flush];
}

/// What a rule does to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Not executed; fails with this status.
    Fail(Status),
    /// Executed; fails with this status nevertheless.
    FailAfter(Status),
    /// Executed after this time.
    Delay(Duration),
    /// Waits until the rule is removed, then is executed.
    Hang,
}

/// Which operations are hit, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What happens.
    pub effect: Effect,
    /// The operations it applies to; empty for all of them.
    pub ops: Vec<Op>,
    /// The blocks it applies to (an operation that touches one of them); `None` for all, and for flushes.
    pub lbas: Option<RangeInclusive<u64>>,
    /// Spare this many matching operations first.
    pub skip: u64,
    /// Hit at most this many operations; `None` for no limit.
    pub times: Option<u64>,
    /// Chance in a thousand to hit a matching operation.
    pub permille: u16,
}

impl Rule {
    /// `effect` on every operation.
    pub const fn every(effect: Effect) -> Self {
        Self { effect, ops: Vec::new(), lbas: None, skip: 0, times: None, permille: 1000 }
    }

    /// `effect` on every operation of one kind.
    pub fn on(op: Op, effect: Effect) -> Self {
        Self { ops: vec![op], ..Self::every(effect) }
    }

    fn matches(&self, op: Op, lba: Lba, count: BlockCount) -> bool {
        let of_kind = self.ops.is_empty() || self.ops.contains(&op);
        let in_range = self.lbas.as_ref().is_none_or(|range| {
            let last = lba.0.saturating_add(count.0.saturating_sub(1));
            count.0 > 0 && lba.0 <= *range.end() && *range.start() <= last
        });
        of_kind && in_range
    }
}

/// Names a rule of one [`FaultHandle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleId(u64);

struct Active {
    id: RuleId,
    rule: Rule,
    seen: u64,
    hit: u64,
    /// Closed when the rule goes; hanging operations wait for that.
    gone: (mailbox::Sender<()>, mailbox::Receiver<()>),
}

#[derive(Default)]
struct Rules {
    active: Vec<Active>,
    added: u64,
}

/// Changes the rules of a [`Fault`] device while it is in use.
#[derive(Clone, Default)]
pub struct FaultHandle(Rc<RefCell<Rules>>);

impl FaultHandle {
    /// Adds a rule behind the others.
    pub fn add(&self, rule: Rule) -> RuleId {
        let mut rules = self.0.borrow_mut();
        let id = RuleId(rules.added);
        rules.added += 1;
        rules.active.push(Active { id, rule, seen: 0, hit: 0, gone: mailbox::bounded(1) });
        id
    }

    /// Removes a rule; operations that hang on it go on. Does nothing if it is gone already.
    pub fn remove(&self, id: RuleId) {
        self.0.borrow_mut().active.retain(|active| active.id != id);
    }

    /// Removes all rules.
    pub fn clear(&self) {
        self.0.borrow_mut().active.clear();
    }

    /// How many operations the rule has hit; zero once it is gone.
    pub fn hits(&self, id: RuleId) -> u64 {
        self.0.borrow().active.iter().find(|active| active.id == id).map_or(0, |active| active.hit)
    }

    fn decide(&self, op: Op, lba: Lba, count: BlockCount) -> Option<(Effect, mailbox::Receiver<()>)> {
        let mut rules = self.0.borrow_mut();
        for active in rules.active.iter_mut().filter(|active| active.rule.matches(op, lba, count)) {
            active.seen += 1;
            if active.seen > active.rule.skip && active.rule.times.is_none_or(|times| active.hit < times) {
                if active.rule.permille < 1000 && rt::random_u64() % 1000 >= u64::from(active.rule.permille) {
                    continue;
                }
                active.hit += 1;
                return Some((active.rule.effect, active.gone.1.clone()));
            }
        }
        None
    }
}

impl std::fmt::Debug for FaultHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.borrow().active.iter().map(|active| &active.rule)).finish()
    }
}

/// A device whose operations fail, wait or hang by rule; clones share the rules.
#[derive(Clone, Debug)]
pub struct Fault<D> {
    device: D,
    rules: FaultHandle,
}

impl<D: Device> Fault<D> {
    /// `device` without any rule yet.
    pub fn new(device: D) -> Self {
        Self { device, rules: FaultHandle::default() }
    }

    /// The handle that changes the rules.
    pub fn handle(&self) -> FaultHandle {
        self.rules.clone()
    }

    /// Lets the rules act before an operation; returns the status to fail with after it.
    async fn before(&self, op: Op, lba: Lba, count: BlockCount) -> Result<Option<Status>, Status> {
        match self.rules.decide(op, lba, count) {
            None => Ok(None),
            Some((Effect::Fail(status), _)) => Err(status),
            Some((Effect::FailAfter(status), _)) => Ok(Some(status)),
            Some((Effect::Delay(duration), _)) => {
                rt::sleep(duration).await;
                Ok(None)
            }
            Some((Effect::Hang, gone)) => {
                // Nobody sends: this ends with an error when the rule, and with it the sender, goes.
                assert!(gone.recv().await.is_err(), "nobody sends on a rule's channel");
                Ok(None)
            }
        }
    }

    fn blocks(&self, len_bytes: usize) -> BlockCount {
        BlockCount((len_bytes as u64).div_ceil(u64::from(self.geometry().block_size)))
    }
}

fn after<T>(output: T, failure: Option<Status>) -> Result<T, Status> {
    failure.map_or(Ok(output), Err)
}

impl<D: Device> Device for Fault<D> {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    async fn read(&self, lba: Lba, buf: DmaBuf) -> Result<DmaBuf, Status> {
        let failure = self.before(Op::Read, lba, self.blocks(buf.len())).await?;
        after(self.device.read(lba, buf).await?, failure)
    }

    async fn write(&self, lba: Lba, data: DmaBytes, durability: Durability) -> Result<(), Status> {
        let failure = self.before(Op::Write, lba, self.blocks(data.len())).await?;
        after(self.device.write(lba, data, durability).await?, failure)
    }

    async fn write_zeroes(&self, lba: Lba, count: BlockCount, durability: Durability) -> Result<(), Status> {
        let failure = self.before(Op::WriteZeroes, lba, count).await?;
        after(self.device.write_zeroes(lba, count, durability).await?, failure)
    }

    async fn unmap(&self, lba: Lba, count: BlockCount) -> Result<(), Status> {
        let failure = self.before(Op::Unmap, lba, count).await?;
        after(self.device.unmap(lba, count).await?, failure)
    }

    async fn flush(&self) -> Result<(), Status> {
        let failure = self.before(Op::Flush, Lba(0), BlockCount(0)).await?;
        after(self.device.flush().await?, failure)
    }
}

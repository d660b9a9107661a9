//! Clients of the volume: reads, writes and flushes of stamped blocks, also of blocks that others write at the same time.
//!
//! Each client runs its operations on the machine that has the volume open, as a front-end there would, so that they die
//! with it. An operation whose answer does not come is lost: it may have happened, or may still happen.

use crate::cluster::{BLOCK_SIZE, Cluster};
use crate::history::{Block, Moment, Value, ZEROES};
use crate::totals::Totals;
use device::{BlockCount, Device, Lba, Status};
use nexus::{Attachment, Nexus};
use rt::{DmaBuf, Durability};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest that a client waits before it does something else, with another owner if there is one. An answer that
/// comes later counts.
const IMPATIENCE_MAX_MS: u64 = 2_000;
/// The host that all clients are.
const HOST: Uuid = Uuid::from_u128(0x4057);
/// The most blocks in one operation.
const BLOCKS_MAX: u64 = 8;

/// What all clients share; a cheap handle.
#[derive(Clone)]
pub(crate) struct Workload(Rc<Inner>);

struct Inner {
    cluster: Cluster,
    /// The blocks that are written and read, all of them few, so that operations meet.
    hot: Vec<Lba>,
    blocks: RefCell<BTreeMap<Lba, Block>>,
    clock: Cell<Moment>,
    values: Cell<Value>,
    era: Cell<u64>,
    /// The number of the attachment that clients use, in this era; all of them share one host.
    attachment: Cell<Option<u64>>,
    /// The host has to detach before it attaches anew.
    detaching: Cell<bool>,
    attaching: rt::sync::Mutex<()>,
    totals: RefCell<Totals>,
    violation: RefCell<Option<String>>,
    stop: Cell<bool>,
    /// The filler has to end.
    trimming: Cell<bool>,
    /// The longest pause of a client between two operations.
    pause_max_us: u64,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Read,
    Write(Durability),
    Zero,
    Unmap,
    Flush,
}

/// How it ended.
enum Answer {
    /// Done; a read brings the values of its blocks.
    Done(Vec<Value>),
    Failed(Status),
    Lost,
}

impl Workload {
    /// Clients for the blocks `hot`, in which several runs of neighbours make long operations overlap.
    pub(crate) fn new(cluster: &Cluster, hot: Vec<Lba>) -> Self {
        Self(Rc::new(Inner {
            cluster: cluster.clone(),
            hot,
            blocks: RefCell::default(),
            clock: Cell::new(0),
            values: Cell::new(0),
            era: Cell::new(0),
            attachment: Cell::new(None),
            detaching: Cell::new(false),
            attaching: rt::sync::Mutex::new(()),
            totals: RefCell::default(),
            violation: RefCell::default(),
            stop: Cell::new(false),
            trimming: Cell::new(false),
            pause_max_us: 5_000 + rt::random_u64() % 60_000,
        }))
    }

    fn tick(&self) -> Moment {
        self.0.clock.set(self.0.clock.get() + 1);
        self.0.clock.get()
    }

    /// Lets the clients end after their current operation.
    pub(crate) fn stop(&self) {
        self.0.stop.set(true);
    }

    /// What was counted.
    pub(crate) fn totals(&self) -> Totals {
        self.0.totals.borrow().clone()
    }

    /// The first thing that was wrong.
    pub(crate) fn violation(&self) -> Option<String> {
        self.0.violation.borrow().clone()
    }

    fn violate(&self, cause: String) {
        self.0.violation.borrow_mut().get_or_insert(cause);
    }

    /// One client: one operation after the other until told to stop. It has at most one unanswered on each machine.
    pub(crate) async fn client(self) {
        let mut unanswered: Vec<(usize, rt::Task<bool>)> = Vec::new();
        while !self.0.stop.get() && self.violation().is_none() {
            let operation = match rt::random_u64() % 100 {
                0..45 => Operation::Read,
                45..86 => Operation::Write(Durability::Cached),
                86..91 => Operation::Write(Durability::Durable),
                91..93 => Operation::Zero,
                93..95 => Operation::Unmap,
                _ => Operation::Flush,
            };
            let start =
                self.0.hot[usize::try_from(rt::random_u64() % self.0.hot.len() as u64).expect("few blocks")];
            let count =
                if rt::random_u64().is_multiple_of(3) { 1 + rt::random_u64() % BLOCKS_MAX } else { 1 };
            unanswered.retain(|(_, asked)| !asked.is_finished());
            let silent: Vec<usize> = unanswered.iter().map(|(machine, _)| *machine).collect();
            if let Some((machine, nexus)) = self.0.cluster.owner(&silent) {
                let workload = self.clone();
                let asked = async move {
                    workload.perform_on(machine, &nexus, operation, start, BlockCount(count)).await
                };
                let mut asked = rt::spawn(asked);
                let impatience = Duration::from_millis(rt::random_u64() % IMPATIENCE_MAX_MS);
                if rt::timeout(impatience, &mut asked).await.is_err() {
                    unanswered.push((machine, asked));
                }
            }
            rt::sleep(Duration::from_micros(rt::random_u64() % self.0.pause_max_us)).await;
        }
        for (_, asked) in unanswered {
            asked.await;
        }
    }

    /// A client that takes space all over the volume until some pool is full, and goes on.
    pub(crate) async fn filler(self, blocks: u64) {
        while !self.0.trimming.get() && self.violation().is_none() {
            let count = 1 + rt::random_u64() % 32;
            let lba = Lba(rt::random_u64() % (blocks - count));
            self.perform(Operation::Write(Durability::Cached), lba, BlockCount(count)).await;
            rt::sleep(Duration::from_micros(rt::random_u64() % 20_000)).await;
        }
    }

    /// Gives back the space of every block that is not hot, so that all copies fit their disks again.
    pub(crate) async fn trim(&self) {
        self.0.trimming.set(true);
        let touched: Vec<Lba> = self.0.blocks.borrow().keys().copied().collect();
        for lba in touched.into_iter().filter(|lba| !self.0.hot.contains(lba)) {
            while !self.perform(Operation::Unmap, lba, BlockCount(1)).await && self.violation().is_none() {
                rt::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Reads every block that was written once more.
    pub(crate) async fn read_all(&self) {
        let touched: Vec<Lba> = self.0.blocks.borrow().keys().copied().collect();
        for lba in touched {
            while !self.perform(Operation::Read, lba, BlockCount(1)).await && self.violation().is_none() {
                rt::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Checks all histories.
    pub(crate) fn check(&self) {
        for (lba, block) in self.0.blocks.borrow().iter() {
            if let Err(violation) = block.check() {
                self.violate(format!("block {}: {violation}", lba.0));
            }
        }
    }

    /// Performs one operation wherever the volume is open, and waits for its end; true if it was done.
    async fn perform(&self, operation: Operation, lba: Lba, count: BlockCount) -> bool {
        let Some((machine, nexus)) = self.0.cluster.owner(&[]) else {
            rt::sleep(Duration::from_millis(10)).await;
            return false;
        };
        self.perform_on(machine, &nexus, operation, lba, count).await
    }

    /// Performs one operation and notes its history; true if it was done.
    async fn perform_on(
        &self,
        machine: usize,
        nexus: &Nexus,
        operation: Operation,
        lba: Lba,
        count: BlockCount,
    ) -> bool {
        // What has not grown there yet, or on an owner that was replaced, is not asked for.
        let end_bytes = (lba.0 + count.0) * u64::from(BLOCK_SIZE);
        if end_bytes > nexus.size().0 {
            return false;
        }
        let Some(attachment) = self.attachment(machine, nexus).await else { return false };
        let writes = matches!(operation, Operation::Write(_) | Operation::Zero | Operation::Unmap);
        let value = if writes { self.stamp(operation) } else { 0 };
        let (era, start) = (self.0.era.get(), self.tick());
        if writes {
            self.each(lba, count, |block| block.write_begins(value, start));
        }
        let answer = self.ask(machine, attachment.clone(), operation, lba, count, value).await;
        let end = self.tick();
        if self.0.era.get() != era {
            return false; // Of an era that a gap has closed.
        }
        if self.gapped(nexus, &attachment) {
            self.close_era(end);
            return false;
        }
        self.note(operation, answer, lba, count, value, start, end)
    }

    /// A value that nothing else was written with.
    fn stamp(&self, operation: Operation) -> Value {
        self.0.values.set(self.0.values.get() + 1);
        let zeroes = if matches!(operation, Operation::Zero | Operation::Unmap) { ZEROES } else { 0 };
        zeroes | self.0.values.get()
    }

    fn each(&self, lba: Lba, count: BlockCount, mut f: impl FnMut(&mut Block)) {
        let mut blocks = self.0.blocks.borrow_mut();
        for index in 0..count.0 {
            f(blocks.entry(lba.plus(index)).or_default());
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one event with all that is known of it")]
    fn note(
        &self,
        operation: Operation,
        answer: Answer,
        lba: Lba,
        count: BlockCount,
        value: Value,
        start: Moment,
        end: Moment,
    ) -> bool {
        let mut totals = self.0.totals.borrow_mut();
        match answer {
            Answer::Lost => {
                totals.lost += 1;
                return false;
            }
            Answer::Failed(status) => {
                totals.failed += 1;
                if matches!(status, Status::Corrupt | Status::OutOfRange | Status::Invalid) {
                    self.violate(format!(
                        "{operation:?} of {} blocks at {} failed: {status}",
                        count.0, lba.0
                    ));
                }
                return false;
            }
            Answer::Done(values) => match operation {
                Operation::Flush => {
                    totals.flushes += 1;
                    self.0.blocks.borrow_mut().values_mut().for_each(|block| block.flushed(start));
                }
                Operation::Read => {
                    totals.completed += 1;
                    let mut values = values.into_iter();
                    self.each(lba, count, |block| block.read(values.next().unwrap_or(TORN), start, end));
                }
                Operation::Write(durability) => {
                    totals.completed += 1;
                    let durable = durability == Durability::Durable;
                    self.each(lba, count, |block| block.write_ends(value, end, durable));
                }
                Operation::Zero | Operation::Unmap => {
                    totals.completed += 1;
                    self.each(lba, count, |block| block.write_ends(value, end, false));
                }
            },
        }
        true
    }

    /// Asks the engine on `machine`, and waits for its answer, its death, or the end of patience.
    async fn ask(
        &self,
        machine: usize,
        attachment: Attachment,
        operation: Operation,
        lba: Lba,
        count: BlockCount,
        value: Value,
    ) -> Answer {
        let id = self.0.cluster.machines[machine].id;
        if !self.0.cluster.world.is_running(id) {
            return Answer::Lost;
        }
        let task = self
            .0
            .cluster
            .world
            .spawn_on(id, async move { run(&attachment, operation, lba, count, value).await })
            .fallible();
        match rt::timeout(PATIENCE, task).await {
            Ok(Some(Ok(values))) => Answer::Done(values),
            Ok(Some(Err(status))) => Answer::Failed(status),
            Ok(None) | Err(_) => Answer::Lost,
        }
    }

    /// The host's attachment as `nexus` knows it; made where there is none.
    async fn attachment(&self, machine: usize, nexus: &Nexus) -> Option<Attachment> {
        let _one = self.0.attaching.lock().await;
        let (id, nexus) = (self.0.cluster.machines[machine].id, nexus.clone());
        let nexus_epoch = nexus.epoch();
        if !self.0.cluster.world.is_running(id) {
            return None;
        }
        let detaching = self.0.detaching.get();
        let attaching = async move {
            if detaching {
                nexus.detach_host(HOST, || true).await.ok()?;
            }
            nexus.attach_host(HOST, |_| true).await.ok()
        };
        let task = self.0.cluster.world.spawn_on(id, attaching).fallible();
        let attachment = rt::timeout(PATIENCE, task).await.ok()???;
        self.0.detaching.set(false);
        let number = attachment.number();
        match self.0.attachment.get() {
            // An owner that does not know better: there the host has not attached anew yet. Or a store that was set back
            // does not know that it has: then no member was up, and nothing was written since.
            Some(known) if number < known && !self.was_recovered(nexus_epoch) => return None,
            Some(known) if number > known => {
                self.violate(format!("I10: attachment {known} became {number} and its host was not told"));
                return None;
            }
            _ => self.0.attachment.set(Some(number)),
        }
        Some(attachment)
    }

    /// Whether the record was found on a member, and `epoch` is the one that the store has given since.
    fn was_recovered(&self, epoch: u64) -> bool {
        let store = &self.0.cluster.store;
        store.totals().records_recovered > 0 && store.record(self.0.cluster.volume).epoch == epoch
    }

    fn gapped(&self, nexus: &Nexus, attachment: &Attachment) -> bool {
        nexus.status().record.gap_through >= attachment.number()
            || self.0.cluster.store.record(self.0.cluster.volume).gap_through >= attachment.number()
    }

    /// The host detaches and will attach anew: completed, unflushed writes may be gone (I10).
    fn close_era(&self, now: Moment) {
        self.0.era.set(self.0.era.get() + 1);
        self.0.attachment.set(None);
        self.0.detaching.set(true);
        let mut blocks = self.0.blocks.borrow_mut();
        for (lba, block) in blocks.iter_mut() {
            if let Err(violation) = block.gap(now) {
                self.violate(format!("block {}: {violation}", lba.0));
            }
        }
    }
}

/// What a read of a torn block counts as.
const TORN: Value = Value::MAX;

/// Runs one operation on the machine of the nexus.
async fn run(
    attachment: &Attachment,
    operation: Operation,
    lba: Lba,
    count: BlockCount,
    value: Value,
) -> Result<Vec<Value>, Status> {
    let len = usize::try_from(count.0).expect("few blocks") * BLOCK_SIZE as usize;
    match operation {
        Operation::Read => {
            let data = attachment.read(lba, DmaBuf::new(len)).await?;
            return Ok(data.chunks(BLOCK_SIZE as usize).map(value_of).collect());
        }
        Operation::Write(durability) => {
            let mut data = DmaBuf::new(len);
            data.chunks_mut(8).for_each(|word| word.copy_from_slice(&value.to_le_bytes()));
            attachment.write(lba, data.freeze(), durability).await?;
        }
        Operation::Zero => attachment.write_zeroes(lba, count, Durability::Cached).await?,
        Operation::Unmap => attachment.unmap(lba, count).await?,
        Operation::Flush => attachment.flush().await?,
    }
    Ok(Vec::new())
}

/// The value that a block holds, if it holds one and the same everywhere.
fn value_of(block: &[u8]) -> Value {
    let first = &block[..8];
    if block.chunks(8).all(|word| word == first) {
        Value::from_le_bytes(first.try_into().expect("eight bytes"))
    } else {
        TORN
    }
}

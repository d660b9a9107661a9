//! Group commit and flush: the tasks that write batches, flush the device and settle what was written.
//!
//! Each task starts when there is work and ends when there is none: an idle pool does nothing.
//!
//! # Invariants
//! 1. One batch is in flight at a time; everything that arrives meanwhile goes into the next.
//! 2. Records count as settled only below a mark that is itself durable.

use crate::inner::Inner;
use crate::journal::{Batch, Formed};
use crate::metrics::Metrics;
use crate::record::Record;
use device::{Device, Status};
use futures_util::future::try_join;
use rt::Durability;
use std::rc::Rc;
use std::time::Duration;

/// How long new blocks wait, at most, before a background flush settles them.
const SETTLE_AFTER: Duration = Duration::from_millis(250);

impl<D: Device + 'static> Inner<D> {
    /// Adds a record to the journal; returns its number. The caller has changed the state in the same step.
    pub(crate) fn push(self: &Rc<Self>, encode: impl FnOnce(&mut Vec<u8>)) -> u64 {
        let record = self.journal.borrow_mut().push(encode);
        self.start_writer();
        record
    }

    fn start_writer(self: &Rc<Self>) {
        if !self.running.writer.get() {
            self.running.writer.set(true);
            let inner = Rc::clone(self);
            rt::spawn(async move { inner.write_batches().await }).detach();
        }
    }

    async fn write_batches(self: &Rc<Self>) {
        while !self.failed.get() {
            let progress = self.progress.wait();
            let formed = self.journal.borrow_mut().form();
            match formed {
                Formed::Idle => break,
                Formed::Full => {
                    self.start_checkpoint();
                    progress.await;
                }
                Formed::Batch(batch) => {
                    if let Err(status) = self.write_batch(batch).await {
                        self.fail("writing the journal", status);
                    }
                }
            }
            if self.journal.borrow().wants_checkpoint() {
                self.start_checkpoint();
            }
        }
        self.running.writer.set(false);
    }

    async fn write_batch(&self, batch: Batch) -> Result<(), Status> {
        let (end_record, end_position) = batch.end();
        let offset = self.layout.journal_offset + batch.ring_offset;
        let bytes = batch.bytes.freeze();
        let len = bytes.len() as u64;
        let room = self.layout.journal_bytes - batch.ring_offset;
        if len <= room {
            self.write_at(offset, bytes, Durability::Cached).await?;
        } else {
            let split = crate::layout::index(room);
            let (front, back) = (bytes.slice(0..split), bytes.slice(split..bytes.len()));
            try_join(
                self.write_at(offset, front, Durability::Cached),
                self.write_at(self.layout.journal_offset, back, Durability::Cached),
            )
            .await?;
        }
        Metrics::count(&self.metrics, |metrics| {
            metrics.journal_commits += 1;
            metrics.journal_bytes += len;
        });
        self.journal.borrow_mut().complete(end_record, end_position);
        self.progress.notify();
        Ok(())
    }

    /// Waits until `record` has been written to the device.
    pub(crate) async fn written(&self, record: u64) -> Result<(), Status> {
        loop {
            let progress = self.progress.wait();
            if self.journal.borrow().written() > record {
                return Ok(());
            }
            if self.failed.get() {
                return Err(Status::MediaWrite);
            }
            progress.await;
        }
    }

    /// Makes `record`, and all before it, durable.
    pub(crate) async fn make_durable(self: &Rc<Self>, record: u64) -> Result<(), Status> {
        self.written(record).await?;
        self.flush().await
    }

    /// Makes everything that has completed durable; flushes asked for together become one.
    pub(crate) async fn flush(self: &Rc<Self>) -> Result<(), Status> {
        let (begun, ended, _) = self.flushes.get();
        let wanted = begun + 1;
        self.flushes.set((begun, ended, wanted));
        if !self.running.flusher.get() {
            self.running.flusher.set(true);
            let inner = Rc::clone(self);
            rt::spawn(async move { inner.run_flushes().await }).detach();
        }
        loop {
            let progress = self.progress.wait();
            if self.failed.get() {
                return Err(Status::MediaWrite);
            }
            if self.flushes.get().1 >= wanted {
                return Ok(());
            }
            progress.await;
        }
    }

    async fn run_flushes(self: &Rc<Self>) {
        loop {
            let (begun, ended, wanted) = self.flushes.get();
            if begun >= wanted || self.failed.get() {
                break;
            }
            self.flushes.set((begun + 1, ended, wanted));
            let start = self.journal.borrow().flush_start(self.data_from());
            if let Err(status) = self.device.flush().await {
                self.fail("flushing the device", status);
                break;
            }
            Metrics::count(&self.metrics, |metrics| metrics.flushes += 1);
            let settled = self.journal.borrow_mut().flush_end(start);
            self.settled.set(self.settled.get().max(settled)); // Invariant 2.
            self.release_space();
            let (begun, ended, wanted) = self.flushes.get();
            self.flushes.set((begun, ended + 1, wanted));
            self.progress.notify();
        }
        self.running.flusher.set(false);
    }

    /// Data of records below this number has arrived.
    pub(crate) fn data_from(&self) -> u64 {
        self.data.borrow().first().copied().unwrap_or(u64::MAX)
    }

    /// Sees to it that new blocks are settled before long.
    pub(crate) fn start_settler(self: &Rc<Self>) {
        if !self.running.settler.get() {
            self.running.settler.set(true);
            let inner = Rc::clone(self);
            rt::spawn(async move {
                inner.settle().await;
                inner.running.settler.set(false);
            })
            .detach();
        }
    }

    async fn settle(self: &Rc<Self>) {
        while self.mapped.get() > self.settled.get() && !self.closed.get() {
            rt::race(rt::sleep(SETTLE_AFTER), self.closing.wait()).await;
            if self.settle_through(self.mapped.get() - 1).await.is_err() {
                return;
            }
        }
    }

    /// Sees to it that recovery needs no checksum for the blocks of `record` and all before it: their data is durable,
    /// and so is a mark that says so.
    pub(crate) async fn settle_through(self: &Rc<Self>, record: u64) -> Result<(), Status> {
        let _turn = self.settling.lock().await;
        while self.settled.get() <= record {
            self.admit_change()?;
            self.data_arrived(record + 1).await?;
            self.written(record).await?;
            self.flush().await?;
            let mark = self.journal.borrow_mut().push_due_mark();
            if let Some(mark) = mark {
                self.start_writer();
                self.make_durable(mark).await?;
            }
        }
        Ok(())
    }

    /// Pushes a record about a layer, with `apply` in the same step, and makes it durable.
    pub(crate) async fn control(
        self: &Rc<Self>,
        record: &Record,
        apply: impl FnOnce(),
    ) -> Result<(), Status> {
        self.admit_change()?;
        apply();
        let number = self.push(|out| record.encode(out));
        self.make_durable(number).await
    }
}

//! What the hosts of a volume experience: how many operations, how long they take, how they fail, how long writes wait.
//!
//! On the path of a byte this stands where a volume's I/O enters the engine, between the front-end or the target and
//! the nexus. It costs two readings of the reactor's clock and a few additions per operation.
//!
//! # Invariants
//! 1. An operation is counted once, when it completes; one that is dropped before is not counted.
//! 2. Counters only grow while the volume stays on this node, whatever nexus serves it.

use device::{BlockCount, Device, Geometry, Lba, Status};
use rt::{DmaBuf, DmaBytes, Durability, Instant};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

/// The first bucket holds what took at most this many microseconds; each further one twice as much.
const FIRST_BUCKET_MICROS: u64 = 16;
/// Up to 16.8 s, and one for what took longer.
const BUCKETS: usize = 22;

/// What a host asks for. Writing zeroes is a write without bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Read,
    Write,
    Flush,
    Unmap,
}

impl Operation {
    const ALL: [(Self, &'static str); 4] =
        [(Self::Read, "read"), (Self::Write, "write"), (Self::Flush, "flush"), (Self::Unmap, "unmap")];
}

/// One kind of operation of one volume, as it is exported.
#[derive(Clone, Debug)]
pub struct IoMetrics {
    /// `read`, `write`, `flush` or `unmap`.
    pub operation: &'static str,
    /// Moved by operations that succeeded.
    pub bytes: u64,
    /// Operations that failed.
    pub errors: u64,
    /// The sum of all times.
    pub seconds: f64,
    /// Completed operations by the time they took: the bucket's upper end in seconds, not counting those below.
    pub buckets: Vec<(f64, u64)>,
}

/// Counts the I/O of one volume.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    flows: [Flow; Operation::ALL.len()],
    writes: RefCell<UnderWay>,
    stall_max: Cell<Duration>,
}

#[derive(Debug, Default)]
struct Flow {
    buckets: [Cell<u64>; BUCKETS],
    nanos: Cell<u64>,
    bytes: Cell<u64>,
    errors: Cell<u64>,
}

/// The writes under way in the order in which they began; those that have ended wait for the ones before them.
#[derive(Debug, Default)]
struct UnderWay {
    first: u64,
    began: VecDeque<Option<Instant>>,
}

impl UnderWay {
    fn begin(&mut self, now: Instant) -> u64 {
        self.began.push_back(Some(now));
        self.first + self.began.len() as u64 - 1
    }

    fn end(&mut self, number: u64) {
        let index = usize::try_from(number - self.first).expect("it is in the queue");
        self.began[index] = None;
        while let Some(None) = self.began.front() {
            self.began.pop_front();
            self.first += 1;
        }
    }

    fn oldest(&self) -> Option<Instant> {
        self.began.front().copied().flatten()
    }
}

fn add(cell: &Cell<u64>, count: u64) {
    cell.set(cell.get() + count);
}

/// The bucket of an operation that took so long.
fn bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX);
    let power = micros.div_ceil(FIRST_BUCKET_MICROS).max(1).checked_next_power_of_two();
    power.map_or(BUCKETS - 1, |power| (power.trailing_zeros() as usize).min(BUCKETS - 1))
}

/// The upper end of a bucket, in seconds.
#[expect(clippy::cast_precision_loss, reason = "a power of two times 16")]
fn upper_end(bucket: usize) -> f64 {
    if bucket + 1 == BUCKETS { f64::INFINITY } else { (FIRST_BUCKET_MICROS << bucket) as f64 / 1e6 }
}

impl Meter {
    /// A nexus begins to serve: stalls before it are another's.
    pub(crate) fn opened(&self) {
        self.stall_max.set(Duration::ZERO);
    }

    /// The longest that a write has taken since the nexus opened.
    pub(crate) fn stall_max(&self) -> Duration {
        self.stall_max.get()
    }

    /// The same, with the writes that still wait.
    pub(crate) fn stall_max_now(&self) -> Duration {
        let oldest = self.writes.borrow().oldest();
        oldest.map_or(Duration::ZERO, Instant::elapsed).max(self.stall_max())
    }

    /// All figures.
    #[expect(clippy::cast_precision_loss, reason = "a sum of nanoseconds: 52 bits are enough")]
    pub(crate) fn read(&self) -> Vec<IoMetrics> {
        let figures = |(operation, name): (Operation, &'static str)| {
            let flow = &self.flows[operation as usize];
            IoMetrics {
                operation: name,
                bytes: flow.bytes.get(),
                errors: flow.errors.get(),
                seconds: flow.nanos.get() as f64 / 1e9,
                buckets: (0..BUCKETS).map(|index| (upper_end(index), flow.buckets[index].get())).collect(),
            }
        };
        Operation::ALL.into_iter().map(figures).collect()
    }

    fn completed(&self, operation: Operation, took: Duration, succeeded: bool, bytes: u64) {
        let flow = &self.flows[operation as usize];
        add(&flow.buckets[bucket(took)], 1);
        add(&flow.nanos, u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        if succeeded {
            add(&flow.bytes, bytes);
        } else {
            add(&flow.errors, 1);
        }
        if operation == Operation::Write {
            self.stall_max.set(self.stall_max.get().max(took));
        }
    }

    /// Runs an operation and counts it.
    async fn measure<T>(
        &self,
        operation: Operation,
        bytes: u64,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let began = rt::now();
        let waiting = (operation == Operation::Write).then(|| Waiting::begin(&self.writes, began));
        let done = work.await;
        drop(waiting);
        self.completed(operation, began.elapsed(), done.is_ok(), bytes);
        done
    }
}

/// A write under way; dropped when it ends, or is given up.
struct Waiting<'a> {
    writes: &'a RefCell<UnderWay>,
    number: u64,
}

impl<'a> Waiting<'a> {
    fn begin(writes: &'a RefCell<UnderWay>, now: Instant) -> Self {
        Self { writes, number: writes.borrow_mut().begin(now) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.writes.borrow_mut().end(self.number);
    }
}

/// A device whose operations are counted.
#[derive(Clone)]
pub(crate) struct Metered<D> {
    device: D,
    meter: Rc<Meter>,
}

impl<D> Metered<D> {
    /// Counts the operations of `device` in `meter`.
    pub(crate) fn new(device: D, meter: Rc<Meter>) -> Self {
        Self { device, meter }
    }

    /// The device itself.
    pub(crate) fn inner(&self) -> &D {
        &self.device
    }
}

impl<D: Device> Device for Metered<D> {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    async fn read(&self, lba: Lba, buf: DmaBuf) -> Result<DmaBuf, Status> {
        let bytes = buf.len() as u64;
        self.meter.measure(Operation::Read, bytes, self.device.read(lba, buf)).await
    }

    async fn write(&self, lba: Lba, data: DmaBytes, durability: Durability) -> Result<(), Status> {
        let bytes = data.len() as u64;
        self.meter.measure(Operation::Write, bytes, self.device.write(lba, data, durability)).await
    }

    async fn write_zeroes(&self, lba: Lba, count: BlockCount, durability: Durability) -> Result<(), Status> {
        self.meter.measure(Operation::Write, 0, self.device.write_zeroes(lba, count, durability)).await
    }

    async fn unmap(&self, lba: Lba, count: BlockCount) -> Result<(), Status> {
        self.meter.measure(Operation::Unmap, 0, self.device.unmap(lba, count)).await
    }

    async fn flush(&self) -> Result<(), Status> {
        self.meter.measure(Operation::Flush, 0, self.device.flush()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_took_at_most_its_upper_end() {
        let micros = Duration::from_micros;
        for (took, index) in [
            (Duration::ZERO, 0),
            (micros(16), 0),
            (Duration::from_nanos(16_001), 1),
            (micros(32), 1),
            (micros(33), 2),
            (micros(16 << 20), 20),
            (micros((16 << 20) + 1), 21),
            (Duration::MAX, 21),
        ] {
            assert_eq!(bucket(took), index, "{took:?}");
            assert!(took.as_secs_f64() <= upper_end(index));
            assert!(index == 0 || took.as_secs_f64() > upper_end(index - 1), "{took:?}");
        }
    }

    #[test]
    fn the_oldest_write_is_known_whatever_the_order_of_completion() {
        let at = Instant::from_nanos;
        let mut under_way = UnderWay::default();
        let numbers: Vec<u64> = (1..=3).map(|nanos| under_way.begin(at(nanos))).collect();
        under_way.end(numbers[1]);
        assert_eq!(under_way.oldest(), Some(at(1)));
        under_way.end(numbers[0]);
        assert_eq!(under_way.oldest(), Some(at(3)));
        let fourth = under_way.begin(at(4));
        under_way.end(numbers[2]);
        assert_eq!(under_way.oldest(), Some(at(4)));
        under_way.end(fourth);
        assert_eq!((under_way.oldest(), under_way.began.len()), (None, 0));
    }

    #[test]
    fn operations_are_counted_when_they_complete() {
        let world = rt::sim::World::new(1);
        world.run(async {
            let meter = Meter::default();
            let slow = async {
                rt::sleep(Duration::from_millis(30)).await;
                Ok(())
            };
            let write = meter.measure(Operation::Write, 4096, slow);
            rt::race(
                async {
                    write.await.unwrap();
                },
                async {
                    rt::sleep(Duration::from_millis(20)).await;
                    assert!(meter.stall_max_now() >= Duration::from_millis(20), "one that still waits");
                    assert_eq!(meter.stall_max(), Duration::ZERO);
                    std::future::pending::<()>().await;
                },
            )
            .await;
            let failed = meter.measure::<()>(Operation::Read, 4096, async { Err(Status::Gone) }).await;
            assert_eq!(failed, Err(Status::Gone));
            let given_up = meter.measure::<()>(Operation::Write, 4096, std::future::pending());
            let ends = async {
                given_up.await.unwrap();
            };
            rt::race(ends, rt::sleep(Duration::from_millis(100))).await;

            let figures = meter.read();
            let count = |index: usize| figures[index].buckets.iter().map(|(_, count)| count).sum::<u64>();
            assert_eq!((count(0), figures[0].errors, figures[0].bytes), (1, 1, 0));
            assert_eq!((count(1), figures[1].errors, figures[1].bytes), (1, 0, 4096));
            assert!((0.030..0.031).contains(&figures[1].seconds), "{figures:?}");
            assert!(meter.stall_max_now() < Duration::from_millis(31), "what was given up waits no more");
            meter.opened();
            assert_eq!(meter.stall_max_now(), Duration::ZERO);
        });
    }
}

//! The load: as many workers as the depth, each with one I/O under way.

use super::Pattern;
use super::histogram::Histogram;
use super::stamp::Stamp;
use device::{Device, Lba, Status};
use rt::{DmaBuf, DmaBytes, Durability, Instant};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// What to do, checked against the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) pattern: Pattern,
    pub(super) block_len: usize,
    pub(super) depth: u32,
    pub(super) duration: Duration,
    /// What is written says where it belongs.
    pub(super) stamp: Option<Stamp>,
}

/// What came out.
#[derive(Debug)]
pub(super) struct Measured {
    /// Nanoseconds of each I/O.
    pub(super) latencies: Histogram,
    /// From the first I/O to the end of the last.
    pub(super) seconds: f64,
    /// Of this process.
    pub(super) cpu_seconds: f64,
}

/// What an I/O that failed said, and where.
pub(super) type Failed = (Status, Lba);

/// Bytes of one I/O while all of a device is written or read.
const FILL_BYTES: u64 = 256 << 10;

/// Writes every block once and flushes: what was never written is read faster than what was.
pub(super) async fn fill<D: Device>(device: &D, stamp: Option<Stamp>) -> Result<(), Failed> {
    let data = random_data(usize::try_from(FILL_BYTES).expect("256 KiB"));
    pass(device, async |device, lba, len| {
        let data = content(stamp, &data, lba, len, device.geometry().block_size);
        device.write(lba, data, Durability::Cached).await.map_err(|status| (status, lba))
    })
    .await?;
    device.flush().await.map_err(|status| (status, Lba(0)))
}

/// Reads every block and compares it with its stamp; the first that is wrong.
pub(super) async fn check<D: Device>(device: &D, stamp: Stamp) -> Result<Option<Lba>, Failed> {
    let wrong = Cell::new(None);
    pass(device, async |device, lba, len| {
        let buf = device.read(lba, DmaBuf::new(len)).await.map_err(|status| (status, lba))?;
        let found = stamp.wrong(&buf, lba.0, device.geometry().block_size as usize).map(Lba);
        wrong.set(wrong.get().or(found));
        Ok(())
    })
    .await?;
    Ok(wrong.get())
}

/// Does `each` with every part of the device, one after the other.
async fn pass<D: Device>(
    device: &D,
    each: impl AsyncFn(&D, Lba, usize) -> Result<(), Failed>,
) -> Result<(), Failed> {
    let geometry = device.geometry();
    let blocks_per_io = FILL_BYTES / u64::from(geometry.block_size);
    let mut next = 0;
    while next < geometry.blocks.0 {
        let blocks = blocks_per_io.min(geometry.blocks.0 - next);
        let len = usize::try_from(blocks * u64::from(geometry.block_size)).expect("256 KiB");
        each(device, Lba(next), len).await?;
        next += blocks;
    }
    Ok(())
}

/// What is written at `lba`: its stamp, or the same random bytes everywhere.
fn content(stamp: Option<Stamp>, random: &DmaBytes, lba: Lba, len: usize, block_size: u32) -> DmaBytes {
    let Some(stamp) = stamp else { return random.slice(0..len) };
    let mut buf = DmaBuf::new(len);
    stamp.write(&mut buf, lba.0, block_size as usize);
    buf.freeze()
}

/// What the workers share.
struct Load<D> {
    device: D,
    plan: Plan,
    /// Blocks of the device per I/O, and how many I/Os fit on it.
    blocks_per_io: u64,
    places: u64,
    next_place: Cell<u64>,
    end: Instant,
    latencies: RefCell<Histogram>,
}

/// Runs the plan on `device`; the first I/O that fails ends it.
pub(super) async fn drive<D: Device + 'static>(device: D, plan: Plan) -> Result<Measured, Failed> {
    let geometry = device.geometry();
    let blocks_per_io = plan.block_len as u64 / u64::from(geometry.block_size);
    let (start, cpu_start) = (rt::now(), cpu_seconds());
    let load = Rc::new(Load {
        device,
        plan,
        blocks_per_io,
        places: geometry.blocks.0 / blocks_per_io,
        next_place: Cell::new(0),
        end: start + plan.duration,
        latencies: RefCell::new(Histogram::new()),
    });
    let workers: Vec<_> = (0..plan.depth).map(|_| rt::spawn(Rc::clone(&load).work())).collect();
    for worker in workers {
        worker.await?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let cpu_seconds = cpu_seconds() - cpu_start;
    Ok(Measured { latencies: load.latencies.replace(Histogram::new()), seconds, cpu_seconds })
}

impl<D: Device> Load<D> {
    async fn work(self: Rc<Self>) -> Result<(), Failed> {
        let mut random = rt::random_u64() | 1;
        let data = random_data(self.plan.block_len);
        let mut buf = DmaBuf::new(self.plan.block_len);
        let mut now = rt::now();
        while now < self.end {
            let lba = Lba(self.place(&mut random) * self.blocks_per_io);
            if self.plan.pattern.writes() {
                let block_size = self.device.geometry().block_size;
                let data = content(self.plan.stamp, &data, lba, self.plan.block_len, block_size);
                let write = self.device.write(lba, data, Durability::Cached);
                write.await.map_err(|status| (status, lba))?;
            } else {
                buf = self.device.read(lba, buf).await.map_err(|status| (status, lba))?;
            }
            let done = rt::now();
            let nanos = u64::try_from((done - now).as_nanos()).unwrap_or(u64::MAX);
            self.latencies.borrow_mut().record(nanos);
            now = done;
        }
        Ok(())
    }

    fn place(&self, random: &mut u64) -> u64 {
        if self.plan.pattern.is_random() {
            // Marsaglia's xorshift: the state is never zero.
            *random ^= *random << 13;
            *random ^= *random >> 7;
            *random ^= *random << 17;
            return *random % self.places;
        }
        let place = self.next_place.get();
        self.next_place.set((place + 1) % self.places);
        place
    }
}

/// Bytes that no disk can shorten.
fn random_data(len: usize) -> DmaBytes {
    let mut buf = DmaBuf::new(len);
    rt::random_bytes(&mut buf);
    buf.freeze()
}

/// Processor time of this process so far, user and system.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    #[expect(clippy::cast_precision_loss, reason = "seconds of a process fit")]
    let seconds = time.tv_sec as f64 + time.tv_nsec as f64 / 1e9;
    seconds
}

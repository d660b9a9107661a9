//! Without root: the same pieces on the raw blocks of the volume, through Orlop's own initiator.
//!
//! A piece takes whole blocks, the next that nobody has used, and is flushed before it counts. Its name in the ledger is
//! where it lies.

use super::ledger::{Ledger, sum};
use super::load::{Load, Shared, WRITERS, contents};
use super::thread::Stop;
use super::tree::{self, Copied};
use crate::failure::{Failure, OrFail, Outcome};
use crate::opened::{self, Opened};
use device::{Device, Lba, Status};
use rt::{Access, DmaBuf, DmaBytes, Durability};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long a target may be away before a write fails: the demo itself brings it back.
const PATIENCE: Duration = Duration::from_millis(500);

/// Which blocks are free: a number of bytes, shared by all writers.
#[derive(Debug, Default)]
pub(super) struct Space(AtomicU64);

impl Space {
    fn take(&self, len: usize) -> u64 {
        self.0.fetch_add((len as u64).next_multiple_of(4096), Ordering::Relaxed)
    }
}

/// Runs `work` on the volume at `uri`, on a reactor of this thread.
fn with_device<T>(uri: &str, work: impl AsyncFnOnce(Rc<Opened>) -> Outcome<T>) -> Outcome<T> {
    let reactor =
        rt::os::Reactor::new(rt::os::Config::default()).or_fail(|| "cannot start the I/O engine".into())?;
    reactor.run(async {
        let device = opened::open(&opened::parse(uri)?, Access::Write, PATIENCE).await?;
        work(Rc::new(device)).await
    })
}

/// Copies a tree to the volume.
pub(super) fn copy_tree(
    from: &Path,
    uri: &str,
    want_bytes: u64,
    space: &Space,
    ledger: &Ledger,
    stop: &Stop,
) -> Outcome<Copied> {
    // Files are read before the device is opened: reading them may block, and the device is heard of all the time.
    let mut pieces = Vec::new();
    let copied = tree::copy(from, want_bytes, |_, bytes| {
        pieces.push(bytes);
        stop.check()
    })?;
    with_device(uri, async |device| {
        for batch in pieces.chunks(32) {
            stop.check()?;
            let mut placed = Vec::new();
            let mut writes = Vec::new();
            for bytes in batch {
                let at = space.take(bytes.len());
                placed.push((at, bytes));
                let (device, data) = (Rc::clone(&device), padded(bytes));
                writes.push(rt::spawn(async move { write(&device, at, data).await }));
            }
            for write in writes {
                write.await.or_fail(|| format!("cannot write to {uri}"))?;
            }
            device.flush().await.or_fail(|| format!("cannot flush {uri}"))?;
            for (at, bytes) in placed {
                ledger.acknowledge(at.to_string(), sum(bytes), bytes.len() as u64);
            }
        }
        Ok(())
    })?;
    Ok(copied)
}

/// Starts writers of pieces, each of which rests for `pause` after a piece: a long load must not fill the volume.
pub(super) fn start_load(
    uri: &str,
    prefix: &str,
    pause: Duration,
    space: &Arc<Space>,
    ledger: &Arc<Ledger>,
) -> Load {
    let shared = Shared::new(prefix, ledger);
    let (uri, space, worker) = (uri.to_owned(), Arc::clone(space), Arc::clone(&shared));
    let thread = std::thread::spawn(move || {
        let result = with_device(&uri, async |device| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    rt::spawn(write_pieces(
                        Rc::clone(&device),
                        Arc::clone(&worker),
                        Arc::clone(&space),
                        writer,
                        pause,
                    ))
                })
                .collect();
            let mut result = Ok(());
            for writer in writers {
                result = result.and(writer.await);
            }
            result.or_fail(|| uri.clone())
        });
        result.map_err(|failure| failure.to_string())
    });
    Load { threads: vec![thread], shared }
}

/// One writer: a piece at a time, flushed before it counts.
async fn write_pieces(
    device: Rc<Opened>,
    shared: Arc<Shared>,
    space: Arc<Space>,
    writer: usize,
    pause: Duration,
) -> Result<(), Status> {
    let size = device.geometry().size().0;
    for number in 0.. {
        let bytes = contents(writer, number);
        let at = space.take(bytes.len());
        if !shared.goes_on() || at + bytes.len() as u64 + 4096 > size {
            break;
        }
        let data = padded(&bytes);
        let began = shared.begin();
        let written = async {
            write(&device, at, data).await?;
            device.flush().await
        };
        let written = written.await;
        shared.end(began);
        written?;
        shared.ledger.acknowledge(at.to_string(), sum(&bytes), bytes.len() as u64);
        if number == 0 {
            shared.first_acknowledged();
        }
        rt::sleep(pause).await;
    }
    Ok(())
}

async fn write(device: &Opened, at: u64, data: DmaBytes) -> Result<(), Status> {
    let lba = Lba(at / u64::from(device.geometry().block_size));
    device.write(lba, data, Durability::Cached).await
}

fn padded(bytes: &[u8]) -> DmaBytes {
    let mut buf = DmaBuf::zeroed(bytes.len().next_multiple_of(4096));
    buf[..bytes.len()].copy_from_slice(bytes);
    buf.freeze()
}

/// Reads every promised piece and compares its SHA-256; how many there were.
pub(super) fn verify(uri: &str, ledger: &Ledger, stop: &Stop) -> Outcome<usize> {
    let promises = ledger.promises();
    with_device(uri, async |device| {
        let block_size = u64::from(device.geometry().block_size);
        for (name, promise) in &promises {
            stop.check()?;
            let at: u64 = name.parse().expect("pieces are named by their place");
            let len = usize::try_from(promise.len).expect("pieces fit in memory");
            let buf = DmaBuf::new(len.next_multiple_of(4096));
            let read = device.read(Lba(at / block_size), buf).await;
            let bytes =
                read.or_fail(|| format!("the piece at byte {at} was acknowledged and cannot be read"))?;
            if sum(&bytes[..len]) != promise.sum {
                let what = format!("the piece at byte {at} was acknowledged and is different now");
                return Err(Failure::new(what));
            }
        }
        Ok(promises.len())
    })
}

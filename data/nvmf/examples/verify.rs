//! Orlop's initiator against another's target: `verify ADDRESS NQN`. Writes, reads back, flushes, zeroes and discards on
//! namespace 1, once without and once with digests; everything on the namespace is overwritten.
//!
//! Ends with `verify: ok`; every line before is something that held.

use device::{BlockCount, Device, Lba, Status};
use nvmf::initiator::{Association, ConnectOptions, Namespace, discover};
use rt::{DmaBuf, Durability};
use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;
use uuid::Uuid;

const HOSTNQN: &str = "nqn.2014-08.org.nvmexpress:uuid:6f726c6f-7000-4000-8000-000000000001";
const HOSTID: Uuid = Uuid::from_u128(0x6f72_6c6f_7000_4000_8000_0000_0000_0001);
/// Sizes of the writes, over and over: in the capsule, by R2T, and more than one command carries.
const SIZES: [u64; 6] = [4 << 10, 16 << 10, 20 << 10, 64 << 10, 256 << 10, 2 << 20];
const WRITES: usize = 60;
const IN_FLIGHT: usize = 8;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> Outcome {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: verify ADDRESS NQN";
    let address: SocketAddr = arguments.next().ok_or(usage)?.parse()?;
    let nqn = arguments.next().ok_or(usage)?;
    let reactor = rt::os::Reactor::new(rt::os::Config::default())?;
    reactor.run(async {
        let entries = discover(address, HOSTNQN, HOSTID).await?;
        check(entries.iter().any(|entry| entry.subnqn == nqn), "the subsystem is in the discovery log")?;
        println!("discover: {} entries, {nqn} among them", entries.len());
        let unknown = ConnectOptions::new(address, format!("{nqn}-absent"), HOSTNQN, HOSTID);
        match Association::connect(unknown).await {
            Ok(_) => return Err("connected to a subsystem that is not there".into()),
            Err(error) => println!("refused: {error}"),
        }
        for digests in [false, true] {
            one_life(address, &nqn, digests).await?;
        }
        println!("verify: ok");
        Ok(())
    })
}

/// One association: all operations, then the end.
async fn one_life(address: SocketAddr, nqn: &str, digests: bool) -> Outcome {
    let mut options = ConnectOptions::new(address, nqn, HOSTNQN, HOSTID);
    options.queues = 2;
    options.keep_alive_ms = 2000;
    options.header_digest = digests;
    options.data_digest = digests;
    let association = Association::connect(options).await?;
    check(association.namespace_ids() == [1], "the namespaces are 1 alone")?;
    let namespace = association.namespace(1);
    let geometry = namespace.geometry();
    println!("connect: digests {digests}, {} blocks of {}", geometry.blocks.0, geometry.block_size);
    let bytes =
        write_and_read(&namespace, u8::from(digests)).await.map_err(|status| format!("{status:?}"))?;
    println!(
        "write and read: {bytes} bytes in {WRITES} pieces of 4 KiB to 2 MiB, flushed, read back the same"
    );
    zero(&namespace).await?;
    println!("write-zeroes and discard: read as zeros; a read beyond the end is refused");
    // Longer than the keep-alive time-out: the association lives by its keep-alives alone.
    rt::sleep(Duration::from_secs(5)).await;
    check(!association.is_dead(), "the association lives after 5 s without I/O")?;
    namespace.read(Lba(0), DmaBuf::new(4096)).await.map_err(|status| format!("{status:?}"))?;
    association.close().await;
    check(association.is_dead(), "it is dead once closed")?;
    println!("keep-alive for 5 s, shutdown");
    Ok(())
}

/// Pieces side by side, several in flight; then each is read back whole.
async fn write_and_read(namespace: &Namespace, salt: u8) -> Result<u64, Status> {
    let block = u64::from(namespace.geometry().block_size);
    let mut pieces = Vec::new();
    let mut at = 0;
    for size in SIZES.into_iter().cycle().take(WRITES) {
        pieces.push((Lba(at / block), usize::try_from(size).expect("a few MiB")));
        at += size;
    }
    for group in pieces.chunks(IN_FLIGHT) {
        let writes = group.iter().map(|&(lba, len)| {
            let namespace = namespace.clone();
            let durability = if lba.0.is_multiple_of(3) { Durability::Durable } else { Durability::Cached };
            rt::spawn(async move { namespace.write(lba, pattern(lba, len, salt).freeze(), durability).await })
        });
        for write in writes.collect::<Vec<_>>() {
            write.await?;
        }
    }
    namespace.flush().await?;
    for (lba, len) in pieces {
        let read = namespace.read(lba, DmaBuf::new(len)).await?;
        if read[..] != pattern(lba, len, salt)[..] {
            return Err(Status::Corrupt);
        }
    }
    Ok(at)
}

/// Bytes that tell their place: neither a shifted nor an old block looks the same.
fn pattern(lba: Lba, len: usize, salt: u8) -> DmaBuf {
    let mut buf = DmaBuf::new(len);
    for (index, word) in buf.chunks_exact_mut(8).enumerate() {
        let value = (lba.0 << 24) ^ index as u64 ^ (u64::from(salt) << 56);
        word.copy_from_slice(&value.to_le_bytes());
    }
    buf
}

async fn zero(namespace: &Namespace) -> Outcome {
    let text = |status: Status| format!("{status:?}");
    namespace.write_zeroes(Lba(8), BlockCount(16), Durability::Cached).await.map_err(text)?;
    let block = namespace.geometry().block_size as usize;
    let read = namespace.read(Lba(8), DmaBuf::new(16 * block)).await.map_err(text)?;
    check(read.iter().all(|byte| *byte == 0), "zeroed blocks read as zeros")?;
    namespace.unmap(Lba(32), BlockCount(16)).await.map_err(text)?;
    let end = Lba(namespace.geometry().blocks.0);
    let beyond = namespace.read(end, DmaBuf::new(block)).await.err();
    check(beyond == Some(Status::OutOfRange), "a read beyond the end is out of range")
}

fn check(holds: bool, what: &str) -> Outcome {
    if holds { Ok(()) } else { Err(format!("not so: {what}").into()) }
}

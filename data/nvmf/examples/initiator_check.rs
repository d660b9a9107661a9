//! Tries the initiator on any target: `initiator_check ADDRESS [NQN [KEY_FILE]]`, all of whose namespace 1 is overwritten.
//!
//! Without a name it lists what the discovery service at the address offers. With one it writes and reads the namespace
//! in pieces of many sizes with and without digests, over one and several queues, and compares.

use device::{BlockCount, Device, Lba};
use nvmf::{Association, ConnectOptions, Key, discover};
use rt::{DmaBuf, DmaBytes, Durability};
use std::net::SocketAddr;
use uuid::Uuid;

const HOSTNQN: &str = "nqn.2026-11.io.orlop:check";
const HOSTID: Uuid = Uuid::from_u128(0x4f52_4c4f_5000_4000_8000_0000_0000_0001);

fn pattern(lba: u64, blocks: u64, block_size: usize, stamp: u8) -> DmaBytes {
    let mut buf = DmaBuf::new(usize::try_from(blocks).expect("small") * block_size);
    for (lba, block) in (lba..).zip(buf.chunks_exact_mut(block_size)) {
        block.fill(stamp);
        block[..8].copy_from_slice(&lba.to_le_bytes());
    }
    buf.freeze()
}

async fn check(options: ConnectOptions, stamp: u8) -> Result<(), Box<dyn std::error::Error>> {
    let association = Association::connect(options).await?;
    let namespace = association.namespace(1);
    let geometry = namespace.geometry();
    let block_size = usize::try_from(geometry.block_size)?;
    println!(
        "namespaces {:?}, the first has {} in blocks of {block_size}",
        association.namespace_ids(),
        geometry.size()
    );
    let mut lba = 0;
    for blocks in (1..=20).chain([31, 32, 33, 64, 127, 256, 257, 600]).cycle() {
        if lba + blocks * 4 > geometry.blocks.0.min(20_000) {
            break;
        }
        let writes: Vec<_> = (0..4)
            .map(|i| {
                let (namespace, at) = (namespace.clone(), lba + i * blocks);
                let data = pattern(at, blocks, block_size, stamp);
                let durability = if i == 0 { Durability::Durable } else { Durability::Cached };
                rt::spawn(async move { namespace.write(Lba(at), data, durability).await })
            })
            .collect();
        for write in writes {
            write.await.map_err(|status| format!("write of {blocks} blocks near {lba}: {status}"))?;
        }
        let expected = pattern(lba, blocks * 4, block_size, stamp);
        let read = namespace.read(Lba(lba), DmaBuf::new(expected.len())).await?;
        if read[..] != expected[..] {
            return Err(format!("blocks from {lba} on differ").into());
        }
        lba += blocks * 4;
    }
    namespace.flush().await.map_err(|status| format!("flush: {status}"))?;
    let zeroes = namespace.write_zeroes(Lba(5), BlockCount(3), Durability::Cached).await;
    zeroes.map_err(|status| format!("write-zeroes: {status}"))?;
    namespace.unmap(Lba(9), BlockCount(2)).await.map_err(|status| format!("unmap: {status}"))?;
    let read = namespace.read(Lba(4), DmaBuf::new(5 * block_size)).await?;
    let zeroes = read[block_size..4 * block_size].iter().all(|&b| b == 0);
    if !zeroes
        || read[..8] != 4_u64.to_le_bytes()
        || read[4 * block_size..4 * block_size + 8] != 8_u64.to_le_bytes()
    {
        return Err("write-zeroes hit other blocks than asked".into());
    }
    let beyond = namespace.read(Lba(geometry.blocks.0), DmaBuf::new(block_size)).await;
    println!("{lba} blocks written and read; beyond the end: {:?}", beyond.err());
    association.close().await;
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address: SocketAddr =
        arguments.next().ok_or("usage: initiator_check ADDRESS [NQN [KEY_FILE]]")?.parse()?;
    let reactor = rt::os::Reactor::new(rt::os::Config::default())?;
    reactor.run(async {
        let Some(subnqn) = arguments.next() else {
            for entry in discover(address, HOSTNQN, HOSTID, None).await? {
                println!("{:?} {} at {}:{}", entry.kind, entry.subnqn, entry.address, entry.port);
            }
            return Ok(());
        };
        let key = arguments.next().map(std::fs::read_to_string).transpose()?;
        let key = key.map(|text| Key::parse(&text)).transpose()?;
        let mut stamp = 0;
        for digests in [false, true] {
            for queues in [1, 4] {
                stamp += 1;
                let mut options = ConnectOptions::new(address, &subnqn, HOSTNQN, HOSTID);
                options.header_digest = digests;
                options.data_digest = digests;
                options.queues = queues;
                options.key.clone_from(&key);
                println!("digests {digests}, {queues} queues:");
                check(options, stamp).await?;
            }
        }
        println!("initiator: ok");
        Ok(())
    })
}

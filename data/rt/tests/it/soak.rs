//! Everything at once: programs that write, flush and talk on three nodes, and all kinds of faults around them.
//!
//! Each block of each disk counts its versions. A ledger outside the world knows what was attempted, completed and
//! flushed, and every read and every restart is held against it. Streams carry a sequence that may end early but never
//! has a gap. Every seed runs twice and must leave the same trace.

use crate::disk::BLOCK;
use rt::net::{TcpListener, TcpStream};
use rt::sim::{Counters, DiskFault, NetworkBehaviour, NodeId, SimDisk, World};
use rt::sync::Mutex;
use rt::{Access, DmaBuf, Durability, Errno, File, OpenOptions, Part};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

const BLOCKS: usize = 8;
const NODES: usize = 3;
const PORT: u16 = 7;

/// Versions of one block: what it holds lies from `completed` to `attempted`, after a loss of power from `flushed` on.
#[derive(Clone, Copy, Default, Debug)]
struct Versions {
    attempted: u64,
    completed: u64,
    flushed: u64,
}

/// What a node has attempted and been told, over all its lives.
#[derive(Default)]
struct Ledger {
    versions: RefCell<[Versions; BLOCKS]>,
    /// Failed flushes: a write under way meanwhile may complete and yet be gone.
    failures: Cell<u64>,
    /// The next life may find less than was completed.
    lost_power: Cell<bool>,
}

fn below(bound: u64) -> u64 {
    rt::random_u64() % bound
}

fn index_below(len: usize) -> usize {
    usize::try_from(below(len as u64)).unwrap()
}

fn micros(most: u64) -> Duration {
    Duration::from_micros(below(most))
}

fn offset(block: usize) -> u64 {
    (block * BLOCK) as u64
}

async fn read_version(file: &File, block: usize) -> Result<u64, Errno> {
    let data = file.read_at(offset(block), DmaBuf::new(BLOCK)).await?;
    let (words, _) = data.as_chunks::<8>();
    assert!(words.iter().all(|word| *word == words[0]), "a torn block");
    Ok(u64::from_le_bytes(words[0]))
}

/// One node: opens its disk, checks what the last life left, then writes all blocks at once and talks to a peer.
async fn program(ledger: Rc<Ledger>, peers: [SocketAddr; NODES]) -> Result<(), Errno> {
    let options = OpenOptions { access: Access::Write, create_len_bytes: None, direct: true };
    let Ok(file) = File::open(Path::new("/disk0"), options).await else { return Ok(()) };
    for block in 0..BLOCKS {
        let found = read_version(&file, block).await?;
        let versions = &mut ledger.versions.borrow_mut()[block];
        let floor = if ledger.lost_power.get() { versions.flushed } else { versions.completed };
        assert!((floor..=versions.attempted).contains(&found), "block {block}: {found} of {versions:?}");
    }
    // Only a life that has read all blocks may forget what it may have lost.
    for block in 0..BLOCKS {
        let found = read_version(&file, block).await?;
        let versions = &mut ledger.versions.borrow_mut()[block];
        let flushed = if ledger.lost_power.get() { found } else { versions.flushed };
        *versions = Versions { attempted: found, completed: found, flushed };
    }
    ledger.lost_power.set(false);
    let (file, flushing) = (Rc::new(file), Rc::new(Mutex::new(())));
    let mut tasks = Vec::new();
    for block in 0..BLOCKS {
        let (file, ledger, flushing) = (Rc::clone(&file), Rc::clone(&ledger), Rc::clone(&flushing));
        tasks.push(rt::spawn(writer(file, ledger, flushing, block)));
    }
    tasks.push(rt::spawn(serve()));
    tasks.push(rt::spawn(async move {
        loop {
            // Errors of connections are the peer's or the network's; this node goes on.
            talk(peers[index_below(NODES)]).await.ok();
            rt::sleep(micros(50_000)).await;
        }
    }));
    for task in tasks {
        task.await?;
    }
    Ok(())
}

/// Writes ever newer versions of one block; ends when its disk is gone.
async fn writer(
    file: Rc<File>,
    ledger: Rc<Ledger>,
    flushing: Rc<Mutex<()>>,
    block: usize,
) -> Result<(), Errno> {
    loop {
        match below(10) {
            0 => {
                // One flush at a time, so that a failed one is known before the next begins.
                let _turn = flushing.lock().await;
                let before = *ledger.versions.borrow();
                let synced = file.sync().await;
                ledger.failures.set(ledger.failures.get() + u64::from(synced.is_err()));
                for (versions, before) in ledger.versions.borrow_mut().iter_mut().zip(before) {
                    match synced {
                        Ok(()) => versions.flushed = versions.flushed.max(before.completed),
                        // What was not flushed may be gone.
                        Err(_) => versions.completed = versions.flushed,
                    }
                }
            }
            1 => {
                let before = ledger.versions.borrow()[block];
                let read = read_version(&file, block).await;
                let after = ledger.versions.borrow()[block];
                let allowed = before.completed.min(after.completed)..=before.attempted;
                assert!(
                    read.is_err() || allowed.contains(&read.unwrap()),
                    "{read:?} of {before:?}, {after:?}"
                );
            }
            2 | 4 => rt::sleep(micros(10_000)).await,
            kind => {
                let failures = ledger.failures.get();
                let version = ledger.versions.borrow()[block].attempted + 1;
                ledger.versions.borrow_mut()[block].attempted = version;
                let mut data = DmaBuf::new(BLOCK);
                data.chunks_mut(8).for_each(|word| word.copy_from_slice(&version.to_le_bytes()));
                let durable = kind == 3;
                let durability = if durable { Durability::Durable } else { Durability::Cached };
                let writing = file.write_at(offset(block), data.freeze(), durability);
                let Ok(written) = rt::timeout(Duration::from_millis(200), writing).await else {
                    // It may still happen, at any time in this life: nobody may write here any more.
                    return Ok(());
                };
                if written.is_ok() {
                    let versions = &mut ledger.versions.borrow_mut()[block];
                    let certain = durable || ledger.failures.get() == failures;
                    versions.completed = if certain { version } else { versions.completed };
                    versions.flushed = if durable { version } else { versions.flushed };
                }
                if written == Err(Errno::NODEV) {
                    return Ok(());
                }
            }
        }
    }
}

/// Receives sequences: 0, 1, 2, ... modulo 251.
async fn serve() -> Result<(), Errno> {
    let listener = TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], PORT))).await.unwrap();
    loop {
        let mut stream = listener.accept().await?;
        rt::spawn(async move {
            let mut expected = 0_u64;
            while let Ok(arrived) = stream.receive.fill().await {
                if arrived.is_empty() {
                    return;
                }
                for byte in arrived {
                    assert_eq!(u64::from(*byte), expected % 251, "a gap in the stream");
                    expected += 1;
                }
                let count = arrived.len();
                stream.receive.consume(count);
            }
        })
        .detach();
    }
}

async fn talk(peer: SocketAddr) -> std::io::Result<()> {
    let mut stream = rt::timeout(Duration::from_secs(1), TcpStream::connect(peer))
        .await
        .map_err(|rt::Elapsed| Errno::TIMEDOUT)??;
    let mut next = 0_u64;
    for _ in 0..below(20) {
        let message: Vec<u8> = (next..next + below(2000)).map(|n| (n % 251).to_le_bytes()[0]).collect();
        next += message.len() as u64;
        let sending = stream.send.send(vec![Part::Bytes(message)]);
        rt::timeout(Duration::from_millis(500), sending).await.map_err(|rt::Elapsed| Errno::TIMEDOUT)??;
    }
    Ok(())
}

struct Machine {
    id: NodeId,
    disk: SimDisk,
    ledger: Rc<Ledger>,
}

/// One fault somewhere; most end within a moment.
async fn fault(world: &World, machines: &[Machine]) {
    let (machine, other) = (&machines[index_below(NODES)], &machines[index_below(NODES)]);
    match below(12) {
        0 | 1 => world.crash(machine.id),
        2 => {
            machine.ledger.lost_power.set(true);
            world.power_cut(machine.id);
        }
        3 => {
            world.crash(machine.id);
            world.shut_down(machine.id);
        }
        4 => {
            world.pause(machine.id);
            rt::sleep(micros(20_000)).await;
            world.resume(machine.id);
        }
        5 => {
            machine.disk.hang();
            rt::sleep(micros(300_000)).await;
            machine.disk.release();
        }
        6 => {
            machine.ledger.lost_power.set(true);
            machine.disk.unplug();
            rt::sleep(micros(20_000)).await;
            machine.disk.plug();
            // The old life has no disk any more.
            world.crash(machine.id);
        }
        7 | 8 if machine.id != other.id => {
            if below(2) == 0 {
                world.partition(machine.id, other.id);
            } else {
                world.partition_one_way(machine.id, other.id);
            }
            rt::sleep(micros(300_000)).await;
            world.heal();
        }
        9 => world.reset_connections(machine.id, other.id),
        _ => {
            let faults = [DiskFault::ReadError, DiskFault::WriteError, DiskFault::SyncError];
            machine.disk.add_fault(faults[index_below(3)], 0..u64::MAX, 300);
            rt::sleep(micros(20_000)).await;
            machine.disk.clear_faults();
        }
    }
    rt::sleep(micros(20_000)).await;
}

fn run(seed: u64) -> (u64, Counters) {
    let world = World::new(seed);
    world.set_network(NetworkBehaviour { reset_per_million: 1000, ..Default::default() });
    let machines: [Machine; NODES] = std::array::from_fn(|index| {
        let id = world.add_node(&format!("n{index}"));
        let disk = world.add_disk(id, "/disk0", 1 << 20, 4096);
        Machine { id, disk, ledger: Rc::default() }
    });
    let peers = [0, 1, 2].map(|index: usize| SocketAddr::new(world.address(machines[index].id), PORT));
    world.run(async {
        for _ in 0..25 {
            for machine in &machines {
                if !world.is_running(machine.id) {
                    world.spawn_on(machine.id, program(Rc::clone(&machine.ledger), peers)).detach();
                }
            }
            rt::sleep(micros(20_000)).await;
            fault(&world, &machines).await;
        }
    });
    (world.trace_hash(), world.counters())
}

#[test]
fn promises_hold_under_all_faults_at_once_and_every_seed_replays() {
    let mut total = Counters::default();
    for seed in 0..20 {
        let (hash, counters) = run(seed);
        assert_eq!(run(seed), (hash, counters), "seed {seed}");
        total.crashes += counters.crashes;
        total.power_cuts += counters.power_cuts;
        total.writes_lost += counters.writes_lost;
        total.writes_interrupted += counters.writes_interrupted;
        total.sync_errors += counters.sync_errors;
        total.read_errors += counters.read_errors;
        total.write_errors += counters.write_errors;
        total.disk_hangs += counters.disk_hangs;
        total.disks_unplugged += counters.disks_unplugged;
        total.connections += counters.connections;
        total.connections_reset += counters.connections_reset;
        total.stalls += counters.stalls;
    }
    let seen = [
        total.crashes,
        total.power_cuts,
        total.writes_lost,
        total.writes_interrupted,
        total.sync_errors,
        total.read_errors,
        total.write_errors,
        total.disk_hangs,
        total.disks_unplugged,
        total.connections,
        total.connections_reset,
        total.stalls,
    ];
    assert!(seen.iter().all(|count| *count > 20), "{total:?}");
}

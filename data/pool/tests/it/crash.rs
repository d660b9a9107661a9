//! A crash at every write of a random run: processes that die, and power that goes, on disks that lose, tear and reorder
//! what was not flushed. After each the pool must open, check clean, and hold what the rules allow.

use crate::fuse::{Fuse, Fused};
use crate::rules::{End, Model, fill};
use crate::{BLOCK, NEXUS, REPLICA, config, format_options, generation};
use device::{BlockCount, Device, File, Lba, Status};
use pool::{Changed, Metrics, Pool, RECORD_LEN_MAX, Replica, check, planted};
use rt::sim::World;
use rt::{Access, DmaBuf, Durability};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;
use uuid::Uuid;

/// Room for the volume, and less than that.
const ROOMY: u64 = 5 << 20;
const TIGHT: u64 = 7 << 19;
const VOLUME_BLOCKS: u64 = 1024;
const WORKERS: u64 = 5;
const STEPS: u64 = 28;

/// What outlives the programs of one run.
struct Shared {
    model: RefCell<Model>,
    fuse: Rc<Fuse>,
    /// Replicas that come and go: whether each must be there (true), must not (false), or may (none).
    scratch: RefCell<Vec<(Uuid, Option<bool>)>>,
    /// Copies of the record that may be there: the last that was kept for sure, and later ones.
    records: RefCell<Vec<u64>>,
    tight: bool,
    formatted: Cell<bool>,
    /// What the programs did: those before, and the present one so far.
    before: Cell<Work>,
    present: Cell<Work>,
    failure: RefCell<Option<String>>,
}

/// A run: its seed, where it is killed and how.
#[derive(Clone, Copy, Debug)]
struct Plan {
    seed: u64,
    disk_bytes: u64,
    sector: u32,
    end: End,
    /// The change at which the first program is killed; the later ones die early, in recovery or soon after.
    at: u64,
}

/// What a run came to.
struct Outcome {
    /// Changes that the first program made before it ended or was killed.
    changes: u64,
    killed: bool,
    work: Work,
}

/// What programs did.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    refused: u64,
    overwrites: u64,
    checkpoints: u64,
}

impl Work {
    fn of(metrics: Metrics) -> Self {
        Self {
            refused: metrics.refused_no_space,
            overwrites: metrics.writes - metrics.recorded_writes - metrics.refused_no_space,
            checkpoints: metrics.checkpoints,
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            refused: self.refused + other.refused,
            overwrites: self.overwrites + other.overwrites,
            checkpoints: self.checkpoints + other.checkpoints,
        }
    }
}

fn run(plan: Plan) -> Result<Outcome, String> {
    let world = World::new(plan.seed);
    let node = world.add_node("n1");
    world.add_disk(node, "/disk0", plan.disk_bytes, plan.sector);
    let shared = Rc::new(Shared {
        model: RefCell::new(Model::new(usize::try_from(VOLUME_BLOCKS).expect("small"))),
        fuse: Rc::default(),
        scratch: RefCell::default(),
        records: RefCell::new(vec![0]),
        tight: plan.disk_bytes == TIGHT,
        formatted: Cell::new(false),
        before: Cell::default(),
        present: Cell::default(),
        failure: RefCell::new(None),
    });
    let (mut changes, mut killed) = (0, false);
    let state = Rc::clone(&shared);
    world.run(async {
        let world = World::current();
        // The first program is killed where the plan says, the next ones at their 3rd and 11th change, the last not.
        for (round, at) in [plan.at, 3 + plan.at % 5, 11 + plan.at % 17, 0].into_iter().enumerate() {
            state.fuse.arm(0);
            let task = world.spawn_on(node, program(Rc::clone(&state), at)).fallible();
            let ended = rt::race(async { task.await.is_some() }, async {
                state.fuse.blow().await;
                false
            })
            .await;
            if round == 0 {
                changes = state.fuse.count();
            }
            if state.failure.borrow().is_some() {
                break;
            }
            // A program that ended by itself leaves tasks behind if it did not close the pool.
            let end = if ended { End::Crash } else { plan.end };
            match end {
                End::Crash => world.crash(node),
                End::PowerCut => world.power_cut(node),
            }
            state.model.borrow_mut().ended(end);
            state.before.set(state.before.get().and(state.present.take()));
            killed |= round == 0 && !ended;
        }
    });
    let failure = shared.failure.take();
    drop(world);
    match failure {
        Some(what) => Err(format!("{what} ({plan:?})")),
        None => Ok(Outcome { changes, killed, work: shared.before.get() }),
    }
}

async fn program(shared: Rc<Shared>, dies_at: u64) {
    let result = program_steps(&shared, dies_at).await;
    if let Err(what) = result {
        shared.failure.borrow_mut().get_or_insert(what);
    }
}

async fn program_steps(shared: &Rc<Shared>, dies_at: u64) -> Result<(), String> {
    let file = File::open(Path::new("/disk0"), None, 4096, Access::Write).await.map_err(|e| e.to_string())?;
    let disk = Fused { device: file, fuse: Rc::clone(&shared.fuse) };
    let first = !shared.formatted.replace(true);
    if first {
        shared.fuse.arm(0);
        Pool::format(&disk, &format_options()).await.map_err(|e| e.to_string())?;
        let pool = Pool::open(disk.clone(), Uuid::nil()).await.map_err(|e| e.to_string())?;
        let made = config(REPLICA, VOLUME_BLOCKS * BLOCK as u64);
        pool.create_replica(&made).await.map_err(|e| e.to_string())?;
        let replica = pool.replica(REPLICA).expect("made");
        replica.accept_epoch(1, NEXUS).await.map_err(|e| e.to_string())?;
        pool.close().await.map_err(|e| e.to_string())?;
    }
    shared.fuse.arm(dies_at);
    let report = check(&disk).await.map_err(|e| format!("check: {e}"))?;
    if let Some(problem) = report.problems.iter().find(|problem| !problem.repairable) {
        return Err(format!("check: {problem}"));
    }
    let pool = Pool::open(disk, Uuid::nil()).await.map_err(|e| format!("open: {e}"))?;
    let replica = pool.replica(REPLICA).ok_or("the replica is gone")?;
    verify(shared, &pool, &replica).await?;
    let workers: Vec<_> = (0..WORKERS)
        .map(|number| rt::spawn(worker(Rc::clone(shared), pool.clone(), replica.clone(), number)))
        .collect();
    for worker in workers {
        worker.await?;
    }
    // Half of the programs end in order.
    if rt::random_u64().is_multiple_of(2) {
        pool.close().await.map_err(|e| format!("close: {e}"))?;
    }
    Ok(())
}

/// Compares everything with what the rules allow.
async fn verify<D: Device + 'static>(
    shared: &Shared,
    pool: &Pool<D>,
    replica: &Replica<D>,
) -> Result<(), String> {
    let fence = replica.fence();
    if (fence.epoch, fence.nexus) != (1, NEXUS) {
        return Err(format!("the fence is {fence:?}"));
    }
    let (stable, maybe) = (shared.model.borrow().stable, shared.model.borrow().stable_maybe);
    let found = replica.stable().counter;
    if found != stable && found != maybe {
        return Err(format!("the stable mark is {found}, not {stable} or {maybe}"));
    }
    let changed: Option<BTreeSet<u64>> = match replica.changed_since(generation(found), 0, usize::MAX) {
        Changed::Everything => None,
        Changed::Extents { list, .. } => Some(list.into_iter().map(|(extent, _)| extent).collect()),
    };
    let record = replica.record().map_or(0, |bytes| u64::from_le_bytes(bytes[..8].try_into().expect("long")));
    if !shared.records.borrow().contains(&record) {
        return Err("the record is none that was kept".into());
    }
    *shared.records.borrow_mut() = vec![record];
    for first in (0..VOLUME_BLOCKS).step_by(64) {
        let buf =
            replica.read(Lba(first), DmaBuf::new(64 * BLOCK)).await.map_err(|e| format!("read: {e}"))?;
        for (lba, block) in (first..).zip(buf.chunks(BLOCK)) {
            let counter = shared.model.borrow_mut().recover(lba, block)?;
            if counter > found && changed.as_ref().is_some_and(|changed| !changed.contains(&(lba / 64))) {
                return Err(format!(
                    "block {lba} changed in {counter} > {found}, but its extent is not told"
                ));
            }
        }
    }
    for (replica, must) in shared.scratch.borrow_mut().iter_mut() {
        let there = pool.replica(*replica).is_some();
        if must.is_some_and(|must| must != there) {
            return Err(format!("replica {replica} is there: {there}, must: {must:?}"));
        }
        *must = Some(there);
    }
    let mut model = shared.model.borrow_mut();
    model.stable = found;
    model.stable_maybe = found;
    model.counter += 1;
    model.recovered();
    Ok(())
}

async fn worker<D: Device + 'static>(
    shared: Rc<Shared>,
    pool: Pool<D>,
    replica: Replica<D>,
    number: u64,
) -> Result<(), String> {
    for step in 0..STEPS {
        match (number, step % 7) {
            (0, 3) => flush(&shared, &replica).await,
            (0, 6) => stable(&shared, &replica).await,
            (1, 2) => scratch(&shared, &pool).await,
            (2, 1 | 4) => record(&shared, &replica).await,
            _ => io(&shared, &replica).await,
        }?;
        shared.present.set(Work::of(pool.metrics()));
    }
    Ok(())
}

/// One random read, write or unmap of blocks that nobody else uses.
async fn io<D: Device + 'static>(shared: &Shared, replica: &Replica<D>) -> Result<(), String> {
    let random = rt::random_u64();
    let large = random.is_multiple_of(if shared.tight { 4 } else { 16 });
    let count = if large { 70 } else { 1 + (random >> 8) % 6 };
    // Mostly a small part, so that blocks are overwritten; or everywhere, so that the pool is filled.
    let range = if shared.tight || (random >> 16).is_multiple_of(4) { VOLUME_BLOCKS } else { 128 };
    let first = (random >> 24) % (range - count);
    if !shared.model.borrow_mut().take(first, count) {
        rt::sleep(std::time::Duration::from_micros(50)).await;
        return Ok(());
    }
    let result = match (random >> 48) % 10 {
        0 | 1 => read(shared, replica, first, count).await,
        2 => change(shared, replica, first, count, true, Durability::Cached).await,
        3 | 4 => change(shared, replica, first, count, false, Durability::Durable).await,
        _ => change(shared, replica, first, count, false, Durability::Cached).await,
    };
    shared.model.borrow_mut().give_back(first);
    result
}

async fn read<D: Device + 'static>(
    shared: &Shared,
    replica: &Replica<D>,
    first: u64,
    count: u64,
) -> Result<(), String> {
    let buf = DmaBuf::new(usize::try_from(count).expect("small") * BLOCK);
    let buf = replica.read(Lba(first), buf).await.map_err(|e| format!("read: {e}"))?;
    for (lba, block) in (first..).zip(buf.chunks(BLOCK)) {
        if !shared.model.borrow().reads_as(lba, block) {
            return Err(format!("block {lba} does not read as what was written last"));
        }
    }
    Ok(())
}

async fn change<D: Device + 'static>(
    shared: &Shared,
    replica: &Replica<D>,
    first: u64,
    count: u64,
    unmap: bool,
    durability: Durability,
) -> Result<(), String> {
    let generation = generation(shared.model.borrow().counter);
    let stamp = shared.model.borrow_mut().begin(first, count, unmap);
    let result = if unmap {
        replica.unmap(generation, Lba(first), BlockCount(count)).await
    } else {
        let mut buf = DmaBuf::new(usize::try_from(count).expect("small") * BLOCK);
        for (block, stamp) in buf.chunks_mut(BLOCK).zip(stamp..) {
            fill(block, stamp);
        }
        replica.write(generation, Lba(first), buf.freeze(), durability).await
    };
    let mut model = shared.model.borrow_mut();
    match result {
        Ok(()) => model.complete(first, count, durability == Durability::Durable),
        Err(Status::NoSpace) => {
            model.refuse(first, count);
        }
        Err(status) => return Err(format!("write: {status}")),
    }
    Ok(())
}

async fn flush<D: Device + 'static>(shared: &Shared, replica: &Replica<D>) -> Result<(), String> {
    let tick = shared.model.borrow_mut().flush_begins();
    replica.flush().await.map_err(|e| format!("flush: {e}"))?;
    shared.model.borrow_mut().flushed(tick);
    Ok(())
}

/// Waits until nothing is in flight and marks the generation stable.
async fn stable<D: Device + 'static>(shared: &Shared, replica: &Replica<D>) -> Result<(), String> {
    let whole = loop {
        let counter = shared.model.borrow().counter;
        if shared.model.borrow_mut().take(0, VOLUME_BLOCKS) {
            break counter;
        }
        rt::sleep(std::time::Duration::from_micros(20)).await;
    };
    let tick = shared.model.borrow_mut().flush_begins();
    shared.model.borrow_mut().stable_maybe = whole;
    replica.set_stable(generation(whole)).await.map_err(|e| format!("set_stable: {e}"))?;
    let mut model = shared.model.borrow_mut();
    model.flushed(tick);
    model.stable = whole;
    model.counter += 1;
    model.give_back(0);
    Ok(())
}

/// Keeps a long record: the journal's ring is soon full of them.
async fn record<D: Device + 'static>(shared: &Shared, replica: &Replica<D>) -> Result<(), String> {
    let stamp = rt::random_u64();
    let mut bytes = vec![0; RECORD_LEN_MAX];
    fill(&mut bytes, stamp);
    shared.records.borrow_mut().push(stamp);
    replica.set_record(&bytes).await.map_err(|e| format!("set_record: {e}"))?;
    *shared.records.borrow_mut() = vec![stamp];
    Ok(())
}

/// Makes a replica and writes to it, or deletes one.
async fn scratch<D: Device + 'static>(shared: &Shared, pool: &Pool<D>) -> Result<(), String> {
    let there = shared.scratch.borrow().iter().position(|(_, there)| *there == Some(true));
    if let Some(place) = there {
        let replica = shared.scratch.borrow()[place].0;
        shared.scratch.borrow_mut()[place].1 = None;
        pool.delete_replica(replica).await.map_err(|e| e.to_string())?;
        shared.scratch.borrow_mut()[place].1 = Some(false);
        return Ok(());
    }
    let made = config(rt::random_uuid(), 1 << 20);
    shared.scratch.borrow_mut().push((made.replica, None));
    pool.create_replica(&made).await.map_err(|e| e.to_string())?;
    shared.scratch.borrow_mut().last_mut().expect("pushed").1 = Some(true);
    let replica = pool.replica(made.replica).expect("made");
    replica.accept_epoch(1, NEXUS).await.map_err(|e| e.to_string())?;
    let mut buf = DmaBuf::new(40 * BLOCK);
    buf.fill(0xdb);
    match replica.write(generation(1), Lba(rt::random_u64() % 100), buf.freeze(), Durability::Cached).await {
        Ok(()) | Err(Status::NoSpace) => Ok(()),
        Err(status) => Err(format!("scratch: {status}")),
    }
}

/// Every run of `seed`, killed at its first change, its second, and so on, until one is not killed.
fn at_every_change(seed: u64, disk_bytes: u64, sector: u32, end: End) {
    let (mut at, mut work) = (0, Work::default());
    loop {
        at += 1;
        let outcome = run(Plan { seed, disk_bytes, sector, end, at }).unwrap_or_else(|what| panic!("{what}"));
        work = work.and(outcome.work);
        if !outcome.killed {
            break;
        }
        assert!(outcome.changes >= at);
    }
    println!("seed {seed}: {at} runs, {work:?}");
    assert!(at > 100, "the run is too short: {at} changes");
    assert_eq!(work.refused > 0, disk_bytes == TIGHT, "{work:?}");
    assert!(work.overwrites > 0 && work.checkpoints > 5 * at, "the runs do too little: {work:?}");
}

#[test]
fn process_crash_at_every_change() {
    at_every_change(1, ROOMY, 4096, End::Crash);
}

#[test]
fn process_crash_at_every_change_of_a_full_pool() {
    at_every_change(2, TIGHT, 4096, End::Crash);
}

#[test]
fn power_cut_at_every_change() {
    at_every_change(3, ROOMY, 4096, End::PowerCut);
}

#[test]
fn power_cut_at_every_change_of_a_full_pool() {
    at_every_change(4, TIGHT, 4096, End::PowerCut);
}

#[test]
fn power_cut_at_every_change_on_a_disk_that_tears_sectors() {
    at_every_change(5, TIGHT, 512, End::PowerCut);
}

#[test]
fn a_journal_without_its_barrier_is_caught() {
    planted::set_no_barrier(true);
    let caught = (1..400).find_map(|at| {
        run(Plan { seed: 3, disk_bytes: ROOMY, sector: 4096, end: End::PowerCut, at }).err().map(|e| (at, e))
    });
    planted::set_no_barrier(false);
    let (at, what) = caught.expect("a crash test that cannot see a missing barrier is worth nothing");
    println!("caught after {at} runs: {what}");
}

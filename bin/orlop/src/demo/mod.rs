//! `orlop demo`: a volume with three copies on three nodes loses a node, then the node that owns it, and nothing else.
//!
//! Everything is real: three processes, three disks, a file system (without root: blocks through the initiator), kills.
//!
//! Invariants:
//! 1. Whatever ends the demo, its processes, mounts, loop devices and files are gone afterwards: each is held by a value
//!    that removes it when dropped, in the order of [`Stage`]'s fields.
//! 2. Nothing is removed under a thread that still works on it: threads are told to stop, the nodes killed so that no I/O
//!    can hold them up, and they are waited for first.

mod blocks;
mod files;
mod ledger;
mod load;
mod replicas;
mod say;
mod thread;
mod tree;

use crate::arguments::Demo;
use crate::commands::volume;
use crate::dev::{Cluster, Folder, Supervisor};
use crate::failure::{Failure, OrFail, Outcome};
use crate::{output, preflight, process};
use device::ByteCount;
use files::Mounted;
use ledger::Ledger;
use load::Load;
use model::{MemberPhase, VolumeSpec, VolumeView};
use rustix::process::Signal;
use say::{Steps, seconds};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use thread::Threads;
use tokio::time::sleep;

const VOLUME: &str = "demo";
const SIZE: ByteCount = ByteCount(1 << 30);
const DISK_SIZE: ByteCount = ByteCount(2 << 30);
const TREE_BYTES: u64 = 200_000_000;
/// Space in the temporary folder: the tree and the writers' pieces, three times, with reserve.
const SPACE_BYTES: u64 = 3 << 30;
/// At each kill, writes under way or acknowledged during the outage.
const WRITES_MIN: u64 = 100;
/// How long a node stays dead.
const OUTAGE: Duration = Duration::from_secs(3);
/// How long writers are watched at most while they run into an outage: most of them take a moment.
const MOMENTS: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// Runs `orlop demo`.
pub(crate) async fn run(arguments: &Demo) -> Outcome {
    // Before there is anything that an unheard signal would leave behind.
    let mut signals = crate::dev::Signals::new()?;
    let scratch = Scratch::new(arguments.keep)?;
    preflight::warn("orlop demo", Some(&scratch.path), |_| true);
    let story = async {
        let mut stage = Stage::open(&scratch.path).await?;
        tell(&mut stage, arguments.plant_flip).await
    };
    let told = tokio::select! {
        told = story => told,
        _ = signals.next() => Err(Failure::new("the demo was interrupted")),
    };
    let kept = arguments.keep.then(|| scratch.path.clone());
    drop(scratch);
    if let Some(path) = kept {
        output::line(&format!("kept: {}", path.display()))?;
    }
    told?;
    output::line("demo: ok")
}

/// A temporary folder, removed when dropped.
#[derive(Debug)]
struct Scratch {
    path: PathBuf,
    keep: bool,
}

impl Scratch {
    fn new(keep: bool) -> Outcome<Self> {
        let id = process::random_uuid()?.simple().to_string();
        let path = std::env::temp_dir().join(format!("orlop-demo-{}", &id[..8]));
        std::fs::create_dir_all(&path).or_fail(|| format!("cannot make {}", path.display()))?;
        let this = Self { path, keep };
        let space =
            rustix::fs::statvfs(&this.path).or_fail(|| format!("cannot look at {}", this.path.display()))?;
        let free = ByteCount(space.f_bavail.saturating_mul(space.f_frsize));
        if free.0 < SPACE_BYTES {
            let folder = std::env::temp_dir();
            return Err(Failure::new(format!("{} has {free} free", folder.display()))
                .hint(format!("the demo needs {}: name a larger folder in TMPDIR", ByteCount(SPACE_BYTES))));
        }
        Ok(this)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            eprintln!("orlop demo: cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Where pieces are written.
#[derive(Debug)]
enum Place {
    /// As root: files on a mounted file system.
    Files(Mounted),
    /// Without root: blocks of the target at this URI.
    Blocks(String, Arc<blocks::Space>),
}

/// All that runs. Dropped from the first field to the last.
struct Stage {
    load: Option<Load>,
    threads: Threads,
    place: Option<Place>,
    supervisor: Option<Supervisor>,
    mount: PathBuf,
    ledger: Arc<Ledger>,
    space: Arc<blocks::Space>,
    steps: Steps,
    root: bool,
}

impl Stage {
    /// Three nodes.
    async fn open(scratch: &Path) -> Outcome<Self> {
        let mut steps = Steps::new();
        let root = rustix::process::geteuid().is_root();
        let folder = Folder::open(&scratch.join("data"))?;
        let cluster = Cluster::new(3, DISK_SIZE.0, process::random_uuid()?);
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let supervisor = Supervisor::start(folder, cluster, anywhere, false, Vec::new()).await?;
        let pids: Vec<String> = supervisor
            .cluster()
            .nodes
            .iter()
            .filter_map(|node| supervisor.process(&node.name).map(|process| process.pid.to_string()))
            .collect();
        steps.done(&format!("three nodes run, each a process of its own (pids {})", pids.join(", ")));
        Ok(Self {
            load: None,
            threads: Threads::default(),
            place: None,
            supervisor: Some(supervisor),
            mount: scratch.join("mount"),
            ledger: Arc::default(),
            space: Arc::default(),
            steps,
            root,
        })
    }

    fn supervisor(&mut self) -> &mut Supervisor {
        self.supervisor.as_mut().expect("it is taken only at the end")
    }

    async fn view(&mut self) -> Outcome<VolumeView> {
        Ok(self.supervisor().client().volume(VOLUME).await?)
    }
}

impl Drop for Stage {
    /// Invariant 2. After an end in order nothing runs any more.
    fn drop(&mut self) {
        self.threads.stop().set();
        if let Some(supervisor) = &self.supervisor {
            supervisor.kill();
        }
    }
}

/// The story, start to end.
async fn tell(stage: &mut Stage, plant_flip: bool) -> Outcome {
    create(stage).await?;
    let device = attach(stage, None).await?;
    fill(stage, device).await?;
    lose_a_copy(stage).await?;
    let owner = lose_the_owner(stage).await?;
    go_on(stage).await?;
    bring_back(stage, &owner).await?;
    verify(stage, "again, after the rebuild").await?;
    let copies = end(stage).await?;
    if plant_flip {
        plant(stage, &copies)?;
    }
    let compared = stage.threads.run(move |stop| replicas::compare(&copies, stop)).await?;
    let bytes = ByteCount(compared.bytes);
    stage
        .steps
        .done(&format!("the three disks, opened without any node: {bytes} compared, all copies identical"));
    Ok(())
}

async fn create(stage: &mut Stage) -> Outcome {
    let client = stage.supervisor().client().clone();
    let spec =
        VolumeSpec { size_bytes: SIZE.0, copies: 3, stripes: 1, block_size: 4096, class: None, spread: None };
    let volume = volume::create_and_wait(&client, VOLUME, spec).await?;
    let nodes: Vec<&str> = volume.status.members.iter().map(|member| member.node.as_str()).collect();
    stage.steps.done(&format!("a volume of {SIZE} with copies on {}", nodes.join(", ")));
    Ok(())
}

/// Attaches the volume and returns its device: a path as root, else the URI of its target.
async fn attach(stage: &mut Stage, node: Option<&str>) -> Outcome<String> {
    let client = stage.supervisor().client().clone();
    let volume = volume::attach_and_wait(&client, VOLUME, node, true).await?;
    let owner = volume.status.owner.unwrap_or_default();
    let device = volume.status.device.ok_or_else(|| Failure::new("the volume has no device"))?;
    stage.steps.done(&format!("attached on {owner} as {device}"));
    Ok(device)
}

/// A file system with a real tree of files, or the same pieces on raw blocks.
async fn fill(stage: &mut Stage, device: String) -> Outcome {
    let (ledger, from) = (Arc::clone(&stage.ledger), PathBuf::from("/usr"));
    if stage.root {
        let (path, name) = (stage.mount.clone(), device.clone());
        let mounted = stage.threads.run(move |stop| {
            files::make_file_system(&name)?;
            stop.check()?;
            Mounted::new(&name, &path)
        });
        let mounted = mounted.await?;
        let to = mounted.path().to_owned();
        stage.place = Some(Place::Files(mounted));
        let copied = stage.threads.run(move |stop| files::copy_tree(&from, &to, TREE_BYTES, &ledger, stop));
        let copied = copied.await?;
        let (files, bytes) = (copied.files, ByteCount(copied.bytes));
        stage
            .steps
            .done(&format!("ext4 made and mounted; {files} files of /usr copied, {bytes}, all synced"));
    } else {
        let (space, uri) = (Arc::clone(&stage.space), device.clone());
        stage.place = Some(Place::Blocks(device, Arc::clone(&stage.space)));
        let copied = stage
            .threads
            .run(move |stop| blocks::copy_tree(&from, &uri, TREE_BYTES, &space, &ledger, stop))
            .await?;
        let (files, bytes) = (copied.files, ByteCount(copied.bytes));
        stage.steps.done(&format!("{files} files of /usr copied to raw blocks, {bytes}, all flushed"));
    }
    Ok(())
}

/// Starts writers and waits until they are well under way.
async fn start_load(stage: &mut Stage, prefix: &str, pause: Duration) -> Outcome {
    let load = match stage.place.as_ref().expect("the volume is filled") {
        Place::Files(mounted) => files::start_load(mounted.path(), prefix, &stage.ledger)?,
        Place::Blocks(uri, space) => blocks::start_load(uri, prefix, pause, space, &stage.ledger),
    };
    stage.load = Some(load);
    let (began, deadline) = (Instant::now(), Instant::now() + PATIENCE);
    while !stage.load.as_ref().is_some_and(Load::all_under_way)
        || (stage.ledger.count_since(began) as u64) < 2 * WRITES_MIN
    {
        if stage.load.as_ref().is_some_and(Load::has_ended) || Instant::now() > deadline {
            let why = stop_load(stage).await.unwrap_or_else(|| "they are too slow".into());
            return Err(Failure::new(format!("the writers did not get under way: {why}")));
        }
        sleep(POLL).await;
    }
    if let Some(load) = &stage.load {
        load.shared.take_longest();
    }
    Ok(())
}

/// Ends the writers; the first error that one of them met.
async fn stop_load(stage: &mut Stage) -> Option<String> {
    let load = stage.load.take()?;
    stage.threads.run(move |_| Ok(load.join())).await.unwrap_or_else(|failure| Some(failure.to_string()))
}

/// A node without the nexus is killed under load; writing goes on; it comes back and its copy is rebuilt.
async fn lose_a_copy(stage: &mut Stage) -> Outcome {
    let owner = stage.view().await?.status.owner.unwrap_or_default();
    let nodes = stage.supervisor().cluster().nodes.clone();
    let victim = nodes.iter().find(|node| node.name != owner).expect("three nodes").name.clone();
    start_load(stage, "first", Duration::from_millis(20)).await?;
    let killed = Instant::now();
    kill(stage, &victim).await?;
    let in_flight = held_up(stage).await;
    sleep(OUTAGE).await;
    let acknowledged = stage.ledger.count_since(killed) as u64;
    if stage.load.as_ref().is_none_or(Load::has_ended) {
        let why = stop_load(stage).await.unwrap_or_default();
        return Err(Failure::new(format!("writing stopped when {victim} was killed: {why}")));
    }
    enough("while a copy was away", acknowledged)?;
    let longest = stage.load.as_ref().map_or(Duration::ZERO, |load| load.shared.take_longest());
    stage.steps.done(&format!(
        "{victim} killed with {in_flight} writes under way: {acknowledged} more were acknowledged in {}, the \
         longest stall was {}",
        seconds(killed.elapsed()),
        seconds(longest)
    ));
    bring_back(stage, &victim).await?;
    match stop_load(stage).await {
        None => Ok(()),
        Some(error) => Err(Failure::new(format!("a writer met an error: {error}"))),
    }
}

/// Starts a node again and waits until every copy is in sync.
async fn bring_back(stage: &mut Stage, node: &str) -> Outcome {
    let began = Instant::now();
    stage.supervisor().start_again(node).await?;
    let bar = say::bar("rebuild", 0);
    let sent = loop {
        let volume = stage.view().await?;
        let member = volume.status.members.iter().find(|member| member.node == node);
        let member = member.ok_or_else(|| Failure::new(format!("{node} has no copy any more")))?;
        if let Some(rebuild) = member.rebuild {
            bar.set_length(rebuild.total_bytes);
            bar.set_position(rebuild.done_bytes);
        }
        let all = volume.status.members.iter().all(|member| member.state == MemberPhase::InSync);
        if all && let Some(rebuilt) = member.rebuilt {
            break rebuilt.sent_bytes;
        }
        if began.elapsed() > PATIENCE {
            let why = volume.status.message.unwrap_or_default();
            return Err(Failure::new(format!("the copy on {node} is {} after 60 s: {why}", member.state)));
        }
        sleep(POLL).await;
    };
    bar.finish_and_clear();
    if sent == 0 {
        return Err(Failure::new(format!("the copy on {node} was rebuilt without sending a byte")));
    }
    let sent = ByteCount(sent);
    stage.steps.done(&format!("{node} started again: {sent} rebuilt, all copies in sync"));
    Ok(())
}

/// The node that owns the nexus is killed under load; the volume is attached elsewhere with all that was acknowledged.
/// Returns the node that was killed.
async fn lose_the_owner(stage: &mut Stage) -> Outcome<String> {
    let owner = stage.view().await?.status.owner.unwrap_or_default();
    let nodes = stage.supervisor().cluster().nodes.clone();
    let other = nodes.iter().find(|node| node.name != owner).expect("three nodes").name.clone();
    start_load(stage, "second", Duration::ZERO).await?;
    let in_flight = full_load(stage).await?;
    let killed = Instant::now();
    kill(stage, &owner).await?;
    let last_second = killed.checked_sub(Duration::from_secs(1)).unwrap_or(killed);
    let recent = stage.ledger.count_since(last_second);
    if recent == 0 {
        // Then nothing says that the newest acknowledgements count too.
        return Err(Failure::new(format!("nothing was acknowledged in the last second of {owner}")));
    }
    // As on a machine that died, its device goes with it; here the machine goes on, so somebody has to say so.
    let run_id = stage.supervisor().cluster().run_id.clone();
    let removed = move || frontend::cleanup(&run_id).or_fail(|| "cannot remove the dead device".into());
    stage.threads.run(move |_| removed()).await?;
    let writers = stage.load.as_ref().map(|load| Arc::clone(&load.shared));
    let met = stop_load(stage).await;
    let longest = writers.map_or(Duration::ZERO, |writers| writers.take_longest());
    stage.place = None;
    stage.steps.done(&format!(
        "{owner}, which owned the volume, killed with {in_flight} writes under way ({recent} were acknowledged in \
         its last second), the longest stall was {}; the writers met: {}",
        seconds(longest),
        met.unwrap_or_else(|| "nothing".into())
    ));
    let device = attach(stage, Some(&other)).await?;
    stage
        .steps
        .done(&format!("failover to {other}: {} from the kill to the new device", seconds(killed.elapsed())));
    reopen(stage, device).await?;
    verify(stage, "after the owner's death").await?;
    Ok(owner)
}

/// Writing goes on at the new owner, while the old one is away and misses it.
async fn go_on(stage: &mut Stage) -> Outcome {
    let began = Instant::now();
    start_load(stage, "third", Duration::ZERO).await?;
    if let Some(error) = stop_load(stage).await {
        return Err(Failure::new(format!("a writer met an error at the new owner: {error}")));
    }
    let count = stage.ledger.count_since(began);
    stage.steps.done(&format!("writing goes on there: {count} pieces acknowledged"));
    Ok(())
}

/// Makes the volume usable on its new device.
async fn reopen(stage: &mut Stage, device: String) -> Outcome {
    if !stage.root {
        stage.place = Some(Place::Blocks(device, Arc::clone(&stage.space)));
        return Ok(());
    }
    let path = stage.mount.clone();
    let mounted = stage.threads.run(move |stop| {
        files::check_file_system(&device)?;
        stop.check()?;
        Mounted::new(&device, &path)
    });
    stage.place = Some(Place::Files(mounted.await?));
    stage.steps.done("e2fsck: clean; mounted again");
    Ok(())
}

/// Everything that was acknowledged is there.
async fn verify(stage: &mut Stage, when: &str) -> Outcome {
    let ledger = Arc::clone(&stage.ledger);
    let count = match stage.place.as_ref().expect("the volume is attached") {
        Place::Files(mounted) => {
            let path = mounted.path().to_owned();
            stage.threads.run(move |stop| files::verify(&path, &ledger, stop)).await?
        }
        Place::Blocks(uri, _) => {
            let uri = uri.clone();
            stage.threads.run(move |stop| blocks::verify(&uri, &ledger, stop)).await?
        }
    };
    stage.steps.done(&format!("all {count} acknowledged pieces are there with their SHA-256, {when}"));
    Ok(())
}

/// Detaches the volume, ends the nodes in order, and says where the copies are.
async fn end(stage: &mut Stage) -> Outcome<Vec<replicas::Copy>> {
    if let Some(Place::Files(mounted)) = stage.place.take() {
        stage.threads.run(move |_| mounted.unmount()).await?;
    }
    let client = stage.supervisor().client().clone();
    volume::detach_and_wait(&client, VOLUME, None).await?;
    let volume = stage.view().await?;
    let folder = stage.supervisor().folder().path().to_owned();
    let copy = |member: &model::MemberView| {
        let disk = folder.join(&member.node).join("disk");
        (member.node.clone(), format!("file://{}", disk.display()), member.replica)
    };
    let copies: Vec<_> = volume.status.members.iter().map(copy).collect();
    let supervisor = stage.supervisor.take().expect("it runs until here");
    let killed = supervisor.stop().await;
    if !killed.is_empty() {
        return Err(Failure::new(format!("{} did not end in order", killed.join(", "))));
    }
    stage.steps.done("detached; all nodes ended in order");
    Ok(copies)
}

/// Flips one bit of a block that the volume certainly holds, on one disk.
fn plant(stage: &mut Stage, copies: &[replicas::Copy]) -> Outcome {
    let (node, uri, _) = &copies[1];
    let block = &load::contents(0, 0)[..4096];
    replicas::flip(Path::new(uri.trim_start_matches("file://")), block)?;
    stage.steps.done(&format!("one bit flipped on the disk of {node}, behind everybody's back"));
    Ok(())
}

/// `kill -9`, and waits until the process is gone.
async fn kill(stage: &mut Stage, node: &str) -> Outcome {
    let process = stage.supervisor().process(node);
    let process = process.ok_or_else(|| Failure::new(format!("{node} does not run")))?;
    if !process.signal(Signal::KILL) {
        return Err(Failure::new(format!("{node} (pid {}) had ended by itself", process.pid)));
    }
    while process.is_alive() {
        sleep(Duration::from_millis(2)).await;
    }
    let ended = stage.supervisor().next_ended().await;
    if ended.name == node { Ok(()) } else { Err(Failure::new(format!("{} ended by itself", ended.name))) }
}

/// Waits for a moment at which enough writes are under way; how many. Writers also have to make what they write.
async fn full_load(stage: &Stage) -> Outcome<u64> {
    let (began, mut most) = (Instant::now(), 0);
    while let Some(load) = stage.load.as_ref().filter(|load| !load.has_ended() && began.elapsed() < PATIENCE)
    {
        let in_flight = load.in_flight();
        if in_flight >= WRITES_MIN {
            return Ok(in_flight);
        }
        most = most.max(in_flight);
        sleep(Duration::from_millis(1)).await;
    }
    enough("under way before the owner was to be killed", most).map(|()| most)
}

/// The most writes that were under way at once in the moments after a kill: a writer that was between two of its
/// writes meets the outage with the next one.
async fn held_up(stage: &Stage) -> u64 {
    let (began, mut most) = (Instant::now(), 0);
    while let Some(load) = &stage.load {
        most = most.max(load.in_flight());
        if most >= load::WRITERS as u64 || load.has_ended() || began.elapsed() > MOMENTS {
            break;
        }
        sleep(Duration::from_millis(5)).await;
    }
    most
}

fn enough(when: &str, writes: u64) -> Outcome {
    if writes >= WRITES_MIN {
        return Ok(());
    }
    Err(Failure::new(format!(
        "only {writes} writes {when}; at least {WRITES_MIN} are needed to prove anything"
    )))
}

//! Measures target and initiator against each other over loopback: `nvmf_bench [SECONDS] [DEPTH...]`.
//!
//! The target serves a memory device on one thread, the initiator reads and writes 4 KiB and 128 KiB of it on another.
//! Prints a table: commands per second, and the core time that each side spends on one command.

use device::{BlockCount, Device, Geometry, Lba, Mem};
use nvmf::{
    Association, ConnectError, ConnectOptions, ConnectRequest, DiscoveryEntry, Key, NamespaceIdentity,
    Session, Subsystems, Target, TargetConfig,
};
use rt::{DmaBuf, Durability};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

const SUBNQN: &str = "nqn.2026-11.io.orlop:bench";
const HOSTNQN: &str = "nqn.2026-11.io.orlop:bench-host";
const GEOMETRY: Geometry = Geometry { block_size: 4096, blocks: BlockCount(64 << 8) };

struct Export(Rc<Volume>);
struct Volume(Mem);

impl Subsystems for Export {
    fn key(&self, _subnqn: &str, _hostnqn: &str) -> Result<Option<Key>, ConnectError> {
        Ok(None)
    }

    type Session = Volume;
    async fn open(&self, _connect: &ConnectRequest) -> Result<Rc<Volume>, ConnectError> {
        Ok(Rc::clone(&self.0))
    }
    fn discovery(&self) -> Vec<DiscoveryEntry> {
        Vec::new()
    }
}

impl Session for Volume {
    type Namespace = Mem;
    fn namespace_ids(&self) -> Vec<u32> {
        vec![1]
    }
    fn namespace(&self, nsid: u32) -> Option<Mem> {
        (nsid == 1).then(|| self.0.clone())
    }
    fn identity(&self, _nsid: u32) -> NamespaceIdentity {
        NamespaceIdentity { uuid: Uuid::nil() }
    }
}

/// With `RECEIVE_BUFFERS=0` in the environment connections receive one by one, to compare.
#[expect(clippy::disallowed_methods, reason = "an example is a program and reads its own environment")]
fn config() -> rt::os::Config {
    let config = rt::os::Config::default();
    let receive_buffers = std::env::var("RECEIVE_BUFFERS")
        .map_or(config.receive_buffers, |text| text.parse().expect("RECEIVE_BUFFERS is a number"));
    rt::os::Config { receive_buffers, ..config }
}

/// Core time that the calling thread has used.
fn core_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).expect("below a second"))
}

/// Starts the target on a thread of its own; its core time is asked for by a message.
fn start_target() -> (SocketAddr, rt::mailbox::Sender<rt::mailbox::Sender<Duration>>) {
    let (address_is, address) = rt::mailbox::bounded(1);
    let (ask, asked) = rt::mailbox::bounded::<rt::mailbox::Sender<Duration>>(1);
    let serve = move || {
        let reactor = rt::os::Reactor::new(config()).expect("io_uring works here");
        reactor.run(async move {
            let volume = Rc::new(Volume(Mem::new(GEOMETRY)));
            let config = TargetConfig::new("127.0.0.1:0".parse().expect("an address"));
            let target = Target::bind(config, Rc::new(Export(volume))).await.expect("a free port");
            address_is.send(target.local_address()).await.expect("it waits");
            let answers = async {
                while let Ok(answer) = asked.recv().await {
                    answer.send(core_time()).await.expect("it waits");
                }
            };
            rt::race(answers, target.serve()).await;
        });
    };
    std::thread::Builder::new().name("target".into()).spawn(serve).expect("a thread");
    (address.recv_blocking().expect("it listens"), ask)
}

#[derive(Clone, Copy)]
enum Load {
    Read,
    Write,
}

/// Runs `depth` commands at a time for `seconds`; returns their number.
async fn run_load(association: &Association, load: Load, bytes: usize, depth: u64, seconds: u64) -> u64 {
    let end = rt::now() + Duration::from_secs(seconds);
    let workers: Vec<_> = (0..depth)
        .map(|worker| {
            let namespace = association.namespace(1);
            rt::spawn(async move {
                let mut random = worker.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
                let mut count = 0;
                let blocks = bytes as u64 / 4096;
                let mut buf = DmaBuf::zeroed(bytes);
                while count % 64 != 0 || rt::now() < end {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let lba = Lba(random % (GEOMETRY.blocks.0 / blocks) * blocks);
                    match load {
                        Load::Read => buf = namespace.read(lba, buf).await.expect("read"),
                        Load::Write => {
                            let data = DmaBuf::new(bytes).freeze();
                            namespace.write(lba, data, Durability::Cached).await.expect("write");
                        }
                    }
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut total = 0;
    for worker in workers {
        total += worker.await;
    }
    total
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>().expect("a number"));
    let seconds = arguments.next().unwrap_or(3);
    let mut depths: Vec<u64> = arguments.collect();
    if depths.is_empty() {
        depths = vec![1, 32];
    }
    let (address, ask) = start_target();
    let target_time = async || {
        let (answer, answered) = rt::mailbox::bounded(1);
        ask.send(answer).await.expect("the target lives");
        answered.recv().await.expect("the target lives")
    };
    let reactor = rt::os::Reactor::new(config()).expect("io_uring works here");
    reactor.run(async {
        let options = ConnectOptions::new(address, SUBNQN, HOSTNQN, Uuid::from_u128(1));
        let association = Association::connect(options).await.expect("connects");
        let namespace = association.namespace(1);
        for at in (0..GEOMETRY.blocks.0).step_by(256) {
            let data = DmaBuf::zeroed(256 * 4096).freeze();
            namespace.write(Lba(at), data, Durability::Cached).await.expect("write");
        }
        println!(
            "{:<14} {:>5} {:>12} {:>18} {:>18}",
            "", "depth", "commands/s", "target us/command", "host us/command"
        );
        for (name, load, bytes) in [
            ("read 4 KiB", Load::Read, 4096),
            ("write 4 KiB", Load::Write, 4096),
            ("read 128 KiB", Load::Read, 128 << 10),
            ("write 128 KiB", Load::Write, 128 << 10),
        ] {
            for &depth in &depths {
                let (target_before, host_before, began) = (target_time().await, core_time(), rt::now());
                let count = run_load(&association, load, bytes, depth, seconds).await;
                let wall = began.elapsed().as_secs_f64();
                let (target, host) = (target_time().await, core_time());
                #[expect(clippy::cast_precision_loss, reason = "a count of commands, for people")]
                let count = count as f64;
                let each = |time: Duration, before: Duration| {
                    (time.as_secs_f64() - before.as_secs_f64()) * 1e6 / count
                };
                println!(
                    "{name:<14} {depth:>5} {:>12.0} {:>18.2} {:>18.2}",
                    count / wall,
                    each(target, target_before),
                    each(host, host_before)
                );
            }
        }
        association.close().await;
    });
}

//! Measures the reactor against plain system calls and fio, side by side in one run.
//!
//! `cargo run --release -p orlop-rt --example rt_bench -- FILE [SECONDS [ROUNDS [FILTER]]]`: FILE is made (256 MiB) if it is
//! missing, and overwritten. Figures are medians over the rounds, which alternate between the contenders.

#![allow(clippy::cast_precision_loss, reason = "figures for people")]

use rt::net::{TcpListener, TcpStream};
use rt::os::{Config, Reactor};
use rt::{Access, DmaBuf, DmaBytes, Durability, File, OpenOptions, Part};
use std::cell::Cell;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::Duration;

const LEN: u64 = 256 << 20;
const BLOCK: u64 = 4096;

/// I/Os per second and CPU microseconds (user and kernel, all threads) per I/O.
type Figures = (f64, f64);
/// A name and a run.
type Contender<'a> = (&'a str, Box<dyn Fn() -> Figures + 'a>);

fn main() {
    let mut arguments = std::env::args().skip(1);
    let path = PathBuf::from(arguments.next().expect("usage: rt_bench FILE [SECONDS [ROUNDS [FILTER]]]"));
    let seconds: f64 = arguments.next().map_or(2.0, |text| text.parse().expect("SECONDS is a number"));
    let rounds: usize = arguments.next().map_or(3, |text| text.parse().expect("ROUNDS is a number"));
    let filter = arguments.next().unwrap_or_default();
    let span = Duration::from_secs_f64(seconds);
    prepare(&path);
    println!("{:<28} {:>12} {:>10}", "what", "per second", "CPU us");
    for write in [false, true] {
        let name = if write { "randwrite" } else { "randread" };
        for depth in [1, 32] {
            let mut contenders: Vec<Contender<'_>> =
                vec![("rt", Box::new(|| disk(&path, write, depth, span)))];
            if depth == 1 {
                contenders.push(("pread/pwrite", Box::new(|| plain(&path, write, span))));
            }
            contenders.push(("fio io_uring", Box::new(|| fio(&path, write, depth, seconds))));
            compare(&format!("{name} 4k depth {depth}"), rounds, &filter, &contenders);
        }
    }
    for depth in [1, 32] {
        let name = format!("TCP ping-pong 4k depth {depth}");
        compare_receiving(&name, rounds, &filter, move || ping_pong(depth, span));
    }
    compare_receiving("TCP 64 B messages", rounds, &filter, small_messages);
    for kib in [4, 16, 64, 128, 256] {
        compare_receiving(&format!("TCP payload {kib}k"), rounds, &filter, move || payload(kib << 10));
    }
    compare_receiving("TCP 100 connections", rounds, &filter, move || connections(100, span));
}

/// Buffers that connections share in the reactors made from now on.
static RECEIVE_BUFFERS: AtomicU16 = AtomicU16::new(0);

/// Compares multishot receives with receives one by one.
fn compare_receiving(name: &str, rounds: usize, filter: &str, run: impl Fn() -> Figures + Copy) {
    let shared = Config::default().receive_buffers;
    let with = move |buffers| {
        RECEIVE_BUFFERS.store(buffers, Relaxed);
        run()
    };
    let contenders: [Contender<'_>; 2] =
        [("multishot", Box::new(move || with(shared))), ("one by one", Box::new(move || with(0)))];
    compare(name, rounds, filter, &contenders);
}

fn compare(name: &str, rounds: usize, filter: &str, contenders: &[Contender<'_>]) {
    if !name.contains(filter) {
        return;
    }
    let mut results = vec![Vec::new(); contenders.len()];
    for _ in 0..rounds {
        for ((_, run), results) in contenders.iter().zip(&mut results) {
            results.push(run());
        }
    }
    for ((who, _), mut results) in contenders.iter().zip(results) {
        results.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (rate, cpu) = results[results.len() / 2];
        println!("{:<28} {rate:>12.0} {cpu:>10.2}", format!("{name}: {who}"));
    }
}

fn options() -> OpenOptions {
    OpenOptions { access: Access::Write, create_len_bytes: Some(LEN), direct: true }
}

fn prepare(path: &Path) {
    reactor().run(async {
        let file = File::open(path, options()).await.expect("FILE opens");
        for at in (0..LEN).step_by(1 << 20) {
            let data = DmaBuf::zeroed(1 << 20).freeze();
            file.write_at(at, data, Durability::Cached).await.expect("write");
        }
        file.sync().await.expect("sync");
    });
}

fn reactor() -> Reactor {
    let registered_bytes = if std::env::var_os("UNREGISTERED").is_some() { 0 } else { 16 << 20 };
    let receive_buffers = RECEIVE_BUFFERS.load(Relaxed);
    Reactor::new(Config { registered_bytes, receive_buffers, ..Config::default() }).expect("a reactor")
}

/// CPU time of this process so far, in seconds.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn disk(path: &Path, write: bool, depth: u64, span: Duration) -> Figures {
    reactor().run(async {
        let file = Rc::new(File::open(path, options()).await.expect("FILE opens"));
        let (count, cpu, start) = (Rc::new(Cell::new(0_u64)), cpu_seconds(), rt::now());
        let workers: Vec<_> = (0..depth)
            .map(|worker| {
                let (file, count) = (Rc::clone(&file), Rc::clone(&count));
                rt::spawn(async move {
                    let mut random = worker * 0x9E37_79B9 + 1;
                    let mut buf = DmaBuf::zeroed(4096);
                    let data = DmaBytes::copy_of(&[7; 4096]);
                    while rt::now() - start < span {
                        let at = next(&mut random) % (LEN / BLOCK) * BLOCK;
                        if write {
                            file.write_at(at, data.clone(), Durability::Cached).await.expect("write");
                        } else {
                            buf = file.read_at(at, buf).await.expect("read");
                        }
                        count.set(count.get() + 1);
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.await;
        }
        figures(count.get(), start, cpu)
    })
}

fn next(random: &mut u64) -> u64 {
    *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *random >> 33
}

fn figures(count: u64, start: rt::Instant, cpu: f64) -> Figures {
    let count = count as f64;
    (count / start.elapsed().as_secs_f64(), (cpu_seconds() - cpu) * 1e6 / count)
}

fn plain(path: &Path, write: bool, span: Duration) -> Figures {
    let mut options = std::fs::OpenOptions::new();
    let file = options.read(true).write(true).custom_flags(libc::O_DIRECT).open(path).expect("FILE opens");
    let mut buf = DmaBuf::zeroed(4096);
    reactor().run(async {
        let (mut count, mut random, cpu, start) = (0, 1, cpu_seconds(), rt::now());
        while rt::now() - start < span {
            let at = next(&mut random) % (LEN / BLOCK) * BLOCK;
            if write {
                file.write_all_at(&buf, at).expect("write");
            } else {
                file.read_exact_at(&mut buf, at).expect("read");
            }
            count += 1;
        }
        figures(count, start, cpu)
    })
}

fn fio(path: &Path, write: bool, depth: u64, seconds: f64) -> Figures {
    let rw = if write { "randwrite" } else { "randread" };
    let output = Command::new("fio")
        .args(["--name=f", "--ioengine=io_uring", "--direct=1", "--bs=4k", "--time_based", "--norandommap"])
        .args(["--overwrite=1", "--thread", "--output-format=json", "--randrepeat=0", "--gtod_reduce=1"])
        .arg(format!("--filename={}", path.display()))
        .args([format!("--rw={rw}"), format!("--iodepth={depth}"), format!("--runtime={seconds}s")])
        .arg(format!("--size={LEN}"))
        .output();
    let Ok(output) = output else { return (0.0, 0.0) };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let iops = numbers(&text, "\"iops\"").fold(0.0, f64::max);
    let percent = numbers(&text, "\"usr_cpu\"").next().unwrap_or(0.0)
        + numbers(&text, "\"sys_cpu\"").next().unwrap_or(0.0);
    (iops, percent / 100.0 * 1e6 / iops)
}

fn numbers<'a>(json: &'a str, key: &'a str) -> impl Iterator<Item = f64> + 'a {
    json.match_indices(key).filter_map(move |(at, _)| {
        let rest = json[at + key.len()..].trim_start_matches([' ', ':']);
        let end = rest.find([',', '\n', '}'])?;
        rest[..end].trim().parse().ok()
    })
}

/// Starts a peer on a reactor and thread of its own; it serves one connection with `serve`.
fn peer<F: Future<Output = ()> + 'static>(
    serve: impl FnOnce(TcpStream) -> F + Send + 'static,
) -> (std::net::SocketAddr, std::thread::JoinHandle<()>) {
    let (sender, address) = rt::mailbox::bounded(1);
    let thread = std::thread::spawn(move || {
        reactor().run(async move {
            let listener = TcpListener::bind("127.0.0.1:0".parse().expect("an address")).await.expect("bind");
            sender.send(listener.local_address()).await.expect("main listens");
            serve(listener.accept().await.expect("accept")).await;
        });
    });
    (address.recv_blocking().expect("the peer listens"), thread)
}

/// Blocks of 4 KiB that come back, `depth` at a time.
fn ping_pong(depth: u32, span: Duration) -> Figures {
    let (address, thread) = peer(|mut stream| async move {
        let mut block = DmaBuf::new(4096);
        while let Ok(filled) = stream.receive.read_exact_dma(block).await {
            let data = filled.freeze();
            if stream.send.send(vec![Part::Data(data)]).await.is_err() {
                return;
            }
            block = DmaBuf::new(4096);
        }
    });
    let figures = reactor().run(async {
        let mut stream = TcpStream::connect(address).await.expect("connect");
        let data = DmaBytes::copy_of(&[7; 4096]);
        for _ in 1..depth {
            stream.send.send(vec![Part::Data(data.clone())]).await.expect("send");
        }
        let (mut count, cpu, start) = (0, cpu_seconds(), rt::now());
        while rt::now() - start < span {
            stream.send.send(vec![Part::Data(data.clone())]).await.expect("send");
            let back = stream.receive.read_exact_dma(DmaBuf::new(4096)).await.expect("receive");
            assert_eq!(back[4095], 7);
            count += 1;
        }
        figures(count, start, cpu)
    });
    thread.join().expect("the peer ends");
    figures
}

/// Messages of 512 bytes that come back, one at a time on each of so many connections.
fn connections(count: usize, span: Duration) -> Figures {
    async fn echo(mut stream: TcpStream) {
        loop {
            let Ok(arrived) = stream.receive.fill().await.map(<[u8]>::to_vec) else { return };
            stream.receive.consume(arrived.len());
            if arrived.is_empty() || stream.send.send(vec![Part::Bytes(arrived)]).await.is_err() {
                return;
            }
        }
    }
    let (sender, address) = rt::mailbox::bounded(1);
    let thread = std::thread::spawn(move || {
        reactor().run(async move {
            let listener = TcpListener::bind("127.0.0.1:0".parse().expect("an address")).await.expect("bind");
            sender.send(listener.local_address()).await.expect("main listens");
            let mut served = Vec::new();
            for _ in 0..count {
                served.push(rt::spawn(echo(listener.accept().await.expect("accept"))));
            }
            for one in served {
                one.await;
            }
        });
    });
    let address = address.recv_blocking().expect("the peer listens");
    let figures = reactor().run(async {
        let (total, cpu, start) = (Rc::new(Cell::new(0)), cpu_seconds(), rt::now());
        let tasks: Vec<_> = (0..count)
            .map(|_| {
                let total = Rc::clone(&total);
                rt::spawn(async move {
                    let mut stream = TcpStream::connect(address).await.expect("connect");
                    let mut back = [0; 512];
                    while rt::now() - start < span {
                        stream.send.send(vec![Part::Bytes(vec![7; 512])]).await.expect("send");
                        stream.receive.read_exact(&mut back).await.expect("receive");
                        total.set(total.get() + 1);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        figures(total.get(), start, cpu)
    });
    thread.join().expect("the peer ends");
    figures
}

/// A million messages of 64 bytes, sent in batches of 64 and echoed in what batches arrive.
fn small_messages() -> Figures {
    const COUNT: usize = 1_000_000;
    let (address, thread) = peer(|mut stream| async move {
        loop {
            let arrived = stream.receive.fill().await.expect("receive").to_vec();
            if arrived.is_empty() {
                return;
            }
            stream.receive.consume(arrived.len());
            if stream.send.send(vec![Part::Bytes(arrived)]).await.is_err() {
                return;
            }
        }
    });
    let figures = reactor().run(async {
        let TcpStream { mut receive, mut send, .. } = TcpStream::connect(address).await.expect("connect");
        let (cpu, start) = (cpu_seconds(), rt::now());
        let sender = rt::spawn(async move {
            for _ in 0..COUNT / 64 {
                send.send((0..64).map(|_| Part::Bytes(vec![7; 64])).collect()).await.expect("send");
            }
            send
        });
        let mut left = COUNT / 64 * 64 * 64;
        while left > 0 {
            let count = receive.fill().await.expect("receive").len();
            receive.consume(count);
            left -= count;
        }
        drop(sender.await);
        figures(COUNT as u64, start, cpu)
    });
    thread.join().expect("the peer ends");
    figures
}

/// 64-byte headers, each followed by `len` bytes of payload, one way: 2 GiB in all. Counts messages.
fn payload(len: usize) -> Figures {
    let count = (2_usize << 30) / len;
    let (address, thread) = peer(move |stream| async move {
        let TcpStream { mut receive, mut send, .. } = stream;
        let data = DmaBytes::copy_of(&vec![7; len]);
        for _ in 0..count / 4 {
            let parts = (0..4).flat_map(|_| [Part::Bytes(vec![1; 64]), Part::Data(data.clone())]).collect();
            send.send(parts).await.expect("send");
        }
        receive.fill().await.expect("the other end closes");
    });
    let figures = reactor().run(async {
        let mut stream = TcpStream::connect(address).await.expect("connect");
        let (cpu, start) = (cpu_seconds(), rt::now());
        let mut head = [0; 64];
        for _ in 0..count / 4 * 4 {
            stream.receive.read_exact(&mut head).await.expect("head");
            let data = stream.receive.read_exact_dma(DmaBuf::new(len)).await.expect("payload");
            assert_eq!((head[63], data[len - 1]), (1, 7));
        }
        figures(count as u64, start, cpu)
    });
    thread.join().expect("the peer ends");
    figures
}

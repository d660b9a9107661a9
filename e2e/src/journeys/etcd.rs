//! `orlop dev` with its records in a real etcd, which dies and comes back.

use crate::cluster::Cluster;
use crate::journey::{Journey, Trip, free_port, need};
use crate::process::Running;
use anyhow::{Result, ensure};
use rustix::process::Signal;
use std::net::TcpStream;
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);
/// How long the store is away while bytes flow: longer than any lease.
const OUTAGE: Duration = Duration::from_secs(25);

pub(crate) const CLUSTER: Journey = Journey {
    name: "etcd-cluster",
    what: "a cluster with its records in an etcd: I/O goes on while the etcd is dead; all is there when both begin again",
    run: cluster,
};

fn cluster(trip: &Trip) -> Result<()> {
    need(&[("etcd", "etcd-server"), ("fio", "fio")])?;
    let etcd = Etcd { trip, client: free_port()?, peer: free_port()? };
    let server = etcd.start()?;
    let mut cluster = Cluster::start_with(trip, "2GiB", &["--store", &etcd.address()])?;
    let device = cluster.volume("data", "256MiB")?;
    ensure!(!trip.folder.join("data/controller").exists(), "there is a store beside the etcd");

    let server = outage(trip, &etcd, server, &device)?;
    cluster.orlop(&["volume", "create", "more", "--size", "64MiB"])?;
    trip.checked("the etcd is back: a volume can be created");

    let owner = cluster.owner("data")?;
    cluster.kill(&owner)?;
    cluster.controller()?.signal(Signal::KILL);
    verify(trip, &device)?;
    cluster.in_sync("data", MINUTE)?;
    trip.checked(format!(
        "{owner}, the owner, and the controller killed: every block verified, all copies in sync"
    ));

    cluster.orlop(&["volume", "detach", "data"])?;
    cluster.end()?;
    kill(server)?;
    let _server = etcd.start()?;
    let took = cluster.launch(&[])?;
    let device = cluster.attach("data", None)?;
    verify(trip, &device)?;
    trip.checked(format!(
        "the etcd killed, both begun again: nodes ready after {:.1} s, every block verified",
        took.as_secs_f64()
    ));
    cluster.remove("data")?;
    cluster.orlop(&["volume", "delete", "more"])?;
    cluster.stop()
}

/// The etcd is dead for a while under a verified load; the one that is started again.
fn outage(trip: &Trip, etcd: &Etcd<'_>, server: Running, device: &str) -> Result<Running> {
    let mut fio = trip.command("fio");
    fio.args(job(device)).args(["--do_verify=1", "--rate_iops=,800"]);
    let mut fio = trip.start(fio)?;
    std::thread::sleep(Duration::from_secs(2));
    kill(server)?;
    let killed = Instant::now();
    std::thread::sleep(OUTAGE);
    ensure!(fio.runs(), "fio ended before the outage did: {}", fio.output());
    let server = etcd.start()?;
    let away = killed.elapsed();
    fio.wait(2 * MINUTE)?.success("fio with verification")?;
    trip.checked(format!(
        "the etcd was dead for {:.1} s under load: 128 MiB verified, no error",
        away.as_secs_f64()
    ));
    Ok(server)
}

fn job(device: &str) -> Vec<String> {
    let words = "--name=verify --direct=1 --ioengine=io_uring --rw=randwrite --bs=4k --iodepth=8 --size=128m \
                 --verify=crc32c --verify_fatal=1 --randseed=3";
    words.split_whitespace().map(str::to_owned).chain([format!("--filename={device}")]).collect()
}

/// Reads what `job` has written.
fn verify(trip: &Trip, device: &str) -> Result<()> {
    let mut fio = trip.command("fio");
    fio.args(job(device)).arg("--verify_only");
    trip.run(fio, MINUTE)?.success("fio --verify_only").map(drop)
}

/// A real etcd with its data in the trip's folder.
struct Etcd<'a> {
    trip: &'a Trip,
    client: u16,
    peer: u16,
}

impl Etcd<'_> {
    fn address(&self) -> String {
        format!("etcd://127.0.0.1:{}", self.client)
    }

    /// Starts it on the data that there is, and waits until it listens.
    fn start(&self) -> Result<Running> {
        let (client, peer) = (self.client, self.peer);
        let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let mut etcd = self.trip.command("etcd");
        etcd.args(["--name", "m0", "--data-dir", "etcd", "--initial-cluster", &format!("m0={peer}")]);
        etcd.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        etcd.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        let mut running = self.trip.start(etcd)?;
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.client)).is_err() {
            ensure!(running.runs() && begun.elapsed() < MINUTE, "etcd does not listen: {}", running.output());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(running)
    }
}

/// `kill -9`; gone when this returns.
fn kill(server: Running) -> Result<()> {
    ensure!(server.process.signal(Signal::KILL), "etcd had ended: {}", server.output());
    server.wait(MINUTE).map(drop)
}

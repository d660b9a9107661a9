//! The harness judged by itself: a plain loop device passes what volumes must pass, and the guard removes what was planted.

use crate::guard::{Leftovers, RunId, cgroup_root};
use crate::journey::{Journey, Trip, need};
use crate::process::Running;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);
/// Two minutes of a crate's tests, and their build.
const TESTS_LIMIT: Duration = Duration::from_secs(900);

/// The programs and the machine are fit: what is asked of a volume holds for a plain loop device over a file.
pub(crate) const BASELINE: Journey = Journey {
    name: "baseline",
    what: "fio verifies 64 MiB on a plain loop device, and finds a block that was changed behind its back",
    run: baseline,
};

/// On any exit nothing stays behind.
pub(crate) const GUARD: Journey = Journey {
    name: "guard",
    what: "a harness that is killed leaves no process, mount, loop, namespace, cgroup or folder",
    run: guard,
};

/// The front-end on the real kernel: its own tests, each of which counts.
pub(crate) const FRONTEND: Journey = Journey {
    name: "frontend",
    what: "FUSE and loop devices: attach, grow, discard, servers and holders that die; the tests of data/frontend as root",
    run: frontend,
};

/// Disks on the real kernel: their own test.
pub(crate) const DISKS: Journey = Journey {
    name: "disks",
    what: "a loop device that is blank, formatted, mounted, swap, gone: what is said of it; the test of data/disks",
    run: disks,
};

/// The store in a real etcd: its own tests, each of which counts.
pub(crate) const ETCD: Journey = Journey {
    name: "etcd",
    what: "the store in a real etcd: compacted, killed, stopped, full, without a majority; the tests of control/store",
    run: etcd,
};

/// The store in a real Kubernetes: its own tests, each of which counts.
pub(crate) const KUBERNETES_STORE: Journey = Journey {
    name: "kubernetes-store",
    what: "the store in a real API server: compacted, killed, stopped, edited by hand; the tests of control/k8s",
    run: kubernetes_store,
};

fn frontend(trip: &Trip) -> Result<()> {
    need(&[
        ("fio", "fio"),
        ("mkfs.ext4", "e2fsprogs"),
        ("resize2fs", "e2fsprogs"),
        ("blkdiscard", "util-linux"),
        ("losetup", "mount"),
    ])?;
    tests_of_a_crate(trip, "root", None, "the tests of the front-end")
}

fn disks(trip: &Trip) -> Result<()> {
    need(&[("mkfs.ext4", "e2fsprogs"), ("mkswap", "util-linux"), ("losetup", "mount")])?;
    tests_of_a_crate(trip, "loops", None, "the test of the disks")
}

fn etcd(trip: &Trip) -> Result<()> {
    need(&[("etcd", "etcd-server")])?;
    tests_of_a_crate(trip, "etcd", None, "the tests of the store in etcd")
}

fn kubernetes_store(trip: &Trip) -> Result<()> {
    need(&[("etcd", "etcd-server"), ("openssl", "openssl")])?;
    let apiserver = crate::kubernetes::programs::built("kube-apiserver")?;
    // It lies beside that.
    crate::kubernetes::programs::built("kube-scheduler")?;
    let named = Some(("ORLOP_KUBE_APISERVER", apiserver.as_path()));
    tests_of_a_crate(trip, "apiserver", named, "the tests of the store in Kubernetes")
}

/// Runs the test program `test`, which runs nothing unless it is told to; it finds a program by a variable.
fn tests_of_a_crate(trip: &Trip, test: &str, program: Option<(&str, &Path)>, what: &str) -> Result<()> {
    let mut command = trip.command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // The whole workspace, for the features of its packages: those of one package alone would be compiled again.
    command.args(["test", "--quiet", "--workspace", "--test", test, "--", "--run"]);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    // What a test leaves is then known as this journey's.
    command.env("TMPDIR", &trip.folder);
    command.envs(program);
    let outcome = trip.run(command, TESTS_LIMIT)?;
    // `cargo xtask` adds up the lines that begin with `test result:`.
    for line in outcome.output.lines().filter(|line| !line.trim().is_empty()) {
        println!("    {line}");
    }
    ensure!(outcome.output.contains("\ntest result: "), "no test ran");
    outcome.success(what)?;
    Ok(())
}

fn baseline(trip: &Trip) -> Result<()> {
    need(&[("fio", "fio"), ("losetup", "util-linux")])?;
    trip.sh("truncate -s 128M disk", MINUTE)?;
    let device =
        trip.sh("losetup --find --show --direct-io=on --sector-size 4096 disk", MINUTE)?.trim().to_owned();
    let verdict = verify(trip, &device);
    trip.sh(&format!("losetup --detach {device}"), MINUTE)?;
    verdict
}

fn verify(trip: &Trip, device: &str) -> Result<()> {
    let fio = format!(
        "fio --name=verify --filename={device} --direct=1 --ioengine=io_uring --rw=randwrite --bs=4k --iodepth=32 \
         --size=64m --verify=crc32c --verify_fatal=1"
    );
    trip.sh(&format!("{fio} --do_verify=1"), MINUTE)?;
    trip.checked("64 MiB of random 4 KiB writes read back with the right CRC32C");
    trip.sh(
        &format!("dd if=/dev/urandom of={device} bs=4096 seek=1000 count=1 oflag=direct status=none"),
        MINUTE,
    )?;
    let mut again = trip.command("sh");
    again.args(["-c", &format!("{fio} --verify_only")]);
    let outcome = trip.run(again, MINUTE)?;
    ensure!(
        outcome.code.is_some_and(|code| code != 0),
        "fio did not see a block that was changed behind its back"
    );
    trip.checked("one block changed behind fio's back was found");
    Ok(())
}

/// Plants one of each through a harness of its own, kills that harness, and looks after a moment.
fn guard(trip: &Trip) -> Result<()> {
    let mut command = trip.command(std::env::current_exe()?);
    command.arg("plant");
    let mut planting = trip.start(command)?;
    let start = Instant::now();
    let id = loop {
        let output = planting.output();
        if let Some(id) = output.lines().find_map(|line| line.strip_prefix("planted ")) {
            break RunId(id.to_owned());
        }
        ensure!(planting.runs() && start.elapsed() < MINUTE, "nothing was planted:\n{output}");
        std::thread::sleep(Duration::from_millis(50));
    };
    let planted = Leftovers::find(&id, &[planting.process.pid]).to_string();
    for kind in ["process", "mount", "loop", "cgroup", "namespace"] {
        ensure!(planted.contains(&format!("{kind} ")), "no {kind} was planted: {planted}");
    }
    let hidden = planted.contains("tmpfs inside") && planted.matches("loop /dev/").count() == 2;
    ensure!(hidden, "what is as in a container is not known as the run's: {planted}");
    trip.checked(format!("planted: {planted}"));
    ensure!(planting.process.signal(rustix::process::Signal::KILL), "the planting harness had ended");
    planting.wait(MINUTE)?;
    let killed = Instant::now();
    while id.folder().exists() {
        ensure!(killed.elapsed() < MINUTE, "a minute later there is still {}", Leftovers::find(&id, &[]));
        std::thread::sleep(Duration::from_millis(50));
    }
    // The guard itself carries the id and ends a moment after the folder is gone.
    while !Leftovers::find(&id, &[]).is_empty() {
        ensure!(killed.elapsed() < MINUTE, "a minute later there is still {}", Leftovers::find(&id, &[]));
        std::thread::sleep(Duration::from_millis(50));
    }
    trip.checked(format!("all of it was gone {:.1} s after kill -9", killed.elapsed().as_secs_f64()));
    Ok(())
}

/// The harness that is going to be killed: leaves one thing of each kind behind.
pub(crate) fn plant(id: &RunId) -> Result<()> {
    let trip = Trip::new(id, "plant", "/nonexistent".as_ref())?;
    let folder = trip.folder.display();
    fs::create_dir_all("/run/netns").context("make room for a namespace")?;
    trip.sh("truncate -s 64M disk && mkfs.ext4 -q disk && mkdir inner outer", MINUTE)?;
    trip.sh(&format!("mount -t tmpfs outer {folder}/outer && mount -o loop disk {folder}/inner"), MINUTE)?;
    let cgroup = cgroup_root().context("this machine has no cgroups of version 2")?.join(&id.0).join("inner");
    trip.sh(&format!("ip netns add {} && mkdir -p {}", id.0, cgroup.display()), MINUTE)?;
    let procs = cgroup.join("cgroup.procs");
    // One that keeps the file system and the cgroup busy.
    let holder =
        held(&trip, &format!("echo $$ >{}; cd inner; echo holding; exec sleep 600", procs.display()))?;
    // One that is as in a container: it has nothing of the run but its cgroup, and a loop over what only it sees.
    let inside = "mount -t tmpfs inside /mnt; truncate -s 1M /mnt/file; losetup --find /mnt/file; echo holding; sleep 600";
    let enter = "cd /; exec env -i PATH=\"$PATH\" unshare --mount sh -ec";
    let container = held(&trip, &format!("echo $$ >{}; {enter} '{inside}'", procs.display()))?;
    println!("planted {}", id.0);
    std::thread::sleep(Duration::from_secs(600));
    drop((holder, container));
    Ok(())
}

/// Starts a line of shell, and waits until it says that it holds what it is to hold: only then all of it is planted.
fn held(trip: &Trip, line: &str) -> Result<Running> {
    let mut command = trip.command("bash");
    command.args(["-ec", line]);
    let mut holder = trip.start(command)?;
    while !holder.output().contains("holding") {
        ensure!(holder.runs(), "the holder ended: {}", holder.output());
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(holder)
}

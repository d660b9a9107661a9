//! SQLite and PostgreSQL on ext4: what was acknowledged is there after the worst.
//!
//! The same steps run on a plain loop device, where the database is killed, and on a volume, where the node that owns it
//! is killed too: if only the second fails it is Orlop's fault.

use crate::cluster::Cluster;
use crate::journey::{Journey, Trip, need};
use crate::process::Running;
use crate::session::{Load, TABLE, WRONG, compare};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);
/// How long commits may stand still after the owner's death before the device counts as failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// Kills what works in the mounted file system.
const END_WORKERS: &str = r#"for p in /proc/[0-9]*; do
    case "$(readlink "$p/cwd")" in "$PWD"/mount/*) kill -9 "${p#/proc/}" || true;; esac; done;"#;
/// Commits before and after the disturbance.
const COMMITS: u64 = 200;
const POSTGRES_SESSIONS: u64 = 4;

/// The judges are fit.
pub(crate) const BASELINE: Journey = Journey {
    name: "ledger",
    what: "SQLite and PostgreSQL on a plain loop device: killed under load, every acknowledged commit is there",
    run: |trip| {
        prepare()?;
        for database in [Database::Sqlite, Database::Postgres] {
            trip.sh("rm -f disk; truncate -s 512M disk", MINUTE)?;
            let losetup = "losetup --find --show --direct-io=on --sector-size 4096 disk";
            let device = trip.sh(losetup, MINUTE)?.trim().to_owned();
            let verdict = survive(trip, database, &device, |_| Ok(true), || Ok(device.clone()));
            trip.sh(&format!("losetup --detach {device}"), MINUTE)?;
            verdict?;
        }
        Ok(())
    },
};

pub(crate) const SQLITE: Journey = Journey {
    name: "sqlite",
    what: "SQLite on ext4 on a volume: the owner is killed under load, every acknowledged commit is there",
    run: |trip| on_volume(trip, Database::Sqlite),
};

pub(crate) const POSTGRES: Journey = Journey {
    name: "postgres",
    what: "PostgreSQL on ext4 on a volume: the owner is killed under load, every acknowledged commit is there",
    run: |trip| on_volume(trip, Database::Postgres),
};

pub(crate) const SQLITE_MOVED: Journey = Journey {
    name: "sqlite-moved",
    what: "SQLite: the owner is killed for good under load and the volume attached elsewhere at once, all commits are there",
    run: |trip| moved(trip, Database::Sqlite),
};

pub(crate) const POSTGRES_MOVED: Journey = Journey {
    name: "postgres-moved",
    what: "PostgreSQL: the same",
    run: |trip| moved(trip, Database::Postgres),
};

#[derive(Clone, Copy, Debug)]
enum Database {
    Sqlite,
    Postgres,
}

fn prepare() -> Result<()> {
    need(&[
        ("sqlite3", "sqlite3"),
        ("psql", "postgresql"),
        ("mkfs.ext4", "e2fsprogs"),
        ("setpriv", "util-linux"),
    ])
}

/// The owner is killed under load; then the database and its node too, and the volume is opened on another node.
fn on_volume(trip: &Trip, database: Database) -> Result<()> {
    prepare()?;
    let cluster = Cluster::start(trip, "2GiB")?;
    let device = cluster.volume("data", "1GiB")?;
    let disturb = |load: &Load| {
        let owner = cluster.owner("data")?;
        let killed = Instant::now();
        cluster.kill(&owner)?;
        // Whether the device outlives its engine is what the journeys `mounted` and `kills` ask; here either is
        // accepted and said: what counts is the ledger.
        let goes_on = load.wait_for(COMMITS, PATIENCE).is_ok();
        let what = if goes_on { "the device went on" } else { "the device failed" };
        let seconds = killed.elapsed().as_secs_f64();
        trip.checked(format!("{owner}, the owner, was killed under load: {what} ({seconds:.1} s)"));
        Ok(goes_on)
    };
    let elsewhere = || {
        let owner = cluster.status("data")?["owner"].as_str().unwrap_or_default().to_owned();
        cluster.orlop(&["volume", "detach", "data"])?;
        let nodes = cluster.nodes()?;
        let other = nodes.iter().find(|node| node.name != owner).context("another node")?;
        let device = cluster.attach("data", Some(&other.name))?;
        trip.checked(format!("detached from {owner}, attached on {}", other.name));
        Ok(device)
    };
    survive(trip, database, &device, disturb, elsewhere)?;
    cluster.remove("data")?;
    cluster.stop()
}

/// The owner is killed under load and does not come back; right away the volume is attached on another node, and the
/// database opened there from what was acknowledged.
fn moved(trip: &Trip, database: Database) -> Result<()> {
    prepare()?;
    let mut cluster = Cluster::start(trip, "2GiB")?;
    // Stopped, it starts nothing again: the node's death is for good.
    let dev = cluster.dev()?.process;
    let device = cluster.volume("data", "1GiB")?;
    let there = RefCell::new(String::new());
    let disturb = |_: &Load| {
        let owner = cluster.owner("data")?;
        let nodes = cluster.nodes()?;
        let other = &nodes.iter().find(|node| node.name != owner).context("another node")?.name;
        ensure!(dev.signal(Signal::STOP), "orlop dev had ended");
        let killed = Instant::now();
        cluster.kill(&owner)?;
        *there.borrow_mut() = cluster.take("data", other)?;
        let seconds = killed.elapsed().as_secs_f64();
        trip.checked(format!(
            "{owner}, the owner, was killed for good under load; on {other} {seconds:.1} s later"
        ));
        // What uses the old device waits, then sees an error.
        Ok(false)
    };
    let elsewhere = || {
        let now = cluster.owner("data")?;
        ensure!(
            cluster.nodes()?.iter().any(|node| node.name == now && node.process.is_some()),
            "{now} is dead"
        );
        Ok(there.borrow().clone())
    };
    survive(trip, database, &device, disturb, elsewhere)?;
    ensure!(dev.signal(Signal::CONT), "orlop dev had ended");
    let back = cluster.in_sync("data", 2 * MINUTE)?;
    trip.checked(format!("the killed node came back: all copies in sync {:.1} s later", back.as_secs_f64()));
    cluster.remove("data")?;
    cluster.stop()
}

/// A database on a fresh ext4 on `device`: load, `disturb` (which says whether the device goes on), load, `kill -9` of the database, `reopen`, compare.
fn survive(
    trip: &Trip,
    database: Database,
    device: &str,
    disturb: impl FnOnce(&Load) -> Result<bool>,
    reopen: impl FnOnce() -> Result<String>,
) -> Result<()> {
    let mount = trip.folder.join("mount");
    trip.sh(&format!("mkdir -p mount; mkfs.ext4 -q {device}; mount {device} mount"), MINUTE)?;
    let files = mount.join("db");
    let server = database.create(trip, &files)?;
    let sessions = if matches!(database, Database::Sqlite) { 1 } else { POSTGRES_SESSIONS };
    let begun = Instant::now();
    let load = Load::start(&trip.folder, sessions, || database.client(trip, &files))?;
    load.wait_for(COMMITS, MINUTE)?;
    let goes_on = disturb(&load)?;
    if goes_on {
        load.wait_for(COMMITS, MINUTE)?;
    }
    // The database dies in the middle of its work, its clients wait for an answer.
    if let Some(server) = server {
        let lived = server.process.signal(Signal::KILL);
        ensure!(lived || !goes_on, "{database:?} had ended: {}", server.output());
        server.wait(MINUTE)?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let (ledger, stall) = load.kill()?;
    trip.checked(format!(
        "{database:?}: {} commits acknowledged in {seconds:.1} s, the longest took {:.2} s; killed",
        ledger.len(),
        stall.as_secs_f64()
    ));
    // PostgreSQL's workers end a moment after their server; but when a write failed, those that wait for a lock of the one
    // that saw it wait for ever, and somebody has to end them.
    let end = if goes_on { "" } else { END_WORKERS };
    trip.sh(&format!("for i in $(seq 300); do umount mount && exit; {end} sleep 0.1; done; exit 1"), MINUTE)?;
    let device = reopen()?;
    // 0: clean, 1: the journal was replayed.
    trip.sh(&format!("e2fsck -p {device} || [ $? = 1 ]; e2fsck -fn {device}; mount {device} mount"), MINUTE)?;
    let server = database.open(trip, &files)?;
    let rows = database.query(trip, &files, "SELECT n FROM ledger ORDER BY n;")?;
    let compared = compare(&ledger, &rows, usize::try_from(sessions)?)?;
    ensure!(database.query(trip, &files, WRONG)?.trim() == "0", "rows with a wrong payload");
    if let Database::Sqlite = database {
        let check = database.query(trip, &files, "PRAGMA integrity_check;")?;
        ensure!(check.trim() == "ok", "integrity_check: {check}");
    }
    if let Some(server) = server {
        server.process.signal(Signal::INT);
        server.wait(MINUTE)?.success("PostgreSQL's end")?;
    }
    trip.sh(&format!("umount mount; e2fsck -fn {device}"), MINUTE)?;
    trip.checked(format!("{database:?}: {compared}; file system clean"));
    Ok(())
}

impl Database {
    /// Makes the database and its table; the server, where there is one.
    fn create(self, trip: &Trip, files: &Path) -> Result<Option<Running>> {
        std::fs::create_dir(files)?;
        if let Self::Postgres = self {
            trip.sh(&format!("mkdir -p sockets; chown postgres: sockets {}", files.display()), MINUTE)?;
            let mut initdb = as_postgres(trip, "initdb");
            initdb
                .args(["--auth=trust", "--data-checksums", "--encoding=UTF8", "--no-locale", "-D"])
                .arg(files);
            trip.run(initdb, MINUTE)?.success("initdb")?;
        }
        let server = self.open(trip, files)?;
        let journal = if let Self::Sqlite = self { "PRAGMA journal_mode = wal;" } else { "" };
        self.query(trip, files, &format!("{journal} {TABLE}"))?;
        Ok(server)
    }

    /// Starts the server and waits until it answers.
    fn open(self, trip: &Trip, files: &Path) -> Result<Option<Running>> {
        let Self::Postgres = self else { return Ok(None) };
        let mut postgres = as_postgres(trip, "postgres");
        postgres.arg("-D").arg(files).arg("-k").arg(sockets(trip));
        postgres.args(["-c", "listen_addresses=", "-c", "fsync=on", "-c", "full_page_writes=on"]);
        postgres.args([
            "-c",
            "synchronous_commit=on",
            "-c",
            "shared_buffers=16MB",
            "-c",
            "max_connections=20",
        ]);
        let mut server = trip.start(postgres)?;
        let begun = Instant::now();
        while self.query(trip, files, "SELECT 1;").is_err() {
            ensure!(
                server.runs() && begun.elapsed() < MINUTE,
                "PostgreSQL does not start:\n{}",
                server.output()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Some(server))
    }

    /// A client that reads statements from its standard input.
    fn client(self, trip: &Trip, files: &Path) -> Command {
        match self {
            Self::Sqlite => {
                let mut command = trip.command("sqlite3");
                command.args(["-batch", "-cmd", "PRAGMA synchronous = full", "-cmd", ".timeout 60000"]);
                command.arg(files.join("ledger.db"));
                command
            }
            Self::Postgres => {
                let mut command = as_postgres(trip, "psql");
                command.args(["-X", "-q", "-t", "-A", "-d", "postgres", "-h"]).arg(sockets(trip));
                command
            }
        }
    }

    fn query(self, trip: &Trip, files: &Path, statements: &str) -> Result<String> {
        let mut command = self.client(trip, files);
        match self {
            Self::Sqlite => command.arg(statements),
            Self::Postgres => command.args(["-v", "ON_ERROR_STOP=1", "-c", statements]),
        };
        trip.run(command, MINUTE)?.success(statements)
    }
}

/// A program of PostgreSQL, as the user `postgres`.
fn as_postgres(trip: &Trip, program: &str) -> Command {
    let mut command = trip.command("setpriv");
    command
        .args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"])
        .arg(postgres_programs().join(program));
    command.current_dir("/");
    command
}

/// Where Debian keeps the newest installed PostgreSQL's programs.
fn postgres_programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok()).max();
    PathBuf::from(format!("/usr/lib/postgresql/{}/bin", newest.unwrap_or(15)))
}

/// Where PostgreSQL puts its socket; nothing listens on the network.
fn sockets(trip: &Trip) -> PathBuf {
    trip.folder.join("sockets")
}

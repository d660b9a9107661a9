//! `orlop dev`: a cluster on this machine, in the foreground, until Ctrl-C.

mod folder;
mod mounts;
mod ports;
mod supervisor;

use crate::arguments::Dev;
use crate::failure::{Failure, OrFail, Outcome};
use crate::restarts::Restarts;
use crate::{node, output, preflight, process, secrets, stores};
use device::ByteCount;
pub(crate) use folder::{Cluster, Folder};
use rt::preflight::Need;
use std::num::NonZero;
use supervisor::{CONTROLLER, Ended};
pub(crate) use supervisor::{Supervisor, remove_leftovers};
use tokio::signal::unix::{Signal, SignalKind, signal};

const NODES_DEFAULT: u32 = 3;
const DISK_SIZE_DEFAULT: ByteCount = ByteCount(4 << 30);
/// A node's disk must hold its own metadata and something to store.
const DISK_SIZE_MIN: ByteCount = ByteCount(64 << 20);

/// Runs `orlop dev`.
pub(crate) async fn run(arguments: &Dev) -> Outcome {
    let mut signals = Signals::new()?;
    node::allow(&arguments.disks_allow)?;
    if !Folder::has_cluster(&arguments.data) {
        // Before there is a folder that would have to go again.
        disk_size(arguments)?;
        if let Some(address) = &arguments.store {
            stores::ensure_unused(&stores::shared(address, "new")?).await?;
        }
        ports::check_free(arguments.listen)?;
    }
    let folder = Folder::open(&arguments.data)?;
    let cluster = cluster(&folder, arguments)?;
    let data = folder.path().to_owned();
    let disks_allow = arguments.disks_allow.clone();
    let started = Supervisor::start(folder, cluster, arguments.listen, true, disks_allow).await;
    let mut supervisor = match started {
        Ok(supervisor) => supervisor,
        Err(failure) => {
            // What only takes something away is not why it failed.
            preflight::warn("orlop dev", Some(&data), |need| need == Need::Required);
            return Err(failure);
        }
    };
    preflight::warn("orlop dev", Some(&data), |_| true);
    if let Some(folder) = &arguments.csi {
        supervisor.start_plugins(folder).await?;
    }
    output::line(&welcome(&supervisor))?;
    watch(&mut supervisor, &mut signals).await?;
    let killed = supervisor.stop().await;
    if killed.is_empty() {
        return output::line("orlop dev: ended; start it again with the same --data to go on");
    }
    Err(Failure::new(format!("{} did not end in time and had to be killed", killed.join(", ")))
        .hint("its volumes will be recovered at the next start"))
}

/// The cluster of the folder, with another secret or other zones if they are given.
fn cluster(folder: &Folder, arguments: &Dev) -> Outcome<Cluster> {
    let mut cluster = of_folder(folder, arguments)?;
    if let Some(zones) = arguments.zones {
        cluster.zones = NonZero::new(zones);
    }
    if let Some(file) = &arguments.secret {
        cluster.secret =
            Some(std::path::absolute(file).or_fail(|| format!("cannot use {}", file.display()))?);
    }
    // Better said here than in the logs of all nodes.
    cluster.secret.as_deref().map(secrets::read).transpose()?;
    Ok(cluster)
}

/// The cluster of the folder, new or as it was.
fn of_folder(folder: &Folder, arguments: &Dev) -> Outcome<Cluster> {
    let Some(cluster) = folder.cluster()? else {
        let nodes = arguments.nodes.unwrap_or(NODES_DEFAULT);
        let mut cluster = Cluster::new(nodes, disk_size(arguments)?.0, process::random_uuid()?);
        cluster.store.clone_from(&arguments.store);
        return Ok(cluster);
    };
    let path = folder.path().display();
    let has = cluster.nodes.len();
    if arguments.nodes.is_some_and(|nodes| nodes as usize != has) {
        return Err(Failure::new(format!("the data folder {path} has {has} nodes"))
            .hint("leave --nodes out, or choose another folder with --data"));
    }
    let size = ByteCount(cluster.disk_size_bytes);
    if arguments.disk_size.is_some_and(|wanted| wanted != size) {
        return Err(Failure::new(format!("the data folder {path} has disks of {size}"))
            .hint("leave --disk-size out, or choose another folder with --data"));
    }
    if arguments.store.is_some() && arguments.store != cluster.store {
        let has = cluster.store.as_deref().unwrap_or("the folder itself");
        return Err(Failure::new(format!("the data folder {path} has its records in {has}"))
            .hint("leave --store out, or choose another folder with --data"));
    }
    Ok(cluster)
}

/// The size of the disks of a new cluster.
fn disk_size(arguments: &Dev) -> Outcome<ByteCount> {
    let size = arguments.disk_size.unwrap_or(DISK_SIZE_DEFAULT);
    if size.0 < DISK_SIZE_MIN.0 || !size.0.is_multiple_of(1 << 20) {
        return Err(Failure::new(format!("a disk of {size} is not possible"))
            .hint(format!("give --disk-size as whole MiB, at least {DISK_SIZE_MIN}")));
    }
    Ok(size)
}

/// Ctrl-C, and the other ways to be asked to end.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    pub(crate) fn new() -> Outcome<Self> {
        let listen = |kind| signal(kind).or_fail(|| "cannot listen for signals".into());
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for one; true if it came from the keyboard.
    pub(crate) async fn next(&mut self) -> bool {
        tokio::select! {
            _ = self.interrupt.recv() => true,
            _ = self.terminate.recv() => false,
            _ = self.hangup.recv() => false,
        }
    }
}

/// Keeps the processes running until the user wants an end.
async fn watch(supervisor: &mut Supervisor, signals: &mut Signals) -> Outcome {
    let mut restarts = Restarts::default();
    let mut refused = false;
    loop {
        tokio::select! {
            from_keyboard = signals.next() => {
                let mounted = mounts::of_run(&supervisor.cluster().run_id);
                if !from_keyboard || refused || mounted.is_empty() {
                    return Ok(());
                }
                refused = true;
                for mount in mounted {
                    eprintln!(
                        "orlop dev: {} is still mounted on {}; run `umount {}` first, or press Ctrl-C again",
                        mount.device, mount.on, mount.on
                    );
                }
            }
            Ended { name, identity, status } = supervisor.next_ended() => {
                let delay = restarts.plan(&name).as_secs();
                eprintln!("orlop dev: {name} (pid {}) ended, {status}; it starts again in {delay} s", identity.pid);
            }
            name = restarts.next() => match supervisor.start_again(&name).await {
                Ok(()) => {
                    let pid = supervisor.process(&name).map_or(0, |process| process.pid);
                    eprintln!("orlop dev: {name} started again (pid {pid})");
                }
                Err(failure) => {
                    let delay = restarts.plan(&name).as_secs();
                    eprintln!("orlop dev: {failure}; the next try is in {delay} s");
                }
            },
        }
    }
}

/// What is there, and what to type next.
fn welcome(supervisor: &Supervisor) -> String {
    let cluster = supervisor.cluster();
    let path = supervisor.folder().path().display();
    let api = supervisor.client().base();
    let rows = cluster.nodes.iter().map(|node| {
        let pid = supervisor.process(&node.name).map_or(0, |process| process.pid);
        vec![node.name.clone(), pid.to_string(), format!("127.0.0.1:{}", node.port)]
    });
    let controller = supervisor.process(CONTROLLER).map_or(0, |process| process.pid);
    let nodes = output::table(&["NODE", "PID", "ADDRESS"], rows.collect(), "");
    let program = program();
    let export =
        if api == "http://127.0.0.1:7070" { String::new() } else { format!("  export ORLOP_API={api}\n") };
    format!(
        "orlop dev: {} nodes, data in {path}\nAPI on {api} (controller: pid {controller})\n\n{nodes}\n\n\
         Type next, in another terminal:\n{export}  {program} volume create data --size 1GiB\n  \
         {program} volume attach data\n  {program} volume get data\n\
         Ctrl-C ends the nodes; the volumes stay.",
        cluster.nodes.len()
    )
}

/// How to call this program from where the user is: by name if the shell finds it, else by its path.
fn program() -> String {
    let Ok(this) = std::env::current_exe() else { return "orlop".into() };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("orlop")).find(|file| file.exists());
    if found.and_then(|file| file.canonicalize().ok()).is_some_and(|file| file == this) {
        return "orlop".into();
    }
    let here = std::env::current_dir().unwrap_or_default();
    this.strip_prefix(&here).unwrap_or(&this).display().to_string()
}

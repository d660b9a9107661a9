//! `orlop node serve`: the first process of a container that is a node. It keeps the node's process running, and the
//! devices wait meanwhile, as `orlop dev` does it.
//!
//! Invariants:
//! 1. The mounts and devices of an earlier container, whose processes are gone, are removed before the node starts.
//! 2. Every process of the container that ends is waited for: none stays as a zombie.
//! 3. A node that cannot even start ends the container, so that whoever runs it says so.

use crate::arguments::NodeOptions;
use crate::dev::remove_leftovers;
use crate::failure::{Failure, OrFail, Outcome};
use crate::process::{self, Identity};
use crate::restarts::Restarts;
use rustix::process::{Signal, WaitOptions, WaitStatus, wait};
use std::ffi::OsString;
use std::path::Path;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Duration, Instant};

/// Under this name restarts are planned.
const NODE: &str = "node";
/// A node that ends by itself so soon after its first start will not do better the next time.
const FIRST_START: Duration = Duration::from_secs(10);

/// Serves until it is asked to end.
pub(crate) async fn serve(options: &NodeOptions) -> Outcome {
    process::log_to_stderr();
    let listen = |kind| signal(kind).or_fail(|| "cannot listen for signals".into());
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let mut children = listen(SignalKind::child())?;
    // Where the container has the machine's processes this is not the first one, and has to ask for the orphans.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .or_fail(|| "cannot take over orphaned processes".into())?;
    let run_id = run_id(&options.data)?;
    remove_leftovers(&run_id);
    let mut restarts = Restarts::default();
    let begun = Instant::now();
    let mut node = Some(start(options, &run_id)?);
    let mut ending = false;
    loop {
        tokio::select! {
            _ = terminate.recv() => ending = true,
            _ = interrupt.recv() => ending = true,
            _ = children.recv() => {}
            _ = restarts.next() => node = Some(start(options, &run_id)?),
        }
        if ending {
            let Some(node) = node else { return Ok(()) };
            node.signal(Signal::TERM);
        }
        while let Some((pid, status)) = ended()? {
            if node.is_none_or(|node| node.pid != pid) {
                continue;
            }
            node = None;
            if ending {
                return if status.exit_status() == Some(0) { Ok(()) } else { Err(failed(status)) };
            }
            // Invariant 3.
            if status.exited() && begun.elapsed() < FIRST_START {
                return Err(failed(status));
            }
            let delay = restarts.plan(NODE);
            tracing::error!(pid, ?status, seconds = delay.as_secs(), "the node ended; it starts again");
        }
    }
}

fn failed(status: WaitStatus) -> Failure {
    Failure::new(format!("the node's process ended: {status:?}")).hint("see what it said above")
}

/// The next process that has ended (invariant 2).
fn ended() -> Outcome<Option<(u32, WaitStatus)>> {
    match wait(WaitOptions::NOHANG) {
        Ok(ended) => Ok(ended.map(|(pid, status)| (pid.as_raw_nonzero().get().unsigned_abs(), status))),
        Err(rustix::io::Errno::CHILD) => Ok(None),
        Err(error) => Err(error).or_fail(|| "cannot wait for processes".into()),
    }
}

fn start(options: &NodeOptions, run_id: &str) -> Outcome<Identity> {
    let program = std::env::current_exe().or_fail(|| "cannot find this program's own file".into())?;
    let mut command = std::process::Command::new(program);
    command.args(arguments(options)).args(["--hold-devices", "--run-id", run_id]);
    command.arg("--parent").arg(std::process::id().to_string());
    let child = command.spawn().or_fail(|| "cannot start the node's process".into())?;
    Identity::of(child.id()).ok_or_else(|| Failure::new("the node's process ended at once"))
}

fn arguments(options: &NodeOptions) -> Vec<OsString> {
    let NodeOptions { name, data, disks, disks_allow, listen, metrics, store, secret, .. } = options;
    let NodeOptions { topology, topology_keys, frontend, .. } = options;
    let mut arguments: Vec<OsString> =
        ["node", "run", "--name", name, "--store", store].map(Into::into).into();
    arguments.extend(["--data".into(), data.into()]);
    arguments.extend(["--listen".into(), listen.to_string().into()]);
    arguments.extend(["--metrics".into(), metrics.to_string().into()]);
    arguments.extend(["--frontend".into(), frontend.as_str().into()]);
    arguments.extend(disks.iter().flat_map(|disk| ["--disk".into(), disk.into()]));
    arguments.extend(secret.iter().flat_map(|file| ["--secret".into(), file.into()]));
    arguments.extend(disks_allow.iter().flat_map(|glob| ["--disks-allow".into(), glob.into()]));
    let labels = topology.iter().map(|(key, value)| format!("{key}={value}").into());
    arguments.extend(labels.flat_map(|label| ["--topology".into(), label]));
    arguments.extend(topology_keys.iter().flat_map(|key| ["--topology-key".into(), key.into()]));
    arguments
}

/// What the mounts and loop devices of this node carry, made with its folder.
fn run_id(folder: &Path) -> Outcome<String> {
    let path = folder.join("run-id");
    match std::fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).or_fail(|| format!("cannot read {}", path.display()));
        }
        _ => {}
    }
    // As long as a mark may be; enough not to meet another node on one kernel.
    let run_id: String = process::random_uuid()?.simple().to_string().chars().take(20).collect();
    let unfinished = path.with_extension("new");
    let cannot = || format!("cannot write {}", path.display());
    std::fs::create_dir_all(folder).or_fail(cannot)?;
    std::fs::write(&unfinished, &run_id).or_fail(cannot)?;
    std::fs::rename(&unfinished, &path).or_fail(cannot)?;
    Ok(run_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{Arguments, Command, Node};
    use clap::Parser;

    #[test]
    fn the_node_is_told_what_its_container_was_told() {
        let told = [
            ["--name", "n1"],
            ["--data", "/data"],
            ["--disk", "file:///data/disk?size=1GiB"],
            ["--disks-allow", "/dev/sd*"],
            ["--listen", "127.0.0.1:4420"],
            ["--metrics", "127.0.0.1:9500"],
            ["--store", "kubernetes"],
            ["--frontend", "nvme-tcp"],
            ["--secret", "/etc/orlop/secret"],
            ["--topology", "topology.kubernetes.io/zone=a"],
            ["--topology-key", "example.com/rack"],
        ];
        let line = ["orlop", "node", "serve"].into_iter().chain(told.into_iter().flatten());
        let parsed = Arguments::try_parse_from(line).unwrap();
        let Command::Node(Node::Serve(options)) = parsed.command else { panic!("another command") };
        let command = arguments(&options);
        for pair in told {
            assert!(command.windows(2).any(|words| words == pair), "{pair:?}: {command:?}");
        }
    }

    #[test]
    fn a_folder_keeps_its_run_id() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("node");
        let first = run_id(&data).unwrap();
        assert_eq!(run_id(&data).unwrap(), first);
        assert_ne!(run_id(&folder.path().join("other")).unwrap(), first);
        // A machine that lost power in between left an empty file.
        std::fs::write(data.join("run-id"), "").unwrap();
        assert_ne!(run_id(&data).unwrap(), "");
    }
}

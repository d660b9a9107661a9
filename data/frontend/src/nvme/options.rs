//! The line of options by which the kernel is told to connect, and what it answers.
//!
//! # Spec
//! `drivers/nvme/host/fabrics.c`: the options of `/dev/nvme-fabrics`, `NAME=VALUE` with commas between.

use super::sysfs::System;
use super::{Name, Patience};
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// Between two attempts of the kernel to connect again.
pub(super) const RECONNECT_DELAY_SECONDS: u64 = 1;
/// A connection whose engine is killed ends at once; this is for one that hangs, and it has time.
const KEEP_ALIVE_SECONDS: u64 = 60;
/// One connection for I/O, on which answers arrive in the order in which they were given. So the kernel never has the answer
/// to a command and not that to an overlapping one before it, and what it repeats after a death undoes nothing that it knows.
const QUEUES: u32 = 1;
/// The options that are always used.
const NEEDED: [&str; 10] = [
    "transport",
    "traddr",
    "trsvcid",
    "nqn",
    "hostnqn",
    "hostid",
    "nr_io_queues",
    "reconnect_delay",
    "ctrl_loss_tmo",
    "keep_alive_tmo",
];
/// Those by which both ends prove a key.
const NEEDED_WITH_KEY: [&str; 2] = ["dhchap_secret", "dhchap_ctrl_secret"];

/// What a connection is made of.
pub(super) struct Options<'a> {
    pub(super) address: SocketAddr,
    pub(super) name: &'a Name,
    /// What both ends prove, in the form of NVMe.
    pub(super) key: Option<&'a str>,
    pub(super) patience: Patience,
}

impl Options<'_> {
    /// As the kernel reads it.
    pub(super) fn line(&self) -> String {
        let Self { address, name, key, patience } = self;
        let mut line = format!(
            "transport=tcp,traddr={},trsvcid={},nqn={},hostnqn={},hostid={},nr_io_queues={QUEUES},reconnect_delay={},\
             ctrl_loss_tmo={},keep_alive_tmo={KEEP_ALIVE_SECONDS}",
            address.ip(),
            address.port(),
            name.subnqn(),
            name.hostnqn(),
            name.id,
            RECONNECT_DELAY_SECONDS,
            patience.0.as_secs(),
        );
        for option in NEEDED_WITH_KEY.iter().filter(|_| key.is_some()) {
            line.extend([",", option, "=", key.unwrap_or_default()]);
        }
        line
    }
}

/// The number of the controller that the kernel has made.
pub(super) fn instance(answer: &str) -> Option<u32> {
    answer.trim().split(',').find_map(|part| part.strip_prefix("instance=")?.parse().ok())
}

/// The options that are needed and that this kernel, by what it says of itself, does not know.
fn missing(said: &str, with_key: bool) -> Vec<&'static str> {
    let known: BTreeSet<&str> =
        said.trim().split(',').filter_map(|option| option.split('=').next()).collect();
    let with_key: &[&str] = if with_key { &NEEDED_WITH_KEY } else { &[] };
    NEEDED.iter().chain(with_key).copied().filter(|option| !known.contains(option)).collect()
}

/// Whether this machine can have devices by NVMe/TCP: what was found, else what is wrong and what to do. Blocks, shortly.
///
/// # Errors
/// What is missing, and its remedy.
pub fn usable(system: &System, with_key: bool) -> Result<String, (String, String)> {
    let problem = |detail: String, remedy: &str| Err((detail, remedy.to_owned()));
    let said = match system.fabrics_options() {
        Ok(said) => said,
        Err(error) => {
            let remedy = "run as root, `modprobe nvme-tcp`, and give the container /dev/nvme-fabrics";
            return problem(format!("/dev/nvme-fabrics cannot be used: {error}"), remedy);
        }
    };
    if !system.has_module("nvme_tcp") {
        return problem(
            "the kernel's nvme-tcp is not loaded".into(),
            "`modprobe nvme-tcp`, and at each boot",
        );
    }
    if !system.has_multipath() {
        let remedy = "use a kernel with CONFIG_NVME_MULTIPATH, and do not switch nvme_core.multipath off";
        return problem("without native multipath I/O that waits would fail".into(), remedy);
    }
    if !system.is_in_own_network() {
        // It connects from where the engine is, but again from the machine's own network.
        let remedy = "give the container the network of its machine (`hostNetwork: true`)";
        return problem(
            "the kernel would not find this engine again: it is in a network of its own".into(),
            remedy,
        );
    }
    let missing = missing(&said, with_key);
    if missing.is_empty() {
        return Ok("nvme-tcp is loaded, with native multipath".into());
    }
    let remedy = "use a kernel from 6.1 on, with CONFIG_NVME_AUTH or CONFIG_NVME_HOST_AUTH where the cluster has a secret";
    problem(format!("this kernel's nvme-fabrics does not know {}", missing.join(", ")), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use uuid::Uuid;

    /// As Linux 6.12 says it.
    const SAID: &str = "instance=-1,transport=%s,traddr=%s,trsvcid=%s,nqn=%s,queue_size=%d,nr_io_queues=%d,\
        reconnect_delay=%d,ctrl_loss_tmo=%d,keep_alive_tmo=%d,hostnqn=%s,host_traddr=%s,host_iface=%s,hostid=%s,\
        duplicate_connect,disable_sqflow,hdr_digest,data_digest,nr_write_queues=%d,nr_poll_queues=%d,tos=%d,\
        fast_io_fail_tmo=%d,discovery,dhchap_secret=%s,dhchap_ctrl_secret=%s\n";

    #[test]
    fn the_line_says_where_who_and_for_how_long() {
        let (run_id, node) = ("run".into(), "n1".into());
        let name = Name { run_id, node, volume: Uuid::from_u128(1), id: Uuid::from_u128(2) };
        let options = Options {
            address: "[::1]:4420".parse().unwrap(),
            name: &name,
            key: None,
            patience: Patience(Duration::from_secs(20)),
        };
        assert_eq!(
            options.line(),
            "transport=tcp,traddr=::1,trsvcid=4420,nqn=nqn.2026-11.io.orlop:device:00000000-0000-0000-0000-000000000001:\
             00000000-0000-0000-0000-000000000002,hostnqn=nqn.2026-11.io.orlop:node:n1:run:00000000-0000-0000-0000-000000000002,\
             hostid=00000000-0000-0000-0000-000000000002,nr_io_queues=1,reconnect_delay=1,ctrl_loss_tmo=20,keep_alive_tmo=60"
        );
        let keyed = Options { key: Some("DHHC-1:01:x:"), ..options }.line();
        assert!(keyed.ends_with(",dhchap_secret=DHHC-1:01:x:,dhchap_ctrl_secret=DHHC-1:01:x:"), "{keyed}");
        let used: Vec<_> = keyed.split(',').filter_map(|option| option.split('=').next()).collect();
        assert!(used.iter().all(|used| NEEDED.contains(used) || NEEDED_WITH_KEY.contains(used)), "{used:?}");
    }

    #[test]
    fn the_answer_names_the_controller() {
        assert_eq!(instance("instance=12,cntlid=7\n"), Some(12));
        for odd in ["", "cntlid=7", "instance=-1,transport=%s", "instance=", "instance=99999999999"] {
            assert_eq!(instance(odd), None, "{odd}");
        }
    }

    #[test]
    fn what_the_kernel_does_not_know_is_named() {
        assert!(missing(SAID, true).is_empty());
        let without_keys = SAID.split(",dhchap").next().unwrap();
        assert!(missing(without_keys, false).is_empty());
        assert_eq!(missing(without_keys, true), NEEDED_WITH_KEY);
        assert_eq!(missing("", false).len(), NEEDED.len());
    }

    #[test]
    fn a_machine_is_usable_with_all_of_it() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let system = System::at(root.path());
        let why = |system: &System| usable(system, false).unwrap_err();
        assert!(why(&system).1.contains("modprobe nvme-tcp"), "{:?}", why(&system));
        write("dev/nvme-fabrics", SAID);
        assert!(why(&system).0.contains("not loaded"), "{:?}", why(&system));
        write("sys/module/nvme_tcp/refcnt", "0\n");
        assert!(why(&system).0.contains("multipath"), "{:?}", why(&system));
        write("sys/module/nvme_core/parameters/multipath", "N\n");
        assert!(why(&system).0.contains("multipath"), "{:?}", why(&system));
        write("sys/module/nvme_core/parameters/multipath", "Y\n");
        assert!(why(&system).1.contains("hostNetwork"), "{:?}", why(&system));
        write("proc/sys/net/core/netdev_budget", "300\n");
        usable(&system, true).unwrap();
        write("dev/nvme-fabrics", SAID.split(",dhchap").next().unwrap());
        usable(&system, false).unwrap();
        assert!(usable(&system, true).unwrap_err().0.contains("dhchap_secret"));
    }
}

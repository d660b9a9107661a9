//! Ports on loopback: kept from run to run where they are still free, because people write them down.
//!
//! Invariants:
//! 1. A port that is chosen is none that the kernel gives to outgoing connections, where there are others: one of those
//!    would have it when a node is started again.
//! 2. Two clusters of one machine never have the same port: each holds a name for each of its ports while it lives.

use super::folder::Cluster;
use crate::failure::{Failure, Kind, Outcome};
use crate::process;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as Name, UnixListener};

/// Ports that need no rights.
const UNPRIVILEGED: RangeInclusive<u16> = 1024..=u16::MAX;
/// So many are enough to choose from.
const CHOICE: u16 = 8192;

/// The names of this cluster's ports: abstract sockets, which are seen wherever the port is, and go with the process.
#[derive(Debug, Default)]
pub(super) struct Reserved(Vec<UnixListener>);

impl Reserved {
    /// Gives every port of the cluster a number that is free now, and says whether one changed.
    pub(super) fn assign(&mut self, cluster: &mut Cluster) -> Outcome<bool> {
        let mut changed = false;
        for node in &mut cluster.nodes {
            for port in [&mut node.port, &mut node.metrics_port] {
                if *port == 0 || !self.take(*port) {
                    *port = self.any()?;
                    changed = true;
                }
            }
        }
        Ok(changed)
    }

    /// The address to listen on: port 0 becomes a free one; fails unless somebody could listen on another.
    pub(super) fn listen(&mut self, address: SocketAddr) -> Outcome<SocketAddr> {
        let port = if address.port() == 0 { self.any()? } else { address.port() };
        check_free(SocketAddr::new(address.ip(), port))
    }

    /// Whether this port is ours from now on: nobody listens there, and no other cluster has it.
    fn take(&mut self, port: u16) -> bool {
        let name = Name::from_abstract_name(format!("orlop-port-{port}"));
        let Ok(held) = name.and_then(|name| UnixListener::bind_addr(&name)) else { return false };
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        self.0.extend(free.then_some(held));
        free
    }

    /// A free port.
    fn any(&mut self) -> Outcome<u16> {
        // Unreadable in a sandbox, say: then any port will do.
        let outgoing = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        let (first, last) = choice(&outgoing).into_inner();
        // Clusters that start at the same moment begin to look in different places.
        let random = process::random_uuid()?.as_u128() % u128::from(last - first + 1);
        let begin = first + u16::try_from(random).expect("less than there are ports");
        let found = (begin..=last).chain(first..begin).find(|port| self.take(*port));
        found.ok_or_else(|| {
            Failure::new(format!("no port of 127.0.0.1 from {first} to {last} is free"))
                .hint("end what listens there")
        })
    }
}

/// Where to choose from, given what the kernel says of the ports of outgoing connections: the ports below these, else
/// those above, else all.
fn choice(outgoing: &str) -> RangeInclusive<u16> {
    let numbers: Option<Vec<u16>> = outgoing.split_whitespace().map(|number| number.parse().ok()).collect();
    let Some([first, last]) = numbers.as_deref() else { return UNPRIVILEGED };
    if *first >= UNPRIVILEGED.start() + CHOICE {
        return first - CHOICE..=first - 1;
    }
    match last.checked_add(1) {
        Some(above) if u16::MAX - above >= CHOICE => above..=u16::MAX,
        _ => UNPRIVILEGED,
    }
}

/// Fails, naming the address, unless somebody could listen there now. Port 0 becomes a free one.
pub(super) fn check_free(address: SocketAddr) -> Outcome<SocketAddr> {
    TcpListener::bind(address).and_then(|listener| listener.local_addr()).map_err(|error| {
        let in_use = error.kind() == std::io::ErrorKind::AddrInUse;
        let cause = if in_use { "the port is in use".to_owned() } else { error.to_string() };
        Failure::new(format!("cannot listen on {address}: {cause}"))
            .kind(if in_use { Kind::Conflict } else { Kind::Failed })
            .hint("choose another address with --listen, or end the program that has it")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn ports_differ_and_stay_while_they_are_free() {
        let mut cluster = Cluster::new(3, 1 << 30, Uuid::from_u128(1));
        let mut reserved = Reserved::default();
        assert!(reserved.assign(&mut cluster).unwrap());
        let ports = |cluster: &Cluster| {
            cluster.nodes.iter().flat_map(|node| [node.port, node.metrics_port]).collect::<Vec<_>>()
        };
        let mut unique = ports(&cluster);
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), 6);

        // The cluster ends and begins again: it has its ports again, but for one that somebody has taken.
        let before = ports(&cluster);
        drop(reserved);
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, before[0])).unwrap();
        assert!(Reserved::default().assign(&mut cluster).unwrap(), "one port is taken");
        assert_ne!(cluster.nodes[0].port, before[0]);
        assert_eq!(ports(&cluster)[1..], before[1..]);
        drop(taken);
    }

    #[test]
    fn two_clusters_never_have_the_same_port() {
        let (mut one, mut other) = (Reserved::default(), Reserved::default());
        let port = one.any().unwrap();
        assert!(!other.take(port), "nobody listens there yet, and it is the other one's");
        drop(one);
        assert!(other.take(port));
    }

    #[test]
    fn ports_of_outgoing_connections_are_left_alone() {
        assert_eq!(choice("32768\t60999\n"), 24_576..=32_767);
        assert_eq!(choice("1024 50000"), 50_001..=65_535);
        for all in ["1024 65535", "", "a b", "1 2 3"] {
            assert_eq!(choice(all), UNPRIVILEGED);
        }
    }

    #[test]
    fn a_port_in_use_is_named() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = taken.local_addr().unwrap();
        let failure = check_free(address).unwrap_err();
        assert!(failure.is(Kind::Conflict), "{failure}");
        assert!(
            failure.to_string().starts_with(&format!("cannot listen on {address}: the port is in use; "))
        );
    }
}

//! Ports on loopback: kept from run to run where they are still free, because people write them down.

use super::folder::Cluster;
use crate::failure::{Failure, Kind, OrFail, Outcome};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// Gives every port of the cluster a number that is free now, and says whether one changed.
pub(super) fn assign(cluster: &mut Cluster) -> Outcome<bool> {
    let mut changed = false;
    // All are held until all are known, so that no two are the same.
    let mut held = Vec::new();
    for node in &mut cluster.nodes {
        for port in [&mut node.port, &mut node.metrics_port] {
            let kept = if *port == 0 { None } else { TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).ok() };
            let listener = match kept {
                Some(listener) => listener,
                None => TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                    .or_fail(|| "cannot find a free port on 127.0.0.1".into())?,
            };
            let found = listener.local_addr().or_fail(|| "cannot read a port's number".into())?.port();
            changed |= found != *port;
            *port = found;
            held.push(listener);
        }
    }
    Ok(changed)
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
        assert!(assign(&mut cluster).unwrap());
        let ports = |cluster: &Cluster| {
            cluster.nodes.iter().flat_map(|node| [node.port, node.metrics_port]).collect::<Vec<_>>()
        };
        let mut unique = ports(&cluster);
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), 6);

        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let number = taken.local_addr().unwrap().port();
        cluster.nodes[0].port = number;
        assert!(assign(&mut cluster).unwrap(), "one port is taken");
        assert_ne!(cluster.nodes[0].port, number);
        drop(taken);
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

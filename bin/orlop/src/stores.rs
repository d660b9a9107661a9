//! Where the records of the cluster are kept, by its address on the command line.

use crate::failure::{Failure, Kind, Outcome};
use store::{Client, Etcd, Remote};

/// Understands an address; nothing is connected yet.
pub(crate) fn open(address: &str) -> Outcome<Client> {
    if address.starts_with("http://") {
        return Ok(Client::new(Remote::new(address)));
    }
    let Some(rest) = address.strip_prefix("etcd://") else {
        return Err(refused(address, "it is none that is known"));
    };
    let (hosts, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let endpoints: Vec<String> = hosts.split(',').map(|host| format!("http://{host}")).collect();
    let etcd = Etcd::new(&endpoints.join(","))
        .and_then(|etcd| if prefix.is_empty() { Ok(etcd) } else { etcd.with_prefix(&format!("/{prefix}")) });
    etcd.map(Client::new).map_err(|error| refused(address, &error.to_string()))
}

/// The etcd at this address, below a prefix of its own, so that several clusters may share it.
pub(crate) fn shared(address: &str, cluster: &str) -> Outcome<String> {
    if !address.starts_with("etcd://") {
        return Err(refused(address, "only an etcd can be shared"));
    }
    // First as it was written: it is named so where it is refused.
    open(address)?;
    let shared = format!("{}/orlop/{cluster}/", address.trim_end_matches('/'));
    open(&shared).map(|_| shared)
}

fn refused(address: &str, why: &str) -> Failure {
    Failure::new(format!("{address:?} is not the address of a store: {why}"))
        .kind(Kind::Usage)
        .hint("write etcd://HOST:PORT, several with commas between")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_understood_or_refused() {
        for good in
            ["http://127.0.0.1:7070", "etcd://127.0.0.1:2379", "etcd://a:1,b:2", "etcd://a:1/orlop/x/"]
        {
            assert!(open(good).is_ok(), "{good}");
        }
        for bad in ["", "etcd:a", "etcd://", "etcd://a:1,", "etcd://a b:1", "etcd://a:1/orlop", "https://a:1"]
        {
            let failure = open(bad).unwrap_err();
            assert!(
                failure.is(Kind::Usage) && failure.to_string().contains(&format!("{bad:?}")),
                "{failure}"
            );
        }
        assert_eq!(shared("etcd://a:1,b:2", "dev-1").unwrap(), "etcd://a:1,b:2/orlop/dev-1/");
        assert_eq!(shared("etcd://a:1/mine/", "dev-1").unwrap(), "etcd://a:1/mine/orlop/dev-1/");
        assert!(shared("http://127.0.0.1:7070", "dev-1").is_err() && shared("etcd://", "dev-1").is_err());
    }
}

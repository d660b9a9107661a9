//! Where the records of the cluster are kept, by its address on the command line.

use crate::failure::{Failure, Kind, Outcome};
use k8s::Kubernetes;
use model::ClusterInfo;
use std::path::Path;
use store::{Client, Etcd, Remote};

/// The address of the Kubernetes in which this is a pod; with a colon and the path of a kubeconfig, of another one.
const KUBERNETES: &str = "kubernetes";

/// A store by its address.
pub(crate) struct Opened {
    /// The store.
    pub(crate) client: Client,
    /// The same, if it is a Kubernetes.
    pub(crate) kubernetes: Option<Kubernetes>,
}

/// Understands an address; nothing is connected yet.
pub(crate) async fn open(address: &str) -> Outcome<Opened> {
    let Some(rest) = address.strip_prefix(KUBERNETES) else {
        return Ok(Opened { client: open_other(address)?, kubernetes: None });
    };
    let kubernetes = match rest.strip_prefix(':') {
        Some(file) => Kubernetes::from_kubeconfig(Path::new(file)).await,
        None if rest.is_empty() => Kubernetes::in_cluster(),
        None => return Err(refused(address, "it is none that is known")),
    };
    let kubernetes = kubernetes.map_err(|error| refused(address, &error.to_string()))?;
    Ok(Opened { client: Client::new(kubernetes.clone()), kubernetes: Some(kubernetes) })
}

fn open_other(address: &str) -> Outcome<Client> {
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

/// The store at this address as one cluster uses it: an etcd is shared below a prefix, a Kubernetes has one cluster.
pub(crate) fn shared(address: &str, cluster: &str) -> Outcome<String> {
    if address.starts_with(KUBERNETES) {
        return Ok(address.to_owned());
    }
    if !address.starts_with("etcd://") {
        return Err(refused(address, "only an etcd and a Kubernetes can be"));
    }
    // First as it was written: it is named so where it is refused.
    open_other(address)?;
    let shared = format!("{}/orlop/{cluster}/", address.trim_end_matches('/'));
    open_other(&shared).map(|_| shared)
}

/// Refuses a store that has a cluster already: the nodes of a new one would be taken for its own.
pub(crate) async fn ensure_unused(address: &str) -> Outcome {
    let client = open(address).await?.client;
    // A store that does not answer, or has no definitions yet, is the controller's to report.
    let Ok(Some(cluster)) = client.get::<ClusterInfo>(ClusterInfo::KEY).await else { return Ok(()) };
    Err(Failure::new(format!("{address:?} has the records of cluster {} already", cluster.value.uuid))
        .hint("give the --data folder of that cluster, or another store"))
}

/// Whether this is the Kubernetes in which this process is a pod.
pub(crate) fn is_pod(address: &str) -> bool {
    address == KUBERNETES
}

fn refused(address: &str, why: &str) -> Failure {
    Failure::new(format!("{address:?} is not the address of a store: {why}"))
        .kind(Kind::Usage)
        .hint("write etcd://HOST:PORT, several with commas between, or kubernetes:KUBECONFIG")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_understood_or_refused() {
        let open = open_other;
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

//! `orlop controller`: the process that decides where bytes live, and answers the API; it has the store open, unless
//! that is elsewhere.
//!
//! Invariants:
//! 1. Volumes go on while it is away: nothing here is on the path of a byte.
//! 2. Of several controllers one decides at a time; all answer the API.

use crate::arguments::Controller;
use crate::failure::{Failure, Kind, OrFail, Outcome};
use crate::{process, stores};
use k8s::{Election, Kubernetes};
use manager::{Manager, Mandate};
use std::path::Path;
use std::time::Duration;
use store::{Client, Embedded};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// The name of the Lease.
const LEASE: &str = "orlop-controller";
/// How often volumes are looked for that people have applied.
const ADOPT_INTERVAL: Duration = Duration::from_secs(5);

/// Runs the controller until it is asked to end.
pub(crate) fn run(arguments: &Controller) -> Outcome {
    if let Some(parent) = arguments.parent {
        process::die_with(parent)?;
    }
    process::log_to_stderr();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.or_fail(|| "cannot start".into())?.block_on(serve(arguments))
}

async fn serve(arguments: &Controller) -> Outcome {
    let mut terminate = signal(SignalKind::terminate()).or_fail(|| "cannot listen for signals".into())?;
    let (client, kubernetes) = match (&arguments.data, &arguments.store) {
        (Some(folder), _) => (embedded(folder)?, None),
        (None, address) => elsewhere(address.as_deref().unwrap_or_default()).await?,
    };
    let failed = |error: store::Error| Failure::new(error.to_string());
    let cluster = manager::ensure_cluster(&client).await.map_err(failed)?;
    let overcommit = manager::OVERCOMMIT_DEFAULT;
    let config = api::ApiConfig { listen: arguments.listen, client: client.clone(), overcommit };
    let server = api::serve(config).await.map_err(|error| Failure::new(error.to_string()))?;
    tracing::info!(address = %server.address(), cluster = %cluster.uuid, "controller runs");
    let leader = Leader { client, kubernetes, patience: patience(arguments) };
    match leader.election(arguments)? {
        None => {
            let leading = leader.lead(Mandate::default());
            terminate.recv().await;
            leading.stop().await;
        }
        Some(election) => while !leader.term(&election, &mut terminate).await {},
    }
    server.stop().await;
    tracing::info!("controller ends");
    Ok(())
}

fn patience(arguments: &Controller) -> manager::Config {
    let mut patience = manager::Config::default();
    patience.replace_after = arguments.replace_after.map_or(patience.replace_after, Duration::from_secs);
    patience
}

/// What the one that decides needs.
struct Leader {
    client: Client,
    kubernetes: Option<Kubernetes>,
    patience: manager::Config,
}

/// What runs while this process decides.
struct Leading {
    manager: Manager,
    adoption: Option<JoinHandle<()>>,
}

impl Leader {
    /// How the one that decides is chosen, if there may be several.
    fn election(&self, arguments: &Controller) -> Outcome<Option<Election>> {
        if !arguments.leader_election {
            return Ok(None);
        }
        let kubernetes = self.kubernetes.as_ref().ok_or_else(|| {
            Failure::new("--leader-election needs a Kubernetes as the store")
                .kind(Kind::Usage)
                .hint("leave it out where only one controller runs")
        })?;
        // Another process in the same pod is another one (a container that was started again).
        let identity = format!("{}_{}", arguments.pod, process::random_uuid()?);
        Ok(Some(kubernetes.election(&arguments.namespace, LEASE, &identity)))
    }

    /// Waits for a term and decides while it lasts; true when this process is asked to end.
    async fn term(&self, election: &Election, terminate: &mut Signal) -> bool {
        let term = tokio::select! {
            term = election.lead() => term,
            _ = terminate.recv() => return true,
        };
        tracing::info!(term = term.number(), "this controller leads");
        let leading = self.lead(Mandate::until(term.until()));
        let end = tokio::select! {
            () = term.lost() => false,
            _ = terminate.recv() => true,
        };
        leading.stop().await;
        if end {
            term.release().await;
        } else {
            tracing::warn!(term = term.number(), "this controller leads no more");
        }
        end
    }

    fn lead(&self, mandate: Mandate) -> Leading {
        let manager = manager::start(self.client.clone(), self.patience.clone(), mandate);
        let adoption = self.kubernetes.clone().map(|kubernetes| tokio::spawn(adopt(kubernetes)));
        Leading { manager, adoption }
    }
}

impl Leading {
    async fn stop(self) {
        // It only makes whole what is there; a compare-and-swap refuses what is no longer so.
        if let Some(adoption) = self.adoption {
            adoption.abort();
        }
        self.manager.stop().await;
    }
}

/// A store that is not this process's own. In a Kubernetes by its kubeconfig the kinds are made known first; in a pod
/// that is the chart's, and not a right of this process.
async fn elsewhere(address: &str) -> Outcome<(Client, Option<Kubernetes>)> {
    let opened = stores::open(address).await?;
    if let Some(kubernetes) = opened.kubernetes.as_ref().filter(|_| !stores::is_pod(address)) {
        kubernetes.install().await.map_err(|error| Failure::new(error.to_string()))?;
    }
    Ok((opened.client, opened.kubernetes))
}

/// Makes volumes whole that people have applied.
async fn adopt(kubernetes: Kubernetes) {
    loop {
        match kubernetes.adopt().await {
            Ok(names) if names.is_empty() => {}
            Ok(names) => tracing::info!(volumes = names.join(" "), "volumes that were applied are there"),
            Err(error) => tracing::warn!(%error, "volumes that were applied are looked for again"),
        }
        sleep(ADOPT_INTERVAL).await;
    }
}

fn embedded(folder: &Path) -> Outcome<Client> {
    std::fs::create_dir_all(folder).or_fail(|| format!("cannot make {}", folder.display()))?;
    let store = Embedded::open(&folder.join("store.redb"));
    store.map(Client::new).map_err(|error| Failure::new(error.to_string()))
}

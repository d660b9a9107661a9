//! `orlop controller`: the process that decides where bytes live, and answers the API; it has the store open, unless
//! that is elsewhere.
//!
//! Invariants:
//! 1. Volumes go on while it is away: nothing here is on the path of a byte.
//! 2. Of several controllers one decides at a time; all answer the API.

use crate::arguments::Controller;
use crate::failure::{Failure, Kind, OrFail, Outcome};
use crate::{process, stores};
use k8s::{Election, Extender, Failover, FailoverConfig, Kubernetes, Severity, Term};
use manager::News;
use std::path::Path;
use std::time::Duration;
use store::{Client, Embedded, Mandate};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// The name of the Lease.
const LEASE: &str = "orlop-controller";
/// How often volumes are looked for that people have applied.
const ADOPT_INTERVAL: Duration = Duration::from_secs(5);
/// News that wait to be told; more are lost.
const NEWS_MAX: usize = 256;

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
    let &Controller { listen, overcommit, .. } = arguments;
    let api = api::ApiConfig { listen, client: client.clone(), overcommit };
    let server = api::serve(api).await.map_err(|error| Failure::new(error.to_string()))?;
    tracing::info!(address = %server.address(), cluster = %cluster.uuid, "controller runs");
    let _extender = extender(arguments, &client, kubernetes.as_ref()).await?;
    let leader = Leader { client, kubernetes, failover: failover(arguments) };
    match leader.election(arguments)? {
        None => {
            let manager = leader.manager(config(arguments), Mandate::default());
            let kubernetes = leader.kubernetes.clone();
            let adoption = kubernetes.map(|kubernetes| tokio::spawn(adopt(kubernetes, Mandate::default())));
            terminate.recv().await;
            adoption.inspect(JoinHandle::abort);
            manager.stop().await;
        }
        Some(election) => leader.terms(&election, config(arguments), &mut terminate).await,
    }
    server.stop().await;
    tracing::info!("controller ends");
    Ok(())
}

fn config(arguments: &Controller) -> manager::Config {
    let mut config = manager::Config { overcommit: arguments.overcommit, ..manager::Config::default() };
    config.replace_after = arguments.replace_after.map_or(config.replace_after, Duration::from_secs);
    config
}

fn failover(arguments: &Controller) -> Option<FailoverConfig> {
    let after = Duration::from_secs(arguments.failover_after);
    arguments.failover.then_some(FailoverConfig { after, share_percent: arguments.failover_share })
}

/// What answers the scheduler, if that is wished.
async fn extender(
    arguments: &Controller,
    client: &Client,
    kubernetes: Option<&Kubernetes>,
) -> Outcome<Option<Extender>> {
    let Some(listen) = arguments.extender else { return Ok(None) };
    let kubernetes = kubernetes.ok_or_else(|| {
        Failure::new("--extender needs a Kubernetes as the store")
            .kind(Kind::Usage)
            .hint("leave it out where no kube-scheduler asks")
    })?;
    let from = arguments.extender_from.clone();
    if from.is_empty() {
        tracing::warn!(
            "nobody may ask where copies are: --extender-from does not say from where kube-scheduler does"
        );
    }
    let extender = Extender::start(listen, from, kubernetes.clone(), client.clone()).await;
    let extender = extender.or_fail(|| format!("cannot listen on {listen} for the scheduler"))?;
    tracing::info!(address = %extender.address(), "the scheduler can ask");
    Ok(Some(extender))
}

/// What the one that decides needs.
struct Leader {
    client: Client,
    kubernetes: Option<Kubernetes>,
    /// Whether pods leave lost nodes without an operator.
    failover: Option<FailoverConfig>,
}

/// What runs while this process decides, beside the manager. Nothing of it is half done when it ends: it makes whole what
/// is there, and a compare-and-swap refuses what is no longer so.
struct Leading(Vec<JoinHandle<()>>);

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

    /// Starts the manager, and the events in Kubernetes with it.
    fn manager(&self, config: manager::Config, mandate: Mandate) -> manager::Manager {
        let news = self.kubernetes.clone().map(|kubernetes| {
            let (sender, receiver) = mpsc::channel(NEWS_MAX);
            tokio::spawn(tell(kubernetes, receiver));
            sender
        });
        manager::start(self.client.clone(), config, mandate, news)
    }

    /// Decides while it leads, until this process is asked to end. The manager looks on between two terms, so that a new
    /// leader knows at once who has been away.
    async fn terms(&self, election: &Election, config: manager::Config, terminate: &mut Signal) {
        let (mandate, until) = watch::channel(Instant::now());
        let manager = self.manager(config, Mandate::until(until));
        loop {
            let term = tokio::select! {
                term = election.lead() => term,
                _ = terminate.recv() => return manager.stop().await,
            };
            tracing::info!(term = term.number(), "this controller leads");
            let leading = self.lead(&term);
            let end = tokio::select! {
                () = follow(term.until(), &mandate) => false,
                () = term.lost() => false,
                _ = terminate.recv() => true,
            };
            mandate.send_replace(Instant::now());
            drop(leading);
            if end {
                manager.stop().await;
                return term.release().await;
            }
            tracing::warn!(term = term.number(), "this controller leads no more");
        }
    }

    fn lead(&self, term: &Term) -> Leading {
        let kubernetes = self.kubernetes.clone();
        let adoption = kubernetes.map(|kubernetes| tokio::spawn(adopt(kubernetes, term.mandate())));
        let failover = self.kubernetes.clone().zip(self.failover).map(|(kubernetes, config)| {
            tokio::spawn(Failover::new(kubernetes, self.client.clone(), config, term.mandate()).run())
        });
        Leading(adoption.into_iter().chain(failover).collect())
    }
}

impl Drop for Leading {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Passes on until when the term lasts; ends with it.
async fn follow(mut until: watch::Receiver<Instant>, mandate: &watch::Sender<Instant>) {
    loop {
        mandate.send_replace(*until.borrow_and_update());
        if until.changed().await.is_err() {
            // The renewal has ended: the term lasts until the time that it told last.
            std::future::pending::<()>().await;
        }
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

/// Tells news as events, until the manager ends.
async fn tell(kubernetes: Kubernetes, mut news: mpsc::Receiver<News>) {
    while let Some(News { kind, key, is_trouble, reason, message }) = news.recv().await {
        let severity = if is_trouble { Severity::Warning } else { Severity::Normal };
        kubernetes.tell_of(kind, &key, severity, reason, message).await;
    }
}

/// Makes volumes whole that people have applied, while this process has the mandate.
async fn adopt(kubernetes: Kubernetes, mandate: Mandate) {
    loop {
        match kubernetes.adopt(&mandate).await {
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

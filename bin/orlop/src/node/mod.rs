//! `orlop node run`: the process of one node. A reactor thread moves bytes; two tokio threads talk to the store and serve
//! the metrics; they meet in mailboxes.

mod control;
mod disks;
mod metrics;
mod serve;
mod topology;

pub(crate) use self::disks::allow;
use self::disks::{Watch, named, selectors};
use crate::arguments::{NodeOptions, NodeRun};
use crate::failure::{Failure, OrFail, Outcome};
use crate::stores::{self, Opened};
use crate::{process, secrets};
use control::StoreControl;
use engine::{Config, Engine, FuseConfig, PoolConfig};
use model::ClusterInfo;
use rt::mailbox;
pub(crate) use serve::serve;
use std::rc::Rc;
use std::time::Duration;
use store::Client;
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

/// The first argument of the process that holds devices while a node is started again; see `main`.
pub(crate) const HOLDER: &str = "fuse-holder";
/// How often a store that does not answer is asked again.
const RETRY: Duration = Duration::from_millis(250);

/// Runs the node until it is asked to end.
pub(crate) fn run(arguments: &NodeRun) -> Outcome {
    if let Some(parent) = arguments.parent {
        process::die_with(parent)?;
    }
    process::log_to_stderr();
    process::raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.or_fail(|| "cannot start".into())?;
    let Opened { client, kubernetes } = runtime.block_on(stores::open(&arguments.node.store))?;
    let allow = allow(&arguments.node.disks_allow)?;
    let selectors = selectors(&arguments.node.disks, &allow)?;
    let mut pools = named(&arguments.node.disks)?;
    let (end, ended) = mailbox::bounded(1);
    let (questions, asked) = mailbox::bounded(1);
    let (claims, claimed) = mailbox::bounded(1);
    let (cluster, watch, selected, labels) = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).or_fail(|| "cannot listen for signals".into())?;
        tokio::spawn(async move {
            terminate.recv().await;
            // The reactor may have ended by itself.
            let _ended = end.send(()).await;
        });
        let NodeOptions { metrics, name, .. } = &arguments.node;
        metrics::serve(*metrics, name.clone(), questions, client.clone()).await?;
        let labels = topology::follow(&arguments.node, kubernetes);
        let cluster = cluster(&client).await?;
        let mut watch = Watch::start(name.clone(), cluster, allow, selectors, client.clone())?;
        let selected = watch.first().await;
        Outcome::Ok((cluster, watch, selected, labels))
    })?;
    // Behind those that were named: what is both is then open, and left alone.
    pools.extend(selected);
    let config = config(arguments, cluster, pools)?;
    let threads = runtime.handle().clone();
    let control = Rc::new(StoreControl::new(threads.clone(), client, &arguments.node.name, labels));
    let reactor =
        rt::os::Reactor::new(rt::os::Config::default()).or_fail(|| "cannot start the I/O engine".into())?;
    reactor.run(async move {
        let engine = Engine::start(config, control).await.map_err(|error| Failure::new(error.to_string()))?;
        let answering = rt::spawn(metrics::answer(engine.clone(), asked));
        let claiming = rt::spawn(disks::claim(engine.clone(), claimed));
        threads.spawn(async move { watch.go(claims) });
        // Closed means that the runtime is gone: an end as well.
        let _asked = ended.recv().await;
        drop(claiming);
        let stopped = engine.stop().await;
        drop(answering);
        stopped.map_err(|in_use| {
            Failure::new(format!("the devices of {} are in use", in_use.join(", ")))
                .hint("unmount them first; they are closed now, and recovered at the next start")
        })
    })
}

/// The cluster's identity, as soon as the store answers.
async fn cluster(client: &Client) -> Outcome<Uuid> {
    let mut said = false;
    loop {
        match client.get::<ClusterInfo>(ClusterInfo::KEY).await {
            Ok(Some(cluster)) => return Ok(cluster.value.uuid),
            Ok(None) if !said => tracing::warn!("the store has no cluster yet: a controller makes it"),
            Err(error) if !said => tracing::warn!(%error, "the store does not answer yet"),
            _ => {}
        }
        said = true;
        tokio::time::sleep(RETRY).await;
    }
}

fn config(arguments: &NodeRun, cluster: Uuid, pools: Vec<PoolConfig>) -> Outcome<Config> {
    let NodeOptions { name, listen, metrics, secret, .. } = &arguments.node;
    Ok(Config {
        node: name.clone(),
        cluster,
        boot_id: process::boot_id()?,
        pid: std::process::id(),
        pools,
        listen: *listen,
        secret: secret.as_deref().map(secrets::read).transpose()?,
        metrics_address: Some(metrics.to_string()),
        nexus: nexus::Config::default(),
        fuse: if rustix::process::geteuid().is_root() { Some(fuse(arguments)?) } else { None },
    })
}

/// Without root there are no mounts and no loop devices: volumes are then reached by the target only.
fn fuse(arguments: &NodeRun) -> Outcome<FuseConfig> {
    let program = std::env::current_exe().or_fail(|| "cannot find this program's own file".into())?;
    Ok(FuseConfig {
        frontend: arguments.node.frontend.into(),
        state_dir: arguments.node.data.clone(),
        run_id: arguments.run_id.clone(),
        holder: arguments.hold_devices.then(|| vec![program.into(), HOLDER.into()]),
        supervisor: arguments.parent,
    })
}

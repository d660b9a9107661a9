//! What a volume or a node looks like now, and waiting until it looks as wished.
//!
//! 1. Whoever waits asks the store when something about the volume has changed, and not all the time.
//! 2. That it is as wished is said of what the store itself has told, never of what a watch has.

use crate::{App, Problem, live::Live, nodes};
use manager::View;
use model::{
    Node, NodeReplicas, NodeView, Pool, Stored, Surroundings, Volume, VolumeFacts, VolumeRecord,
    VolumeStatus, VolumeView, node_view,
};
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

/// Changes come in groups.
const GATHER: Duration = Duration::from_millis(20);
/// Between the first looks at a node: most things are quick.
const LOOK_MIN: Duration = Duration::from_millis(50);
/// The longest between two looks: what a volume waits for may also be about a node or a pool.
const LOOK_MAX: Duration = Duration::from_secs(2);

/// The volume as it is; none if there is none.
async fn look(app: &App, name: &str, live: Option<&Live>) -> Result<Option<VolumeView>, Problem> {
    match nodes::find::<Volume>(&app.client, "volume", name).await {
        Ok(volume) => match live {
            Some(live) => Ok(Some(hearsay(app, volume, live).await?)),
            None => Ok(Some(complete(app, volume).await?)),
        },
        Err(problem) if problem.status == 404 => Ok(None),
        Err(problem) => Err(problem),
    }
}

/// The volume with all that is known of it.
pub(crate) async fn complete(app: &App, volume: Stored<Volume>) -> Result<VolumeView, Problem> {
    let (record, status) = about(app, &volume).await?;
    let nodes: Vec<Node> = nodes::values(app.client.list().await?);
    let pools: Vec<Pool> = nodes::values(app.client.list().await?);
    let replicas: Vec<NodeReplicas> = nodes::values(app.client.list().await?);
    let around = Surroundings::new(&nodes, &pools, &replicas);
    Ok(model::view(&volume.value, volume.revision, record.as_ref(), status.as_ref(), &around))
}

/// The same with nodes and pools as watches have told them.
async fn hearsay(app: &App, volume: Stored<Volume>, live: &Live) -> Result<VolumeView, Problem> {
    let (record, status) = about(app, &volume).await?;
    Ok(live.see(|view| {
        let around = view.surroundings();
        model::view(&volume.value, volume.revision, record.as_ref(), status.as_ref(), &around)
    }))
}

async fn about(
    app: &App,
    volume: &Stored<Volume>,
) -> Result<(Option<VolumeRecord>, Option<VolumeStatus>), Problem> {
    let key = volume.value.uuid.to_string();
    let record = app.client.get(&key).await?.map(|record| record.value);
    let status = app.client.get(&key).await?.map(|status| status.value);
    Ok((record, status))
}

/// The node with all that is on it, and what its drain waits for.
pub(crate) async fn look_at_node(app: &App, name: &str) -> Result<NodeView, Problem> {
    let view = View::load(&app.client).await?;
    let node = view.nodes.get(name).ok_or_else(|| Problem::not_found("node", name))?;
    let volumes = view.volumes.values().map(|Stored { value: volume, .. }| VolumeFacts {
        volume,
        record: view.record(volume.uuid).map(|record| &record.value),
        status: view.status(volume.uuid).map(|status| &status.value),
    });
    Ok(node_view(node, volumes, &view.surroundings()))
}

/// Waits until the volume looks as wished, at most `patience`; answers how it looks then, and whether that is as wished.
pub(crate) async fn until(
    app: &App,
    name: &str,
    patience: Option<Duration>,
    wished: impl Fn(Option<&VolumeView>) -> bool,
) -> Result<(Option<VolumeView>, bool), Problem> {
    let deadline = Instant::now() + patience.unwrap_or_default();
    let mut seen = look(app, name, None).await?;
    if wished(seen.as_ref()) || patience.is_none() {
        let as_wished = wished(seen.as_ref());
        return Ok((seen, as_wished));
    }
    let mut closing = app.closing.clone();
    let mut live = app.live().await?;
    let mut told = true;
    loop {
        let before = live.stamp(name);
        // What was not told may be about a node or a pool, or a watch is behind: then the store is asked for all of it.
        seen = look(app, name, told.then_some(&live)).await?;
        if told && wished(seen.as_ref()) {
            // Invariant 2.
            seen = look(app, name, None).await?;
        }
        if wished(seen.as_ref()) {
            return Ok((seen, true));
        }
        let changed = async {
            live.changed(name, before).await;
            sleep(GATHER).await;
        };
        let woken;
        (woken, told) = tokio::select! {
            _ = closing.wait_for(|closing| *closing) => (true, false),
            () = changed => (false, true),
            () = sleep_until(deadline.min(Instant::now() + LOOK_MAX)) => (false, false),
        };
        if woken || Instant::now() >= deadline {
            return Ok((seen, false));
        }
    }
}

/// Waits until nothing keeps the node from being what it is wished to be, at most `patience`.
pub(crate) async fn until_drained(
    app: &App,
    name: &str,
    patience: Option<Duration>,
) -> Result<NodeView, Problem> {
    let deadline = Instant::now() + patience.unwrap_or_default();
    let mut closing = app.closing.clone();
    let mut pause = LOOK_MIN;
    loop {
        let seen = look_at_node(app, name).await?;
        if seen.waits_for.is_empty() || Instant::now() + pause > deadline {
            return Ok(seen);
        }
        let woken = tokio::select! {
            _ = closing.wait_for(|closing| *closing) => true,
            () = sleep(pause) => false,
        };
        if woken {
            return Ok(seen);
        }
        pause = (pause * 2).min(LOOK_MAX);
    }
}

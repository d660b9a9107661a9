//! What a volume or a node looks like now, and waiting until it looks as wished.
//!
//! 1. Whoever waits asks the store when something about the volume has changed, and not all the time.
//! 2. What is said of a volume is what the store itself has told of its own objects, never what a watch has. The nodes,
//!    pools and replicas around it may be as watches have told them, where something follows these anyway.
//! 3. A question about one volume costs the same however many there are.

use crate::{App, Problem, nodes};
use futures_util::future::try_join_all;
use manager::View;
use model::{
    Node, NodeReplicas, NodeView, Object, Pool, Stored, Surroundings, Volume, VolumeFacts, VolumeRecord,
    VolumeStatus, VolumeView, node_view,
};
use std::{collections::BTreeSet, time::Duration};
use store::Client;
use tokio::time::{Instant, sleep, sleep_until};

/// Changes come in groups.
const GATHER: Duration = Duration::from_millis(20);
/// Between the first looks at a node: most things are quick.
const LOOK_MIN: Duration = Duration::from_millis(50);
/// The longest between two looks: what a volume waits for may also be about a node or a pool.
const LOOK_MAX: Duration = Duration::from_secs(2);

/// The volume as it is; none if there is none.
async fn look(app: &App, name: &str) -> Result<Option<VolumeView>, Problem> {
    match nodes::find::<Volume>(&app.client, "volume", name).await {
        Ok(volume) => complete(app, volume).await.map(Some),
        Err(problem) if problem.status == 404 => Ok(None),
        Err(problem) => Err(problem),
    }
}

/// The volume with all that is known of it.
pub(crate) async fn complete(app: &App, volume: Stored<Volume>) -> Result<VolumeView, Problem> {
    let key = volume.value.uuid.to_string();
    let record = app.client.get(&key).await?.map(|record| record.value);
    let status = app.client.get(&key).await?.map(|status| status.value);
    let view = |around: &Surroundings<'_>| {
        model::view(&volume.value, volume.revision, record.as_ref(), status.as_ref(), around)
    };
    if let Some(live) = app.live.ready() {
        return Ok(live.see(|seen| view(&seen.surroundings())));
    }
    let around = Around::of(&app.client, &volume.value, record.as_ref(), status.as_ref()).await?;
    Ok(view(&Surroundings::new(&around.nodes, &around.pools, &around.replicas)))
}

/// What one volume has to do with.
struct Around {
    nodes: Vec<Node>,
    pools: Vec<Pool>,
    replicas: Vec<NodeReplicas>,
}

impl Around {
    async fn of(
        client: &Client,
        volume: &Volume,
        record: Option<&VolumeRecord>,
        status: Option<&VolumeStatus>,
    ) -> Result<Self, Problem> {
        let members = record.map_or(&[][..], |record| &record.members);
        let mut reporting: BTreeSet<String> = members.iter().map(|member| member.node.clone()).collect();
        reporting.extend(volume.intent.readers.iter().cloned());
        let owner = record.and_then(|record| record.owner.as_ref()).map(|owner| &owner.node);
        let attach = volume.intent.attach.as_ref().map(|attach| &attach.node);
        let others = [owner, attach, status.map(|status| &status.node)];
        let nodes = reporting.iter().chain(others.into_iter().flatten()).cloned().collect();
        let pools = members.iter().map(|member| member.pool.to_string()).collect();
        Ok(Self {
            nodes: some(client, &nodes).await?,
            pools: some(client, &pools).await?,
            replicas: some(client, &reporting).await?,
        })
    }
}

/// Those of these objects that there are.
async fn some<T: Object>(client: &Client, keys: &BTreeSet<String>) -> Result<Vec<T>, Problem> {
    let found = try_join_all(keys.iter().map(|key| client.get::<T>(key))).await?;
    Ok(nodes::values(found.into_iter().flatten().collect()))
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
    let mut seen = look(app, name).await?;
    if wished(seen.as_ref()) || patience.is_none() {
        let as_wished = wished(seen.as_ref());
        return Ok((seen, as_wished));
    }
    let mut closing = app.closing.clone();
    let mut live = app.live().await?;
    loop {
        let before = live.stamp(name);
        seen = look(app, name).await?;
        if wished(seen.as_ref()) {
            return Ok((seen, true));
        }
        let changed = async {
            live.changed(name, before).await;
            sleep(GATHER).await;
        };
        let closed = tokio::select! {
            _ = closing.wait_for(|closing| *closing) => true,
            () = changed => false,
            () = sleep_until(deadline.min(Instant::now() + LOOK_MAX)) => false,
        };
        if closed || Instant::now() >= deadline {
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

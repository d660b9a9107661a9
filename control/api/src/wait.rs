//! What a volume looks like now, and waiting until it looks as wished.

use crate::{App, Problem, nodes};
use model::{Node, NodeReplicas, Pool, Stored, Surroundings, Volume, VolumeView};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// Between two looks: short at first, for most things are quick.
const LOOK_MIN: Duration = Duration::from_millis(20);
const LOOK_MAX: Duration = Duration::from_millis(250);

/// The volume as it is; none if there is none.
pub(crate) async fn look(app: &App, name: &str) -> Result<Option<VolumeView>, Problem> {
    match nodes::find::<Volume>(&app.client, "volume", name).await {
        Ok(volume) => Ok(Some(complete(app, volume).await?)),
        Err(problem) if problem.status == 404 => Ok(None),
        Err(problem) => Err(problem),
    }
}

/// The volume with all that is known of it.
pub(crate) async fn complete(app: &App, volume: Stored<Volume>) -> Result<VolumeView, Problem> {
    let key = volume.value.uuid.to_string();
    let record = app.client.get(&key).await?.map(|record| record.value);
    let status = app.client.get(&key).await?.map(|status| status.value);
    let nodes: Vec<Node> = nodes::values(app.client.list().await?);
    let pools: Vec<Pool> = nodes::values(app.client.list().await?);
    let replicas: Vec<NodeReplicas> = nodes::values(app.client.list().await?);
    let around = Surroundings::new(&nodes, &pools, &replicas);
    Ok(model::view(&volume.value, volume.revision, record.as_ref(), status.as_ref(), &around))
}

/// Waits until the volume looks as wished, at most `patience`; answers how it looks then, and whether that is as wished.
pub(crate) async fn until(
    app: &App,
    name: &str,
    patience: Option<Duration>,
    wished: impl Fn(Option<&VolumeView>) -> bool,
) -> Result<(Option<VolumeView>, bool), Problem> {
    let deadline = Instant::now() + patience.unwrap_or_default();
    let mut closing = app.closing.clone();
    let mut pause = LOOK_MIN;
    loop {
        let seen = look(app, name).await?;
        if wished(seen.as_ref()) {
            return Ok((seen, true));
        }
        if Instant::now() + pause > deadline {
            return Ok((seen, false));
        }
        let woken = tokio::select! {
            _ = closing.wait_for(|closing| *closing) => true,
            _ = timeout_at(deadline, sleep(pause)) => false,
        };
        if woken {
            return Ok((seen, false));
        }
        pause = (pause * 2).min(LOOK_MAX);
    }
}

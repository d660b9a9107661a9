//! Nodes and pools that go for good. Both are refused while a volume has, or is to have, a copy there.
//!
//! 1. Nothing here destroys data: a disk is made blank by its own node alone, which looks into the pool itself, and what
//!    is on the disks of a node that is forgotten stays there.
//! 2. What was interrupted is asked for again: the object that is asked for goes last.
//! 3. Who was thought gone and is not reports itself anew, with all that it has.

use crate::{
    App, Problem,
    nodes::find,
    requests::{IfMatch, Wait, etag_header},
};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use manager::View;
use model::{Disk, MemberState, Node, NodeState, Object, Pool, PoolSpec, PoolState, Stored, Volume};
use std::{collections::BTreeSet, time::Duration};
use store::{Client, ErrorKind};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

/// How many volumes a message names.
const NAMED_MAX: usize = 5;
/// How often a pool that is on its way out is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Forgets a node that is gone for good, with its pools and disks.
#[utoipa::path(
    delete, path = "/api/v1/nodes/{name}", tag = "nodes",
    params(
        ("name" = String, Path), ("If-Match" = Option<String>, Header, description = "only at this revision"),
    ),
    responses(
        (status = 204, description = "it is forgotten"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json",
            description = "it is Ready, or a volume has a copy on it or is attached there"),
        (status = 412, body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn delete_node(
    State(app): State<App>,
    Path(name): Path<String>,
    if_match: IfMatch,
) -> Result<Response, Problem> {
    let Stored { revision, value: node } = find::<Node>(&app.client, "node", &name).await?;
    if_match.check(&format!("node {name:?}"), revision)?;
    let view = View::load(&app.client).await?;
    may_be_forgotten(&node, &view)?;
    let pools: Vec<_> = view.pools.values().filter(|pool| pool.value.node == name).collect();
    for pool in pools {
        forget(&app.client, pool).await?;
    }
    for disk in app.client.list::<Disk>().await? {
        if disk.value.node == name {
            forget(&app.client, &disk).await?;
        }
    }
    if let Some(replicas) = view.replicas.get(&name) {
        forget(&app.client, replicas).await?;
    }
    // Invariant 2; and by the revision that was judged: an engine that is back has written since.
    forget(&app.client, &Stored { revision, value: node }).await?;
    tracing::info!(node = name, "node is forgotten");
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn may_be_forgotten(node: &Node, view: &View) -> Result<(), Problem> {
    let name = &node.name;
    if node.state == NodeState::Ready {
        let detail = format!("node {name:?} is Ready");
        return Err(Problem::in_the_way(
            detail,
            "end its engine for good first: a node that runs comes back",
        ));
    }
    let attached = |volume: &&Stored<Volume>| {
        let intent = &volume.value.intent;
        intent.attach.as_ref().is_some_and(|attach| attach.node == *name) || intent.readers.contains(name)
    };
    if let Some(volume) = view.volumes.values().find(attached) {
        let volume = &volume.value.name;
        let detail = format!("node {name:?}: volume {volume:?} is attached there");
        return Err(Problem::in_the_way(detail, format!("run `orlop volume detach {volume}` first")));
    }
    let copies = copies(view, |there, _| there == name);
    if copies.is_empty() {
        return Ok(());
    }
    let detail = format!("node {name:?} has copies of {}", listed(&copies));
    let hint = "they are made elsewhere if there is a place (`orlop node drain --evacuate` does not wait for the node); \
                a volume whose only copy is there is lost with the node: delete it";
    Err(Problem::in_the_way(detail, hint))
}

/// Gives the disk of a pool back: its node makes it blank. A pool whose disk is gone is forgotten.
#[utoipa::path(
    delete, path = "/api/v1/pools/{uuid}", tag = "pools",
    params(
        ("uuid" = String, Path), ("If-Match" = Option<String>, Header, description = "only at this revision"),
        ("wait" = Option<String>, Query, description = "How long to wait until it is gone: 30s"),
    ),
    responses(
        (status = 202, body = Pool, description = "it is on its way out; message says what it waits for"),
        (status = 204, description = "it is gone"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json",
            description = "a volume has a copy in it, or its node is not ready"),
        (status = 412, body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn delete_pool(
    State(app): State<App>,
    Path(uuid): Path<String>,
    if_match: IfMatch,
    Wait(wait): Wait,
) -> Result<Response, Problem> {
    let deadline = Instant::now() + wait.unwrap_or_default();
    let mut pool = find::<Pool>(&app.client, "pool", &uuid).await?;
    if_match.check(&object(&pool.value), pool.revision)?;
    loop {
        let view = View::load(&app.client).await?;
        may_be_released(&pool.value, &view)?;
        if pool.value.state == PoolState::Gone {
            forget(&app.client, &pool).await?;
            tracing::info!(pool = uuid, node = pool.value.node, "pool is forgotten");
            break;
        }
        release(&app.client, &pool).await?;
        if Instant::now() + LOOK > deadline {
            return Ok((StatusCode::ACCEPTED, etag_header(pool.revision), Json(pool.value)).into_response());
        }
        let mut closing = app.closing.clone();
        tokio::select! {
            _ = closing.wait_for(|closing| *closing) => {}
            () = sleep(LOOK) => {}
        }
        pool = match find::<Pool>(&app.client, "pool", &uuid).await {
            Err(problem) if problem.status == 404 => break,
            found => found?,
        };
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn may_be_released(pool: &Pool, view: &View) -> Result<(), Problem> {
    let copies = copies(view, |_, there| there == pool.uuid);
    if !copies.is_empty() {
        let detail = format!("{} has copies of {}", object(pool), listed(&copies));
        let hint =
            format!("`orlop node drain {} --evacuate` makes them elsewhere; or delete them", pool.node);
        return Err(Problem::in_the_way(detail, hint));
    }
    if pool.state != PoolState::Gone && !view.is_ready(&pool.node) {
        let detail = format!("{}: node {} is NotReady", object(pool), pool.node);
        let hint = format!(
            "only the node can give the disk back: start its engine, or run `orlop node delete {}` if it is gone for good",
            pool.node
        );
        return Err(Problem::in_the_way(detail, hint));
    }
    Ok(())
}

/// Writes the wish, unless it is there; whoever writes the pool meanwhile is no obstacle, for this is asked again.
async fn release(client: &Client, pool: &Stored<Pool>) -> Result<(), Problem> {
    let spec = PoolSpec { release: true };
    if pool.value.spec == spec {
        return Ok(());
    }
    match client.replace(&Pool { spec, ..pool.value.clone() }, pool.revision).await {
        Err(error) if !matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => Err(error.into()),
        _ => Ok(()),
    }
}

/// The volumes that have, or are to have, a copy on a node and pool that are `here`.
fn copies(view: &View, here: impl Fn(&str, Uuid) -> bool) -> BTreeSet<String> {
    let wished = view.volumes.values().map(|volume| &volume.value).filter(|volume| {
        let members = &volume.intent.members;
        !volume.intent.deleting && members.iter().any(|member| here(&member.node, member.pool))
    });
    let recorded = view.records.values().map(|record| &record.value).filter(|record| {
        let kept = record.members.iter().filter(|member| member.state != MemberState::Removed);
        kept.into_iter().any(|member| here(&member.node, member.pool))
    });
    let name = |uuid: Uuid| {
        let mut volumes = view.volumes.values().map(|volume| &volume.value);
        volumes.find(|volume| volume.uuid == uuid).map(|volume| volume.name.clone())
    };
    // A record may have lost its volume's object, and is the way to the data all the same.
    let recorded = recorded.map(|record| name(record.volume).unwrap_or_else(|| record.volume.to_string()));
    wished.map(|volume| volume.name.clone()).chain(recorded).collect()
}

fn listed(names: &BTreeSet<String>) -> String {
    let first: Vec<&str> = names.iter().take(NAMED_MAX).map(String::as_str).collect();
    let more = names.len() - first.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{} {}{more}", if names.len() == 1 { "volume" } else { "volumes" }, first.join(", "))
}

fn object(pool: &Pool) -> String {
    format!("pool {:?} of node {:?}", pool.name, pool.node)
}

/// Deletes an object as it was judged; one that is gone already is what was wished.
async fn forget<T: Object>(client: &Client, object: &Stored<T>) -> Result<(), Problem> {
    match client.delete::<T>(&object.value.key(), object.revision).await {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::Conflict => {
            let detail = format!("{} {:?} has changed meanwhile", T::KIND, object.value.key());
            Err(Problem::in_the_way(detail, "look whether its node is back, and try again"))
        }
        Err(error) => Err(error.into()),
    }
}

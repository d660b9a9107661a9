//! Nodes, pools and disks: what engines report; and what an operator wishes of a node.
//!
//! 1. A wish that is already so is not an error, and changes nothing.

use crate::{
    App, Problem,
    requests::{Body, IfMatch, Wait, etag_header},
    volumes::ATTEMPTS_MAX,
    wait::{look_at_node, until_drained},
};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use model::{Disk, Node, NodeSpec, NodeView, Object, Pool, Scheduling, Stored};
use serde::{Deserialize, Serialize};
use store::{Client, ErrorKind};
use utoipa::ToSchema;

/// All nodes.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NodeList {
    /// By name.
    pub items: Vec<Node>,
}

/// All pools.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PoolList {
    /// By node, then name.
    pub items: Vec<Pool>,
}

/// All disks.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DiskList {
    /// By node, then device.
    pub items: Vec<Disk>,
}

/// What a node is wished to be.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateNode {
    /// What its operator wishes.
    pub spec: UpdateNodeSpec,
}

/// The wish: nothing of it may be left out, for what is left out of a node that is kept means that nothing is wished.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateNodeSpec {
    /// What may be on it.
    pub scheduling: Scheduling,
}

/// All nodes.
#[utoipa::path(get, path = "/api/v1/nodes", tag = "nodes", responses((status = 200, body = NodeList)))]
pub(crate) async fn list_nodes(State(client): State<Client>) -> Result<Json<NodeList>, Problem> {
    Ok(Json(NodeList { items: values(client.list().await?) }))
}

/// One node: what is on it, and what its drain waits for.
#[utoipa::path(
    get, path = "/api/v1/nodes/{name}", tag = "nodes", params(("name" = String, Path)),
    responses(
        (status = 200, body = NodeView, headers(("ETag" = String, description = "the revision"))),
        (status = 404, body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_node(State(app): State<App>, Path(name): Path<String>) -> Result<Response, Problem> {
    Ok(answer(StatusCode::OK, &look_at_node(&app, &name).await?))
}

/// Wishes something of a node: that nothing new is placed on it, or that it can be taken away.
#[utoipa::path(
    patch, path = "/api/v1/nodes/{name}", tag = "nodes", request_body = UpdateNode,
    params(
        ("name" = String, Path), ("If-Match" = Option<String>, Header, description = "only at this revision"),
        ("wait" = Option<String>, Query, description = "How long to wait until nothing is waited for: 30s"),
    ),
    responses(
        (status = 200, body = NodeView, description = "it is as wished: waitsFor is empty"),
        (status = 202, body = NodeView, description = "the wish is kept; waitsFor says what is in its way"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 412, body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn update_node(
    State(app): State<App>,
    Path(name): Path<String>,
    if_match: IfMatch,
    Wait(wait): Wait,
    Body(UpdateNode { spec: UpdateNodeSpec { scheduling } }): Body<UpdateNode>,
) -> Result<Response, Problem> {
    let spec = NodeSpec { scheduling };
    change(&app.client, &name, &if_match, spec).await?;
    let seen = until_drained(&app, &name, wait).await?;
    Ok(answer(if seen.waits_for.is_empty() { StatusCode::OK } else { StatusCode::ACCEPTED }, &seen))
}

/// Writes the wish by compare-and-swap, anew whenever the node's engine has written meanwhile.
async fn change(client: &Client, name: &str, if_match: &IfMatch, spec: NodeSpec) -> Result<(), Problem> {
    let object = format!("node {name:?}");
    for _ in 0..ATTEMPTS_MAX {
        let Stored { revision, value } = find::<Node>(client, "node", name).await?;
        if_match.check(&object, revision)?;
        if value.spec == spec {
            return Ok(());
        }
        match client.replace(&Node { spec, ..value }, revision).await {
            Ok(_) => {
                tracing::info!(node = name, scheduling = %spec.scheduling, "wished of a node");
                return Ok(());
            }
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Problem::in_the_way(format!("{object} keeps changing"), "try again"))
}

fn answer(status: StatusCode, node: &NodeView) -> Response {
    (status, etag_header(node.revision), Json(node)).into_response()
}

/// All pools.
#[utoipa::path(get, path = "/api/v1/pools", tag = "pools", responses((status = 200, body = PoolList)))]
pub(crate) async fn list_pools(State(client): State<Client>) -> Result<Json<PoolList>, Problem> {
    let mut items: Vec<Pool> = values(client.list().await?);
    items.sort_by(|a, b| (&a.node, &a.name, a.uuid).cmp(&(&b.node, &b.name, b.uuid)));
    Ok(Json(PoolList { items }))
}

/// One pool.
#[utoipa::path(
    get, path = "/api/v1/pools/{uuid}", tag = "pools", params(("uuid" = String, Path)),
    responses((status = 200, body = Pool), (status = 404, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn get_pool(
    State(client): State<Client>,
    Path(uuid): Path<String>,
) -> Result<Response, Problem> {
    let found: Stored<Pool> = find(&client, "pool", &uuid).await?;
    Ok((etag_header(found.revision), Json(found.value)).into_response())
}

/// All disks.
#[utoipa::path(get, path = "/api/v1/disks", tag = "disks", responses((status = 200, body = DiskList)))]
pub(crate) async fn list_disks(State(client): State<Client>) -> Result<Json<DiskList>, Problem> {
    let mut items: Vec<Disk> = values(client.list().await?);
    items.sort_by(|a, b| (&a.node, &a.device, &a.name).cmp(&(&b.node, &b.device, &b.name)));
    Ok(Json(DiskList { items }))
}

/// One disk.
#[utoipa::path(
    get, path = "/api/v1/disks/{name}", tag = "disks", params(("name" = String, Path)),
    responses((status = 200, body = Disk), (status = 404, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn get_disk(
    State(client): State<Client>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let found: Stored<Disk> = find(&client, "disk", &name).await?;
    Ok((etag_header(found.revision), Json(found.value)).into_response())
}

pub(crate) fn values<T>(items: Vec<Stored<T>>) -> Vec<T> {
    items.into_iter().map(|item| item.value).collect()
}

/// The object, or a problem that says that there is none: a name that cannot be one names nothing.
pub(crate) async fn find<T: Object>(client: &Client, noun: &str, key: &str) -> Result<Stored<T>, Problem> {
    match client.get(key).await {
        Ok(Some(found)) => Ok(found),
        Ok(None) => Err(Problem::not_found(noun, key)),
        Err(error) if error.kind() == ErrorKind::Invalid => Err(Problem::not_found(noun, key)),
        Err(error) => Err(error.into()),
    }
}

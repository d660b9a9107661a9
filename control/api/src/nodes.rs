//! Nodes, pools and disks: what engines report, read only.

use crate::{Problem, requests::etag_header};
use axum::{
    Json,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use model::{Disk, Node, Object, Pool, Stored};
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

/// All nodes.
#[utoipa::path(get, path = "/api/v1/nodes", tag = "nodes", responses((status = 200, body = NodeList)))]
pub(crate) async fn list_nodes(State(client): State<Client>) -> Result<Json<NodeList>, Problem> {
    Ok(Json(NodeList { items: values(client.list().await?) }))
}

/// One node.
#[utoipa::path(
    get, path = "/api/v1/nodes/{name}", tag = "nodes", params(("name" = String, Path)),
    responses((status = 200, body = Node), (status = 404, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn get_node(
    State(client): State<Client>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let found: Stored<Node> = find(&client, "node", &name).await?;
    Ok((etag_header(found.revision), Json(found.value)).into_response())
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

//! `orlop node list` and `orlop pool list`.

use crate::arguments::{Api, Output};
use crate::client::Client;
use crate::failure::Outcome;
use crate::output;
use device::ByteCount;
use model::{Node, Pool};

/// All nodes, by name.
pub(crate) async fn nodes(client: &Client) -> Outcome<Vec<Node>> {
    let list: api::NodeList = client.get("/api/v1/nodes").await?;
    Ok(list.items)
}

/// All pools, by node and name.
pub(crate) async fn pools(client: &Client) -> Outcome<Vec<Pool>> {
    let list: api::PoolList = client.get("/api/v1/pools").await?;
    Ok(list.items)
}

/// Runs `orlop node list`.
pub(crate) async fn list_nodes(api: &Api, output: &Output) -> Outcome {
    let nodes = nodes(&Client::new(&api.api)?).await?;
    output::show(output.output, &nodes, |nodes| {
        let row = |node: &Node| {
            vec![node.name.clone(), node.state.to_string(), node.pid.to_string(), node.address.clone()]
        };
        let rows = nodes.iter().map(row).collect();
        output::table(&["NAME", "STATE", "PID", "ADDRESS"], rows, "no nodes")
    })
}

/// Runs `orlop pool list`.
pub(crate) async fn list_pools(api: &Api, output: &Output) -> Outcome {
    let pools = pools(&Client::new(&api.api)?).await?;
    output::show(output.output, &pools, |pools| {
        let row = |pool: &Pool| {
            vec![
                pool.node.clone(),
                pool.name.clone(),
                pool.state.to_string(),
                ByteCount(pool.capacity_bytes).to_string(),
                ByteCount(pool.used_bytes).to_string(),
                ByteCount(pool.free_bytes).to_string(),
                pool.uri.clone(),
                pool.message.clone().unwrap_or_default(),
            ]
        };
        let header = ["NODE", "NAME", "STATE", "CAPACITY", "USED", "FREE", "DEVICE", "MESSAGE"];
        output::table(&header, pools.iter().map(row).collect(), "no pools")
    })
}

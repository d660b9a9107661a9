//! `orlop node list` and `orlop pool list`.

use crate::arguments::{Api, Output};
use crate::failure::Outcome;
use crate::output;
use api::client::Client;
use device::ByteCount;
use model::{Node, Pool};

/// Runs `orlop node list`.
pub(crate) async fn list_nodes(api: &Api, output: &Output) -> Outcome {
    let nodes = Client::new(&api.api)?.nodes().await?;
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
    let pools = Client::new(&api.api)?.pools().await?;
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

//! `orlop node list`, `orlop pool list`, `orlop pool delete`, `orlop disk list` and `orlop disk get`.

use crate::arguments::{Api, Output};
use crate::failure::{Failure, Kind, Outcome};
use crate::output;
use api::client::Client;
use device::ByteCount;
use model::{Disk, DiskPartition, Node, Pool, PoolState, SizeText};
use serde::Serialize;
use uuid::Uuid;

/// Runs `orlop node list`.
pub(crate) async fn list_nodes(api: &Api, output: &Output) -> Outcome {
    let nodes = Client::new(&api.api)?.nodes().await?;
    output::show(output.output, &nodes, |nodes| {
        let row = |node: &Node| {
            vec![
                node.name.clone(),
                node.state.to_string(),
                node.spec.scheduling.to_string(),
                node.pid.to_string(),
                node.address.clone(),
            ]
        };
        let rows = nodes.iter().map(row).collect();
        output::table(&["NAME", "STATE", "SCHEDULING", "PID", "ADDRESS"], rows, "no nodes")
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
                pool.class.map_or_else(|| "-".to_owned(), |class| class.to_string()),
                ByteCount(pool.capacity_bytes).to_string(),
                ByteCount(pool.used_bytes).to_string(),
                ByteCount(pool.free_bytes).to_string(),
                pool.uri.clone(),
                pool.message.clone().unwrap_or_default(),
            ]
        };
        let header = ["NODE", "NAME", "STATE", "CLASS", "CAPACITY", "USED", "FREE", "DEVICE", "MESSAGE"];
        output::table(&header, pools.iter().map(row).collect(), "no pools")
    })
}

/// What is there no more, as programs see it.
#[derive(Debug, Serialize)]
struct Report {
    node: String,
    name: String,
    pool: Uuid,
    deleted: bool,
}

/// Runs `orlop pool delete`.
pub(crate) async fn delete_pool(called: &str, api: &Api, output: &Output) -> Outcome {
    let client = Client::new(&api.api)?;
    let pools = client.pools().await?;
    let Some(pool) = pools.into_iter().find(|pool| is_called(pool, called)) else {
        return Err(Failure::new(format!("there is no pool {called:?}"))
            .kind(Kind::NotFound)
            .hint("write NODE/NAME or a UUID; `orlop pool list` shows those that there are"));
    };
    if let Some(left) = client.delete_pool(pool.uuid).await? {
        let why = left.message.unwrap_or_else(|| "its node has not answered yet".into());
        return Err(Failure::new(format!("pool {called:?} is not deleted yet: {why}"))
            .hint("its node goes on by itself; the same command waits again"));
    }
    let was_gone = pool.state == PoolState::Gone;
    let deleted = Report { node: pool.node, name: pool.name, pool: pool.uuid, deleted: true };
    output::show(output.output, &deleted, |Report { node, name, pool, .. }| {
        let what = if was_gone { "is forgotten" } else { "is gone, and its disk is blank" };
        format!("pool {name} of node {node} ({pool}) {what}")
    })
}

fn is_called(pool: &Pool, called: &str) -> bool {
    let by_name = called.split_once('/').is_some_and(|(node, name)| pool.node == node && pool.name == name);
    by_name || called.parse() == Ok(pool.uuid)
}

/// Runs `orlop disk list`.
pub(crate) async fn list_disks(api: &Api, output: &Output) -> Outcome {
    let disks = Client::new(&api.api)?.disks().await?;
    output::show(output.output, &disks, |disks| {
        let row = |disk: &Disk| {
            vec![
                disk.node.clone(),
                disk.name.clone(),
                disk.state.to_string(),
                disk.class.to_string(),
                SizeText(disk.size_bytes).to_string(),
                disk.device.clone(),
                disk.message.clone().unwrap_or_default(),
            ]
        };
        let header = ["NODE", "NAME", "STATE", "CLASS", "SIZE", "DEVICE", "MESSAGE"];
        output::table(
            &header,
            disks.iter().map(row).collect(),
            "no disks: nodes look at those that --disks-allow names",
        )
    })
}

/// Runs `orlop disk get`.
pub(crate) async fn get_disk(name: &str, api: &Api, output: &Output) -> Outcome {
    let disk = Client::new(&api.api)?.disk(name).await?;
    output::show(output.output, &disk, describe)
}

/// A disk for people: one fact a line, then its partitions.
fn describe(disk: &Disk) -> String {
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let blocks = format!("{} logical, {} physical", disk.logical_block_bytes, disk.physical_block_bytes);
    let mut facts = vec![
        ("name", disk.name.clone()),
        ("node", disk.node.clone()),
        ("state", disk.state.to_string()),
        ("class", disk.class.to_string()),
        ("size", SizeText(disk.size_bytes).to_string()),
        ("model", or_none(&disk.model)),
        ("serial", or_none(&disk.serial)),
        ("device", disk.device.clone()),
        ("by id", or_none(&disk.by_id)),
        ("blocks", blocks),
        ("pool", disk.pool.map_or_else(|| "-".to_owned(), |pool| pool.to_string())),
        ("carries", or_none(&(!disk.signatures.is_empty()).then(|| disk.signatures.join(", ")))),
    ];
    if let Some(parent) = &disk.parent {
        facts.insert(2, ("of disk", parent.clone()));
    }
    if let Some(message) = &disk.message {
        let behind_state = if disk.parent.is_some() { 4 } else { 3 };
        facts.insert(behind_state, ("why", message.clone()));
    }
    let facts: Vec<String> = facts.iter().map(|(name, value)| format!("{name:<10}{value}")).collect();
    let facts = facts.join("\n");
    if disk.partitions.is_empty() {
        return facts;
    }
    let row = |part: &DiskPartition| {
        vec![
            part.device.clone(),
            SizeText(part.size_bytes).to_string(),
            part.label.clone().unwrap_or_default(),
        ]
    };
    let partitions =
        output::table(&["PARTITION", "SIZE", "LABEL"], disk.partitions.iter().map(row).collect(), "");
    format!("{facts}\n\n{partitions}")
}

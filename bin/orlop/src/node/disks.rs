//! The disks of this node, looked at again and again, and reported to the store. Beside the engine, which is told of its
//! disks by its arguments: nothing here touches what it has open.
//!
//! 1. A disk that hangs holds up nothing but this: it is looked at on a thread of its own, one look at a time.
//! 2. What cannot be looked at changes no report.

use crate::failure::{Failure, Kind, OrFail, Outcome};
use disks::{Allow, Changes, Roots, Scanner, settle};
use model::{Disk, Node, NodeState, Object, Stored};
use std::path::Path;
use std::time::Duration;
use store::Client;
use tokio::sync::mpsc;
use uuid::Uuid;

/// How often disks are looked at. Only those are read that were written to since.
const INTERVAL: Duration = Duration::from_secs(30);

/// The allow-list of the command line.
pub(crate) fn allow(globs: &[String]) -> Outcome<Allow> {
    Allow::new(globs).map_err(|error| Failure::new(format!("--disks-allow {error}")).kind(Kind::Usage))
}

/// Looks at the disks of `node` and reports them for as long as this runtime runs; an empty list is reported once.
pub(super) fn watch(node: String, cluster: Uuid, allow: Allow, client: Client) -> Outcome {
    let once = allow.is_empty();
    let (sender, mut reports) = mpsc::channel(1);
    let mut scanner = Scanner::new(Roots::below(Path::new("/")), allow);
    let name = node.clone();
    let look = move || {
        loop {
            match scanner.report(&name, cluster) {
                Ok(disks) => {
                    if sender.blocking_send(disks).is_err() {
                        // Nobody listens any more: the node ends.
                        return;
                    }
                }
                Err(error) => tracing::warn!(%error, "the disks of this machine cannot be looked at"),
            }
            if once {
                return;
            }
            std::thread::sleep(INTERVAL);
        }
    };
    std::thread::Builder::new()
        .name("disks".into())
        .spawn(look)
        .or_fail(|| "cannot start the thread that looks at disks".into())?;
    tokio::spawn(async move {
        while let Some(found) = reports.recv().await {
            if let Err(error) = report(&client, &node, found).await {
                tracing::warn!(%error, "disks are not reported; the next look does it");
            }
        }
    });
    Ok(())
}

/// Writes what has changed. Whoever was faster wins: the next look decides anew.
async fn report(client: &Client, node: &str, found: Vec<Disk>) -> store::Result<()> {
    let there = client.list::<Disk>().await?;
    let nodes = client.list::<Node>().await?;
    let is_alive =
        |name: &str| nodes.iter().any(|node| node.value.name == name && node.value.state == NodeState::Ready);
    let disks: Vec<Disk> = there.iter().map(|stored| stored.value.clone()).collect();
    let Changes { put, delete } = settle(&disks, is_alive, node, found);
    for disk in put {
        tracing::info!(disk = disk.name, device = disk.device, state = %disk.state, why = disk.message, "a disk has changed");
        match revision(&there, &disk.name) {
            Some(revision) => client.replace(&disk, revision).await?,
            None => client.create(&disk).await?,
        };
    }
    for name in delete {
        if let Some(revision) = revision(&there, &name) {
            client.delete::<Disk>(&name, revision).await?;
        }
    }
    Ok(())
}

fn revision(there: &[Stored<Disk>], name: &str) -> Option<u64> {
    there.iter().find(|stored| stored.value.key() == name).map(|stored| stored.revision)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::DiskState;
    use serde_json::json;
    use store::Embedded;

    fn disk(node: &str) -> Disk {
        serde_json::from_value(json!({
            "name": "wwn-0x1", "node": node, "device": "/dev/sda", "state": "Available", "class": "SSD",
            "sizeBytes": 1_u64 << 40, "logicalBlockBytes": 512, "physicalBlockBytes": 4096,
            "partitions": [], "signatures": [],
        }))
        .unwrap()
    }

    async fn states(client: &Client) -> Vec<(String, DiskState)> {
        let disks = client.list::<Disk>().await.unwrap();
        disks.into_iter().map(|disk| (disk.value.node, disk.value.state)).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_disk_keeps_its_object_from_node_to_node() {
        let folder = tempfile::tempdir().unwrap();
        let client = Client::new(Embedded::open(&folder.path().join("store.redb")).unwrap());
        report(&client, "n1", vec![disk("n1")]).await.unwrap();
        assert_eq!(states(&client).await, [("n1".into(), DiskState::Available)]);
        let before = client.get::<Disk>("wwn-0x1").await.unwrap().unwrap();
        report(&client, "n1", vec![disk("n1")]).await.unwrap();
        let after = client.get::<Disk>("wwn-0x1").await.unwrap().unwrap();
        assert_eq!(after, before, "nothing has changed, so nothing is written");
        report(&client, "n1", Vec::new()).await.unwrap();
        assert_eq!(states(&client).await, [("n1".into(), DiskState::Missing)]);
        report(&client, "n2", vec![disk("n2")]).await.unwrap();
        report(&client, "n1", Vec::new()).await.unwrap();
        assert_eq!(states(&client).await, [("n2".into(), DiskState::Available)]);
    }
}

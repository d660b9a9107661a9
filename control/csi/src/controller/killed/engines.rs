//! The engines of two nodes as a model: they make, open, grow, close and destroy what the manager wishes, and say so.

use super::NODES;
use model::{
    MemberState, NexusState, Node, NodeReplicas, NodeSpec, NodeState, Owner, Pool, PoolSpec, PoolState,
    ReplicaReport, ReplicaState, Settled, Stored, Volume, VolumeRecord, VolumeStatus,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};
use store::Client;
use uuid::Uuid;

const POOL_BYTES: u64 = 4 << 30;

/// What is on their disks.
type Replicas = Arc<Mutex<BTreeSet<Uuid>>>;

pub(super) struct Engines {
    client: Client,
    replicas: Replicas,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Engines {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Engines {
    pub(super) async fn start(client: Client) -> Self {
        for (name, number) in NODES.iter().zip(1..) {
            client.create(&node(name, number)).await.unwrap();
            client.create(&pool(name, number)).await.unwrap();
            let (node, replicas, readers) = ((*name).to_owned(), Vec::new(), Vec::new());
            client.create(&NodeReplicas { node, replicas, readers }).await.unwrap();
        }
        let replicas = Replicas::default();
        let task = tokio::spawn(run(client.clone(), Arc::clone(&replicas)));
        Self { client, replicas, task }
    }

    pub(super) fn replicas(&self) -> BTreeSet<Uuid> {
        self.replicas.lock().unwrap().clone()
    }

    /// The nodes with a device.
    pub(super) async fn devices(&self) -> Vec<String> {
        let statuses = self.client.list::<VolumeStatus>().await.unwrap().into_iter();
        statuses.filter(|status| status.value.device.is_some()).map(|status| status.value.node).collect()
    }
}

/// Looks again whenever something has changed.
async fn run(client: Client, replicas: Replicas) {
    let (mut volumes, mut records) = (client.watch::<Volume>(), client.watch::<VolumeRecord>());
    loop {
        let open = tokio::select! {
            change = volumes.next() => change.is_some(),
            change = records.next() => change.is_some(),
        };
        if !open {
            return;
        }
        // What has changed meanwhile is looked at anew: the next change tells.
        drop(keep(&client, &replicas).await);
        drop(serve(&client).await);
    }
}

/// Makes what is new, destroys what is removed, and reports both.
async fn keep(client: &Client, replicas: &Replicas) -> store::Result<()> {
    let records = client.list::<VolumeRecord>().await?;
    let mut said: BTreeMap<&str, Vec<ReplicaReport>> = NODES.map(|node| (node, Vec::new())).into();
    for Stored { value: record, .. } in &records {
        for member in &record.members {
            let mut replicas = replicas.lock().unwrap();
            let state = if member.state == MemberState::Removed {
                replicas.remove(&member.replica);
                ReplicaState::Destroyed
            } else {
                let is_made = replicas.insert(member.replica);
                assert!(!is_made || member.state == MemberState::New, "{member:?} is lost");
                ReplicaState::Present
            };
            said.get_mut(member.node.as_str()).unwrap().push(ReplicaReport {
                replica: member.replica,
                volume: record.volume,
                pool: member.pool,
                state,
                used_bytes: 0,
                message: None,
                record: None,
            });
        }
    }
    for (node, reports) in said {
        let Stored { revision, value } = client.get::<NodeReplicas>(node).await?.unwrap();
        if value.replicas != reports {
            client.replace(&NodeReplicas { replicas: reports, ..value }, revision).await?;
        }
    }
    Ok(())
}

/// Opens, grows and closes.
async fn serve(client: &Client) -> store::Result<()> {
    for volume in client.list::<Volume>().await?.into_iter().map(|stored| stored.value) {
        let key = volume.uuid.to_string();
        let Some(Stored { revision, value: record }) = client.get::<VolumeRecord>(&key).await? else {
            continue;
        };
        let next = next(&volume, &record);
        if next != record {
            client.replace(&next, revision).await?;
        }
        let known = client.get::<VolumeStatus>(&key).await?;
        let status = match &next.owner {
            Some(owner) => status(&volume, &next, owner),
            // Of one that is closed only what was said before is corrected.
            None => match &known {
                Some(known) => closed(&known.value),
                None => continue,
            },
        };
        match known {
            None => client.create(&status).await?,
            Some(known) if known.value != status => client.replace(&status, known.revision).await?,
            Some(_) => continue,
        };
    }
    Ok(())
}

/// The record that the wished owner writes.
fn next(volume: &Volume, record: &VolumeRecord) -> VolumeRecord {
    let mut next = record.clone();
    let wished = volume.intent.owner.as_ref().filter(|_| !volume.intent.deleting);
    let has = record.owner.as_ref().map(|owner| &owner.node);
    if wished.is_none() && has.is_some() {
        (next.owner, next.clean) = (None, true);
    }
    if let Some(node) = wished {
        if has != Some(node) {
            (next.epoch, next.clean) = (record.epoch + 1, false);
            next.owner = Some(Owner { nexus: Uuid::new_v4(), node: node.clone() });
        }
        for member in next.members.iter_mut().filter(|member| member.state == MemberState::New) {
            member.state = MemberState::InSync;
        }
        next.size_bytes = volume.spec.size_bytes;
    }
    if next != *record {
        next.version += 1;
        next.settled = Some(Settled { epoch: next.epoch, version: next.version });
    }
    next
}

fn status(volume: &Volume, record: &VolumeRecord, owner: &Owner) -> VolumeStatus {
    let attached = volume.intent.attach.as_ref().is_some_and(|attach| attach.node == owner.node);
    VolumeStatus {
        volume: volume.uuid,
        node: owner.node.clone(),
        nexus: owner.nexus,
        epoch: record.epoch,
        state: NexusState::Serving,
        device: attached.then(|| "/dev/orlop/1".to_owned()),
        target: None,
        attachment: 1,
        attach_serial: volume.intent.attach_serial,
        size_bytes: record.size_bytes,
        stable: model::Generation::ZERO,
        members: Vec::new(),
        write_stall_max_ms: 0,
        message: None,
    }
}

fn closed(known: &VolumeStatus) -> VolumeStatus {
    VolumeStatus { state: NexusState::Closed, device: None, ..known.clone() }
}

fn node(name: &str, number: u128) -> Node {
    Node {
        name: name.into(),
        spec: NodeSpec::default(),
        state: NodeState::Ready,
        address: format!("127.0.0.1:{}", 4420 + number),
        metrics_address: None,
        pid: 1,
        boot_id: Uuid::from_u128(1),
        version: "0.1.0".into(),
        heartbeat: 1,
        topology: BTreeMap::new(),
    }
}

fn pool(node: &str, number: u128) -> Pool {
    Pool {
        name: "disk".into(),
        uuid: Uuid::from_u128(20 + number),
        node: node.into(),
        spec: PoolSpec::default(),
        uri: "mem://".into(),
        class: None,
        state: PoolState::Online,
        capacity_bytes: POOL_BYTES,
        used_bytes: 0,
        free_bytes: POOL_BYTES,
        incarnation: Uuid::from_u128(30 + number),
        boot_id: Uuid::from_u128(1),
        message: None,
    }
}

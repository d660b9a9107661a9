//! The controller, the plugin, or both die after each write of a volume's life, from the first to the last one: what was
//! asked for comes true all the same, nothing is lost, and nothing is left.
//!
//! Store, manager, API and plugin are the real ones. The engines are a model, as in the manager's `convergence`.
//!
//! 1. Who has asked asks again until there is an answer, as the sidecars of Kubernetes do.
//! 2. Who is dead has no more of the store: neither an answer, nor another write. What was killed is there again at once.
//! 3. Every state of the store that others can see is one in which somebody dies: a run for each, until a run has fewer.

mod engines;

use super::*;
use crate::{
    capability::tests::mount,
    v1::{CapacityRange, volume_capability::access_mode::Mode},
};
use api::{ApiConfig, serve};
use engines::Engines;
use model::{Kind, Object, Stored};
use serde_json::Value;
use std::{future::pending, net::SocketAddr, pin::pin, sync::Arc};
use store::{Embedded, Events, Expect, Mandate, Store, StoreFuture};
use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
};
use uuid::Uuid;

const NODES: [&str; 2] = ["n1", "n2"];
const NAME: &str = "pvc-1";
const SIZE: u64 = 64 << 20;
const GROWN: u64 = 96 << 20;

/// Who dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    /// Manager and API.
    Controller,
    Plugin,
    Both,
}

/// The writes that have happened, and after how many of them somebody dies.
#[derive(Debug)]
struct Fate {
    after: usize,
    written: watch::Sender<usize>,
}

impl Fate {
    fn is_met(&self) -> bool {
        *self.written.borrow() >= self.after
    }

    async fn met(&self) {
        drop(self.written.subscribe().wait_for(|written| *written >= self.after).await);
    }
}

/// The store as one process has it.
struct Reached {
    store: Arc<Embedded>,
    fate: Arc<Fate>,
    /// Whether this process is the one that dies (invariant 2).
    mortal: bool,
}

impl Reached {
    async fn live(&self) {
        if self.mortal && self.fate.is_met() {
            pending::<()>().await;
        }
    }

    async fn write<T>(&self, write: impl Future<Output = store::Result<T>>) -> store::Result<T> {
        self.live().await;
        let written = write.await;
        if written.is_ok() {
            self.fate.written.send_modify(|written| *written += 1);
        }
        self.live().await;
        written
    }
}

impl Store for Reached {
    fn get<'a>(&'a self, kind: Kind, key: &'a str) -> StoreFuture<'a, store::Result<Option<Stored<Value>>>> {
        Box::pin(async move {
            let found = self.store.get(kind, key).await;
            self.live().await;
            found
        })
    }

    fn list(&self, kind: Kind) -> StoreFuture<'_, store::Result<Vec<Stored<Value>>>> {
        Box::pin(async move {
            let found = self.store.list(kind).await;
            self.live().await;
            found
        })
    }

    fn put<'a>(
        &'a self,
        kind: Kind,
        key: &'a str,
        expect: Expect,
        value: Value,
    ) -> StoreFuture<'a, store::Result<u64>> {
        Box::pin(self.write(self.store.put(kind, key, expect, value)))
    }

    fn delete<'a>(&'a self, kind: Kind, key: &'a str, revision: u64) -> StoreFuture<'a, store::Result<()>> {
        Box::pin(self.write(self.store.delete(kind, key, revision)))
    }

    fn watch(&self, kind: Kind) -> Events {
        self.store.watch(kind)
    }
}

/// A cluster in which somebody dies once.
struct World {
    victim: Victim,
    fate: Arc<Fate>,
    died: bool,
    store: Arc<Embedded>,
    /// Of the controller's process.
    runtime: Option<Runtime>,
    address: SocketAddr,
    plugin: Arc<Volumes>,
    engines: Engines,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new(victim: Victim, after: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(&folder.path().join("store.redb")).unwrap());
        let fate = Arc::new(Fate { after, written: watch::Sender::new(0) });
        let engines = Engines::start(store::Client::new(reached(&store, &fate, false))).await;
        // What has happened so far is not of the volume's life.
        fate.written.send_replace(0);
        let mortal = victim != Victim::Plugin;
        let (runtime, address) =
            controller(reached(&store, &fate, mortal), "127.0.0.1:0".parse().unwrap()).await;
        let plugin = plugin(address);
        let runtime = Some(runtime);
        Self { victim, fate, died: false, store, runtime, address, plugin, engines, _folder: folder }
    }

    /// Who has died runs again.
    async fn revive(&mut self) {
        self.died = true;
        if self.victim != Victim::Plugin {
            self.end();
            let reached = reached(&self.store, &self.fate, false);
            self.runtime = Some(controller(reached, self.address).await.0);
        }
        if self.victim != Victim::Controller {
            self.plugin = plugin(self.address);
        }
    }

    fn end(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }

    /// Asks until there is an answer (invariant 1).
    async fn ask<T>(&mut self, call: impl AsyncFn(&Volumes) -> Result<T, Status>) -> T {
        loop {
            let (plugin, fate) = (Arc::clone(&self.plugin), Arc::clone(&self.fate));
            let mut calling = pin!(call(&plugin));
            let answer = tokio::select! {
                biased;
                () = fate.met(), if !self.died => None,
                answer = &mut calling => Some(answer),
            };
            let answer = if let Some(answer) = answer {
                answer
            } else {
                self.revive().await;
                if self.victim != Victim::Controller {
                    continue;
                }
                calling.await
            };
            match answer {
                Ok(answer) => return answer,
                Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
            }
        }
    }

    async fn all<T: Object>(&self) -> Vec<T> {
        let client = store::Client::new(reached(&self.store, &self.fate, false));
        client.list::<T>().await.unwrap().into_iter().map(|stored| stored.value).collect()
    }

    /// The only volume that there is.
    async fn volume(&self) -> model::Volume {
        let [volume] = &self.all::<model::Volume>().await[..] else { panic!("not one volume") };
        volume.clone()
    }

    /// The volume, which is this one still, with both of its copies and no other ones.
    async fn whole(&self, uuid: Uuid) -> model::Volume {
        let volume = self.volume().await;
        let [record] = &self.all::<model::VolumeRecord>().await[..] else { panic!("not one record") };
        assert_eq!((volume.uuid, record.volume), (uuid, uuid), "another volume has its name");
        let members: BTreeSet<Uuid> = volume.intent.members.iter().map(|member| member.replica).collect();
        assert_eq!((members.len(), &members), (2, &self.engines.replicas()), "what is on the disks");
        let in_sync = |member: &model::MemberRecord| member.state == model::MemberState::InSync;
        assert!(record.members.iter().all(in_sync), "{record:?}");
        volume
    }
}

fn reached(store: &Arc<Embedded>, fate: &Arc<Fate>, mortal: bool) -> Reached {
    Reached { store: Arc::clone(store), fate: Arc::clone(fate), mortal }
}

/// A process with API and manager, in a runtime that can be taken away from it. Its address is free, or about to be.
async fn controller(store: Reached, listen: SocketAddr) -> (Runtime, SocketAddr) {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let client = store::Client::new(store);
    let (ready, address) = tokio::sync::oneshot::channel();
    runtime.spawn(async move {
        // The engines tell no heartbeats here.
        let patient = manager::Config { lease: Duration::from_secs(3600), ..manager::Config::default() };
        let _manager = manager::start(client.clone(), patient, Mandate::default(), None);
        let server = loop {
            match serve(ApiConfig { listen, client: client.clone(), overcommit: 4 }).await {
                Ok(server) => break server,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        ready.send(server.address()).unwrap();
        pending::<()>().await;
    });
    (runtime, address.await.unwrap())
}

fn plugin(address: SocketAddr) -> Arc<Volumes> {
    let api = Client::new(&format!("http://{address}")).unwrap();
    Arc::new(Volumes { api, locks: Locks::default(), told: Mutex::default() })
}

fn create() -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: NAME.into(),
        volume_capabilities: vec![mount("", Mode::SingleNodeWriter)],
        capacity_range: Some(CapacityRange { required_bytes: signed(SIZE), limit_bytes: 0 }),
        parameters: HashMap::from([("copies".into(), "2".into())]),
        ..Default::default()
    }
}

/// A volume's life, in which the victim dies after so many writes; whether it did.
async fn life(victim: Victim, after: usize) -> bool {
    let mut world = World::new(victim, after).await;
    let (volume_id, node_id) = (NAME.to_owned(), NODES[0].to_owned());
    let capacity = || Some(CapacityRange { required_bytes: signed(GROWN), limit_bytes: 0 });

    let made = world.ask(async |plugin| plugin.create_volume(Request::new(create())).await).await;
    assert_eq!(made.get_ref().volume.as_ref().unwrap().capacity_bytes, signed(SIZE));
    // One that was made already is answered for at once: to be published waits for its copies.
    let uuid = world.volume().await.uuid;

    let publish = ControllerPublishVolumeRequest {
        volume_id: volume_id.clone(),
        node_id: node_id.clone(),
        volume_capability: Some(mount("", Mode::SingleNodeWriter)),
        ..Default::default()
    };
    world.ask(async |plugin| plugin.controller_publish_volume(Request::new(publish.clone())).await).await;
    let published = world.whole(uuid).await;
    assert_eq!(published.intent.attach.map(|attach| attach.node).as_deref(), Some(NODES[0]));
    assert_eq!(world.engines.devices().await, [NODES[0]], "the device is there when the answer is");

    let expand = ControllerExpandVolumeRequest {
        volume_id: volume_id.clone(),
        capacity_range: capacity(),
        ..Default::default()
    };
    let grown =
        world.ask(async |plugin| plugin.controller_expand_volume(Request::new(expand.clone())).await).await;
    assert_eq!(grown.get_ref().capacity_bytes, signed(GROWN));
    assert_eq!(world.whole(uuid).await.spec.size_bytes, GROWN);

    let unpublish =
        ControllerUnpublishVolumeRequest { volume_id: volume_id.clone(), node_id, ..Default::default() };
    world.ask(async |plugin| plugin.controller_unpublish_volume(Request::new(unpublish.clone())).await).await;
    assert!(world.whole(uuid).await.intent.attach.is_none() && world.engines.devices().await.is_empty());

    let delete = DeleteVolumeRequest { volume_id, ..Default::default() };
    world.ask(async |plugin| plugin.delete_volume(Request::new(delete.clone())).await).await;
    let left = (
        world.all::<model::Volume>().await,
        world.all::<model::VolumeRecord>().await,
        world.all::<model::VolumeStatus>().await,
        world.engines.replicas(),
    );
    assert_eq!(left, (vec![], vec![], vec![], BTreeSet::new()), "nothing is left");
    world.end();
    world.died
}

/// Lives until the victim outlives one (invariant 3); how many times it died.
async fn deaths(victim: Victim) -> usize {
    let mut after = 0;
    while life(victim, after).await {
        after += 1;
    }
    after
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_dies_in_any_step_loses_and_leaves_nothing() {
    assert!(deaths(Victim::Controller).await > 15, "the life of a volume has more writes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_dies_in_any_step_loses_and_leaves_nothing() {
    assert!(deaths(Victim::Plugin).await > 15, "the life of a volume has more writes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_both_that_dies_in_any_step_loses_and_leaves_nothing() {
    assert!(deaths(Victim::Both).await > 15, "the life of a volume has more writes");
}

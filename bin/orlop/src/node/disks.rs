//! The disks of this node, looked at again and again, reported to the store, and claimed for the engine where a selector
//! takes them. Nothing here opens one for writing: the engine does, and judges it once more while it is locked.
//!
//! 1. A disk that hangs holds up nothing but this: it is looked at on a thread of its own, one look at a time.
//! 2. What cannot be looked at changes no report.
//! 3. A blank disk is claimed only after this node has written the disk's object: of two nodes that see one disk, the
//!    one whose write was refused leaves it alone.
//! 4. All disks of the cluster are listed once, at the start. After that only those are asked for that this node has found
//!    or had, and of the nodes only those that say they have one of them.

use crate::failure::{Failure, Kind, OrFail, Outcome};
use device::DeviceUri;
use disks::{
    Allow, Changes, Claim, Named, Roots, Scanner, Selector, claims, class_at, settle, settled_names,
};
use engine::{Engine, Expected, PoolConfig};
use model::{Disk, DiskClass, DiskState, Node, NodeState, Stored};
use rt::mailbox;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc as thread_mpsc;
use std::time::Duration;
use store::Client;
use tokio::sync::mpsc;
use uuid::Uuid;

/// How often disks are looked at. Only those are read that were written to since.
const INTERVAL: Duration = Duration::from_secs(30);
/// How long a node waits for its first look before it starts without the pools that a selector would take.
const FIRST_LOOK: Duration = Duration::from_secs(10);

/// A disk for the engine, and where its answer goes.
pub(super) type Question = (PoolConfig, mailbox::Sender<Result<(), String>>);

/// The allow-list of the command line.
pub(crate) fn allow(globs: &[String]) -> Outcome<Allow> {
    Allow::new(globs).map_err(|error| Failure::new(format!("--disks-allow {error}")).kind(Kind::Usage))
}

/// The selectors among the devices of the command line.
pub(crate) fn selectors(disks: &[String], allow: &Allow) -> Outcome<Vec<Selector>> {
    let meant = disks.iter().filter(|text| Selector::is_meant(text));
    let refused = |cause: String| Failure::new(format!("--disk {cause}")).kind(Kind::Usage);
    let selectors: Vec<Selector> =
        meant.map(|text| Selector::parse(text).map_err(refused)).collect::<Outcome<_>>()?;
    if !selectors.is_empty() && allow.is_empty() {
        let failure = Failure::new("--disk select://... can take no disk: none may be looked at");
        return Err(failure.kind(Kind::Usage).hint("say which may be, such as --disks-allow '*'"));
    }
    Ok(selectors)
}

/// The devices of the command line that are no selectors, in its order.
pub(super) fn named(disks: &[String]) -> Outcome<Vec<PoolConfig>> {
    let meant = disks.iter().enumerate().filter(|(_, text)| !Selector::is_meant(text));
    let pool = |(index, text): (usize, &String)| {
        let refused = |cause: String| Failure::new(format!("--disk {cause}")).kind(Kind::Usage);
        let Named { uri, class: said } = Named::parse(text).map_err(refused)?;
        let (name, class) = (format!("pool-{}", index + 1), said.or_else(|| class(&uri)));
        Ok(PoolConfig { name, uri, class, expected: Expected::Named })
    };
    meant.map(pool).collect()
}

/// Who looks at the disks of a node.
pub(super) struct Watch {
    node: String,
    reports: Reports,
    selectors: Vec<Selector>,
    looks: mpsc::Receiver<Vec<Disk>>,
    /// Asks for a look now.
    again: thread_mpsc::Sender<()>,
    /// Why disks that a selector takes are not used, by their names.
    refused: BTreeMap<String, String>,
    /// Whether somebody was told that no disk is taken.
    none_told: bool,
}

impl Watch {
    /// Begins to look; an empty allow-list is reported once.
    pub(super) fn start(
        node: String,
        cluster: Uuid,
        allow: Allow,
        selectors: Vec<Selector>,
        client: Client,
    ) -> Outcome<Self> {
        let once = allow.is_empty();
        let (sender, looks) = mpsc::channel(1);
        let (again, asked) = thread_mpsc::channel();
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
                if once || asked.recv_timeout(INTERVAL) == Err(thread_mpsc::RecvTimeoutError::Disconnected) {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("disks".into())
            .spawn(look)
            .or_fail(|| "cannot start the thread that looks at disks".into())?;
        let reports = Reports::new(node.clone(), client);
        Ok(Self { node, reports, selectors, looks, again, refused: BTreeMap::new(), none_told: false })
    }

    /// The pools that the selectors take by the first look: those that were there before are then not missed.
    pub(super) async fn first(&mut self) -> Vec<PoolConfig> {
        if self.selectors.is_empty() {
            return Vec::new();
        }
        if let Ok(Some(found)) = tokio::time::timeout(FIRST_LOOK, self.looks.recv()).await {
            return self.settle(found).await.into_iter().map(config).collect();
        }
        tracing::warn!("the disks were not looked at in time; this node starts without those selected");
        Vec::new()
    }

    /// Reports and claims for as long as this runtime runs.
    pub(super) fn go(mut self, engine: mailbox::Sender<Question>) {
        // What the engine has made of the first look is not reported yet. (Whoever looks at nothing has ended.)
        let _ended = self.again.send(());
        tokio::spawn(async move {
            while let Some(found) = self.looks.recv().await {
                let claims = self.settle(found).await;
                let Some(changed) = self.claim(claims, &engine).await else { return };
                if changed {
                    let _ended = self.again.send(());
                }
            }
        });
    }

    /// Reports what was found; what is to be claimed.
    async fn settle(&mut self, mut found: Vec<Disk>) -> Vec<Claim> {
        let mut claims = claims(&self.selectors, &mut found);
        self.refused.retain(|name, _| claims.iter().any(|claim| claim.disk == *name));
        for disk in &mut found {
            disk.message = self.refused.get(&disk.name).cloned().or(disk.message.take());
        }
        let none = claims.is_empty() && !self.selectors.is_empty();
        if none && !self.none_told {
            let selectors: Vec<String> = self.selectors.iter().map(ToString::to_string).collect();
            tracing::warn!(
                node = self.node,
                ?selectors,
                "no disk of this node is taken; `orlop disk list` says why"
            );
        }
        self.none_told = none;
        match self.reports.write(found).await {
            // Invariant 3.
            Ok(own) => claims.retain(|claim| claim.pool.is_some() || own.contains(&claim.disk)),
            Err(error) => {
                tracing::warn!(%error, "disks are not reported; the next look does it");
                claims.retain(|claim| claim.pool.is_some());
            }
        }
        claims
    }

    /// Lets the engine have the disks; whether the next report says something else. None: the engine has ended.
    async fn claim(&mut self, claims: Vec<Claim>, engine: &mailbox::Sender<Question>) -> Option<bool> {
        let mut changed = false;
        for claim in claims {
            let (name, is_blank) = (claim.disk.clone(), claim.pool.is_none());
            let (sender, answer) = mailbox::bounded(1);
            engine.send((config(claim), sender)).await.ok()?;
            match answer.recv().await.ok()? {
                Ok(()) => changed |= self.refused.remove(&name).is_some() || is_blank,
                Err(cause) if self.refused.get(&name) == Some(&cause) => {}
                Err(cause) => {
                    tracing::warn!(node = self.node, disk = name, cause, "a disk is not used");
                    self.refused.insert(name, cause);
                    changed = true;
                }
            }
        }
        Some(changed)
    }
}

fn config(claim: Claim) -> PoolConfig {
    let uri = DeviceUri::Disk { path: PathBuf::from(claim.device), block_size: 4096 };
    let expected = claim.pool.map_or(Expected::Blank, Expected::Pool);
    let uri = uri.to_string();
    PoolConfig { name: claim.disk, class: class(&uri), uri, expected }
}

/// What kind of medium is under a device; that of a file is not known, whatever disk it lies on.
fn class(uri: &str) -> Option<DiskClass> {
    match uri.parse().ok()? {
        DeviceUri::Disk { path, .. } | DeviceUri::File { path, .. } => {
            class_at(&Roots::below(Path::new("/")), &path)
        }
        _ => None,
    }
}

/// Gives the engine the disks that were claimed, on its reactor, for as long as anybody can ask.
pub(super) async fn claim(engine: Engine, asked: mailbox::Receiver<Question>) {
    while let Ok((pool, answer)) = asked.recv().await {
        let claimed = engine.claim(pool).await;
        // Nobody listens once the node ends.
        drop(answer.try_send(claimed));
    }
}

/// The objects of the disks of a node.
struct Reports {
    node: String,
    client: Client,
    /// Those that may be the node's, beside what it finds; none before they were looked for.
    mine: Option<BTreeSet<String>>,
}

impl Reports {
    const fn new(node: String, client: Client) -> Self {
        Self { node, client, mine: None }
    }

    /// Writes what has changed, and says which disks are this node's. Whoever was faster wins: the next look decides anew.
    async fn write(&mut self, found: Vec<Disk>) -> store::Result<BTreeSet<String>> {
        let there = self.there(&found).await?;
        let disks: Vec<Disk> = there.values().map(|stored| stored.value.clone()).collect();
        let alive = self.others_alive(&disks).await?;
        let Changes { put, delete } = settle(&disks, |name| alive.contains(name), &self.node, found);
        let kept = disks.iter().filter(|disk| disk.node == self.node && disk.state != DiskState::Missing);
        let own: BTreeSet<String> = kept.chain(&put).map(|disk| disk.name.clone()).collect();
        for disk in put {
            tracing::info!(disk = disk.name, device = disk.device, state = %disk.state, why = disk.message, "a disk has changed");
            match there.get(&disk.name) {
                Some(stored) => self.client.replace(&disk, stored.revision).await?,
                None => self.client.create(&disk).await?,
            };
        }
        for name in delete {
            if let Some(stored) = there.get(&name) {
                self.client.delete::<Disk>(&name, stored.revision).await?;
            }
        }
        self.mine = Some(own.clone());
        Ok(own)
    }

    /// What is there of what the node has found or had, by name (invariant 4).
    async fn there(&mut self, found: &[Disk]) -> store::Result<BTreeMap<String, Stored<Disk>>> {
        let mine = if let Some(mine) = self.mine.take() {
            mine
        } else {
            let all = self.client.list::<Disk>().await?.into_iter().map(|stored| stored.value);
            all.filter(|disk| disk.node == self.node).map(|disk| disk.name).collect()
        };
        // Whatever becomes of the writes: what they may have made is looked at next time.
        let names = self.mine.insert(&mine | &settled_names(&self.node, found));
        let mut there = BTreeMap::new();
        for name in names.iter() {
            if let Some(stored) = self.client.get::<Disk>(name).await? {
                there.insert(name.clone(), stored);
            }
        }
        Ok(there)
    }

    /// Which of the other nodes that have one of these are ready.
    async fn others_alive(&self, disks: &[Disk]) -> store::Result<BTreeSet<String>> {
        let others = disks.iter().filter(|disk| disk.node != self.node && disk.state != DiskState::Missing);
        let others: BTreeSet<&String> = others.map(|disk| &disk.node).collect();
        let mut alive = BTreeSet::new();
        for name in others {
            let node = self.client.get::<Node>(name).await?;
            if node.is_some_and(|node| node.value.state == NodeState::Ready) {
                alive.insert(name.clone());
            }
        }
        Ok(alive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Kind as ObjectKind;
    use serde_json::{Value, json};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use store::{Embedded, Events, Expect, Store, StoreFuture};

    fn disk(node: &str) -> Disk {
        serde_json::from_value(json!({
            "name": "wwn-0x1", "node": node, "device": "/dev/sda", "state": "Available", "class": "SSD",
            "sizeBytes": 1_u64 << 40, "logicalBlockBytes": 512, "physicalBlockBytes": 4096,
            "partitions": [], "signatures": [],
        }))
        .unwrap()
    }

    fn reports(node: &str, client: &Client) -> Reports {
        Reports::new(node.to_owned(), client.clone())
    }

    fn watch(node: &str, client: &Client) -> Watch {
        let (_, looks) = mpsc::channel(1);
        let (again, _) = thread_mpsc::channel();
        let selectors = vec![Selector::parse("select://?class=SSD").unwrap()];
        let (node, reports) = (node.to_owned(), reports(node, client));
        Watch { node, reports, selectors, looks, again, refused: BTreeMap::new(), none_told: false }
    }

    fn node(name: &str) -> Node {
        serde_json::from_value(json!({
            "name": name, "state": "Ready", "address": "127.0.0.1:4420", "metricsAddress": null, "pid": 7,
            "bootId": Uuid::from_u128(1), "version": "0.1.0", "heartbeat": 9,
        }))
        .unwrap()
    }

    /// Two nodes see one blank disk: whoever has written its object first may make a pool of it.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_blank_disk_is_claimed_by_the_node_whose_object_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let client = Client::new(Embedded::open(&folder.path().join("store.redb")).unwrap());
        for name in ["n1", "n2"] {
            client.create(&node(name)).await.unwrap();
        }
        let names = |claims: Vec<Claim>| claims.into_iter().map(|claim| claim.disk).collect::<Vec<_>>();
        let (mut first, mut second) = (watch("n1", &client), watch("n2", &client));
        assert_eq!(names(first.settle(vec![disk("n1")]).await), ["wwn-0x1"]);
        assert!(second.settle(vec![disk("n2")]).await.is_empty());
        assert_eq!(names(first.settle(vec![disk("n1")]).await), ["wwn-0x1"], "again, until it is a pool");
        let mut mine = disk("n2");
        (mine.state, mine.pool) = (DiskState::Pool, Some(Uuid::from_u128(2)));
        assert_eq!(second.settle(vec![mine]).await.len(), 1, "a pool of the node is its own");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn why_a_disk_is_not_used_is_reported_until_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let client = Client::new(Embedded::open(&folder.path().join("store.redb")).unwrap());
        let mut watch = watch("n1", &client);
        let (engine, asked) = mailbox::bounded::<Question>(1);
        let refusals = ["it is locked", "it is locked", ""].map(str::to_owned);
        let answering = tokio::spawn(async move {
            for refusal in refusals {
                let (pool, answer) = asked.recv().await.unwrap();
                assert_eq!((pool.uri.as_str(), pool.expected), ("disk:///dev/sda", Expected::Blank));
                let claimed = if refusal.is_empty() { Ok(()) } else { Err(refusal) };
                answer.send(claimed).await.unwrap();
            }
        });
        let message = async || client.get::<Disk>("wwn-0x1").await.unwrap().unwrap().value.message;
        for (changes, said) in [(true, None), (false, Some("it is locked")), (true, Some("it is locked"))] {
            let claims = watch.settle(vec![disk("n1")]).await;
            assert_eq!(message().await.as_deref(), said);
            assert_eq!(watch.claim(claims, &engine).await, Some(changes));
        }
        watch.settle(vec![disk("n1")]).await;
        assert_eq!(message().await, None);
        answering.await.unwrap();
        let claims = watch.settle(vec![disk("n1")]).await;
        assert_eq!(watch.claim(claims, &engine).await, None, "the engine has ended");
    }

    #[test]
    fn a_selector_needs_disks_that_may_be_looked_at() {
        let disks = ["file:///disk?size=1GiB".to_owned(), "select://?name=*".to_owned()];
        assert_eq!(selectors(&disks, &Allow::new(&["*"]).unwrap()).unwrap().len(), 1);
        assert!(selectors(&disks, &Allow::default()).is_err());
        assert!(selectors(&disks[..1], &Allow::default()).unwrap().is_empty());
        assert!(selectors(&["select://".to_owned()], &Allow::new(&["*"]).unwrap()).is_err());
    }

    #[test]
    fn a_file_has_no_class() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(class(&format!("file://{}", file.path().display())), None);
        for uri in ["mem://?size=1GiB", "disk:///dev/null", "disk:///dev/there-is-none", "no device"] {
            assert_eq!(class(uri), None, "{uri}");
        }
    }

    #[test]
    fn what_is_said_of_a_named_disk_wins() {
        let disks = ["file:///a?size=1GiB&class=ssd", "select://?class=HDD", "file:///b?size=1GiB"];
        let pools = named(&disks.map(str::to_owned)).unwrap();
        let told: Vec<_> =
            pools.iter().map(|pool| (pool.name.as_str(), pool.uri.as_str(), pool.class)).collect();
        let first = ("pool-1", "file:///a?size=1GiB", Some(DiskClass::Ssd));
        assert_eq!(told, [first, ("pool-3", "file:///b?size=1GiB", None)]);
        assert!(pools.iter().all(|pool| pool.expected == Expected::Named));
        let refused = named(&["disk:///dev/vdb?class=fast".to_owned()]).unwrap_err().to_string();
        assert!(refused.contains("--disk") && refused.contains("\"fast\" is not a class"), "{refused}");
    }

    async fn states(client: &Client) -> Vec<(String, DiskState)> {
        let disks = client.list::<Disk>().await.unwrap();
        disks.into_iter().map(|disk| (disk.value.node, disk.value.state)).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_disk_keeps_its_object_from_node_to_node() {
        let folder = tempfile::tempdir().unwrap();
        let client = Client::new(Embedded::open(&folder.path().join("store.redb")).unwrap());
        let (mut first, mut second) = (reports("n1", &client), reports("n2", &client));
        first.write(vec![disk("n1")]).await.unwrap();
        assert_eq!(states(&client).await, [("n1".into(), DiskState::Available)]);
        let before = client.get::<Disk>("wwn-0x1").await.unwrap().unwrap();
        first.write(vec![disk("n1")]).await.unwrap();
        let after = client.get::<Disk>("wwn-0x1").await.unwrap().unwrap();
        assert_eq!(after, before, "nothing has changed, so nothing is written");
        first.write(Vec::new()).await.unwrap();
        assert_eq!(states(&client).await, [("n1".into(), DiskState::Missing)]);
        second.write(vec![disk("n2")]).await.unwrap();
        first.write(Vec::new()).await.unwrap();
        assert_eq!(states(&client).await, [("n2".into(), DiskState::Available)]);
        // One that was started anew does not know what it has said.
        reports("n2", &client).write(Vec::new()).await.unwrap();
        assert_eq!(states(&client).await, [("n2".into(), DiskState::Missing)]);
    }

    /// A store that counts how often all of a kind are asked for.
    struct Counted(Embedded, Arc<AtomicUsize>);

    impl Store for Counted {
        fn get<'a>(
            &'a self,
            kind: ObjectKind,
            key: &'a str,
        ) -> StoreFuture<'a, store::Result<Option<Stored<Value>>>> {
            self.0.get(kind, key)
        }

        fn list(&self, kind: ObjectKind) -> StoreFuture<'_, store::Result<Vec<Stored<Value>>>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.list(kind)
        }

        fn put<'a>(
            &'a self,
            kind: ObjectKind,
            key: &'a str,
            expect: Expect,
            value: Value,
        ) -> StoreFuture<'a, store::Result<u64>> {
            self.0.put(kind, key, expect, value)
        }

        fn delete<'a>(
            &'a self,
            kind: ObjectKind,
            key: &'a str,
            revision: u64,
        ) -> StoreFuture<'a, store::Result<()>> {
            self.0.delete(kind, key, revision)
        }

        fn watch(&self, kind: ObjectKind) -> Events {
            self.0.watch(kind)
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn all_disks_are_listed_once() {
        let folder = tempfile::tempdir().unwrap();
        let lists = Arc::new(AtomicUsize::new(0));
        let store = Embedded::open(&folder.path().join("store.redb")).unwrap();
        let client = Client::new(Counted(store, Arc::clone(&lists)));
        client.create(&node("n1")).await.unwrap();
        let (mut first, mut second) = (reports("n1", &client), reports("n2", &client));
        for _ in 0..3 {
            assert_eq!(first.write(vec![disk("n1")]).await.unwrap(), ["wwn-0x1".to_owned()].into());
            let other = second.write(vec![disk("n2")]).await.unwrap();
            assert_eq!(other, ["wwn-0x1-n2".to_owned()].into(), "n1 is ready, and has one of the same name");
        }
        first.write(Vec::new()).await.unwrap();
        second.write(vec![disk("n2")]).await.unwrap();
        assert_eq!(lists.load(Ordering::Relaxed), 2, "once by each of them");
        assert_eq!(states(&client).await, [("n2".into(), DiskState::Available)]);
    }
}

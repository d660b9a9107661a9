//! What has become of nodes, pools and volumes, in words for people who did not ask.
//!
//! 1. Told is what has changed since the look before: the first look tells nothing, and nothing is told twice.
//! 2. A look costs what has changed, and a glance at each node and pool; there is at most one in `LOOK_INTERVAL`.
//! 3. However much happens at once, the news are few: beyond `SINGLY_MAX`, and a few more each minute, they are summed up
//!    in one line for each kind of news, at most once in `SUMMARY_INTERVAL`.

use crate::{View, index::Index};
use model::{ClusterInfo, Health, Kind, Node, NodeState, Pool, PoolState, Volume, VolumeRecord, health};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use uuid::Uuid;

const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// News about single objects that may come at once.
const SINGLY_MAX: u32 = 50;
/// After that, one more each so often.
const SINGLY_INTERVAL: Duration = Duration::from_secs(2);
const SUMMARY_INTERVAL: Duration = Duration::from_secs(10);
/// How many objects a summary names.
const NAMES_MAX: usize = 5;

/// Something that a person should hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// What it is about.
    pub kind: Kind,
    /// Its key in the store.
    pub key: String,
    /// Whether somebody may have to act; else it is well again.
    pub is_trouble: bool,
    /// In one word.
    pub reason: &'static str,
    /// In one line: what, where, why.
    pub message: String,
}

/// What was seen at the look before. What is well is not kept.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chronicle {
    /// Whether everything was looked at once.
    has_begun: bool,
    look_at: Duration,
    /// Nodes that were not ready.
    away: BTreeSet<String>,
    pools: BTreeMap<String, PoolState>,
    volumes: BTreeMap<Uuid, Health>,
    /// Those whose record is from a copy.
    recovered: BTreeSet<Uuid>,
    budget: Budget,
}

impl Chronicle {
    /// There is no such volume any more.
    pub(crate) fn forget(&mut self, volume: Uuid) {
        self.volumes.remove(&volume);
        self.recovered.remove(&volume);
    }

    /// Looks at the volumes that have `changed`, and at all nodes and pools.
    pub(crate) fn look(
        &mut self,
        view: &View,
        index: &Index,
        changed: &mut BTreeSet<String>,
        now: Duration,
    ) -> Vec<News> {
        if now < self.look_at {
            return Vec::new();
        }
        self.look_at = now + LOOK_INTERVAL;
        let mut news = self.nodes(view, index);
        news.extend(self.pools(view, index));
        news.extend(self.volumes(view, &std::mem::take(changed)));
        // Invariant 1.
        if !std::mem::replace(&mut self.has_begun, true) {
            return Vec::new();
        }
        self.budget.spend(news, now)
    }

    fn nodes(&mut self, view: &View, index: &Index) -> Vec<News> {
        let mut news = Vec::new();
        self.away.retain(|name| view.nodes.contains_key(name));
        for (name, node) in &view.nodes {
            let is_away = node.value.state == NodeState::NotReady;
            if is_away != self.away.contains(name) {
                news.push(of_node(&node.value, index.on_node(name).count()));
            }
            if is_away {
                self.away.insert(name.clone());
            } else {
                self.away.remove(name);
            }
        }
        news
    }

    fn pools(&mut self, view: &View, index: &Index) -> Vec<News> {
        let mut news = Vec::new();
        self.pools.retain(|key, _| view.pools.contains_key(key));
        for (key, pool) in &view.pools {
            let (pool, state) = (&pool.value, pool.value.state);
            if state != self.pools.get(key).copied().unwrap_or(PoolState::Online) {
                news.push(of_pool(pool, index.in_pool(pool.uuid).count()));
                self.pools.insert(key.clone(), state);
            }
            if state == PoolState::Online {
                self.pools.remove(key);
            }
        }
        news
    }

    fn volumes(&mut self, view: &View, changed: &BTreeSet<String>) -> Vec<News> {
        if changed.is_empty() {
            return Vec::new();
        }
        let around = view.surroundings();
        let mut news = Vec::new();
        for volume in changed.iter().filter_map(|name| view.volumes.get(name)).map(|found| &found.value) {
            let record = view.record(volume.uuid).map(|record| &record.value);
            let status = view.status(volume.uuid).map(|status| &status.value);
            match record.filter(|record| record.unconfirmed) {
                None => drop(self.recovered.remove(&volume.uuid)),
                Some(record) if self.recovered.insert(volume.uuid) => news.push(of_record(volume, record)),
                Some(_) => {}
            }
            let (is, why) = health(volume, record, status, &around);
            let was = self.volumes.get(&volume.uuid).copied();
            match is {
                // It is what it was until something can be said.
                Health::Making => continue,
                Health::Whole | Health::Deleting => drop(self.volumes.remove(&volume.uuid)),
                _ => drop(self.volumes.insert(volume.uuid, is)),
            }
            if was.unwrap_or(Health::Whole) != is {
                news.extend(of_volume(volume, is, why));
            }
        }
        news
    }
}

fn of_node(node: &Node, volumes: usize) -> News {
    let is_trouble = node.state == NodeState::NotReady;
    let message = if is_trouble {
        let concerned = match volumes {
            0 => "no volume has".into(),
            1 => "1 volume has".into(),
            _ => format!("{volumes} volumes have"),
        };
        format!("its engine is away; {concerned} a copy or a device there")
    } else {
        "its engine is back; copies that have missed something are made equal".into()
    };
    let reason = if is_trouble { "NotReady" } else { "Ready" };
    News { kind: Kind::Node, key: node.name.clone(), is_trouble, reason, message }
}

fn of_pool(pool: &Pool, volumes: usize) -> News {
    let Pool { name, node, state, message, .. } = pool;
    let reason = match state {
        PoolState::Online => "Online",
        PoolState::Degraded => "Degraded",
        PoolState::Failed => "Failed",
        PoolState::Gone => "Gone",
    };
    let why = message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
    let is_trouble = *state != PoolState::Online;
    let holds = if is_trouble { format!("; copies of volumes in it: {volumes}") } else { String::new() };
    let message = format!("pool {name} of node {node} is {state}{why}{holds}");
    News { kind: Kind::Pool, key: pool.uuid.to_string(), is_trouble, reason, message }
}

/// Once for each time that a copy takes the place of a record.
fn of_record(volume: &Volume, record: &VolumeRecord) -> News {
    let VolumeRecord { epoch, version, .. } = record;
    let message = format!(
        "its record was missing from the store, or older than the copies: it is made again from a copy (epoch {epoch}, version \
         {version}), and counts when all its members have answered"
    );
    News {
        kind: Kind::Volume,
        key: volume.name.clone(),
        is_trouble: true,
        reason: "RecordRecovered",
        message,
    }
}

fn of_volume(volume: &Volume, is: Health, why: Option<String>) -> Option<News> {
    let reason = match is {
        Health::Making | Health::Deleting => return None,
        Health::Whole => "Whole",
        Health::Degraded { .. } => "Degraded",
        Health::NoPlace { .. } => "NoPlace",
        Health::Unavailable => "Unavailable",
    };
    let copies = volume.spec.copies;
    let message = why.unwrap_or_else(|| format!("copies in sync: {copies} of {copies}"));
    let is_trouble = is != Health::Whole;
    Some(News { kind: Kind::Volume, key: volume.name.clone(), is_trouble, reason, message })
}

/// What happens to objects of a kind, whose news are the same.
type Class = (Kind, bool, &'static str);

/// How much may still be told (invariant 3).
#[derive(Clone, Debug, Default)]
struct Budget {
    /// What was told singly and is not paid for yet.
    owed: u32,
    paid_at: Duration,
    summary_at: Duration,
    /// How many could not be told singly, and the first of them.
    rest: BTreeMap<Class, (usize, Vec<String>)>,
}

impl Budget {
    fn spend(&mut self, news: Vec<News>, now: Duration) -> Vec<News> {
        while self.owed > 0 && self.paid_at + SINGLY_INTERVAL <= now {
            self.owed -= 1;
            self.paid_at += SINGLY_INTERVAL;
        }
        if self.owed == 0 {
            self.paid_at = now;
        }
        let mut told = Vec::new();
        for one in news {
            if self.owed < SINGLY_MAX {
                self.owed += 1;
                told.push(one);
            } else {
                let (count, names) = self.rest.entry((one.kind, one.is_trouble, one.reason)).or_default();
                *count += 1;
                if names.len() < NAMES_MAX {
                    names.push(one.key);
                }
            }
        }
        if now >= self.summary_at && !self.rest.is_empty() {
            self.summary_at = now + SUMMARY_INTERVAL;
            told.extend(std::mem::take(&mut self.rest).into_iter().map(summary));
        }
        told
    }
}

fn summary(((kind, is_trouble, reason), (count, names)): (Class, (usize, Vec<String>))) -> News {
    let more = if count > names.len() { ", ..." } else { "" };
    let message = format!("more {kind} are {reason}: {count} ({}{more})", names.join(", "));
    News { kind: Kind::Cluster, key: ClusterInfo::KEY.into(), is_trouble, reason, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scene;
    use model::{Generation, MemberState};

    /// Looks at everything; what it tells, in short.
    fn look(chronicle: &mut Chronicle, scene: &Scene, second: u64) -> Vec<String> {
        let mut changed = scene.view.volumes.keys().cloned().collect();
        let index = Index::of(&scene.view);
        let news = chronicle.look(&scene.view, &index, &mut changed, Duration::from_secs(second));
        let trouble = |news: &News| if news.is_trouble { "Warning" } else { "Normal" };
        news.iter()
            .map(|news| {
                let News { kind, key, reason, message, .. } = news;
                format!("{} {kind}/{key} {reason}: {message}", trouble(news))
            })
            .collect()
    }

    fn stale() -> MemberState {
        MemberState::Stale { since: Generation::ZERO }
    }

    #[test]
    fn a_change_is_told_once() {
        let mut scene = Scene::with_nodes(3);
        scene.recorded("data", 2, &[1, 2], MemberState::InSync);
        let mut chronicle = Chronicle::default();
        assert!(look(&mut chronicle, &scene, 0).is_empty());

        scene.node_mut(2).state = NodeState::NotReady;
        let news = look(&mut chronicle, &scene, 1);
        let node = "Warning nodes/n2 NotReady: its engine is away; 1 volume has a copy or a device there";
        let volume = "Warning volumes/data Degraded: 1 of 2 copies in sync: node n2 is NotReady";
        assert_eq!(news, [node, volume]);
        scene.record_mut("data").members[1].state = stale();
        assert!(look(&mut chronicle, &scene, 2).is_empty(), "it is the same trouble");

        scene.volume_mut("data").message = Some("no place for a new copy: n3 is full".into());
        let news = look(&mut chronicle, &scene, 3);
        assert_eq!(news.len(), 1, "{news:?}");
        assert!(news[0].starts_with("Warning volumes/data NoPlace: ") && news[0].ends_with("n3 is full"));

        scene.node_mut(2).state = NodeState::Ready;
        scene.volume_mut("data").message = None;
        let news = look(&mut chronicle, &scene, 4);
        assert!(news[0].starts_with("Normal nodes/n2 Ready: "), "{news:?}");
        assert!(news[1].starts_with("Warning volumes/data Degraded: "), "{news:?}");
        scene.record_mut("data").members[1].state = MemberState::InSync;
        assert_eq!(look(&mut chronicle, &scene, 5), ["Normal volumes/data Whole: copies in sync: 2 of 2"]);
        assert!(look(&mut chronicle, &scene, 6).is_empty());
    }

    #[test]
    fn who_begins_to_look_tells_nothing_of_what_is() {
        let mut scene = Scene::with_nodes(2);
        scene.recorded("data", 2, &[1, 2], MemberState::InSync);
        scene.node_mut(1).state = NodeState::NotReady;
        scene.pool_mut(2).state = PoolState::Degraded;
        let mut chronicle = Chronicle::default();
        assert!(look(&mut chronicle, &scene, 0).is_empty());
        scene.pool_mut(2).state = PoolState::Online;
        assert_eq!(
            look(&mut chronicle, &scene, 1),
            [format!("Normal pools/{} Online: pool disk0 of node n2 is Online", Uuid::from_u128(22))]
        );
        // What comes later is new.
        scene.volume("waits", 3, &[]).message = Some("no place: 2 nodes are too few".into());
        assert_eq!(
            look(&mut chronicle, &scene, 2),
            ["Warning volumes/waits NoPlace: no place: 2 nodes are too few"]
        );
    }

    #[test]
    fn a_pool_says_what_it_holds() {
        let mut scene = Scene::with_nodes(2);
        scene.recorded("data", 2, &[1, 2], MemberState::InSync);
        let mut chronicle = Chronicle::default();
        look(&mut chronicle, &scene, 0);
        let pool = scene.pool_mut(1);
        (pool.state, pool.message) = (PoolState::Failed, Some("sector 7 cannot be read".into()));
        let news = look(&mut chronicle, &scene, 1);
        let says =
            "Failed: pool disk0 of node n1 is Failed: sector 7 cannot be read; copies of volumes in it: 1";
        assert!(news[0].ends_with(says), "{news:?}");
        assert!(news[1].contains("volumes/data Degraded: 1 of 2 copies in sync: pool disk0"), "{news:?}");
        scene.view.pools.clear();
        let news = look(&mut chronicle, &scene, 2);
        assert!(news[0].contains("Unavailable: no copy that is in sync can be reached"), "{news:?}");
    }

    #[test]
    fn a_record_from_a_copy_is_told_once() {
        let mut scene = Scene::with_nodes(2);
        scene.recorded("data", 2, &[1, 2], MemberState::InSync);
        let mut chronicle = Chronicle::default();
        look(&mut chronicle, &scene, 0);
        let record = scene.record_mut("data").clone().recovered(7, 30);
        *scene.record_mut("data") = record;
        let news = look(&mut chronicle, &scene, 1);
        assert!(
            news[0].starts_with("Warning volumes/data RecordRecovered: its record was missing"),
            "{news:?}"
        );
        assert!(news[0].contains("(epoch 8, version 31)"), "{news:?}");
        assert!(
            news[1].starts_with("Warning volumes/data Unavailable: its record is from a copy"),
            "{news:?}"
        );
        scene.record_mut("data").version += 1;
        assert!(look(&mut chronicle, &scene, 2).is_empty(), "it is the same");
        scene.record_mut("data").unconfirmed = false;
        assert_eq!(look(&mut chronicle, &scene, 3), ["Normal volumes/data Whole: copies in sync: 2 of 2"]);
        scene.record_mut("data").unconfirmed = true;
        assert_eq!(look(&mut chronicle, &scene, 4).len(), 2, "once more");
    }

    #[test]
    fn a_volume_that_goes_leaves_nothing() {
        let mut scene = Scene::with_nodes(1);
        scene.recorded("data", 2, &[1], MemberState::InSync);
        let mut chronicle = Chronicle::default();
        look(&mut chronicle, &scene, 0);
        assert_eq!(chronicle.volumes.len(), 1);
        scene.volume_mut("data").intent.deleting = true;
        assert!(look(&mut chronicle, &scene, 1).is_empty());
        assert!(chronicle.volumes.is_empty());
    }

    #[test]
    fn many_at_once_are_summed_up() {
        let mut scene = Scene::with_nodes(2);
        for index in 0..3000 {
            scene.recorded(&format!("v{index:04}"), 2, &[1, 2], MemberState::InSync);
        }
        let mut chronicle = Chronicle::default();
        look(&mut chronicle, &scene, 0);
        scene.node_mut(2).state = NodeState::NotReady;
        let news = look(&mut chronicle, &scene, 1);
        assert_eq!(news.len(), 51);
        assert!(news[0].contains("3000 volumes have a copy or a device there"), "{}", news[0]);
        let summary = "Warning clusters/cluster Degraded: more volumes are Degraded: 2951 (v0049, v0050, v0051, v0052, \
                       v0053, ...)";
        assert_eq!(news[50], summary);

        scene.node_mut(2).state = NodeState::Ready;
        assert!(look(&mut chronicle, &scene, 2).is_empty(), "not yet");
        let news = look(&mut chronicle, &scene, 11);
        assert_eq!(news.len(), 2, "{news:?}");
        assert!(news[1].contains("more volumes are Whole: 3000"), "{news:?}");
        scene.pool_mut(1).state = PoolState::Failed;
        let news = look(&mut chronicle, &scene, 15);
        assert_eq!(news.len(), 7, "one in two seconds: {news:?}");
    }
}

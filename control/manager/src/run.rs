//! The loop: watches the store, plans when something has changed or time has passed, performs what was planned.
//!
//! What a pass gets wrong because its view is a moment old is refused by the store, for every write names the revision
//! that was seen; the next pass sees why.
//!
//! 1. No two actions of a pass write the same object, and none needs that another one was done: they are performed side
//!    by side, for a store may take its time for each.

use crate::{Action, Config, News, Planner, Recovery, Told, plan::ACTIONS_MAX};
use futures_util::{StreamExt, stream};
use model::{ClusterInfo, Object, Stored, Volume, VolumeRecord, VolumeStatus};
use std::{collections::VecDeque, time::Duration};
use store::{Change, Client, ErrorKind, Mandate, Result, Watch};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use uuid::Uuid;

/// How long changes are gathered before a pass.
const GATHER: Duration = Duration::from_millis(10);
/// The longest between two passes, for time alone can end a lease; less where the lease is short.
const PASS_INTERVAL_MAX: Duration = Duration::from_millis(500);
/// Writes at the same time (invariant 1).
const WRITES_MAX: usize = 16;
/// How long news are kept by who does not decide: until the end of another's term is seen, and some seconds more.
const NEWS_KEPT: Duration = Duration::from_secs(30);

/// The loop that runs.
#[derive(Debug)]
pub struct Manager {
    closing: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Manager {
    /// Ends after the write that is on its way.
    pub async fn stop(self) {
        self.closing.send_replace(true);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the manager has failed");
        }
    }
}

/// Starts the loop. It ends with [`Manager::stop`], or when the store is closed. News are told to `news`, while this
/// process decides; what finds no room there is lost.
pub fn start(client: Client, config: Config, mandate: Mandate, news: Option<mpsc::Sender<News>>) -> Manager {
    let (closing, closed) = watch::channel(false);
    let task = tokio::spawn(run(Manages { client, config, mandate, news }, closed));
    Manager { closing, task }
}

/// The cluster's identity, made if there is none.
pub async fn ensure_cluster(client: &Client) -> Result<ClusterInfo> {
    loop {
        if let Some(found) = client.get(ClusterInfo::KEY).await? {
            return Ok(found.value);
        }
        match client.create(&ClusterInfo { uuid: Uuid::new_v4() }).await {
            Err(error) if !matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Unknown) => {
                return Err(error);
            }
            _ => {}
        }
    }
}

/// What one kind's watch tells.
struct Feed<T> {
    watch: Watch<T>,
    /// Whether the first list has arrived.
    is_complete: bool,
}

impl<T: Object> Feed<T> {
    fn new(client: &Client) -> Self {
        Self { watch: client.watch(), is_complete: false }
    }

    /// The next change; none once the store is closed.
    async fn next(&mut self) -> Option<Change<T>> {
        let change = self.watch.next().await?;
        self.is_complete = true;
        Some(change)
    }
}

/// What a write needs.
struct Manages {
    client: Client,
    config: Config,
    mandate: Mandate,
    news: Option<mpsc::Sender<News>>,
}

async fn run(manages: Manages, mut closing: watch::Receiver<bool>) {
    let started = Instant::now();
    let mut planner = Planner::default();
    let mut untold = VecDeque::new();
    let client = &manages.client;
    let (mut nodes, mut pools, mut volumes) = (Feed::new(client), Feed::new(client), Feed::new(client));
    let (mut records, mut statuses, mut replicas) = (Feed::new(client), Feed::new(client), Feed::new(client));
    // Far less than what counts as a gap in the observation.
    let interval = PASS_INTERVAL_MAX.min(manages.config.lease / 8);
    let mut due = started;
    loop {
        let told = tokio::select! {
            () = closed(&mut closing) => return,
            change = nodes.next() => change.map(Told::Nodes),
            change = pools.next() => change.map(Told::Pools),
            change = volumes.next() => change.map(Told::Volumes),
            change = records.next() => change.map(Told::Records),
            change = statuses.next() => change.map(Told::Statuses),
            change = replicas.next() => change.map(Told::Replicas),
            () = sleep_until(due) => {
                let is_complete = nodes.is_complete && pools.is_complete && volumes.is_complete
                    && records.is_complete && statuses.is_complete && replicas.is_complete;
                let more = is_complete && manages.pass(&mut planner, started.elapsed()).await;
                if is_complete {
                    manages.tell(&mut planner, &mut untold, started.elapsed());
                }
                due = Instant::now() + if more { GATHER } else { interval };
                continue;
            }
        };
        let Some(told) = told else { return };
        planner.apply(told);
        due = due.min(Instant::now() + GATHER);
    }
}

async fn closed(closing: &mut watch::Receiver<bool>) {
    // A handle that was dropped is an end as well.
    drop(closing.wait_for(|closing| *closing).await);
}

impl Manages {
    /// Plans and performs; whether something was left for the next pass. Who does not decide now plans as well, so as to
    /// know who is away when its time comes.
    async fn pass(&self, planner: &mut Planner, now: Duration) -> bool {
        let actions = planner.plan(&self.config, now, &mut Uuid::new_v4);
        let more = actions.len() >= ACTIONS_MAX;
        stream::iter(actions).for_each_concurrent(WRITES_MAX, |action| self.try_action(action)).await;
        more && self.mandate.holds()
    }

    /// Tells what has become of things. Who does not decide looks as well: who decided may be what is gone, and then has
    /// not told it.
    fn tell(&self, planner: &mut Planner, untold: &mut VecDeque<(Duration, News)>, now: Duration) {
        let Some(listener) = &self.news else { return };
        untold.extend(planner.news(now).into_iter().map(|news| (now, news)));
        if !self.mandate.holds() {
            untold.retain(|(seen, _)| now.saturating_sub(*seen) < NEWS_KEPT);
            return;
        }
        for (_, news) in untold.drain(..) {
            if let Err(error) = listener.try_send(news) {
                tracing::debug!(%error, "news are lost");
            }
        }
    }

    async fn try_action(&self, action: Action) {
        if !self.mandate.holds() {
            return;
        }
        if let Err(error) = perform(&self.client, &self.mandate, &action).await {
            match error.kind() {
                // The view was a moment old.
                ErrorKind::Conflict | ErrorKind::NotFound => tracing::debug!(%error, "planned anew"),
                _ => tracing::warn!(%error, "a write of the manager failed; it is planned anew"),
            }
        }
    }
}

async fn perform(client: &Client, mandate: &Mandate, action: &Action) -> Result<()> {
    match action {
        Action::Node(Stored { revision, value }) => {
            client.replace(value, *revision).await?;
            tracing::warn!(node = value.name, "node is NotReady: its lease has ended");
        }
        Action::Volume(Stored { revision, value }) => {
            client.replace(value, *revision).await?;
            let owner = value.intent.owner.as_deref();
            let copies = value.intent.members.len();
            tracing::info!(volume = value.name, owner, copies, message = value.message, "intent changed");
        }
        Action::RestoreIntent(volume, seen) => restore_intent(client, mandate, volume, *seen).await?,
        Action::CreateRecord(record) => {
            client.create(record).await?;
            tracing::info!(volume = %record.volume, "record made");
        }
        Action::RecoverRecord(recovery) => recover_record(client, mandate, recovery).await?,
        Action::EmptyRecord(Stored { revision, value }) => {
            client.replace(value, *revision).await?;
            tracing::info!(volume = %value.volume, epoch = value.epoch, "fenced; its replicas are to be destroyed");
        }
        Action::DeleteRecord(Stored { revision, value }) => {
            client.delete::<VolumeRecord>(&value.key(), *revision).await?;
            tracing::info!(volume = %value.volume, "all replicas are destroyed");
        }
        Action::DeleteVolume(volume) => delete_volume(client, mandate, volume).await?,
    }
    Ok(())
}

/// The record is looked at in the store itself: if it is another one, what it names now is planned anew.
async fn restore_intent(
    client: &Client,
    mandate: &Mandate,
    volume: &Stored<Volume>,
    seen: u64,
) -> Result<()> {
    let record = client.get::<VolumeRecord>(&volume.value.uuid.to_string()).await?;
    if record.is_none_or(|record| record.revision != seen) {
        return Ok(());
    }
    mandate.ensure()?;
    client.replace(&volume.value, volume.revision).await?;
    tracing::info!(volume = volume.value.name, "intent made again, from the record");
    Ok(())
}

/// The volume is looked at in the store itself: what is being deleted has no record made again.
async fn recover_record(client: &Client, mandate: &Mandate, recovery: &Recovery) -> Result<()> {
    let Recovery { volume, record, replaces } = recovery;
    let known = client.get::<Volume>(volume).await?.map(|known| known.value);
    if !known.is_some_and(|known| known.uuid == record.volume && !known.intent.deleting) {
        return Ok(());
    }
    mandate.ensure()?;
    match replaces {
        None => client.create(record).await?,
        Some(revision) => client.replace(record, *revision).await?,
    };
    let VolumeRecord { epoch, version, .. } = record;
    tracing::warn!(
        volume,
        epoch,
        version,
        "record made again from a copy; all its members have to confirm it"
    );
    Ok(())
}

/// What is left is looked for in the store itself: the view may not know of it yet, and a volume outlives its record.
async fn delete_volume(client: &Client, mandate: &Mandate, volume: &Stored<Volume>) -> Result<()> {
    let key = volume.value.uuid.to_string();
    if client.get::<VolumeRecord>(&key).await?.is_some() {
        return Ok(());
    }
    if let Some(status) = client.get::<VolumeStatus>(&key).await? {
        mandate.ensure()?;
        client.delete::<VolumeStatus>(&key, status.revision).await?;
    }
    mandate.ensure()?;
    client.delete::<Volume>(&volume.value.name, volume.revision).await?;
    tracing::info!(volume = volume.value.name, "volume deleted");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scene;
    use model::{MemberState, NodeState};

    #[tokio::test]
    async fn a_record_is_made_again_of_a_volume_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let client = Client::new(store::Embedded::open(&folder.path().join("store.redb")).unwrap());
        let mut scene = Scene::with_nodes(1);
        scene.recorded("a", 1, &[1], MemberState::InSync);
        let record = scene.record_mut("a").clone().recovered(7, 30);
        let key = record.key();
        let mut volume = scene.volume_mut("a").clone();
        let recover = async |record: &VolumeRecord, replaces| {
            let recovery = Recovery { volume: "a".into(), record: record.clone(), replaces };
            let done = perform(&client, &Mandate::default(), &Action::RecoverRecord(recovery)).await.is_ok();
            (done, client.get::<VolumeRecord>(&key).await.unwrap())
        };
        assert_eq!(recover(&record, None).await, (true, None), "there is no such volume");
        volume.intent.deleting = true;
        let revision = client.create(&volume).await.unwrap();
        assert_eq!(recover(&record, None).await, (true, None), "it is being deleted");
        volume.intent.deleting = false;
        client.replace(&volume, revision).await.unwrap();
        let (_, made) = recover(&record, None).await;
        let made = made.unwrap();
        assert_eq!(made.value, record);
        let next = VolumeRecord { version: record.version + 1, ..record };
        assert_eq!(recover(&next, None).await, (false, Some(made.clone())), "there is one");
        let (done, last) = recover(&next, Some(made.revision)).await;
        assert_eq!((done, last.map(|last| last.value)), (true, Some(next)));
    }

    #[tokio::test]
    async fn an_intent_is_made_again_from_the_latest_record_only() {
        let folder = tempfile::tempdir().unwrap();
        let client = Client::new(store::Embedded::open(&folder.path().join("store.redb")).unwrap());
        let mut scene = Scene::with_nodes(2);
        scene.recorded("a", 2, &[1, 2], MemberState::InSync);
        let wished = scene.volume_mut("a").clone();
        let lost = Volume { intent: model::VolumeIntent::default(), ..wished.clone() };
        let revision = client.create(&lost).await.unwrap();
        let before = client.create(scene.record_mut("a")).await.unwrap();
        scene.record_mut("a").version += 1;
        let now = client.replace(scene.record_mut("a"), before).await.unwrap();
        let volume = Stored { revision, value: wished.clone() };
        for (seen, intent) in [(before, &lost.intent), (now, &wished.intent)] {
            let action = Action::RestoreIntent(volume.clone(), seen);
            perform(&client, &Mandate::default(), &action).await.unwrap();
            assert_eq!(client.get::<Volume>("a").await.unwrap().unwrap().value.intent, *intent);
        }
    }

    /// One action of each kind, each on an object of its own, in a store that has them.
    async fn actions(client: &Client) -> Vec<Action> {
        let mut scene = Scene::with_nodes(2);
        for name in ["a", "c", "d", "e", "f", "g"] {
            scene.recorded(name, 2, &[1, 2], MemberState::InSync);
        }
        let mut wished = Vec::new();
        for name in ["a", "b", "c", "d"] {
            let volume = if name == "b" { scene.volume(name, 1, &[1]) } else { scene.volume_mut(name) };
            let revision = client.create(volume).await.unwrap();
            wished
                .push(Stored { revision, value: Volume { message: Some("other".into()), ..volume.clone() } });
        }
        let mut records = Vec::new();
        for name in ["c", "d", "e", "f"] {
            let record = scene.record_mut(name);
            let revision = client.create(record).await.unwrap();
            records.push(Stored { revision, value: record.clone().recovered(7, 30) });
        }
        let mut node = scene.node_mut(1).clone();
        let revision = client.create(&node).await.unwrap();
        node.state = NodeState::NotReady;
        let Ok([told, removed, restored, _]) = <[_; 4]>::try_from(wished) else { unreachable!() };
        let Ok([latest, earlier, full, empty]) = <[_; 4]>::try_from(records) else { unreachable!() };
        let recovery =
            Recovery { volume: "d".into(), record: earlier.value, replaces: Some(earlier.revision) };
        vec![
            Action::RestoreIntent(restored, latest.revision),
            Action::RecoverRecord(recovery),
            Action::DeleteVolume(removed),
            Action::Node(Stored { revision, value: node }),
            Action::Volume(told),
            Action::CreateRecord(scene.record_mut("g").clone()),
            Action::EmptyRecord(full),
            Action::DeleteRecord(empty),
        ]
    }

    #[tokio::test]
    async fn who_leads_no_more_writes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let client = Client::new(store::Embedded::open(&folder.path().join("store.redb")).unwrap());
        let actions = actions(&client).await;
        let (until, told) = watch::channel(Instant::now());
        let manages = Manages {
            client: client.clone(),
            config: Config::default(),
            mandate: Mandate::until(told),
            news: None,
        };
        let content = async || {
            let (nodes, volumes) = (client.list::<model::Node>().await, client.list::<Volume>().await);
            (nodes.unwrap(), volumes.unwrap(), client.list::<VolumeRecord>().await.unwrap())
        };
        let before = content().await;
        for action in actions.clone() {
            manages.try_action(action).await;
        }
        // These look before they write, and it may be stopped in between.
        for action in &actions[..3] {
            let refused = perform(&client, &manages.mandate, action).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unavailable, "{action:?}");
        }
        assert_eq!(content().await, before);
        until.send_replace(Instant::now() + Duration::from_secs(3600));
        for action in actions {
            let (seen, what) = (content().await, format!("{action:?}"));
            manages.try_action(action).await;
            assert_ne!(content().await, seen, "{what} changes nothing");
        }
    }
}

//! Controllers and plugins are killed again and again, wherever they are in their work, while claims come and go.
//!
//! 1. A batch that is used is written by one pod and compared by another one: what the first has flushed is what the
//!    second reads, on whatever node it runs.
//! 2. A batch that passes is made, grown and deleted, and no pod sees it.
//! 3. A kill counts only if the process was alive: the kubelet has started what was killed before.
//! 4. Claims go on after the last kill until there were enough: what the kills have left behind is done then.

use super::{MINUTE, NODES, claim};
use crate::journey::Trip;
use crate::kubernetes::{Lab, Residents, image::BUSYBOX};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};
use std::time::{Duration, Instant};

/// How many kills, and how many claims, at least.
const KILLS: usize = 200;
const CLAIMS: usize = 200;
/// Claims of one batch; every other one is a raw block device.
const BATCH: usize = 10;
/// Batches at the same time: those that are used, and those that pass.
const USED: usize = 3;
const PASSING: usize = 3;
/// How many are used in all.
const USED_IN_ALL: usize = 6;
const LIMIT: Duration = Duration::from_secs(900);
/// Between two kills, twice as long at most.
const PACE_MS: usize = 1000;
/// What is killed, by a part of its command line, and how often of all. After the death of what leads, another one leads
/// only when its lease has ended, and the sidecars end with their plugin: killed more often nothing would ever be decided.
const VICTIMS: [(&str, &str, usize); 3] = [
    ("controller", "orlop controller", 1),
    ("controller's plugin", "csi.sock --api", 1),
    ("node plugin", "csi.sock --store", 14),
];
/// How often each of them at least: of 200 kills the rarest are 12 or 13 on the average.
const EACH: usize = 4;
/// Of the pods and claims, so that one question finds them all.
const LABEL: &str = "killer";
const SIZE: &str = "16Mi";
const GROWN: &str = "32Mi";

/// What a batch waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Writes,
    Compares,
    Binds,
    Grows,
    Goes,
    Gone,
}

/// The batches that are there, by number, and what has happened so far.
#[derive(Default)]
struct Loop {
    batches: BTreeMap<usize, Phase>,
    /// How many batches were made, and how many of them are used.
    made: usize,
    used: usize,
}

pub(super) fn killer(trip: &Trip, lab: &mut Lab<'_>) -> Result<()> {
    let began = Instant::now();
    lab.apply(&list(
        [class("killer", "WaitForFirstConsumer"), class("killer-now", "Immediate")].into_iter(),
    ))?;
    let nodes: Vec<Residents> =
        NODES.iter().map(|name| lab.node(name)?.residents()).collect::<Result<_>>()?;
    let (kills, random) = (Kills::default(), Random::new()?);
    let done = std::thread::scope(|scope| {
        scope.spawn(|| kills.go_on(&nodes, random));
        let done = go_on(lab, &kills);
        kills.stop.store(true, Ordering::Relaxed);
        done
    });
    let going = done.with_context(|| format!("after {:?}", kills.count()))?;
    lab.kubectl(&["delete", "storageclass/killer", "storageclass/killer-now"], MINUTE)?;
    trip.checked(format!(
        "{} claims were made, written, compared on another pod ({} of them) or grown, and deleted in {:.0} s, while \
         controllers and plugins were killed {} times: {:?}",
        going.made * BATCH,
        going.used * BATCH,
        began.elapsed().as_secs_f64(),
        kills.sum(),
        kills.count()
    ));
    Ok(())
}

/// Claims come and go until there were enough of them, and of kills.
fn go_on(lab: &Lab<'_>, kills: &Kills) -> Result<Loop> {
    let (began, mut going) = (Instant::now(), Loop::default());
    loop {
        let enough = kills.are_enough() && going.made * BATCH >= CLAIMS && going.used >= USED_IN_ALL;
        if enough && going.batches.is_empty() {
            return Ok(going);
        }
        if !enough {
            going.begin(lab)?;
        }
        going.go_on(lab)?;
        if began.elapsed() > LIMIT {
            let pods = lab.kubectl(&["describe", "pods,pvc", "--selector", LABEL], MINUTE)?;
            bail!("{:?}:\n{}", going.batches, crate::process::tail(&pods, 60));
        }
    }
}

/// What has been killed so far.
#[derive(Default)]
struct Kills {
    stop: AtomicBool,
    by_name: Mutex<BTreeMap<&'static str, usize>>,
}

impl Kills {
    fn count(&self) -> BTreeMap<&'static str, usize> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn sum(&self) -> usize {
        self.count().values().sum()
    }

    fn are_enough(&self) -> bool {
        let count = self.count();
        let each = VICTIMS.iter().all(|(name, ..)| count.get(name).is_some_and(|count| *count >= EACH));
        each && self.sum() >= KILLS
    }

    /// Kills one process after the other, at random, until they were enough or it is told to stop.
    fn go_on(&self, nodes: &[Residents], mut random: Random) {
        let all: Vec<_> = VICTIMS.iter().flat_map(|victim| std::iter::repeat_n(victim, victim.2)).collect();
        while !self.are_enough() && !self.stop.load(Ordering::Relaxed) {
            let (name, line, _) = *all[random.below(all.len())];
            let running = nodes[random.below(nodes.len())].running(line);
            if running.is_empty() {
                continue;
            }
            // A kill counts only if it was alive (invariant 3).
            if running[random.below(running.len())].signal(Signal::KILL) {
                *self.by_name.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
            }
            std::thread::sleep(Duration::from_millis((PACE_MS + random.below(PACE_MS)) as u64));
        }
    }
}

impl Loop {
    /// Makes new batches where others have gone.
    fn begin(&mut self, lab: &Lab<'_>) -> Result<()> {
        let passing = |phase: &&Phase| matches!(phase, Phase::Binds | Phase::Grows);
        for _ in self.batches.values().filter(passing).count()..PASSING {
            self.made += 1;
            self.batches.insert(self.made, Phase::Binds);
            lab.apply(&list(claims_of(self.made, "killer-now", SIZE)))?;
        }
        let used = |phase: &&Phase| matches!(phase, Phase::Writes | Phase::Compares);
        let wanted = USED.min(USED_IN_ALL - self.used + self.batches.values().filter(used).count());
        for _ in self.batches.values().filter(used).count()..wanted {
            (self.made, self.used) = (self.made + 1, self.used + 1);
            self.batches.insert(self.made, Phase::Writes);
            let pod = pod(self.made, Phase::Writes);
            lab.apply(&list(claims_of(self.made, "killer", SIZE).chain([pod])))?;
        }
        Ok(())
    }

    /// Brings each batch to its next phase when it is done with this one.
    fn go_on(&mut self, lab: &Lab<'_>) -> Result<()> {
        let found = Found::look(lab)?;
        for (batch, phase) in &mut self.batches {
            let (batch, all) = (*batch, 0..BATCH);
            let done = match *phase {
                Phase::Writes | Phase::Compares => found.succeeded(lab, &pod_name(batch, *phase))?,
                Phase::Binds => all.into_iter().all(|number| found.is_bound(batch, number)),
                Phase::Grows => all.into_iter().all(|number| found.has_grown(batch, number)),
                Phase::Goes | Phase::Gone => !all.into_iter().any(|number| found.is_there(batch, number)),
            };
            if done {
                *phase = next(lab, batch, *phase)?;
            }
        }
        self.batches.retain(|_, phase| *phase != Phase::Gone);
        Ok(())
    }
}

/// Begins the phase after this one.
fn next(lab: &Lab<'_>, batch: usize, phase: Phase) -> Result<Phase> {
    let delete = |what: &str, selector: &str| {
        lab.kubectl(&["delete", what, "--wait=false", "--selector", selector], MINUTE)
    };
    let of_batch = format!("batch={batch}");
    Ok(match phase {
        Phase::Writes => {
            delete("pods", &of_batch)?;
            lab.apply(&pod(batch, Phase::Compares).to_string())?;
            Phase::Compares
        }
        Phase::Compares => {
            let name = pod_name(batch, phase);
            let said = lab.kubectl(&["logs", &name], MINUTE)?;
            ensure!(said.matches(": OK").count() == BATCH, "{name} has compared less than all: {said}");
            delete("pods,pvc", &of_batch)?;
            Phase::Goes
        }
        Phase::Binds => {
            lab.apply(&list(claims_of(batch, "killer-now", GROWN)))?;
            Phase::Grows
        }
        Phase::Grows => {
            delete("pvc", &of_batch)?;
            Phase::Goes
        }
        Phase::Goes | Phase::Gone => Phase::Gone,
    })
}

/// What there is of all batches: the phases of pods and claims, and the sizes of the volumes of claims.
struct Found {
    phases: BTreeMap<String, String>,
    sizes: BTreeMap<String, String>,
}

impl Found {
    fn look(lab: &Lab<'_>) -> Result<Self> {
        let pairs = |arguments: &[&str], fields: &str| -> Result<BTreeMap<String, String>> {
            let line = format!("--output=jsonpath={{range .items[*]}}{fields}{{\"\\n\"}}{{end}}");
            let text = lab.kubectl(&[arguments, &[line.as_str()]].concat(), MINUTE)?;
            let pairs = text.lines().filter_map(|line| line.split_once(' '));
            Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
        };
        let ours = ["get", "pods,pvc", "--selector", LABEL];
        Ok(Self {
            phases: pairs(&ours, "{.kind}/{.metadata.name} {.status.phase}")?,
            sizes: pairs(&["get", "pv"], "{.spec.claimRef.name} {.spec.capacity.storage}")?,
        })
    }

    fn claim(&self, batch: usize, number: usize) -> Option<&str> {
        let key = format!("PersistentVolumeClaim/{}", claim_name(batch, number));
        self.phases.get(&key).map(String::as_str)
    }

    fn is_bound(&self, batch: usize, number: usize) -> bool {
        self.claim(batch, number) == Some("Bound")
    }

    fn has_grown(&self, batch: usize, number: usize) -> bool {
        self.sizes.get(&claim_name(batch, number)).is_some_and(|size| size == GROWN)
    }

    fn is_there(&self, batch: usize, number: usize) -> bool {
        self.claim(batch, number).is_some()
    }

    fn succeeded(&self, lab: &Lab<'_>, pod: &str) -> Result<bool> {
        let phase = self.phases.get(&format!("Pod/{pod}")).map(String::as_str);
        if phase == Some("Failed") {
            bail!("{pod} has failed: {}", lab.kubectl(&["logs", pod], MINUTE)?);
        }
        Ok(phase == Some("Succeeded"))
    }
}

fn class(name: &str, binding: &str) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": { "name": name },
        "provisioner": "csi.orlop.io",
        "parameters": { "copies": "2" },
        "allowVolumeExpansion": true,
        "volumeBindingMode": binding,
    })
}

fn is_block(number: usize) -> bool {
    number % 2 == 1
}

fn claim_name(batch: usize, number: usize) -> String {
    format!("killer-{batch}-{number}")
}

fn claims_of(batch: usize, class: &str, size: &str) -> impl Iterator<Item = Value> {
    (0..BATCH).map(move |number| {
        let mode = if is_block(number) { "Block" } else { "Filesystem" };
        let mut claim = claim(&claim_name(batch, number), class, mode, size);
        claim["metadata"]["labels"] = json!({ LABEL: "", "batch": batch.to_string() });
        claim
    })
}

fn pod_name(batch: usize, phase: Phase) -> String {
    let verb = if phase == Phase::Writes { "writes" } else { "compares" };
    format!("killer-{batch}-{verb}")
}

/// Writes a MiB of noise and its sum on each volume, or compares it with its sum.
fn pod(batch: usize, phase: Phase) -> Value {
    let file = "dd if=/dev/urandom of=/v/$n/noise bs=64k count=16 2>/dev/null && cd /v/$n && md5sum noise >sum && sync -f . ; sync";
    let block = "dd if=/dev/urandom of=/tmp/noise bs=64k count=16 2>/dev/null && cd /tmp && md5sum noise >sum && \
                 dd if=noise of=/b/$n bs=64k conv=fsync 2>/dev/null && truncate -s 4096 sum && \
                 dd if=sum of=/b/$n bs=64k seek=16 conv=fsync 2>/dev/null";
    let file_again = "cd /v/$n && md5sum -c sum";
    let block_again = "cd /tmp && dd if=/b/$n of=noise bs=64k count=16 2>/dev/null && \
                       dd if=/b/$n bs=64k skip=16 count=1 2>/dev/null | head -n 1 >sum && md5sum -c sum";
    let (file, block) = if phase == Phase::Writes { (file, block) } else { (file_again, block_again) };
    let numbers = |wanted: bool| {
        let numbers = (0..BATCH).filter(|number| is_block(*number) == wanted);
        numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(" ")
    };
    let line = format!(
        "for n in {}; do ( set -e; {file} ) || exit 1; done; for n in {}; do ( set -e; {block} ) || exit 1; done",
        numbers(false),
        numbers(true)
    );
    let volumes: Vec<Value> = (0..BATCH)
        .map(|number| {
            let claim = claim_name(batch, number);
            json!({ "name": format!("v{number}"), "persistentVolumeClaim": { "claimName": claim } })
        })
        .collect();
    let used = |wanted: bool, key: &str, folder: &str| -> Vec<Value> {
        let numbers = (0..BATCH).filter(|number| is_block(*number) == wanted);
        numbers
            .map(|number| json!({ "name": format!("v{number}"), key: format!("{folder}/{number}") }))
            .collect()
    };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": pod_name(batch, phase), "labels": { LABEL: "", "batch": batch.to_string() } },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "volumes": volumes,
            "containers": [{
                "name": "main", "image": BUSYBOX, "command": ["/bin/sh", "-c", line],
                "volumeMounts": used(false, "mountPath", "/v"),
                "volumeDevices": used(true, "devicePath", "/b"),
            }],
        },
    })
}

fn list(items: impl Iterator<Item = Value>) -> String {
    json!({ "apiVersion": "v1", "kind": "List", "items": items.collect::<Vec<_>>() }).to_string()
}

/// Numbers that differ in each run: what they meet is never the same anyway.
struct Random(u64);

impl Random {
    fn new() -> Result<Self> {
        let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        Ok(Self(u64::from_str_radix(uuid.get(..8).context("the kernel's uuid is short")?, 16)?))
    }

    /// Less than `bound`.
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % bound
    }
}

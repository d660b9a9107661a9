//! Controllers and node plugins are killed again and again, wherever they are in their work, while claims come and go.
//!
//! 1. A group of claims is written by one pod and compared by another one: what the first has flushed is what the second
//!    reads, on whatever node it runs.
//! 2. A kill counts only if the process was alive: the kubelet has started what was killed before.

use super::{MINUTE, NODES, claim};
use crate::journey::Trip;
use crate::kubernetes::{Lab, image::BUSYBOX};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How many kills, and how many claims, at least.
const KILLS: usize = 60;
const CLAIMS: usize = 60;
/// Claims of one pod; every other one is a raw block device.
const GROUP: usize = 10;
/// Groups at the same time.
const GROUPS: usize = 6;
const LIMIT: Duration = Duration::from_secs(900);
/// What is killed, by a part of its command line, and how often of all. After the death of what leads, another one leads
/// only when its lease has ended: killed more often nothing would ever be decided.
const VICTIMS: [(&str, &str, usize); 3] = [
    ("controller", "orlop controller", 1),
    ("controller's plugin", "csi.sock --api", 1),
    ("node plugin", "csi.sock --store", 10),
];
/// Of the pods, so that one question finds them all.
const LABEL: &str = "killer";

/// What a group waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Writes,
    Compares,
    Goes,
}

pub(super) fn killer(trip: &Trip, lab: &mut Lab<'_>) -> Result<()> {
    let began = Instant::now();
    lab.apply(&class().to_string())?;
    let (mut random, mut kills, mut made) = (Random::new()?, BTreeMap::<&str, usize>::new(), 0);
    let mut groups: BTreeMap<usize, Phase> = BTreeMap::new();
    loop {
        let killed: usize = kills.values().sum();
        let enough = killed >= KILLS && made * GROUP >= CLAIMS;
        if enough && groups.is_empty() {
            break;
        }
        while !enough && groups.len() < GROUPS {
            made += 1;
            groups.insert(made, Phase::Writes);
            lab.apply(&list(claims_of(made).chain([pod(made, Phase::Writes)])))?;
        }
        if !enough && let Some(victim) = kill(lab, &mut random)? {
            *kills.entry(victim).or_default() += 1;
        }
        go_on(lab, &mut groups)?;
        if began.elapsed() > LIMIT {
            let pods = lab.kubectl(&["describe", "pods,pvc", "--selector", LABEL], MINUTE)?;
            bail!("{groups:?} after {killed} kills:\n{}", crate::process::tail(&pods, 60));
        }
    }
    lab.kubectl(&["delete", "storageclass/killer"], MINUTE)?;
    let killed: usize = kills.values().sum();
    trip.checked(format!(
        "{} claims were made, written, compared on another pod and deleted in {:.0} s, while controllers and plugins were \
         killed {killed} times: {kills:?}",
        made * GROUP,
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// Kills one process at a random place; none if there is none where we looked.
fn kill(lab: &mut Lab<'_>, random: &mut Random) -> Result<Option<&'static str>> {
    let all: Vec<_> = VICTIMS.iter().flat_map(|victim| std::iter::repeat_n(victim, victim.2)).collect();
    let (victim, line, _) = *all[random.below(all.len())];
    let running = lab.node(NODES[random.below(NODES.len())])?.running(line);
    if running.is_empty() {
        return Ok(None);
    }
    std::thread::sleep(Duration::from_millis(u64::try_from(random.below(300))?));
    Ok(running[random.below(running.len())].signal(Signal::KILL).then_some(victim))
}

/// Brings each group to its next phase when it is done with this one.
fn go_on(lab: &Lab<'_>, groups: &mut BTreeMap<usize, Phase>) -> Result<()> {
    let line = "--output=jsonpath={range .items[*]}{.kind}/{.metadata.name} {.status.phase}{\"\\n\"}{end}";
    let found = lab.kubectl(&["get", "pods,pvc", "--selector", LABEL, line], MINUTE)?;
    let found: BTreeMap<&str, &str> = found.lines().filter_map(|line| line.split_once(' ')).collect();
    let mut gone = Vec::new();
    for (group, phase) in groups.iter_mut() {
        let name = pod_name(*group, *phase);
        match (*phase, found.get(format!("Pod/{name}").as_str()).copied()) {
            (Phase::Goes, _) => {
                let left = claims_of(*group).any(|claim| {
                    let name = claim["metadata"]["name"].as_str().unwrap_or_default();
                    found.contains_key(format!("PersistentVolumeClaim/{name}").as_str())
                });
                if !left {
                    gone.push(*group);
                }
            }
            (_, Some("Failed")) => {
                let said = lab.kubectl(&["logs", &name], MINUTE)?;
                bail!("{name} has failed: {said}");
            }
            (Phase::Writes, Some("Succeeded")) => {
                lab.kubectl(&["delete", "pod", &name, "--wait=false"], MINUTE)?;
                lab.apply(&pod(*group, Phase::Compares).to_string())?;
                *phase = Phase::Compares;
            }
            (Phase::Compares, Some("Succeeded")) => {
                let said = lab.kubectl(&["logs", &name], MINUTE)?;
                ensure!(said.matches(": OK").count() == GROUP, "{name} has compared less than all: {said}");
                lab.kubectl(&["delete", "pod", &name, "--wait=false"], MINUTE)?;
                let of_group = format!("group={group}");
                lab.kubectl(&["delete", "pvc", "--wait=false", "--selector", &of_group], MINUTE)?;
                *phase = Phase::Goes;
            }
            _ => {}
        }
    }
    for group in gone {
        groups.remove(&group);
    }
    Ok(())
}

fn class() -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": { "name": "killer" },
        "provisioner": "csi.orlop.io",
        "parameters": { "copies": "2" },
        "volumeBindingMode": "WaitForFirstConsumer",
    })
}

fn is_block(number: usize) -> bool {
    number % 2 == 1
}

fn claim_name(group: usize, number: usize) -> String {
    format!("killer-{group}-{number}")
}

fn claims_of(group: usize) -> impl Iterator<Item = Value> {
    (0..GROUP).map(move |number| {
        let mode = if is_block(number) { "Block" } else { "Filesystem" };
        let mut claim = claim(&claim_name(group, number), "killer", mode, "16Mi");
        claim["metadata"]["labels"] = json!({ LABEL: "", "group": group.to_string() });
        claim
    })
}

fn pod_name(group: usize, phase: Phase) -> String {
    let verb = if phase == Phase::Writes { "writes" } else { "compares" };
    format!("killer-{group}-{verb}")
}

/// Writes a MiB of noise and its sum on each volume, or compares it with its sum.
fn pod(group: usize, phase: Phase) -> Value {
    let file = "dd if=/dev/urandom of=/v/$n/noise bs=64k count=16 2>/dev/null && cd /v/$n && md5sum noise >sum && sync -f . ; sync";
    let block = "dd if=/dev/urandom of=/tmp/noise bs=64k count=16 2>/dev/null && cd /tmp && md5sum noise >sum && \
                 dd if=noise of=/b/$n bs=64k conv=fsync 2>/dev/null && truncate -s 4096 sum && \
                 dd if=sum of=/b/$n bs=64k seek=16 conv=fsync 2>/dev/null";
    let file_again = "cd /v/$n && md5sum -c sum";
    let block_again = "cd /tmp && dd if=/b/$n of=noise bs=64k count=16 2>/dev/null && \
                       dd if=/b/$n bs=64k skip=16 count=1 2>/dev/null | head -n 1 >sum && md5sum -c sum";
    let (file, block) = if phase == Phase::Writes { (file, block) } else { (file_again, block_again) };
    let numbers = |wanted: bool| {
        let numbers = (0..GROUP).filter(|number| is_block(*number) == wanted);
        numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(" ")
    };
    let line = format!(
        "for n in {}; do ( set -e; {file} ) || exit 1; done; for n in {}; do ( set -e; {block} ) || exit 1; done",
        numbers(false),
        numbers(true)
    );
    let volumes: Vec<Value> = (0..GROUP)
        .map(|number| {
            let claim = claim_name(group, number);
            json!({ "name": format!("v{number}"), "persistentVolumeClaim": { "claimName": claim } })
        })
        .collect();
    let used = |wanted: bool, key: &str, folder: &str| -> Vec<Value> {
        let numbers = (0..GROUP).filter(|number| is_block(*number) == wanted);
        numbers
            .map(|number| json!({ "name": format!("v{number}"), key: format!("{folder}/{number}") }))
            .collect()
    };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": pod_name(group, phase), "labels": { LABEL: "" } },
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

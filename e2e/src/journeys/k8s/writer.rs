//! A `StatefulSet`'s pod that appends numbered records to a file, and tells a recorder outside of the cluster each one that
//! is on stable storage.
//!
//! 1. A record is told only after `fsync` of the file has returned: what the recorder has must be in the file for ever.
//! 2. Each start of the pod marks its records: what one that was left behind still wrote would be seen.

use crate::journey::Trip;
use crate::kubernetes::{HEAD, Lab, image::BUSYBOX};
use crate::process::Running;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);
const PORT: u16 = 9000;
/// How long a pod may take to be elsewhere: Kubernetes itself looks at a silent node for most of a minute.
const FAILOVER: Duration = Duration::from_secs(180);
/// How long it stays where nobody says anything.
const STAYS: Duration = Duration::from_secs(30);
/// More records than a block of the file holds.
const BLOCK_OF_RECORDS: u64 = 200;
/// Why it took longer than this is printed.
const SLOW: Duration = Duration::from_secs(15);
/// What the operator says of a node that is surely off.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute";

/// One line of the pod: which it is, and by which start of the pod it was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Record {
    number: u64,
    run: String,
}

impl Record {
    fn read(line: &str) -> Option<Self> {
        let (number, run) = line.split_once(' ')?;
        Some(Self { number: number.parse().ok()?, run: run.to_owned() })
    }
}

/// Appends what it is told to a file of the trip.
pub(super) struct Recorder {
    file: PathBuf,
    _server: Running,
}

impl Recorder {
    pub(super) fn start(trip: &Trip, lab: &Lab<'_>) -> Result<Self> {
        let file = trip.folder.join("record");
        fs::write(&file, "")?;
        let mut command = lab.at_head("socat");
        command.arg(format!("TCP-LISTEN:{PORT},reuseaddr,fork"));
        command.arg(format!("OPEN:{},append", file.display()));
        Ok(Self { _server: trip.start(command)?, file })
    }

    /// The records that were told, the last one last.
    fn told(&self) -> Result<Vec<Record>> {
        let text = fs::read_to_string(&self.file)?;
        // A line that is being written is not told yet.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| Record::read(line).with_context(|| format!("{line:?} was told"))).collect()
    }

    /// Waits for a record that is higher than `after`.
    fn wait_beyond(&self, after: u64, limit: Duration) -> Result<Duration> {
        let begun = Instant::now();
        while self.told()?.last().is_none_or(|last| last.number <= after) {
            ensure!(begun.elapsed() < limit, "no record after {after} in {} s", limit.as_secs());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(begun.elapsed())
    }
}

/// Who says that a node is off.
#[derive(Clone, Copy)]
pub(super) enum Word {
    Operator,
    Orlop,
}

impl std::fmt::Display for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Operator => "the operator's taint",
            Self::Orlop => "Orlop's taints",
        })
    }
}

impl Word {
    fn given(self, lab: &Lab<'_>, node: &str) -> Result<()> {
        match self {
            Self::Operator => lab.kubectl(&["taint", "node", node, OUT_OF_SERVICE], MINUTE).map(drop),
            Self::Orlop => Ok(()),
        }
    }

    fn taken_back(self, lab: &Lab<'_>, node: &str) -> Result<()> {
        if let Self::Operator = self {
            return lab.kubectl(&["taint", "node", node, &format!("{OUT_OF_SERVICE}-")], MINUTE).map(drop);
        }
        let begun = Instant::now();
        loop {
            let taints = ["get", "node", node, "--output=jsonpath={.spec.taints[*].key}"];
            let taints = lab.kubectl(&taints, MINUTE)?;
            if !taints.contains("orlop.io/") && !taints.contains("out-of-service") {
                return Ok(());
            }
            ensure!(begun.elapsed() < 2 * MINUTE, "{node} is back, and still has the taints {taints}");
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

/// The pod, and where it is.
pub(super) struct Writer<'a> {
    recorder: &'a Recorder,
    pub(super) node: String,
    pub(super) claim: &'static str,
}

impl<'a> Writer<'a> {
    pub(super) fn start(lab: &Lab<'_>, recorder: &'a Recorder) -> Result<Self> {
        lab.apply(&stateful_set().to_string())?;
        let mut writer = Self { recorder, node: String::new(), claim: "pvc/data-writer-0" };
        writer.arrived(lab, 0, 3 * MINUTE)?;
        Ok(writer)
    }

    /// Waits until it writes again, finds out where, and compares.
    fn arrived(&mut self, lab: &Lab<'_>, after: u64, limit: Duration) -> Result<Duration> {
        let took = self.recorder.wait_beyond(after, limit).map_err(|error| {
            let described =
                lab.kubectl(&["describe", "pod/writer-0", self.claim], MINUTE).unwrap_or_default();
            let said = lab.kubectl(&["logs", "pod/writer-0"], MINUTE).unwrap_or_default();
            error.context(format!("{}\n{said}", crate::process::tail(&described, 40)))
        })?;
        self.node = lab.kubectl(&["get", "pod/writer-0", "--output=jsonpath={.spec.nodeName}"], MINUTE)?;
        if took > SLOW {
            let events = lab.kubectl(&["events", "--for=pod/writer-0"], MINUTE)?;
            println!("  it took {:.1} s:\n{}", took.as_secs_f64(), crate::process::tail(&events, 8));
        }
        Ok(took)
    }

    /// The highest record that was told.
    pub(super) fn last(&self) -> Result<u64> {
        Ok(self.recorder.told()?.last().map_or(0, |last| last.number))
    }

    /// Every record that was told is in the file.
    pub(super) fn verify(&self, lab: &Lab<'_>) -> Result<()> {
        let told = self.recorder.told()?;
        Self::compare(&told, &lab.kubectl(&["exec", "writer-0", "--", "cat", "/data/log"], MINUTE)?).map(drop)
    }

    /// Compares with the file's content: its records are whole and in order, each start of the pod has gone on after the one
    /// before and never comes again, and of what was told each is there, by who told it. How many starts there were.
    fn compare(told: &[Record], file: &str) -> Result<usize> {
        let whole = file.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let mut records = Vec::new();
        for line in whole.lines() {
            records.push(Record::read(line).with_context(|| format!("{line:?} is in the file"))?);
        }
        let out_of_order = records.windows(2).find(|pair| pair[0].number >= pair[1].number);
        ensure!(out_of_order.is_none(), "the file is out of order: {out_of_order:?}");
        let runs: Vec<&String> = records.chunk_by(|a, b| a.run == b.run).map(|run| &run[0].run).collect();
        let distinct: BTreeSet<&&String> = runs.iter().collect();
        ensure!(distinct.len() == runs.len(), "a pod that was left behind has written: {runs:?}");
        let there: BTreeSet<&Record> = records.iter().collect();
        let lost: Vec<&Record> = told.iter().filter(|record| !there.contains(record)).collect();
        ensure!(lost.is_empty(), "acknowledged records are lost: {lost:?} of {}", told.len());
        Ok(runs.len())
    }

    /// As [`Self::verify`], by what the copies have and not what the kernel keeps of the file in memory.
    fn verify_beneath(&self, lab: &mut Lab<'_>) -> Result<()> {
        let told = self.recorder.told()?;
        // Only whole blocks are read: what was told has to be in them by now.
        self.recorder.wait_beyond(self.last()? + BLOCK_OF_RECORDS, MINUTE)?;
        let volume = lab.kubectl(&["get", self.claim, "--output=jsonpath={.spec.volumeName}"], MINUTE)?;
        let mount = format!("/var/lib/kubelet/pods/*/volumes/kubernetes.io~csi/{}/mount", volume.trim());
        let line = format!(
            "file=$(echo {mount}/log); dd if=$file iflag=direct bs=4096 count=$(($(stat -c %s $file) / 4096)) status=none"
        );
        let file = lab.node(&self.node)?.sh(&line, MINUTE)?;
        let runs = Self::compare(&told, &file)?;
        ensure!(runs > 1, "the pod was not started again");
        Ok(())
    }

    /// Kills everything on its node; somebody says that the node is off; the pod goes on elsewhere. How long that took.
    pub(super) fn survives_its_node(
        &mut self,
        trip: &Trip,
        lab: &mut Lab<'_>,
        word: Word,
    ) -> Result<Duration> {
        let node = self.node.clone();
        let mut began = Instant::now();
        lab.node(&node)?.power_off()?;
        let last = self.last()?;
        if let Word::Operator = word {
            Self::stays_without_a_word(trip, lab, &node)?;
            began = Instant::now();
        }
        word.given(lab, &node)?;
        self.arrived(lab, last, FAILOVER)?;
        let took = began.elapsed();
        self.verify(lab)?;
        ensure!(self.node != node, "the pod is on {node}, which is off");
        let back = Instant::now();
        lab.node(&node)?.power_on()?;
        self.returned(lab, &node, word)?;
        trip.checked(format!(
            "{node} lost power after record {last}: {:.1} s later the pod writes on {}, every record is there; {node} came \
             back, all copies in sync and {word} taken back after {:.1} s",
            took.as_secs_f64(),
            self.node,
            back.elapsed().as_secs_f64()
        ));
        Ok(took)
    }

    /// Nobody has said that the node is off, and the chart was not told to find out: its pod stays, though it has opted in.
    fn stays_without_a_word(trip: &Trip, lab: &Lab<'_>, node: &str) -> Result<()> {
        let pod = ["get", "pod/writer-0", "--output=jsonpath={.metadata.uid} {.spec.nodeName}"];
        let before = lab.kubectl(&pod, MINUTE)?;
        lab.wait_for(&format!("onode/{node}"), ".status.state", "NotReady", MINUTE)?;
        std::thread::sleep(STAYS);
        let after = lab.kubectl(&pod, MINUTE)?;
        ensure!(
            before == after && after.ends_with(node),
            "the pod left {node} by itself: {before:?}, {after:?}"
        );
        trip.checked(format!(
            "{node} lost power and is NotReady to Orlop: its pod stays for {} s without a word",
            STAYS.as_secs()
        ));
        Ok(())
    }

    /// Everything on its node stands still, and somebody takes that for its end; the pod goes on elsewhere. Then the node
    /// wakes: nothing that it still does counts. How long it took.
    pub(super) fn survives_a_standstill(
        &mut self,
        trip: &Trip,
        lab: &mut Lab<'_>,
        word: Word,
    ) -> Result<Duration> {
        let node = self.node.clone();
        let began = Instant::now();
        // Twice: what was about to start meanwhile.
        (0..2).try_for_each(|_| lab.node(&node).map(|node| node.signal(Signal::STOP)))?;
        let last = self.last()?;
        word.given(lab, &node)?;
        self.arrived(lab, last, FAILOVER)?;
        let took = began.elapsed();
        ensure!(self.node != node, "the pod is on {node}, which stands still");
        self.verify(lab)?;
        lab.node(&node)?.signal(Signal::CONT);
        self.returned(lab, &node, word)?;
        self.goes_on()?;
        self.verify(lab)?;
        self.verify_beneath(lab)?;
        trip.checked(format!(
            "{node} stood still after record {last}: {:.1} s later the pod writes on {}; {node} woke, and no record is of it",
            took.as_secs_f64(),
            self.node
        ));
        Ok(took)
    }

    /// Waits until a node is back and forgiven, and all copies are in sync.
    fn returned(&self, lab: &Lab<'_>, node: &str, word: Word) -> Result<()> {
        lab.wait_for(&format!("onode/{node}"), ".status.state", "Ready", 2 * MINUTE)?;
        lab.kubectl(
            &["wait", "--for=condition=Ready", &format!("node/{node}"), "--timeout=60s"],
            2 * MINUTE,
        )?;
        word.taken_back(lab, node)?;
        self.in_sync(lab)?;
        lab.wait_whole()
    }

    /// Its node loses power and boots: the pod is on it again.
    pub(super) fn survives_a_reboot(&mut self, trip: &Trip, lab: &mut Lab<'_>) -> Result<()> {
        let node = self.node.clone();
        lab.node(&node)?.power_off()?;
        let (began, last) = (Instant::now(), self.last()?);
        lab.node(&node)?.power_on()?;
        self.arrived(lab, last, FAILOVER)?;
        let seconds = began.elapsed().as_secs_f64();
        self.verify(lab)?;
        self.in_sync(lab)?;
        trip.checked(format!(
            "{node} lost power after record {last} and booted: {seconds:.1} s later the pod writes on {}",
            self.node
        ));
        Ok(())
    }

    /// Waits for two more records: the first may have been on its way.
    pub(super) fn goes_on(&self) -> Result<()> {
        self.recorder.wait_beyond(self.last()? + 1, MINUTE).map(drop)
    }

    /// Runs a `kubectl` that makes its pod leave; how long it is until it writes again.
    pub(super) fn moves_away(&mut self, lab: &Lab<'_>, arguments: &[&str]) -> Result<Duration> {
        let began = Instant::now();
        lab.kubectl(arguments, 3 * MINUTE)?;
        // One without grace is gone for Kubernetes before it is on its node, and writes for a moment.
        for condition in ["create", "condition=Ready"] {
            let wait = ["wait", &format!("--for={condition}"), "pod/writer-0", "--timeout=120s"];
            lab.kubectl(&wait, 3 * MINUTE)?;
        }
        self.arrived(lab, self.last()?, 3 * MINUTE)?;
        Ok(began.elapsed())
    }

    /// Waits until all copies of its volume are in sync.
    pub(super) fn in_sync(&self, lab: &Lab<'_>) -> Result<()> {
        let (_, object) = self.volume(lab)?;
        let record = format!("volumerecord/{}", object["spec"]["uuid"].as_str().unwrap_or_default());
        let begun = Instant::now();
        loop {
            let text = lab.kubectl(&["get", &record, "--output=json"], MINUTE)?;
            let record: Value = serde_json::from_str(&text)?;
            let members = record["status"]["members"].as_array().cloned().unwrap_or_default();
            let in_sync = members.iter().filter(|member| member["state"]["name"] == "InSync").count();
            if in_sync == 3 && members.len() == 3 {
                return Ok(());
            }
            ensure!(begun.elapsed() < 2 * MINUTE, "the copies are not in sync: {members:?}");
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Its volume: what kubectl calls it, and the object.
    pub(super) fn volume(&self, lab: &Lab<'_>) -> Result<(String, Value)> {
        let name = lab.kubectl(&["get", self.claim, "--output=jsonpath={.spec.volumeName}"], MINUTE)?;
        let object = format!("volume.orlop.io/{}", name.trim());
        let text = lab.kubectl(&["get", &object, "--output=json"], MINUTE)?;
        Ok((object, serde_json::from_str(&text)?))
    }

    /// Ends the pod, or starts it again and waits until it writes.
    pub(super) fn scale(&mut self, lab: &Lab<'_>, replicas: u8) -> Result<()> {
        let last = self.last()?;
        lab.kubectl(&["scale", "statefulset/writer", &format!("--replicas={replicas}")], MINUTE)?;
        if replicas == 0 {
            lab.kubectl(&["wait", "--for=delete", "pod/writer-0", "--timeout=120s"], 3 * MINUTE)?;
            return Ok(());
        }
        self.arrived(lab, last, 3 * MINUTE).map(drop)
    }

    pub(super) fn delete(self, lab: &Lab<'_>) -> Result<()> {
        lab.kubectl(&["delete", "statefulset/writer", self.claim], 3 * MINUTE)?;
        lab.kubectl(&["wait", "--for=delete", "pod/writer-0", self.claim, "--timeout=120s"], 3 * MINUTE)
            .map(drop)
    }
}

/// The size of the file system that the pod sees.
pub(super) fn total_kib(lab: &Lab<'_>, pod: &str) -> Result<u64> {
    let text = lab.kubectl(&["exec", pod, "--", "df", "-P", "-k", "/data"], MINUTE)?;
    let size = text.lines().last().and_then(|line| line.split_whitespace().nth(1));
    size.and_then(|size| size.parse().ok()).with_context(|| format!("df: {text}"))
}

fn stateful_set() -> Value {
    // It goes on after the last whole record that it finds.
    let line = format!(
        "n=$(tail -n 1 /data/log 2>/dev/null | cut -d' ' -f1); n=${{n:-0}}; run=$(cat /proc/sys/kernel/random/uuid); \
         while true; do n=$((n+1)); echo $n $run | dd of=/data/log oflag=append conv=notrunc,fsync 2>/dev/null && echo $n $run | nc -w 3 {HEAD} {PORT} || sleep 1; done"
    );
    json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": { "name": "writer" },
        "spec": {
            "serviceName": "writer",
            "replicas": 1,
            "selector": { "matchLabels": { "app": "writer" } },
            "template": {
                "metadata": {
                    "labels": { "app": "writer" },
                    "annotations": { "orlop.io/failover": "automatic" },
                },
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{
                        "name": "main", "image": BUSYBOX, "command": ["/bin/sh", "-c", line],
                        "volumeMounts": [{ "name": "data", "mountPath": "/data" }],
                    }],
                },
            },
            "volumeClaimTemplates": [{
                "metadata": { "name": "data" },
                "spec": {
                    "storageClassName": "orlop",
                    "accessModes": ["ReadWriteOnce"],
                    "resources": { "requests": { "storage": "256Mi" } },
                },
            }],
        },
    })
}

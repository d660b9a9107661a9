//! Orlop in a real Kubernetes: the chart is installed, a pod asks for a volume and gets it, and its node dies.

mod again;
mod forget;
mod killer;
mod kinds;
mod left;
mod near;
mod places;
mod readers;
mod shown;
mod upgrade;
mod writer;

use crate::journey::{Journey, Trip, need};
use crate::kubernetes::{Lab, chart, image::BUSYBOX};
use anyhow::{Context, Error, Result, ensure};
use left::Before;
use rustix::process::Signal;
use serde_json::{Value, json};
use shown::Blank;
use std::time::{Duration, Instant};
pub(super) use upgrade::UPGRADE;
use writer::{Recorder, Word, Writer, total_kib};

const MINUTE: Duration = Duration::from_secs(60);
const NODES: [&str; 3] = ["node-1.lab", "node-2.lab", "node-3.lab"];
/// The files in /var/lib/orlop that are pools: the README's, and the one of `places`.
const DISKS: [&str; 2] = ["disk", places::DISK];
/// How often the writer's node dies, or stands still, and nobody says so.
const KILLS: usize = 7;
const STANDSTILLS: usize = 3;
/// How long the pod may take to be elsewhere then.
const FAILOVER: Duration = Duration::from_secs(30);
/// How long the API server stands still under I/O.
const API_PAUSE: Duration = MINUTE;

pub(crate) const K8S: Journey = Journey {
    name: "k8s",
    what: "the chart in a Kubernetes of three nodes: a pod writes to its claim, its node is killed again and again, and every \
           acknowledged record is on another node; grown, raw, applied again, deleted, with nothing left; a node forgotten",
    run: k8s,
};

fn k8s(trip: &Trip) -> Result<()> {
    need(&[("mkfs.ext4", "e2fsprogs"), ("mkfs.xfs", "xfsprogs"), ("mkfs.btrfs", "btrfs-progs")])?;
    chart::build()?;
    let images = chart::images(trip)?;
    trip.checked("the images are made");
    let mut before = Before::of_machine(trip)?;
    let mut lab = Lab::start(trip, 3, &images)?;
    let [commands] = chart::commands("k8s", "README.md")?;
    ensure!(commands.len() > 3, "the README has few commands: {commands:?}");
    let blank = Blank::make(trip)?;
    let values = format!("{} {} {}", blank.values(), near::values(), places::values());
    let install = format!("{} {values}", commands[0]);
    lab.documented(&install)?;
    lab.wait_orlop()?;
    for node in NODES {
        lab.wait_for(&format!("onode/{node}"), ".status.state", "Ready", MINUTE)?;
    }
    before.of_pools(&lab, DISKS.len())?;
    trip.checked("the chart is installed by Helm: its pods are ready, and so are three nodes of Orlop");

    for command in &commands[1..] {
        let output = lab.documented(command)?;
        let greets = !command.contains("cat /data/hello") || output.contains("hello from hello");
        ensure!(greets, "{command} prints {output:?}");
    }
    trip.checked("the other commands of the README: a pod has written to its claim");

    let recorder = Recorder::start(trip, &lab)?;
    let mut writer = Writer::start(&lab, &recorder)?;
    trip.checked(format!("a StatefulSet's pod writes to a claim with three copies, on {}", writer.node));
    plugin(trip, &lab)?;
    blank.shown(trip, &lab)?;
    shown::nothing_shared(trip, &mut lab, &writer.node)?;
    writer.survives_its_node(trip, &mut lab, Word::Operator)?;
    writer.survives_a_standstill(trip, &mut lab, Word::Operator)?;
    writer.survives_a_reboot(trip, &mut lab)?;
    failover(trip, &mut lab, &mut writer)?;
    shown::told(trip, &lab)?;
    faults(trip, &mut lab, &writer)?;
    maintenance(trip, &mut lab, &mut writer)?;
    stranger(trip, &lab, &writer)?;
    applied_again(trip, &lab, &mut writer)?;
    writer.delete(&lab)?;
    refusals(trip, &lab)?;
    near::near(trip, &lab)?;
    places::places(trip, &lab)?;
    kinds::kinds(trip, &lab)?;
    readers::readers(trip, &lab)?;
    grow(trip, &lab)?;
    raw(trip, &lab)?;
    pressure(trip, &lab)?;
    shown::plugins_answer(&lab)?;
    killer::killer(trip, &mut lab)?;
    before.is_all(trip, &mut lab, &NODES)?;
    again::again(trip, &lab, &install, &blank)?;
    forget::forget(trip, &mut lab)?;
    before.is_all(trip, &mut lab, forget::KEPT)?;

    uninstall(trip, &mut lab)?;
    lab.stop()?;
    blank.end(trip)
}

/// The program as a plugin of kubectl: it answers what the one in the controller's pod does.
fn plugin(trip: &Trip, lab: &Lab<'_>) -> Result<()> {
    lab.install_plugin()?;
    let [commands] = chart::commands("k8s", "docs/guides/install.md")?;
    for command in &commands {
        let output = lab.documented(command)?;
        ensure!(output.contains("pvc-"), "{command} does not show the writer's volume: {output}");
    }
    trip.checked("kubectl orlop: the commands of the guide show the writer's volume");
    let bundle = lab.documented("kubectl orlop support bundle --file -")?;
    for log in ["logs/orlop-controller-", "logs/orlop-node-", "logs/orlop-csi-"] {
        ensure!(bundle.contains(log), "the bundle has no {log}*");
    }
    let secret = ["get", "secret/orlop-peers", "--output=jsonpath={.data.secret}"];
    let encoded = lab.kubectl(&[&["--namespace", chart::NAMESPACE], &secret[..]].concat(), MINUTE)?;
    let decoded = lab.documented(&format!("echo {} | base64 --decode", encoded.trim()))?;
    ensure!(decoded.trim().len() >= 32, "the secret of the engines is {} long", decoded.trim().len());
    let objects = lab.kubectl(&["get", "orlop", "--output=yaml"], MINUTE)?;
    for (place, text) in [("the bundle", &bundle), ("an object", &objects)] {
        let told = text.contains(encoded.trim()) || text.contains(decoded.trim());
        ensure!(!told, "{place} has the secret of the engines");
    }
    trip.checked(
        "kubectl orlop support bundle has the logs of Orlop's pods; neither it nor an object has the secret",
    );
    Ok(())
}

/// By the guide: first the programs only, then the records, then the disks.
fn uninstall(trip: &Trip, lab: &mut Lab<'_>) -> Result<()> {
    let [programs, records] = chart::commands("k8s", "docs/guides/uninstall.md")?;
    for command in &programs {
        lab.documented(command)?;
    }
    let kept = lab.kubectl(&["get", "onode", "--output=name"], MINUTE)?;
    ensure!(
        kept.lines().count() == forget::KEPT.len(),
        "an uninstall took records with it: {kept:?} are left"
    );
    let mut pools = Vec::new();
    for (node, disk) in NODES.iter().flat_map(|node| DISKS.map(|disk| (node, disk))) {
        let uri = format!("file://{}/var/lib/orlop/{disk}", lab.node(node)?.disk().display());
        let mut check = trip.command(trip.orlop()?);
        check.args(["check", &uri, "-o", "json"]);
        let report: Value = serde_json::from_str(&trip.run(check, MINUTE)?.success("orlop check")?)?;
        // One that lost power was not closed in order: what its next opening would mend is no fault.
        let is_fault = |problem: &&Value| *node != forget::LOST || problem["repairable"] != true;
        let problems = report["problems"].as_array().context("a report has problems")?;
        let clean = report["replicas"] == json!([]) && problems.iter().filter(is_fault).count() == 0;
        ensure!(clean, "the pool {disk} of {node} is not empty and sound: {report}");
        pools.push((uri, report["pool"].as_str().context("a pool has a UUID")?.to_owned()));
    }
    trip.checked(
        "the chart is uninstalled: nodes and definitions are still there; `orlop check` finds no replica and no piece without \
         owner in any pool, those of the lost node too",
    );
    for command in &records {
        lab.documented(command)?;
    }
    let left = lab.kubectl(&["get", "crd", "--output=name"], MINUTE)?;
    ensure!(!left.contains("orlop.io"), "definitions are left: {left}");
    for (uri, pool) in &pools {
        let mut wipe = trip.command(trip.orlop()?);
        wipe.args(["wipe", uri, "--yes-destroy", pool]);
        trip.run(wipe, MINUTE)?.success("orlop wipe")?;
    }
    trip.checked("the definitions are deleted, with all records, and the pools are wiped");
    Ok(())
}

/// The chart is told to free the pods of lost nodes, and does so again and again; a pod that has not opted in stays.
fn failover(trip: &Trip, lab: &mut Lab<'_>, writer: &mut Writer<'_>) -> Result<()> {
    let [upgrade, _] = chart::commands("k8s", "docs/guides/lose-a-node.md")?;
    for command in &upgrade {
        lab.documented(command)?;
    }
    writer.goes_on()?;
    trip.checked(
        "the chart was upgraded under the writer: nodes that are lost are given up without an operator",
    );
    let bystander = Bystander::start(lab, &writer.node)?;
    let mut took = vec![writer.survives_its_node(trip, lab, Word::Orlop)?];
    bystander.stays(trip, lab)?;
    for round in 1..KILLS + STANDSTILLS {
        took.push(if round % 3 == 2 {
            writer.survives_a_standstill(trip, lab, Word::Orlop)?
        } else {
            writer.survives_its_node(trip, lab, Word::Orlop)?
        });
    }
    took.sort();
    let (median, longest) = (took[took.len() / 2].as_secs_f64(), took[took.len() - 1]);
    ensure!(longest <= FAILOVER, "it took {:.1} s until the pod was elsewhere", longest.as_secs_f64());
    trip.checked(format!(
        "{} times without an operator: {median:.1} s in the median, {:.1} s at most from the end to the next record",
        took.len(),
        longest.as_secs_f64()
    ));
    Ok(())
}

/// A pod with a claim that has not opted in.
struct Bystander {
    node: String,
    uid: String,
}

impl Bystander {
    fn start(lab: &Lab<'_>, node: &str) -> Result<Self> {
        let line = "echo here >/data/here; sync; exec sleep 1000000";
        let mut pod = pod("bystander", line, "Filesystem");
        pod["spec"]["restartPolicy"] = json!("Always");
        pod["spec"]["nodeSelector"] = json!({ "kubernetes.io/hostname": node });
        let items = [claim("bystander", "orlop", "Filesystem", "32Mi"), pod];
        lab.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string())?;
        lab.kubectl(&["wait", "--for=condition=Ready", "pod/bystander", "--timeout=120s"], 3 * MINUTE)?;
        Ok(Self { node: node.to_owned(), uid: Self::uid(lab)? })
    }

    fn uid(lab: &Lab<'_>) -> Result<String> {
        lab.kubectl(&["get", "pod/bystander", "--output=jsonpath={.metadata.uid}"], MINUTE)
    }

    /// It is the same one on the same node when that is back.
    fn stays(self, trip: &Trip, lab: &Lab<'_>) -> Result<()> {
        let begun = Instant::now();
        while lab.kubectl(&["exec", "bystander", "--", "cat", "/data/here"], MINUTE).is_err() {
            ensure!(begun.elapsed() < 2 * MINUTE, "the pod that has not opted in does not run again");
            std::thread::sleep(Duration::from_millis(500));
        }
        ensure!(Self::uid(lab)? == self.uid, "the pod that has not opted in was deleted");
        lab.kubectl(&["delete", "pod/bystander", "pvc/bystander"], 2 * MINUTE)?;
        trip.checked(format!("a pod that has not opted in has stayed on {}, and runs again", self.node));
        Ok(())
    }
}

/// The engine is killed under the writer, then the API server stands still, then the controller that leads: the pod
/// notices nothing.
fn faults(trip: &Trip, lab: &mut Lab<'_>, writer: &Writer<'_>) -> Result<()> {
    let restarts = |lab: &Lab<'_>| {
        let output = "--output=jsonpath={.status.containerStatuses[0].restartCount}";
        lab.kubectl(&["get", "pod/writer-0", output], MINUTE)
    };
    let (before, node) = (restarts(lab)?, writer.node.clone());
    let engines = lab.node(&node)?.running("orlop node run");
    ensure!(engines.len() == 1, "{node} runs {} engines", engines.len());
    let began = Instant::now();
    engines[0].signal(Signal::KILL);
    writer.goes_on()?;
    let seconds = began.elapsed().as_secs_f64();
    trip.checked(format!(
        "the engine under the writer was killed: {seconds:.1} s later the next record, no error"
    ));

    let last = writer.last()?;
    lab.pause_api_server(API_PAUSE)?;
    let told = writer.last()? - last;
    ensure!(told > API_PAUSE.as_secs(), "only {told} records while the API server was away");
    trip.checked(format!("the API server was away for {} s: {told} records meanwhile", API_PAUSE.as_secs()));
    leaders(trip, lab)?;
    writer.goes_on()?;
    ensure!(restarts(lab)? == before, "the writer was started again");
    writer.verify(lab)
}

/// The controller that leads is stopped: the other one leads, also after the first has woken.
fn leaders(trip: &Trip, lab: &mut Lab<'_>) -> Result<()> {
    let lease = |lab: &Lab<'_>, field: &str| {
        let output = format!("--output=jsonpath={{.spec.{field}}}");
        lab.kubectl(&["--namespace", chart::NAMESPACE, "get", "lease/orlop-controller", &output], MINUTE)
    };
    // Somebody leads when the lease is renewed: the holder may have died.
    let (renewed, looked) = (lease(lab, "renewTime")?, Instant::now());
    while lease(lab, "renewTime")? == renewed {
        ensure!(looked.elapsed() < MINUTE, "nobody leads");
        std::thread::sleep(Duration::from_millis(500));
    }
    let (first, term) = (lease(lab, "holderIdentity")?, lease(lab, "leaseTransitions")?);
    let pod = first.split('_').next().unwrap_or_default().to_owned();
    let of_pod = ["--namespace", chart::NAMESPACE, "get", "pod", &pod, "--output=jsonpath={.spec.nodeName}"];
    let node = lab.kubectl(&of_pod, MINUTE)?;
    let stopped = lab.node(&node)?.running("orlop controller");
    ensure!(!stopped.is_empty(), "{node} runs no controller");
    let log = ["--namespace", chart::NAMESPACE, "logs", &pod, "--container=controller"];
    let lost = |lab: &Lab<'_>| Ok::<_, Error>(lab.kubectl(&log, MINUTE)?.matches("leads no more").count());
    let (lost_before, began) = (lost(lab)?, Instant::now());
    let signal = |signal| stopped.iter().filter(|process| process.signal(signal)).count();
    ensure!(signal(Signal::STOP) > 0, "{pod} has ended");
    while lease(lab, "holderIdentity")? == first {
        ensure!(began.elapsed() < MINUTE, "{first} is stopped, and still leads");
        std::thread::sleep(Duration::from_millis(500));
    }
    let took = began.elapsed();
    std::thread::sleep(MINUTE.saturating_sub(took));
    ensure!(signal(Signal::CONT) > 0, "{pod} has ended");
    let woken = Instant::now();
    while lost(lab)? == lost_before {
        ensure!(woken.elapsed() < MINUTE, "{pod} does not notice that it leads no more");
        std::thread::sleep(Duration::from_millis(500));
    }
    let (other, next) = (lease(lab, "holderIdentity")?, lease(lab, "leaseTransitions")?);
    ensure!(
        other != first && next.parse::<u32>()? == term.parse::<u32>()? + 1,
        "{first} {term}, {other} {next}"
    );
    trip.checked(format!(
        "the controller that leads was stopped for 60 s: the other one led after {:.1} s, and still does",
        took.as_secs_f64()
    ));
    Ok(())
}

/// What cannot be had is refused where its user looks: at the claim.
fn refusals(trip: &Trip, lab: &Lab<'_>) -> Result<()> {
    let class = |name: &str, parameters: Value| {
        json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": { "name": name },
            "provisioner": "csi.orlop.io",
            "parameters": parameters,
            "volumeBindingMode": "Immediate",
        })
    };
    // What the claim's events have to say.
    for (name, parameters, size, words) in [
        ("misspelt", json!({ "copys": "2" }), "64Mi", ["copys", "InvalidArgument"]),
        ("too-many-copies", json!({ "copies": "5" }), "64Mi", ["5 copies need", "3 can take one"]),
        ("too-large", json!({ "copies": "3" }), "1Ti", ["ResourceExhausted", "3 copies need"]),
    ] {
        let items = [class(name, parameters), claim(name, name, "Filesystem", size)];
        lab.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string())?;
        let (object, begun) = (format!("pvc/{name}"), Instant::now());
        loop {
            let events = lab.kubectl(&["events", "--for", &object, "--output=json"], MINUTE)?;
            if words.iter().all(|word| events.contains(word)) {
                break;
            }
            ensure!(begun.elapsed() < MINUTE, "{object} does not say {words:?}, but {events}");
            std::thread::sleep(Duration::from_millis(500));
        }
        lab.kubectl(&["delete", &object, &format!("storageclass/{name}")], MINUTE)?;
    }
    trip.checked(
        "refused at the claim: a misspelt parameter, more copies than nodes, more space than there is",
    );
    deletions(trip, lab)
}

/// What is in use is not deleted by hand.
fn deletions(trip: &Trip, lab: &Lab<'_>) -> Result<()> {
    for (objects, says) in [("onode", "orlop node delete"), ("opool", "orlop pool delete")] {
        let names = lab.kubectl(&["get", objects, "--output=name"], MINUTE)?;
        let name = names.lines().next().context("there are some")?;
        let line = format!("kubectl delete --dry-run=server {name} 2>&1 && exit 1 || exit 0");
        let said = lab.documented(&line)?;
        ensure!(said.contains(says), "{line} says {said:?}, not {says:?}");
    }
    trip.checked("kubectl delete of a node that runs and of a pool in use is refused, with what to do");
    Ok(())
}

/// A claim with an xfs grows under its pod, beyond the size of the disks.
fn grow(trip: &Trip, lab: &Lab<'_>) -> Result<()> {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": { "name": "orlop-xfs" },
        "provisioner": "csi.orlop.io",
        "parameters": { "copies": "2", "csi.storage.k8s.io/fstype": "xfs" },
        "allowVolumeExpansion": true,
    });
    let line =
        "dd if=/dev/urandom of=/data/file bs=1M count=32 conv=fsync && md5sum /data/file && sleep 100000";
    let items = [class, claim("grown", "orlop-xfs", "Filesystem", "320Mi"), pod("grown", line, "Filesystem")];
    lab.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string())?;
    lab.kubectl(&["wait", "--for=condition=Ready", "pod/grown", "--timeout=120s"], 3 * MINUTE)?;
    let sum = said(lab, "pod/grown", "/data/file")?;
    let began = Instant::now();
    let before = total_kib(lab, "grown")?;
    enlarge(lab, "pvc/grown", "3Gi")?;
    let after = total_kib(lab, "grown")?;
    ensure!(after > before + 2600 * 1024, "the file system had {before} KiB, and has {after} KiB");
    let again = lab.kubectl(&["exec", "grown", "--", "md5sum", "/data/file"], MINUTE)?;
    ensure!(sum.contains(again.trim()), "the file changed when it grew: {sum} {again}");
    let seconds = began.elapsed().as_secs_f64();
    lab.kubectl(&["delete", "pod/grown", "pvc/grown"], 2 * MINUTE)?;
    trip.checked(format!(
        "an xfs grew from {} to {} MiB under its pod in {seconds:.1} s: more than any disk has",
        before >> 10,
        after >> 10
    ));
    Ok(())
}

fn claim(name: &str, class: &str, mode: &str, size: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": { "name": name },
        "spec": {
            "storageClassName": class,
            "volumeMode": mode,
            "accessModes": ["ReadWriteOnce"],
            "resources": { "requests": { "storage": size } },
        },
    })
}

/// A pod that runs a line of shell once, with the claim of its name at `/data` or as `/dev/raw`.
fn pod(name: &str, line: &str, mode: &str) -> Value {
    let mut container = json!({ "name": "main", "image": BUSYBOX, "command": ["/bin/sh", "-c", line] });
    if mode == "Block" {
        container["volumeDevices"] = json!([{ "name": "volume", "devicePath": "/dev/raw" }]);
    } else {
        container["volumeMounts"] = json!([{ "name": "volume", "mountPath": "/data" }]);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "volumes": [{ "name": "volume", "persistentVolumeClaim": { "claimName": name } }],
            "containers": [container],
        },
    })
}

/// Waits until a pod's log has this text; the log.
fn said(lab: &Lab<'_>, pod: &str, text: &str) -> Result<String> {
    let begun = Instant::now();
    loop {
        let said = lab.kubectl(&["logs", pod], MINUTE)?;
        if said.contains(text) {
            return Ok(said);
        }
        ensure!(begun.elapsed() < MINUTE, "{pod} does not say {text:?}, but {said:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Asks for a larger claim, and waits until it is.
fn enlarge(lab: &Lab<'_>, claim: &str, size: &str) -> Result<()> {
    let wish = json!({ "spec": { "resources": { "requests": { "storage": size } } } }).to_string();
    lab.kubectl(&["patch", claim, "--patch", &wish], MINUTE)?;
    lab.wait_for(claim, ".status.capacity.storage", size, 2 * MINUTE).map(drop)
}

/// The writer's node is drained, its engine replaced as the guide for upgrades says, and the node used again.
fn maintenance(trip: &Trip, lab: &mut Lab<'_>, writer: &mut Writer<'_>) -> Result<()> {
    let node = writer.node.clone();
    let [commands, back] = chart::commands("k8s", "docs/guides/upgrade.md")?;
    let commands: Vec<String> = commands.iter().map(|command| command.replace("NODE", &node)).collect();
    let (drain, others) = commands.split_first().context("the guide has no commands")?;
    let drain = drain.strip_prefix("kubectl ").context("first the pods leave")?;
    let took = writer.moves_away(lab, &drain.split_whitespace().collect::<Vec<_>>())?;
    ensure!(writer.node != node, "the pod is on {node}, which is drained");
    let last = writer.last()?;
    for command in others {
        lab.documented(command)?;
    }
    lab.wait_orlop()?;
    writer.in_sync(lab)?;
    writer.verify(lab)?;
    trip.checked(format!(
        "{node} was drained ({:.1} s to the next record elsewhere) and its engine replaced: {} records meanwhile, all copies \
         in sync",
        took.as_secs_f64(),
        writer.last()? - last
    ));
    rollback(trip, lab, writer, &back)
}

/// The chart goes back to what it was before its upgrade, under the writer: the right to take nodes is gone with it.
fn rollback(trip: &Trip, lab: &Lab<'_>, writer: &Writer<'_>, commands: &[String]) -> Result<()> {
    let right =
        || lab.kubectl(&["get", "clusterrole/orlop-failover", "--ignore-not-found", "--output=name"], MINUTE);
    ensure!(!right()?.is_empty(), "the chart was not upgraded");
    let last = writer.last()?;
    for command in commands {
        lab.documented(command)?;
    }
    ensure!(right()?.is_empty(), "the right to take nodes away is still there");
    lab.wait_orlop()?;
    writer.goes_on()?;
    writer.verify(lab)?;
    trip.checked(format!(
        "the chart was rolled back, and the right of its upgrade is gone; {} records meanwhile",
        writer.last()? - last
    ));
    Ok(())
}

/// A pod that asks the engines, for a volume that is in use, gets nothing; nor does it reach the API of a controller, or
/// learn from one what only the scheduler is told.
fn stranger(trip: &Trip, lab: &Lab<'_>, writer: &Writer<'_>) -> Result<()> {
    let orlop = ["--namespace", chart::NAMESPACE, "get"];
    let image = ["daemonset/orlop-node", "--output=jsonpath={.spec.template.spec.containers[0].image}"];
    let image = lab.kubectl(&[&orlop[..], &image].concat(), MINUTE)?;
    let (_, volume) = writer.volume(lab)?;
    let status = format!("volumestatus/{}", volume["spec"]["uuid"].as_str().context("it has no UUID")?);
    let target = lab.kubectl(&["get", &status, "--output=jsonpath={.status.target}"], MINUTE)?;
    ensure!(target.starts_with("nvme+tcp://"), "the volume in use is served at {target:?}");
    let nodes = lab.kubectl(&["get", "onode", "--output=jsonpath={.items[*].status.address}"], MINUTE)?;
    let targets = nodes.split_whitespace().map(|node| format!("nvme+tcp://{node}")).chain([target.clone()]);
    let mut containers: Vec<Value> = targets
        .enumerate()
        .map(|(number, url)| {
            json!({ "name": format!("target-{number}"), "image": image, "command": ["orlop", "probe", url] })
        })
        .collect();
    ensure!(containers.len() == NODES.len() + 1, "the nodes listen at {nodes:?}");
    let controllers = ["pods", "--selector=app.kubernetes.io/component=controller"];
    let addresses = "--output=jsonpath={.items[*].status.podIP}";
    let controllers = lab.kubectl(&[&orlop[..], &controllers, &[addresses]].concat(), MINUTE)?;
    ensure!(!controllers.is_empty(), "no controller has an address");
    let extender = r#"--post-data '{"Pod":{},"NodeNames":["node-1"]}' http://$ip:7072/prioritize"#;
    let line = ["http://$ip:7070/healthz", extender].map(|what| format!("! wget -T 3 -O- {what} || exit 1"));
    let line = format!("for ip in {controllers}; do {}; done", line.join("; "));
    containers.push(json!({ "name": "api", "image": BUSYBOX, "command": ["/bin/sh", "-c", line] }));
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "stranger" },
        "spec": { "restartPolicy": "Never", "containers": containers },
    });
    lab.apply(&pod.to_string())?;
    lab.wait_for("pod/stranger", ".status.phase", "Succeeded", MINUTE)?;
    let said = lab.kubectl(&["logs", "stranger", "--all-containers"], MINUTE)?;
    ensure!(
        said.matches("connect: success").count() == NODES.len() + 1,
        "it did not come to the targets: {said}"
    );
    lab.kubectl(&["delete", "pod/stranger"], MINUTE)?;
    trip.checked(format!(
        "a pod without the secret connects to the three engines and to {target}, and gets nothing; it does not reach the API, and is not answered as the scheduler is"
    ));
    Ok(())
}

/// The volume's object and its record are deleted by hand under the pod that writes, and applied again without their status:
/// the record is found on the copies, no epoch goes back, and all data is there.
fn applied_again(trip: &Trip, lab: &Lab<'_>, writer: &mut Writer<'_>) -> Result<()> {
    let (volume, object) = writer.volume(lab)?;
    let uuid = object["spec"]["uuid"].as_str().context("the volume has no UUID")?;
    let record = format!("volumerecord/{uuid}");
    let before = epoch(lab, &record)?.context("the volume has no record")?;
    let said = lab.documented(&format!("kubectl delete {volume} 2>&1 && exit 1 || exit 0"))?;
    ensure!(said.contains("orlop volume detach"), "to delete a volume in use is answered {said:?}");
    without_policy(lab, || lab.kubectl(&["delete", &volume], MINUTE).map(drop))?;
    writer.goes_on()?;
    let text = lab.kubectl(&["get", &record, "--output=json"], MINUTE)?;
    without_policy(lab, || lab.kubectl(&["delete", &record], MINUTE).map(drop))?;
    lab.apply(&without_status(&serde_json::from_str(&text)?).to_string())?;
    ensure!(epoch(lab, &record)?.is_none(), "a record that was applied without its status is there");
    lab.apply(&without_status(&object).to_string())?;
    let begun = Instant::now();
    let found = loop {
        if let Some(found) = epoch(lab, &record)? {
            break found;
        }
        let said = lab.kubectl(&["get", &volume, "--output=jsonpath={.status.message}"], MINUTE)?;
        ensure!(begun.elapsed() < MINUTE, "the record is not made again, and the volume says {said:?}");
        std::thread::sleep(Duration::from_millis(500));
    };
    ensure!(found > before, "epoch {before} went back to {found}");
    // A pod that asks before the volume is whole again waits for its kubelet's patience on top.
    lab.wait_for(&volume, ".status.conditions[?(@.type==\"Placed\")].status", "True", MINUTE)?;
    writer.scale(lab, 0)?;
    detached(lab, &volume)?;
    writer.scale(lab, 1)?;
    writer.verify(lab)?;
    let after = epoch(lab, &record)?.context("the record is gone once more")?;
    ensure!(after > found, "the volume was opened in epoch {found}, and is in {after}");
    let mark = lab.kubectl(&["get", &record, "--output=jsonpath={.status.unconfirmed}"], MINUTE)?;
    ensure!(mark.trim().is_empty(), "the volume is open, and its record is still to be confirmed");
    trip.checked(format!(
        "the Volume and its VolumeRecord were deleted by hand under its pod (refused first), which wrote on, and applied \
         without status: the record was made again from the copies, epoch {before} became {found} and is {after} now, every \
         record of the pod is there"
    ));
    Ok(())
}

/// Waits until the volume is on no node: whoever has its device works on by the record that was lost, and the volume is
/// opened by the one that was found when the device is free.
fn detached(lab: &Lab<'_>, volume: &str) -> Result<()> {
    let name = volume.rsplit('/').next().unwrap_or(volume);
    let begun = Instant::now();
    loop {
        let path = "jsonpath={.items[*].spec.source.persistentVolumeName}";
        let attached = lab.kubectl(&["get", "volumeattachments", "--output", path], MINUTE)?;
        if !attached.split_whitespace().any(|attached| attached == name) {
            return Ok(());
        }
        ensure!(begun.elapsed() < MINUTE, "{volume} is still attached");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// The epoch of a record; none if there is none.
fn epoch(lab: &Lab<'_>, record: &str) -> Result<Option<u64>> {
    let text = lab.kubectl(&["get", record, "--output=jsonpath={.status.epoch}"], MINUTE)?;
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).with_context(|| format!("the epoch is {text:?}"))
}

/// An object as a backup program applies it.
fn without_status(object: &Value) -> Value {
    let (api, kind, name) = (&object["apiVersion"], &object["kind"], &object["metadata"]["name"]);
    let mut bare = json!({ "apiVersion": api, "kind": kind, "metadata": { "name": name } });
    if !object["spec"].is_null() {
        bare["spec"] = object["spec"].clone();
    }
    bare
}

/// Does what the chart's admission policy refuses, as in a cluster without it.
fn without_policy(lab: &Lab<'_>, what: impl FnOnce() -> Result<()>) -> Result<()> {
    let binding = "validatingadmissionpolicybinding/orlop-deletions";
    let text = lab.kubectl(&["get", binding, "--output=json"], MINUTE)?;
    let mut object: Value = serde_json::from_str(&text)?;
    let metadata = object["metadata"].as_object_mut().context("an object has metadata")?;
    metadata.retain(|key, _| ["name", "labels", "annotations"].contains(&key.as_str()));
    lab.kubectl(&["delete", binding], MINUTE)?;
    // The API server follows its policies by a watch.
    let begun = Instant::now();
    while let Err(error) = lab.kubectl(&["delete", "--dry-run=server", "opool", "--all"], MINUTE) {
        ensure!(begun.elapsed() < MINUTE, "the policy is still there: {error}");
        std::thread::sleep(Duration::from_millis(200));
    }
    what()?;
    lab.apply(&object.to_string()).map(drop)
}

/// A pod with a raw block volume writes to it, sees it grow, and leaves no loop device.
fn raw(trip: &Trip, lab: &Lab<'_>) -> Result<()> {
    let line = "dd if=/dev/urandom of=/tmp/a bs=1M count=16 && dd if=/tmp/a of=/dev/raw bs=1M count=16 conv=fsync && \
                dd if=/dev/raw bs=1M count=16 | cmp - /tmp/a && blockdev --getsize64 /dev/raw && sleep 100000";
    let items = [claim("raw", "orlop", "Block", "64Mi"), pod("raw", line, "Block")];
    lab.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string())?;
    lab.kubectl(&["wait", "--for=condition=Ready", "pod/raw", "--timeout=120s"], 3 * MINUTE)?;
    said(lab, "pod/raw", "67108864")?;
    enlarge(lab, "pvc/raw", "96Mi")?;
    let size = lab.kubectl(&["exec", "raw", "--", "blockdev", "--getsize64", "/dev/raw"], MINUTE)?;
    ensure!(size.trim() == "100663296", "the pod sees {size} bytes of 96 MiB");
    lab.kubectl(&["delete", "pod/raw", "pvc/raw"], 2 * MINUTE)?;
    trip.checked(
        "a raw block volume was written, compared, grown under its pod from 64 to 96 MiB, and deleted",
    );
    Ok(())
}

/// A pod writes far more than its memory holds, without waiting for any of it, onto a volume whose engine is on its node.
fn pressure(trip: &Trip, lab: &Lab<'_>) -> Result<()> {
    let line = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; \
                dd if=/dev/urandom bs=1M count=192 2>/dev/null | tee /data/file | md5sum >/tmp/sum && sync && \
                md5sum </data/file | cmp - /tmp/sum && echo the same";
    let mut pod = pod("pressure", line, "Filesystem");
    pod["spec"]["containers"][0]["resources"] = json!({ "limits": { "memory": "48Mi" } });
    let items = [claim("pressure", "orlop", "Filesystem", "320Mi"), pod];
    let began = Instant::now();
    lab.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string())?;
    lab.wait_for("pod/pressure", ".status.phase", "Succeeded", 5 * MINUTE)?;
    let said = lab.kubectl(&["logs", "pod/pressure"], MINUTE)?;
    ensure!(said.contains("50331648") && said.contains("the same"), "the pod with 48 MiB says {said:?}");
    lab.kubectl(&["delete", "pod/pressure", "pvc/pressure"], 2 * MINUTE)?;
    trip.checked(format!(
        "a pod with 48 MiB of memory wrote 192 MiB without waiting, and read them back: {:.1} s with its start",
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

//! Two versions beside each other, as an upgrade makes them: an older chart is installed and used, and replaced by this
//! one under a pod that writes, part by part.
//!
//! 1. Between any two steps every acknowledged record is there, and claims are made, used and deleted.

use super::left::Before;
use super::writer::{Recorder, Word, Writer};
use super::{MINUTE, NODES, claim, pod, said};
use crate::journey::{Journey, Trip, need};
use crate::kubernetes::{Lab, chart, older};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

pub(crate) const UPGRADE: Journey = Journey {
    name: "upgrade",
    what: "an older chart in a Kubernetes of three nodes is replaced under a pod that writes: controllers, back and again, then \
           engine by engine, with each version's engine taking over from the other's",
    run: upgrade,
};

fn upgrade(trip: &Trip) -> Result<()> {
    need(&[("mkfs.ext4", "e2fsprogs"), ("mkfs.xfs", "xfsprogs"), ("mkfs.btrfs", "btrfs-progs")])?;
    chart::build()?;
    let target = trip.orlop_folder().parent().context("the release build is in the target folder")?;
    let older = older::Older::built(target)?;
    let mut images = chart::images(trip)?;
    images.push(chart::image(trip, &older.orlop, older::VERSION)?);
    let mut before = Before::of_machine(trip)?;
    let mut lab = Lab::start(trip, 3, &images)?;
    install(&lab, &older)?;
    before.of_pools(&lab, 1)?;
    trip.checked(format!("the chart of {} is installed", older::Older::name()));

    let kept = Kept::make(&lab)?;
    let recorder = Recorder::start(trip, &lab)?;
    let mut writer = Writer::start(&lab, &recorder)?;
    writer.in_sync(&lab)?;
    trip.checked(format!("a pod writes on {}, and a volume that nobody uses is kept", writer.node));

    programs(trip, &mut lab, &writer)?;
    engines(trip, &mut lab, &mut writer)?;
    kept.compare(&lab)?;
    writer.delete(&lab)?;
    trip.checked("all of it is new: what the older one wrote is there");
    before.is_all(trip, &mut lab, &NODES)?;
    lab.stop()
}

fn install(lab: &Lab<'_>, older: &older::Older) -> Result<()> {
    let [commands] = chart::commands::<1>("k8s", "README.md")?;
    let install = commands[0].replace("deploy/chart", &older.chart.display().to_string());
    ensure!(install != commands[0], "the README does not install deploy/chart: {install}");
    // The nodes share a kernel, which is the developer's.
    lab.documented(&format!("{install} --set-json 'node.disksAllow=[]'"))?;
    lab.wait_orlop()?;
    for node in NODES {
        lab.wait_for(&format!("onode/{node}"), ".status.state", "Ready", MINUTE)?;
    }
    Ok(())
}

/// Controllers and plugins are replaced, taken back, and replaced again, by the guide; the engines are the older ones.
fn programs(trip: &Trip, lab: &mut Lab<'_>, writer: &Writer<'_>) -> Result<()> {
    let [upgrade] = chart::commands::<1>("upgrade", "docs/guides/upgrade.md")?;
    let [_, back] = chart::commands::<2>("k8s", "docs/guides/upgrade.md")?;
    for (commands, old, what) in
        [(&upgrade, 0, "replaced"), (&back, 2, "taken back"), (&upgrade, 0, "replaced again")]
    {
        let last = writer.last()?;
        for command in commands {
            lab.documented(command)?;
        }
        lab.wait_orlop()?;
        lab.wait_whole()?;
        ensure!(
            old_pods(lab, "controller")?.len() == old,
            "of the controllers are old: {:?}",
            old_pods(lab, "controller")?
        );
        ensure!(old_pods(lab, "node")?.len() == NODES.len(), "old engines: {:?}", old_pods(lab, "node")?);
        used(lab)?;
        writer.goes_on()?;
        writer.verify(lab)?;
        let meanwhile = writer.last()? - last;
        trip.checked(format!(
            "controllers and plugins were {what}, the engines are the older ones; a claim was made and used; {meanwhile} records meanwhile"
        ));
    }
    let engines = lab.node(&writer.node)?.running("orlop node run");
    ensure!(engines.len() == 1, "{} runs {} engines", writer.node, engines.len());
    engines[0].signal(Signal::KILL);
    writer.goes_on()?;
    writer.verify(lab)?;
    trip.checked("the older engine under the writer was killed, and goes on by itself");
    Ok(())
}

/// The engines are replaced by the guide, one node after the other; after the first the versions take over from each other.
fn engines(trip: &Trip, lab: &mut Lab<'_>, writer: &mut Writer<'_>) -> Result<()> {
    let first = writer.node.clone();
    replace(trip, lab, writer, &first)?;
    move_to(lab, writer, &first)?;
    trip.checked(format!("the new engine on {first} has the volume, over copies of the older ones"));
    used(lab)?;
    // It is off, and one of the older engines goes on with what it has written.
    writer.survives_its_node(trip, lab, Word::Operator)?;
    for node in NODES.into_iter().filter(|node| *node != first) {
        replace(trip, lab, writer, node)?;
        used(lab)?;
    }
    ensure!(old_pods(lab, "node")?.is_empty(), "old engines: {:?}", old_pods(lab, "node")?);
    Ok(())
}

/// By the guide.
fn replace(trip: &Trip, lab: &Lab<'_>, writer: &mut Writer<'_>, node: &str) -> Result<()> {
    let [commands, _] = chart::commands::<2>("k8s", "docs/guides/upgrade.md")?;
    let last = writer.last()?;
    for (number, command) in commands.iter().enumerate() {
        let command = command.replace("NODE", node);
        if number == 0 && writer.node == node {
            let drain = command.strip_prefix("kubectl ").context("first the pods leave")?;
            writer.moves_away(lab, &drain.split_whitespace().collect::<Vec<_>>())?;
        } else {
            lab.documented(&command)?;
        }
    }
    lab.wait_orlop()?;
    lab.wait_whole()?;
    writer.in_sync(lab)?;
    writer.verify(lab)?;
    let old = old_pods(lab, "node")?;
    ensure!(!old.iter().any(|name| name == node), "the engine of {node} is still the older one: {old:?}");
    let meanwhile = writer.last()? - last;
    trip.checked(format!(
        "the engine of {node} was replaced: {meanwhile} records meanwhile, all copies in sync; {} are older",
        old.len()
    ));
    Ok(())
}

/// The writer's pod goes to a node because no other one takes pods.
fn move_to(lab: &Lab<'_>, writer: &mut Writer<'_>, node: &str) -> Result<()> {
    let others: Vec<&str> = NODES.into_iter().filter(|other| *other != node).collect();
    lab.kubectl(&[&["cordon"], &others[..]].concat(), MINUTE)?;
    writer.moves_away(lab, &["delete", "pod/writer-0"])?;
    lab.kubectl(&[&["uncordon"], &others[..]].concat(), MINUTE)?;
    ensure!(writer.node == node, "the pod is on {}, not on {node}", writer.node);
    writer.verify(lab)
}

/// The nodes whose pod of a component has the older image.
fn old_pods(lab: &Lab<'_>, component: &str) -> Result<Vec<String>> {
    let selector = format!("--selector=app.kubernetes.io/component={component}");
    let get = ["--namespace", chart::NAMESPACE, "get", "pods", &selector, "--output=json"];
    let pods: Value = serde_json::from_str(&lab.kubectl(&get, MINUTE)?)?;
    let pods = pods["items"].as_array().context("a list has items")?;
    ensure!(!pods.is_empty(), "there are no pods of {component}");
    let old = |pod: &&Value| {
        let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
        let mut images = containers.filter_map(|container| container["image"].as_str());
        images.any(|image| image.ends_with(&format!(":{}", older::VERSION)))
    };
    let names = pods.iter().filter(old).filter_map(|pod| pod["spec"]["nodeName"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// A claim is made, written, compared and deleted.
fn used(lab: &Lab<'_>) -> Result<()> {
    let line = "dd if=/dev/urandom of=/tmp/a bs=1M count=8 2>/dev/null && cp /tmp/a /data/a && sync && cmp /tmp/a /data/a";
    let items = [claim("used", "orlop", "Filesystem", "64Mi"), pod("used", line, "Filesystem")];
    lab.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string())?;
    lab.wait_for("pod/used", ".status.phase", "Succeeded", 2 * MINUTE)?;
    lab.kubectl(&["delete", "pod/used", "pvc/used"], 2 * MINUTE).map(drop)
}

/// A volume that the older version has written, and that nobody touches until all is new.
struct Kept {
    sum: String,
}

impl Kept {
    const FILE: &str = "/data/kept";

    fn make(lab: &Lab<'_>) -> Result<Self> {
        let file = Self::FILE;
        let line =
            format!("dd if=/dev/urandom of={file} bs=1M count=24 2>/dev/null && sync && md5sum {file}");
        let items = [claim("kept", "orlop", "Filesystem", "64Mi"), pod("kept", &line, "Filesystem")];
        lab.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string())?;
        lab.wait_for("pod/kept", ".status.phase", "Succeeded", 2 * MINUTE)?;
        let sum = said(lab, "pod/kept", file)?;
        lab.kubectl(&["delete", "pod/kept"], 2 * MINUTE)?;
        Ok(Self { sum })
    }

    fn compare(self, lab: &Lab<'_>) -> Result<()> {
        let file = Self::FILE;
        lab.apply(&pod("kept", &format!("md5sum {file}"), "Filesystem").to_string())?;
        lab.wait_for("pod/kept", ".status.phase", "Succeeded", 2 * MINUTE)?;
        let sum = said(lab, "pod/kept", file)?;
        ensure!(sum == self.sum, "what was kept has changed: {} {sum}", self.sum);
        lab.kubectl(&["delete", "pod/kept", "pvc/kept"], 2 * MINUTE).map(drop)
    }
}

//! Pods go to nodes that hold copies of their volume because the scheduler asks Orlop, and go anywhere when nobody
//! answers.
//!
//! 1. The pods prefer the one node without a copy, and say so to the scheduler: only the extender outweighs that. So each
//!    pod by its own tells whether it was asked.

use super::{claim, pod};
use crate::journey::Trip;
use crate::kubernetes::{EXTENDER_SERVICE, HEAD, Lab, chart};
use crate::process::Running;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);
const PORT: u16 = 7072;

/// Of the chart, for docs/guides/scheduler.yaml.
pub(super) fn values() -> String {
    let fixed = "--set extender.enabled=true --set extender.clusterIP";
    format!("{fixed}={EXTENDER_SERVICE} --set 'extender.from={{{HEAD}}}'")
}

/// A volume with two copies on three nodes; the head's scheduler has looked for its extender in vain so far.
pub(super) fn near(trip: &Trip, lab: &Lab<'_>) -> Result<()> {
    capacity(trip, lab)?;
    let class = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": { "name": "near" },
        "provisioner": "csi.orlop.io",
        "parameters": { "copies": "2" },
        "volumeBindingMode": "Immediate",
    });
    let items = [class, claim("near", "near", "Filesystem", "32Mi")];
    lab.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string())?;
    lab.wait_for("pvc/near", ".status.phase", "Bound", MINUTE)?;
    let (with, without) = copies(lab)?;

    let began = Instant::now();
    let dead = lands_on(lab, &without)?;
    ensure!(dead == without, "nobody answers the scheduler, and the pod is on {dead}, not on {without}");
    let controllers = controllers(lab)?;
    for address in &controllers {
        let service = service(trip, lab, address)?;
        let node = lands_on(lab, &without)?;
        ensure!(with.contains(&node), "asked at {address}, the pod is on {node}; copies are on {with:?}");
        drop(service);
    }
    let dead = lands_on(lab, &without)?;
    ensure!(dead == without, "nobody answers any more, and the pod is on {dead}, not on {without}");
    lab.kubectl(&["delete", "pvc/near", "storageclass/near"], 2 * MINUTE)?;
    trip.checked(format!(
        "a pod that prefers {without} ran there while nobody answered the scheduler, and on a node with a copy ({}) by the word \
         of each of {} controllers: {:.1} s for {} pods",
        with.join(", "),
        controllers.len(),
        began.elapsed().as_secs_f64(),
        controllers.len() + 2
    ));
    Ok(())
}

/// The provisioner says how much is free, for each node: without it no pod of a class that waits would be scheduled.
fn capacity(trip: &Trip, lab: &Lab<'_>) -> Result<()> {
    let begun = Instant::now();
    loop {
        let told = free_space(lab)?;
        // What is told is as old as the provisioner's last question, and a node was drained a moment ago.
        let whole = told.iter().filter(|(_, free)| free != "0").map(|(node, _)| node).eq(super::NODES);
        if whole {
            trip.checked(format!("free space for claims of the class orlop is told for each node: {told:?}"));
            return Ok(());
        }
        ensure!(begun.elapsed() < MINUTE, "free space is told of {told:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// The nodes, and how much a claim of the class orlop may ask for there.
fn free_space(lab: &Lab<'_>) -> Result<Vec<(String, String)>> {
    let get = ["--namespace", chart::NAMESPACE, "get", "csistoragecapacities", "--output=json"];
    let found: Value = serde_json::from_str(&lab.kubectl(&get, MINUTE)?)?;
    let items = found["items"].as_array().context("a list has items")?.iter();
    let of_class = items.filter(|item| item["storageClassName"] == "orlop");
    let pair = |item: &Value| {
        let labels = item["nodeTopology"]["matchLabels"].as_object();
        let node = labels.and_then(|labels| labels.values().next()).and_then(Value::as_str);
        (node.unwrap_or_default().to_owned(), item["capacity"].as_str().unwrap_or("0").to_owned())
    };
    let mut told: Vec<_> = of_class.map(pair).collect();
    told.sort();
    Ok(told)
}

/// The nodes that have a copy of the claim's volume in sync, and the one that has none.
fn copies(lab: &Lab<'_>) -> Result<(Vec<String>, String)> {
    let get = |object: &str, path: &str| {
        lab.kubectl(&["get", object, &format!("--output=jsonpath={{{path}}}")], MINUTE)
    };
    let volume = get("pvc/near", ".spec.volumeName")?;
    let handle = get(&format!("pv/{volume}"), ".spec.csi.volumeHandle")?;
    let uuid = get(&format!("ovol/{handle}"), ".spec.uuid")?;
    let path = r#".status.members[?(@.state.name=="InSync")].node"#;
    let begun = Instant::now();
    loop {
        let with: Vec<String> =
            get(&format!("volumerecord/{uuid}"), path)?.split_whitespace().map(str::to_owned).collect();
        if with.len() == 2 {
            let without = super::NODES.into_iter().find(|node| !with.iter().any(|name| name == node));
            return Ok((with, without.context("two of three nodes have a copy")?.to_owned()));
        }
        ensure!(begun.elapsed() < MINUTE, "the copies are not made: {with:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Where the Service of the chart leads.
fn controllers(lab: &Lab<'_>) -> Result<Vec<String>> {
    let name = [
        "--namespace",
        chart::NAMESPACE,
        "get",
        "service/orlop-extender",
        "--output=jsonpath={.spec.clusterIP}",
    ];
    let address = lab.kubectl(&name, MINUTE)?;
    ensure!(address == EXTENDER_SERVICE, "the Service has the address {address}");
    let slices = [
        "--namespace",
        chart::NAMESPACE,
        "get",
        "endpointslices",
        "--selector=kubernetes.io/service-name=orlop-extender",
        "--output=jsonpath={.items[*].endpoints[?(@.conditions.ready==true)].addresses[0]}",
    ];
    let found: Vec<String> = lab.kubectl(&slices, MINUTE)?.split_whitespace().map(str::to_owned).collect();
    ensure!(found.len() == 2, "the Service leads to {found:?}");
    Ok(found)
}

/// What a proxy for services would do for the scheduler; there is none in the lab.
fn service(trip: &Trip, lab: &Lab<'_>, controller: &str) -> Result<Running> {
    let mut address = lab.at_head("ip");
    address.args(["address", "replace", &format!("{EXTENDER_SERVICE}/32"), "dev", "lo"]);
    trip.run(address, MINUTE)?.success("ip address replace")?;
    let mut command = lab.at_head("socat");
    command.arg(format!("TCP-LISTEN:{PORT},bind={EXTENDER_SERVICE},reuseaddr,fork"));
    command.arg(format!("TCP:{controller}:{PORT}"));
    let running = trip.start(command)?;
    let begun = Instant::now();
    loop {
        let mut knock = lab.at_head("socat");
        knock.args(["-u", "OPEN:/dev/null"]).arg(format!("TCP:{EXTENDER_SERVICE}:{PORT}"));
        if trip.run(knock, MINUTE)?.code == Some(0) {
            return Ok(running);
        }
        ensure!(begun.elapsed() < MINUTE, "socat does not listen");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Runs a pod on the claim that prefers a node; where it ran.
fn lands_on(lab: &Lab<'_>, preferred: &str) -> Result<String> {
    let mut pod = pod("near", "date >>/data/file", "Filesystem");
    let expression = json!({ "key": "kubernetes.io/hostname", "operator": "In", "values": [preferred] });
    pod["spec"]["affinity"] = json!({ "nodeAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [
        { "weight": 100, "preference": { "matchExpressions": [expression] } },
    ] } });
    lab.apply(&pod.to_string())?;
    lab.wait_for("pod/near", ".status.phase", "Succeeded", 2 * MINUTE)?;
    let node = lab.kubectl(&["get", "pod/near", "--output=jsonpath={.spec.nodeName}"], MINUTE)?;
    lab.kubectl(&["delete", "pod/near"], MINUTE)?;
    Ok(node)
}

//! The lab judged by itself: two nodes of a real Kubernetes run pods, lose everything that runs, and come back.

use crate::journey::{Journey, Trip};
use crate::kubernetes::Lab;
use crate::kubernetes::image::BUSYBOX;
use crate::process::tail;
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);

pub(crate) const LAB: Journey = Journey {
    name: "kubernetes-lab",
    what: "a Kubernetes of two nodes: pods run and reach each other; a node's programs, then its power, fail and come back",
    run: lab,
};

fn lab(trip: &Trip) -> Result<()> {
    let mut lab = Lab::start(trip, 2, &[])?;
    let server = pod(
        "server",
        "node-2.lab",
        "Always",
        "mkdir /www; echo it is me >/www/hello; httpd -f -p 8080 -h /www",
    );
    lab.apply(&server.to_string())?;
    lab.kubectl(&["wait", "--for=condition=Ready", "pod/server", "--timeout=60s"], 2 * MINUTE)?;
    trip.checked("a server runs on node-2");
    for (name, node) in [("near", "node-2.lab"), ("far", "node-1.lab")] {
        fetch(&lab, name, node)?;
        trip.checked(format!("a pod on {node} fetched a page from it, and completed"));
    }
    let said = lab.kubectl(&["exec", "server", "--", "cat", "/www/hello"], MINUTE)?;
    ensure!(said.trim() == "it is me", "kubectl exec printed {said:?}");
    trip.checked("kubectl exec reaches into it");

    let began = Instant::now();
    let node = lab.node("node-2.lab")?;
    let killed = node.processes().len();
    node.kill()?;
    node.start()?;
    serves_again(&lab, "1")?;
    let seconds = began.elapsed().as_secs_f64();
    trip.checked(format!("{killed} processes of node-2 killed: its pod serves again after {seconds:.1} s"));

    let began = Instant::now();
    let node = lab.node("node-2.lab")?;
    node.power_off()?;
    ensure!(node.processes().is_empty(), "node-2 is off, and runs {:?}", node.processes());
    let off = began.elapsed().as_secs_f64();
    lab.node("node-2.lab")?.power_on()?;
    serves_again(&lab, "2")?;
    trip.checked(format!(
        "node-2 lost power ({off:.1} s), booted, and serves again {:.1} s later",
        began.elapsed().as_secs_f64() - off
    ));
    fetch(&lab, "again", "node-1.lab")?;
    trip.checked("a pod on node-1 fetched its page again");

    let began = Instant::now();
    lab.stop()?;
    trip.checked(format!("everything ended in {:.1} s", began.elapsed().as_secs_f64()));
    Ok(())
}

/// A pod with one container that runs a line of shell on a node.
fn pod(name: &str, node: &str, restart: &str, line: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": {
            "nodeSelector": { "kubernetes.io/hostname": node },
            "restartPolicy": restart,
            "terminationGracePeriodSeconds": 0,
            "containers": [{ "name": "main", "image": BUSYBOX, "command": ["/bin/sh", "-c", line] }],
        },
    })
}

/// A pod on `node` reads the server's page and completes.
fn fetch(lab: &Lab<'_>, name: &str, node: &str) -> Result<()> {
    let address = lab.kubectl(&["get", "pod/server", "--output=jsonpath={.status.podIP}"], MINUTE)?;
    // Not -T: it crashes Debian 12's static busybox.
    let line = format!("timeout 20 wget -q -O - http://{address}:8080/hello");
    lab.apply(&pod(name, node, "Never", &line).to_string())?;
    let object = format!("pod/{name}");
    lab.wait_for(&object, ".status.phase", "Succeeded", MINUTE)?;
    let page = lab.kubectl(&["logs", &object], MINUTE)?;
    ensure!(page.trim() == "it is me", "the page is {page:?}");
    Ok(())
}

/// The server runs, after as many restarts.
fn serves_again(lab: &Lab<'_>, restarts: &str) -> Result<()> {
    let path = ".status.containerStatuses[0].restartCount";
    lab.wait_for("pod/server", path, restarts, 2 * MINUTE)?;
    let ready = ["wait", "--for=condition=Ready", "pod/server", "--timeout=120s"];
    lab.kubectl(&ready, 3 * MINUTE).map_err(|error| {
        let described = lab.kubectl(&["describe", "pod/server"], MINUTE).unwrap_or_default();
        error.context(tail(&described, 25))
    })?;
    Ok(())
}

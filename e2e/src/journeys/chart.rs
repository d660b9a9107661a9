//! The chart judged without a cluster: it has no faults that Helm knows, refuses what is misspelt, and the manifests that
//! are checked in are what it renders.

use crate::journey::{Journey, Trip};
use crate::kubernetes::programs::built;
use anyhow::{Context, Result, ensure};
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);
/// Values that nobody can mean, each with the place that the refusal names.
const REFUSED: [(&str, &str); 12] = [
    (r#"node={"disk":["disk:///dev/sdb"]}"#, "/node"),
    (r#"node={"disks":[]}"#, "/node/disks"),
    (r#"node={"disks":["select://"]}"#, "/node/disks/0"),
    (r#"node={"disks":["disk:///dev/sdb?class=fast"]}"#, "/node/disks/0"),
    (r#"node={"disksAllow":["sdb"]}"#, "/node/disksAllow/0"),
    (r#"node={"topologyKeys":["no label"]}"#, "/node/topologyKeys/0"),
    (r#"storageClasses=[{"name":"a","parameters":{"copys":"2"}}]"#, "/storageClasses/0/parameters"),
    (r#"failover={"maxUnavailablePercent":0}"#, "/failover/maxUnavailablePercent"),
    (r#"extender={"clusterIP":"orlop-extender.orlop.svc"}"#, "/extender/clusterIP"),
    (r#"extender={"from":["everybody"]}"#, "/extender/from/0"),
    (r#"extender={"enabled":true}"#, "/extender/from"),
    (r#"contoller={"replicas":1}"#, "contoller"),
];

pub(crate) const CHART: Journey = Journey {
    name: "chart",
    what: "the Helm chart has no faults, refuses unknown values, and deploy/manifests is what it renders",
    run: chart,
};

fn chart(trip: &Trip) -> Result<()> {
    let helm = built("helm")?;
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let chart = deploy.join("chart");
    let about = fs::read_to_string(chart.join("Chart.yaml")).context("read Chart.yaml")?;
    let version = format!("appVersion: {}", env!("CARGO_PKG_VERSION"));
    ensure!(about.lines().any(|line| line == version), "Chart.yaml does not say {version}");

    let mut lint = command(trip, &helm);
    lint.args(["lint", "--strict"]).arg(&chart);
    trip.run(lint, LIMIT)?.success("helm lint")?;
    trip.checked("helm lint finds nothing");

    for (value, place) in REFUSED {
        let mut template = command(trip, &helm);
        template.args(["template", "orlop"]).arg(&chart).args(["--set-json", value]);
        let outcome = trip.run(template, LIMIT)?;
        let refused = outcome.code != Some(0) && outcome.output.contains(place);
        ensure!(refused, "{value} is not refused at {place}: {}", outcome.output);
    }
    trip.checked(format!("{} wrong values are refused by their place", REFUSED.len()));

    let mut render = command(trip, deploy.join("manifests/render.sh"));
    render.arg("--check").env("HELM", &helm);
    trip.run(render, LIMIT)?.success("render.sh --check")?;
    trip.checked("deploy/manifests is what the chart renders");
    Ok(())
}

/// A command that knows nothing of this user's Helm.
fn command(trip: &Trip, program: impl AsRef<OsStr>) -> Command {
    let mut command = trip.command(program);
    for kind in ["CACHE", "CONFIG", "DATA"] {
        command.env(format!("HELM_{kind}_HOME"), trip.folder.join("helm"));
    }
    command
}

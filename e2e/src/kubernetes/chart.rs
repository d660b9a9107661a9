//! Orlop in a cluster of the lab as its users put it there: the image, the sidecars' images, and the chart by Helm.

use super::image::archive;
use super::programs::built;
use super::{Lab, READY};
use crate::journey::Trip;
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Building an image reads and hashes a hundred megabytes.
const IMAGE_LIMIT: Duration = Duration::from_secs(300);
const HELM_LIMIT: Duration = Duration::from_secs(240);
/// As many as the chart makes.
const CONTROLLERS: usize = 2;
/// The release's namespace.
pub(crate) const NAMESPACE: &str = "orlop";
/// The programs beside Orlop's in its pods, and the tags that the chart gives their images.
const SIDECARS: [(&str, &str); 4] = [
    ("csi-provisioner", "v6.3.0"),
    ("csi-attacher", "v4.12.0"),
    ("csi-resizer", "v2.2.0"),
    ("csi-node-driver-registrar", "v2.16.0"),
];

/// Builds the programs before the clock of any check runs.
pub(crate) fn build() -> Result<()> {
    for (name, _) in SIDECARS {
        built(name)?;
    }
    built("helm").map(drop)
}

/// The archives of all images of the chart.
pub(crate) fn images(trip: &Trip) -> Result<Vec<PathBuf>> {
    let folder = trip.folder.join("images");
    fs::create_dir_all(&folder)?;
    let mut images = vec![image(trip, trip.orlop()?, env!("CARGO_PKG_VERSION"))?];
    for (name, tag) in SIDECARS {
        let root = folder.join(name);
        fs::create_dir_all(&root)?;
        fs::copy(built(name)?, root.join(name)).with_context(|| format!("copy {name}"))?;
        let tagged = format!("registry.k8s.io/sig-storage/{name}:{tag}");
        let out = folder.join(format!("{name}.tar"));
        images.push(archive(trip, &tagged, &root, &[&format!("/{name}")], &out)?);
    }
    Ok(images)
}

/// The archive of Orlop's own image, with this program and tag.
pub(crate) fn image(trip: &Trip, orlop: &Path, tag: &str) -> Result<PathBuf> {
    let out = trip.folder.join(format!("images/orlop-{tag}.tar"));
    let mut command = trip.command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["xtask", "image", "--tag", tag, "--orlop"]).arg(orlop).arg("--out").arg(&out);
    command.current_dir(project());
    trip.run(command, IMAGE_LIMIT)?.success("cargo xtask image")?;
    Ok(out)
}

impl Lab<'_> {
    /// Puts the program where kubectl finds it as a plugin.
    pub(crate) fn install_plugin(&self) -> Result<()> {
        fs::create_dir_all(self.plugins())?;
        std::os::unix::fs::symlink(self.site.trip.orlop()?, self.plugins().join("kubectl-orlop"))
            .context("link kubectl-orlop")
    }

    fn plugins(&self) -> PathBuf {
        self.site.folder.join("plugins")
    }

    /// Runs a command of the documentation: in the project's folder, with `helm`, `kubectl` and its plugins in the path.
    pub(crate) fn documented(&self, line: &str) -> Result<String> {
        let mut command = self.site.trip.command("bash");
        command.args(["-e", "-o", "pipefail", "-c", line]).current_dir(project());
        let programs = [built("helm")?, built("kubectl")?];
        let folders = programs.iter().filter_map(|program| program.parent()).map(Path::to_owned);
        let folders = folders.chain([self.plugins()]);
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.env("PATH", std::env::join_paths(folders.chain(std::env::split_paths(&path)))?);
        command.env("KUBECONFIG", &self.kubeconfig);
        for (variable, folder) in [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config")] {
            command.env(variable, self.site.folder.join("helm").join(folder));
        }
        super::direct(&mut command);
        self.site.trip.run(command, HELM_LIMIT)?.success(line)
    }

    /// Waits until all pods of the chart are ready.
    pub(crate) fn wait_orlop(&self) -> Result<()> {
        ["controller", "node", "csi"].iter().try_for_each(|component| self.wait_pods(component))
    }

    /// Waits until controllers and plugins run as often as they should: what comes next may take any node away. Pods of a
    /// node that has just booted are called ready for what was before, so processes count.
    pub(crate) fn wait_whole(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let counts = ["orlop controller", "csi.sock --store"]
                .map(|line| self.nodes.iter().map(|node| node.running(line).len()).sum::<usize>());
            let drivers = self.kubectl(
                &["get", "csinodes", "--output=jsonpath={.items[*].spec.drivers[*].name}"],
                HELM_LIMIT,
            )?;
            let registered = drivers.matches("csi.orlop.io").count();
            if counts[0] >= CONTROLLERS && counts[1] >= self.nodes.len() && registered == self.nodes.len() {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < HELM_LIMIT,
                "controllers and plugins that run: {counts:?}, plugins that kubelets know: {registered}"
            );
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Waits until the pods of a component are ready, and those that they replace are gone.
    fn wait_pods(&self, component: &str) -> Result<()> {
        let selector = format!("--selector=app.kubernetes.io/component={component}");
        let begun = Instant::now();
        loop {
            let pods = self.kubectl(
                &["--namespace", NAMESPACE, "get", "pods", &selector, "--output=json"],
                HELM_LIMIT,
            )?;
            let pods: Value = serde_json::from_str(&pods)?;
            let pods = pods["items"].as_array().context("a list has items")?;
            if !pods.is_empty() && pods.iter().all(stays_ready) {
                return Ok(());
            }
            if begun.elapsed() > READY {
                break;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        let describe = ["--namespace", NAMESPACE, "describe", "pods", &selector];
        let described = self.kubectl(&describe, HELM_LIMIT).unwrap_or_default();
        let logs = ["--namespace", NAMESPACE, "logs", &selector, "--all-containers", "--tail=12", "--prefix"];
        let said = self.kubectl(&logs, HELM_LIMIT).unwrap_or_default();
        bail!("orlop-{component} is not ready\n{}\n{said}", crate::process::tail(&described, 30))
    }
}

/// Whether a pod is ready, and nobody wants it to end.
fn stays_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let mut ready = conditions.filter(|one| one["type"] == "Ready").map(|one| one["status"] == "True");
    pod["metadata"]["deletionTimestamp"].is_null() && ready.next().unwrap_or(false)
}

/// The commands of a document that say that the journey runs them, block by block; there have to be so many blocks.
pub(crate) fn commands<const BLOCKS: usize>(journey: &str, document: &str) -> Result<[Vec<String>; BLOCKS]> {
    // In the line before a block of commands.
    let run_here = format!("the journey `{journey}` runs th");
    let text = fs::read_to_string(project().join(document)).with_context(|| format!("read {document}"))?;
    let block = |rest: &str| -> Vec<String> {
        let block = rest.split("```").nth(1).unwrap_or_default();
        block.lines().filter_map(|line| line.strip_prefix("$ ")).map(str::to_owned).collect()
    };
    let blocks: Vec<_> = text.split(&run_here).skip(1).map(block).collect();
    blocks.try_into().map_err(|found: Vec<_>| {
        anyhow!("{document} has {} blocks of commands for the journey, not {BLOCKS}", found.len())
    })
}

pub(crate) fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("e2e is in the project's folder")
}

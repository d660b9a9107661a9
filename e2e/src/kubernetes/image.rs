//! Container images without a registry: one layer from a folder, as an archive that `ctr images import` reads.
//!
//! 1. The same files give the same bytes: names are sorted, owners and times are set to nothing.

use crate::journey::Trip;
use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);
/// What containerd starts for every pod, to hold its namespaces; its default name, which nobody pulls here.
pub(crate) const PAUSE: &str = "registry.k8s.io/pause:3.10";
/// The same by the name that the documentation uses: `busybox:1`.
const USUAL_BUSYBOX: &str = "docker.io/library/busybox:1";
/// A shell and the usual small programs.
pub(crate) const BUSYBOX: &str = "orlop.test/busybox:1";

/// The images that every cluster has; their archives.
pub(crate) fn basic(trip: &Trip, folder: &Path) -> Result<Vec<PathBuf>> {
    let root = folder.join("busybox");
    busybox(trip, &root)?;
    let pause = archive(trip, PAUSE, &root, &["/bin/tail", "-f", "/dev/null"], &folder.join("pause.tar"))?;
    let shell = archive(trip, BUSYBOX, &root, &[], &folder.join("busybox.tar"))?;
    let usual = archive(trip, USUAL_BUSYBOX, &root, &[], &folder.join("usual.tar"))?;
    Ok(vec![pause, shell, usual])
}

/// A root with busybox under all its names.
fn busybox(trip: &Trip, root: &Path) -> Result<()> {
    for name in ["bin", "etc", "tmp", "var"] {
        fs::create_dir_all(root.join(name))?;
    }
    let program = crate::guest::which("busybox").context("busybox is installed")?;
    fs::copy(&program, root.join("bin/busybox"))?;
    for applet in trip.sh("busybox --list", LIMIT)?.lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    Ok(())
}

/// Writes the image `name` with the files below `root` to `out`.
pub(crate) fn archive(
    trip: &Trip,
    name: &str,
    root: &Path,
    entrypoint: &[&str],
    out: &Path,
) -> Result<PathBuf> {
    let staging = out.with_extension("parts");
    fs::create_dir_all(&staging)?;
    let layer = staging.join("layer.tar");
    tar(trip, root, ".", &layer)?;
    let digest = hex(&fs::read(&layer)?);
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let config = serde_json::to_vec(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Env": [path], "Entrypoint": entrypoint, "WorkingDir": "/" },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
        "history": [{ "created_by": "orlop-e2e" }],
    }))?;
    let config_name = format!("{}.json", hex(&config));
    fs::write(staging.join(&config_name), config)?;
    let manifest = json!([{ "Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"] }]);
    fs::write(staging.join("manifest.json"), serde_json::to_vec(&manifest)?)?;
    tar(trip, &staging, ".", out)?;
    fs::remove_dir_all(&staging)?;
    Ok(out.to_owned())
}

fn tar(trip: &Trip, folder: &Path, what: &str, out: &Path) -> Result<()> {
    let mut command = trip.command("tar");
    command.args(["--create", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0"]);
    command.arg("--file").arg(out).arg("--directory").arg(folder).arg(what);
    trip.run(command, LIMIT)?.success(&format!("tar of {}", folder.display()))?;
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

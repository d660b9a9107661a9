//! The Go programs of a Kubernetes cluster, built once from pinned sources (`e2e/kubernetes/tools`) into the user's cache.
//!
//! 1. A program in the cache is whole: it is linked under another name and renamed.
//! 2. Its folder is named by all that it is made of: the modules, their sums, the Go that compiles them and its options.
//! 3. A build ends with the harness, and what it had compiled by then is not compiled again.

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// What a cluster runs: the tools that `e2e/kubernetes/tools/go.mod` lists, and a program of that module itself.
const PACKAGES: [&str; 9] = [
    "k8s.io/kubernetes/cmd/kube-apiserver",
    "k8s.io/kubernetes/cmd/kube-controller-manager",
    "k8s.io/kubernetes/cmd/kube-scheduler",
    "k8s.io/kubernetes/cmd/kubelet",
    "k8s.io/kubernetes/cmd/kubectl",
    "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner",
    "github.com/kubernetes-csi/external-attacher/v4/cmd/csi-attacher",
    "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer",
    "orlop.io/e2e/kubernetes/tools/csi-node-driver-registrar",
];
/// All that a program is made of.
const SOURCES: [&str; 3] = ["go.mod", "go.sum", "csi-node-driver-registrar/main.go"];
/// Where the programs keep what `kubectl version` and the nodes' list show.
const VERSION: &str = "k8s.io/component-base/version";

/// The program `name` of this source tree's Kubernetes, built if the cache does not have it (minutes, once).
pub(crate) fn built(name: &str) -> Result<PathBuf> {
    let package = package(name)?;
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("kubernetes/tools");
    let modules = fs::read_to_string(recipe.join("go.mod")).context("read the list of Go modules")?;
    let options = link_options(&modules)?;
    let folder = cache()?.join("kubernetes").join(key(&recipe, &options)?).join("bin");
    let program = folder.join(name);
    if program.is_file() {
        return Ok(program);
    }
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    println!("  building {name} from Go sources, once for this version");
    let begun = Instant::now();
    let unfinished = folder.join(format!(".{name}.{}", std::process::id()));
    let mut command = go(&recipe)?;
    command.args(["build", "-trimpath", "-ldflags", &options, "-o"]).arg(&unfinished).arg(package);
    let status = command.status().context("run go")?;
    ensure!(status.success(), "go could not build {name} from {}: {status}", recipe.display());
    fs::rename(&unfinished, &program).with_context(|| format!("name {}", program.display()))?;
    println!("  built {name} in {:.0} s", begun.elapsed().as_secs_f64());
    Ok(program)
}

/// The names of all of them, in the order in which a cluster needs them.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    PACKAGES.into_iter().filter_map(|package| package.rsplit('/').next())
}

fn package(name: &str) -> Result<&'static str> {
    let of_name = |package: &&str| package.rsplit('/').next() == Some(name);
    PACKAGES.into_iter().find(of_name).with_context(|| format!("there is no recipe for {name}"))
}

/// The folder of all that Orlop's tests keep for this user.
fn cache() -> Result<PathBuf> {
    let folder = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(cache), _) if !cache.is_empty() => PathBuf::from(cache),
        (_, Some(home)) => Path::new(&home).join(".cache"),
        _ => anyhow::bail!("neither XDG_CACHE_HOME nor HOME is set: they name the cache"),
    };
    Ok(folder.join("orlop"))
}

/// Small programs that say their version: charts and clients judge a cluster by it.
fn link_options(modules: &str) -> Result<String> {
    let version = modules
        .lines()
        .find_map(|line| line.trim().trim_start_matches("require ").strip_prefix("k8s.io/kubernetes v"))
        .and_then(|rest| rest.split_whitespace().next())
        .context("go.mod requires no k8s.io/kubernetes")?;
    let mut parts = version.split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    Ok(format!(
        "-s -w -X {VERSION}.gitVersion=v{version} -X {VERSION}.gitMajor={major} -X {VERSION}.gitMinor={minor}"
    ))
}

/// Invariant 2.
fn key(recipe: &Path, options: &str) -> Result<String> {
    let mut hash = Sha256::new();
    for name in SOURCES {
        hash.update(fs::read(recipe.join(name)).with_context(|| format!("read {name}"))?);
    }
    let version = go(recipe)?.arg("version").output().context("run go version")?;
    ensure!(version.status.success(), "go version: {}", String::from_utf8_lossy(&version.stderr));
    hash.update(&version.stdout);
    hash.update(options);
    Ok(hash.finalize().iter().take(6).fold(String::new(), |key, byte| format!("{key}{byte:02x}")))
}

/// A command of Go in the recipe's folder, with its caches beside ours.
fn go(recipe: &Path) -> Result<Command> {
    ensure!(
        crate::guest::which("go").is_some(),
        "there is no go in the path, and Kubernetes is built with it: install Go 1.26 or newer (https://go.dev/dl); \
         Debian 12's own is too old"
    );
    let cache = cache()?.join("go");
    // setpriv: invariant 3. Nice: the build may be beside journeys that measure time.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "nice", "go"]).current_dir(recipe);
    command.env("GOMODCACHE", cache.join("mod")).env("GOCACHE", cache.join("build"));
    command.env("GOFLAGS", "-modcacherw -buildvcs=false").env("CGO_ENABLED", "0").env("GOWORK", "off");
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_is_a_tool_of_the_module() {
        let modules = include_str!("../../kubernetes/tools/go.mod");
        for package in PACKAGES.iter().filter(|package| !package.starts_with("orlop.io/")) {
            assert!(modules.contains(&format!("\t{package}\n")), "{package} is not in go.mod");
        }
        assert!(link_options(modules).unwrap().contains("gitVersion=v1."));
    }

    #[test]
    fn a_program_is_known_by_its_whole_name() {
        assert_eq!(package("kubelet").unwrap(), "k8s.io/kubernetes/cmd/kubelet");
        assert!(package("let").is_err());
        assert!(names().all(|name| package(name).is_ok()));
    }
}

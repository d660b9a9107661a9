//! The Go programs of a Kubernetes cluster and of those who use it, built once from pinned sources (the modules below
//! `e2e/kubernetes`) into the user's cache.
//!
//! 1. A program in the cache is whole: it is linked under another name and renamed.
//! 2. Its folder is named by all that it is made of: the modules, their sums, the Go that compiles them and its options.
//! 3. A build ends with the harness, and what it had compiled by then is not compiled again.

use crate::cache::cache;
use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// A Go module below `e2e/kubernetes`: programs whose libraries have the same versions.
struct Recipe {
    folder: &'static str,
    /// All that its programs are made of.
    sources: &'static [&'static str],
    /// The module whose version they say.
    versioned: &'static str,
    /// Where the linker writes the version that is given, for those who ask a program for it.
    stamps: fn(&str) -> Vec<(&'static str, String)>,
}

/// What a cluster runs.
const TOOLS: Recipe = Recipe {
    folder: "tools",
    sources: &["go.mod", "go.sum", "csi-node-driver-registrar/main.go"],
    versioned: "k8s.io/kubernetes",
    // What `kubectl version` and the nodes' list show; charts and clients judge a cluster by it.
    stamps: |version| {
        let mut parts = version.split('.').map(str::to_owned);
        let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        vec![
            ("k8s.io/component-base/version.gitVersion", format!("v{version}")),
            ("k8s.io/component-base/version.gitMajor", major),
            ("k8s.io/component-base/version.gitMinor", minor),
        ]
    },
};

/// What installs the chart. A module of its own: its libraries do not choose the versions of a cluster's.
const HELM: Recipe = Recipe {
    folder: "helm",
    sources: &["go.mod", "go.sum"],
    versioned: "helm.sh/helm/v4",
    stamps: |version| vec![("helm.sh/helm/v4/internal/version.version", format!("v{version}"))],
};

/// The tools that each module's `go.mod` lists, and a program of one of them itself.
const PACKAGES: [(&Recipe, &str); 10] = [
    (&TOOLS, "k8s.io/kubernetes/cmd/kube-apiserver"),
    (&TOOLS, "k8s.io/kubernetes/cmd/kube-controller-manager"),
    (&TOOLS, "k8s.io/kubernetes/cmd/kube-scheduler"),
    (&TOOLS, "k8s.io/kubernetes/cmd/kubelet"),
    (&TOOLS, "k8s.io/kubernetes/cmd/kubectl"),
    (&TOOLS, "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner"),
    (&TOOLS, "github.com/kubernetes-csi/external-attacher/v4/cmd/csi-attacher"),
    (&TOOLS, "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer"),
    (&TOOLS, "orlop.io/e2e/kubernetes/tools/csi-node-driver-registrar"),
    (&HELM, "helm.sh/helm/v4/cmd/helm"),
];

/// The program `name` of this source tree's Kubernetes, built if the cache does not have it (minutes, once).
pub(crate) fn built(name: &str) -> Result<PathBuf> {
    let (recipe, package) = package(name)?;
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("kubernetes").join(recipe.folder);
    let modules = fs::read_to_string(module.join("go.mod")).context("read the list of Go modules")?;
    let options = recipe.link_options(&modules)?;
    let folder = cache()?.join("kubernetes").join(key(&module, recipe.sources, &options)?).join("bin");
    let program = folder.join(name);
    if program.is_file() {
        return Ok(program);
    }
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    // The run beside this one may need it as well, and each takes minutes.
    let alone = fs::File::open(&folder)?;
    alone.lock().with_context(|| format!("lock {}", folder.display()))?;
    if program.is_file() {
        return Ok(program);
    }
    println!("  building {name} from Go sources, once for this version");
    let begun = Instant::now();
    let unfinished = folder.join(format!(".{name}.{}", std::process::id()));
    let mut command = go(&module)?;
    command.args(["build", "-trimpath", "-ldflags", &options, "-o"]).arg(&unfinished).arg(package);
    let status = command.status().context("run go")?;
    ensure!(status.success(), "go could not build {name} from {}: {status}", module.display());
    fs::rename(&unfinished, &program).with_context(|| format!("name {}", program.display()))?;
    println!("  built {name} in {:.0} s", begun.elapsed().as_secs_f64());
    Ok(program)
}

/// The names of all of them, in the order in which a cluster needs them.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    PACKAGES.into_iter().filter_map(|(_, package)| package.rsplit('/').next())
}

fn package(name: &str) -> Result<(&'static Recipe, &'static str)> {
    let of_name = |(_, package): &(_, &str)| package.rsplit('/').next() == Some(name);
    PACKAGES.into_iter().find(of_name).with_context(|| format!("there is no recipe for {name}"))
}

impl Recipe {
    /// Small programs that say their version.
    fn link_options(&self, modules: &str) -> Result<String> {
        let required = format!("{} v", self.versioned);
        let version = modules
            .lines()
            .find_map(|line| line.trim().trim_start_matches("require ").strip_prefix(&required))
            .and_then(|rest| rest.split_whitespace().next())
            .with_context(|| format!("go.mod requires no {}", self.versioned))?;
        let stamps = (self.stamps)(version).into_iter();
        Ok(stamps.fold("-s -w".to_owned(), |all, (name, value)| format!("{all} -X {name}={value}")))
    }
}

/// Invariant 2.
fn key(module: &Path, sources: &[&str], options: &str) -> Result<String> {
    let mut hash = Sha256::new();
    for name in sources {
        hash.update(fs::read(module.join(name)).with_context(|| format!("read {name}"))?);
    }
    let version = go(module)?.arg("version").output().context("run go version")?;
    ensure!(version.status.success(), "go version: {}", String::from_utf8_lossy(&version.stderr));
    hash.update(&version.stdout);
    hash.update(options);
    Ok(hash.finalize().iter().take(6).fold(String::new(), |key, byte| format!("{key}{byte:02x}")))
}

/// A command of Go in a module's folder, with its caches beside ours.
fn go(module: &Path) -> Result<Command> {
    ensure!(
        crate::guest::which("go").is_some(),
        "there is no go in the path, and Kubernetes is built with it: install Go 1.26 or newer (https://go.dev/dl); \
         Debian 12's own is too old"
    );
    let cache = cache()?.join("go");
    // setpriv: invariant 3. Nice: the build may be beside journeys that measure time.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "nice", "go"]).current_dir(module);
    command.env("GOMODCACHE", cache.join("mod")).env("GOCACHE", cache.join("build"));
    command.env("GOFLAGS", "-modcacherw -buildvcs=false").env("CGO_ENABLED", "0").env("GOWORK", "off");
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_is_a_tool_of_its_module() {
        for (recipe, modules) in [
            (&TOOLS, include_str!("../../kubernetes/tools/go.mod")),
            (&HELM, include_str!("../../kubernetes/helm/go.mod")),
        ] {
            let own = format!("orlop.io/e2e/kubernetes/{}", recipe.folder);
            assert!(modules.contains(&format!("module {own}\n")));
            let of_it = PACKAGES.iter().filter(|(of, _)| of.folder == recipe.folder);
            for (_, package) in of_it.filter(|(_, package)| !package.starts_with(&own)) {
                let listed = |line: &str| line.trim_start_matches("tool").trim() == *package;
                assert!(modules.lines().any(listed), "{package} is not in go.mod");
            }
        }
    }

    #[test]
    fn programs_say_the_version_that_is_required() {
        let options = TOOLS.link_options("require (\n\tk8s.io/kubernetes v1.36.3\n)\n").unwrap();
        let at = "k8s.io/component-base/version";
        let said = format!("-X {at}.gitVersion=v1.36.3 -X {at}.gitMajor=1 -X {at}.gitMinor=36");
        assert_eq!(options, format!("-s -w {said}"));
        let options = HELM.link_options("require helm.sh/helm/v4 v4.3.1 // indirect\n").unwrap();
        assert_eq!(options, "-s -w -X helm.sh/helm/v4/internal/version.version=v4.3.1");
        assert!(HELM.link_options("module x\n").is_err());
    }

    #[test]
    fn a_program_is_known_by_its_whole_name() {
        assert_eq!(package("kubelet").unwrap().1, "k8s.io/kubernetes/cmd/kubelet");
        assert!(package("let").is_err());
        assert!(names().all(|name| package(name).is_ok()));
    }
}

//! An older Orlop, from this project's history: its program, built once into the user's cache, and its chart.
//!
//! 1. What is in the cache is whole: it is made under another name and renamed.

use super::chart::project;
use crate::cache::cache;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// It knows no zones, no readers, no partitions, and nothing of what may be deleted. There are no releases yet; a step
/// of the format or of the protocols that ends what it can do moves this on, and says so in the changelog.
const COMMIT: &str = "6c64ea4f3546f7e4a6d9eaafdc5ccfd7cda00701";

/// The version that it says of itself, which is today's as well; and what it is called here.
const ITS_OWN: &str = "0.1.0";
pub(crate) const VERSION: &str = "0.0.1";

pub(crate) struct Older {
    /// Its program.
    pub(crate) orlop: PathBuf,
    /// The folder of its chart.
    pub(crate) chart: PathBuf,
}

impl Older {
    /// The first letters of its commit.
    pub(crate) fn name() -> &'static str {
        COMMIT.split_at(7).0
    }

    /// What the cache has, or can be given (a minute or two, once) where this clone has the history. `target` is where
    /// cargo keeps what this project's own build has compiled.
    pub(crate) fn built(target: &Path) -> Result<Self> {
        let folder = cache()?.join("older").join(Self::name());
        let older = Self { orlop: folder.join("orlop"), chart: folder.join("chart") };
        if folder.is_dir() {
            return Ok(older);
        }
        ensure_known(project())?;
        println!("  building Orlop {}, once", Self::name());
        let begun = Instant::now();
        let making = folder.with_extension("making");
        make(&making, target)?;
        fs::rename(&making, &folder).with_context(|| format!("name {}", folder.display()))?;
        println!("  built Orlop {} in {:.0} s", Self::name(), begun.elapsed().as_secs_f64());
        Ok(older)
    }
}

/// Refuses a folder whose git does not know the commit: what is not run would be called fine.
fn ensure_known(folder: &Path) -> Result<()> {
    let asked = |arguments: &[&str]| git(folder).args(arguments).output().context("run git");
    if asked(&["rev-parse", "--quiet", "--verify", &format!("{COMMIT}^{{commit}}")])?.status.success() {
        return Ok(());
    }
    let shallow = asked(&["rev-parse", "--is-shallow-repository"])?;
    let (name, folder) = (Older::name(), folder.display());
    let why = String::from_utf8_lossy(&shallow.stderr);
    ensure!(
        shallow.status.success(),
        "there is no history in {folder}, and an older Orlop ({name}) is built from it: {}; run this in a clone",
        why.trim()
    );
    ensure!(
        shallow.stdout.trim_ascii() != b"true",
        "{folder} is a shallow clone without {name}, which is to be built: `git fetch --unshallow` brings it"
    );
    bail!("{folder} has a history without {name}, which is to be built: fetch it from Orlop's repository")
}

/// Makes all of it in a folder, where an attempt that was ended may have left something.
fn make(folder: &Path, target: &Path) -> Result<()> {
    let sources = folder.join("sources");
    fs::create_dir_all(&sources).with_context(|| format!("create {}", sources.display()))?;
    let archive = folder.join("sources.tar");
    run(git(project()).args(["archive", COMMIT, "--output"]).arg(&archive))?;
    run(Command::new("tar").arg("--extract").arg("--file").arg(&archive).arg("--directory").arg(&sources))?;
    for file in ["Cargo.toml", "deploy/chart/Chart.yaml"] {
        renumber(&sources.join(file))?;
    }
    // setpriv: it ends with the harness. Nice: it may be beside journeys that measure time. `--workspace`: packages of
    // others with the features with which they are compiled already.
    let mut cargo = Command::new("setpriv");
    cargo.args(["--pdeathsig", "KILL", "nice"]);
    cargo.arg(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--workspace", "--bin", "orlop", "--target-dir"]);
    run(cargo.arg(target).current_dir(&sources))?;
    let program = folder.join("orlop");
    run(Command::new("strip").arg("-o").arg(&program).arg(target.join("debug/orlop")))?;
    fs::rename(sources.join("deploy/chart"), folder.join("chart")).context("take the chart")?;
    fs::remove_file(archive)?;
    fs::remove_dir_all(sources)?;
    Ok(())
}

/// Gives its packages, or its chart, the older version: to cargo they are others than this project's, in one folder.
fn renumber(path: &Path) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    ensure!(text.contains(ITS_OWN), "{} does not say {ITS_OWN}", path.display());
    fs::write(path, text.replace(ITS_OWN, VERSION)).with_context(|| format!("write {}", path.display()))
}

fn git(folder: &Path) -> Command {
    let mut git = Command::new("git");
    git.current_dir(folder);
    git
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(folder: &Path, arguments: &[&str]) {
        let who = ["-c", "user.name=a", "-c", "user.email=a@b"];
        let made = git(folder).args(who).args(arguments).output().unwrap();
        assert!(made.status.success(), "{arguments:?}: {made:?}");
    }

    #[test]
    fn a_folder_without_the_history_is_refused_and_says_what_helps() {
        let temp = tempfile::tempdir().unwrap();
        let folder = |name: &str| {
            let folder = temp.path().join(name);
            fs::create_dir(&folder).unwrap();
            folder
        };
        let refused = |folder: &Path, part: &str| {
            let why = ensure_known(folder).unwrap_err().to_string();
            assert!(why.contains(part) && why.contains(Older::name()), "{why}");
        };
        refused(&folder("archive"), "run this in a clone");
        let other = folder("other");
        made(&other, &["init", "--quiet"]);
        refused(&other, "fetch it from Orlop's repository");
        for message in ["one", "two"] {
            made(&other, &["commit", "--quiet", "--allow-empty", "--message", message]);
        }
        let url = format!("file://{}", other.display());
        made(temp.path(), &["clone", "--quiet", "--depth=1", &url, "shallow"]);
        refused(&temp.path().join("shallow"), "`git fetch --unshallow`");
    }
}

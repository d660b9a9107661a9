//! Rules that the compiler does not know. Each check is a pure function from what was read to its findings.

mod docs;
mod files;
mod packages;

use anyhow::{Context, Result, bail};
use cargo_metadata::{Metadata, MetadataCommand};
use std::path::Path;
use std::process::Command;

/// One broken rule: where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding(pub(crate) String);

/// A file of the project.
pub(crate) struct Source {
    /// Relative to the root.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// `cargo xtask tidy`: prints every finding, and fails if there is one.
pub(crate) fn run(root: &Path) -> Result<()> {
    let sources = sources(root)?;
    let metadata = metadata(root)?;
    let mut findings = Vec::new();
    for source in &sources {
        findings.extend(files::check(source));
        findings.extend(docs::check_links(root, source));
    }
    findings.extend(packages::check_walls(&metadata));
    findings.extend(packages::check_licences(&metadata));
    findings.extend(packages::check_lints(root, &metadata)?);
    let (duplicates, report) = packages::check_duplicates(&metadata);
    findings.extend(duplicates);
    findings.sort();
    println!("tidy: {} files, {} packages; {report}", sources.len(), metadata.packages.len());
    for Finding(text) in &findings {
        eprintln!("tidy: {text}");
    }
    if !findings.is_empty() {
        bail!("{} broken rules", findings.len());
    }
    Ok(())
}

/// What cargo knows of the workspace and all packages it uses.
pub(crate) fn metadata(root: &Path) -> Result<Metadata> {
    MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .other_options(vec!["--locked".to_owned()])
        .exec()
        .context("cannot read the workspace; is Cargo.lock up to date?")
}

/// All text files that git tracks, or would track.
fn sources(root: &Path) -> Result<Vec<Source>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .current_dir(root)
        .output()
        .context("cannot run git")?;
    if !output.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let paths = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    let mut sources = Vec::new();
    for path in paths.split('\0').filter(|path| !path.is_empty()) {
        let file = root.join(path);
        // A file that was removed but not yet committed is still listed.
        let Ok(bytes) = std::fs::read(&file) else { continue };
        if let Ok(text) = String::from_utf8(bytes) {
            sources.push(Source { path: path.to_owned(), text });
        }
    }
    if sources.is_empty() {
        bail!("git lists no files in {}", root.display());
    }
    Ok(sources)
}

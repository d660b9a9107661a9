//! Rules of packages: the walls between the stages, licences, packages that are not wanted, duplicates.

use super::Finding;
use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, Metadata, Package};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The stages of the path of a byte, lowest first: a crate depends only on crates before it.
const DATA: [&str; 8] = [
    "orlop-rt",
    "orlop-device",
    "orlop-pool",
    "orlop-disks",
    "orlop-nvmf",
    "orlop-nexus",
    "orlop-frontend",
    "orlop-engine",
];
/// The control plane, lowest first.
const CONTROL: [&str; 6] =
    ["orlop-model", "orlop-store", "orlop-k8s", "orlop-manager", "orlop-api", "orlop-csi"];
/// The data crates that share nouns with the control plane.
const MAY_USE_MODEL: [&str; 4] = ["orlop-pool", "orlop-disks", "orlop-nexus", "orlop-engine"];

/// Licences that need nothing but a notice.
const LICENCES: [&str; 12] = [
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "MIT",
    "MIT-0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
];

/// Packages that bring C libraries or build tools with them; `cargo build` alone must do.
const UNWANTED: [&str; 7] =
    ["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "bindgen", "cmake", "native-tls"];

/// Packages present in several versions, all through others. Remove one from here when it is gone; think before adding.
const DUPLICATES_ACCEPTED: [&str; 9] = [
    "base64",
    "crypto-common",
    "digest",
    "getrandom",
    "hashbrown",
    "prettyplease",
    "syn",
    "unicode-width",
    "windows-sys",
];

/// Whether the crate `from` may depend on the crate `to`, both of this workspace.
fn may_depend(from: &str, to: &str) -> bool {
    let below = |order: &[&str]| {
        let place = |name| order.iter().position(|listed| *listed == name);
        matches!((place(to), place(from)), (Some(lower), Some(upper)) if lower < upper)
    };
    match from {
        "orlop" => true,
        // For the generated client.
        "orlop-e2e" => to == "orlop-csi",
        "orlop-sim" => DATA.contains(&to) || ["orlop-model", "orlop-manager"].contains(&to),
        _ => below(&DATA) || below(&CONTROL) || (to == "orlop-model" && MAY_USE_MODEL.contains(&from)),
    }
}

/// Dependencies between packages of the workspace that go through a wall.
pub(super) fn check_walls(metadata: &Metadata) -> Vec<Finding> {
    let names: BTreeSet<&str> = members(metadata).map(|package| package.name.as_str()).collect();
    let mut findings = Vec::new();
    for package in members(metadata) {
        for dependency in &package.dependencies {
            let (from, to) = (package.name.as_str(), dependency.name.as_str());
            if names.contains(to) && from != to && !may_depend(from, to) {
                findings.push(Finding(format!(
                    "{from} may not depend on {to}: a crate uses those below it on the path of a byte only \
                     (ARCHITECTURE.md, Walls)"
                )));
            }
        }
    }
    findings
}

/// Every package of the workspace takes the lints of the workspace.
pub(super) fn check_lints(root: &Path, metadata: &Metadata) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for package in members(metadata) {
        let text = std::fs::read_to_string(&package.manifest_path)
            .with_context(|| format!("cannot read {}", package.manifest_path))?;
        if !text.contains("[lints]\nworkspace = true") {
            let path = package.manifest_path.strip_prefix(root.to_string_lossy().as_ref());
            let path = path.unwrap_or(&package.manifest_path);
            findings.push(Finding(format!("{path}: add `[lints]` with `workspace = true`")));
        }
    }
    Ok(findings)
}

/// Packages whose licence is not on the list, or that are not wanted.
pub(super) fn check_licences(metadata: &Metadata) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in &metadata.packages {
        let (name, version) = (&package.name, &package.version);
        if UNWANTED.contains(&name.as_str()) && reached_by_build(metadata, package) {
            findings
                .push(Finding(format!("{name} {version} is not wanted here: find out with `cargo tree -i`")));
        }
        match &package.license {
            Some(licence) if licence_is_fine(licence) => {}
            Some(licence) => {
                findings.push(Finding(format!("{name} {version}: licence {licence:?} is not listed")));
            }
            None => findings.push(Finding(format!("{name} {version} names no licence"))),
        }
    }
    findings
}

/// Whether anything but a test needs the package.
fn reached_by_build(metadata: &Metadata, package: &Package) -> bool {
    metadata.packages.iter().flat_map(|user| &user.dependencies).any(|dependency| {
        dependency.name == package.name.as_str()
            && dependency.kind != DependencyKind::Development
            && !dependency.optional
    })
}

/// Whether an SPDX expression leaves a choice of listed licences only. Parentheses are flattened: every `AND` part must
/// then have a listed alternative, which is stricter than the expression, never laxer.
fn licence_is_fine(expression: &str) -> bool {
    let flat = expression.replace(['(', ')'], "").replace('/', " OR ");
    flat.split(" AND ").all(|part| part.split(" OR ").any(|name| LICENCES.contains(&name.trim())))
}

/// Packages in several versions that are not on the accepted list, and a line for the reader.
pub(super) fn check_duplicates(metadata: &Metadata) -> (Vec<Finding>, String) {
    let mut versions: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for package in &metadata.packages {
        versions.entry(package.name.as_str()).or_default().insert(package.version.to_string());
    }
    versions.retain(|_, versions| versions.len() > 1);
    let list = |versions: &BTreeSet<String>| versions.iter().cloned().collect::<Vec<_>>().join(" and ");
    let findings = versions
        .iter()
        .filter(|(name, _)| !DUPLICATES_ACCEPTED.contains(name))
        .map(|(name, versions)| {
            Finding(format!(
                "{name} is here as {}: use one version, or accept it in xtask/src/tidy/packages.rs",
                list(versions)
            ))
        })
        .collect();
    let shown: Vec<String> =
        versions.iter().map(|(name, versions)| format!("{name} {}", list(versions))).collect();
    (
        findings,
        format!("in several versions: {}", if shown.is_empty() { "none".into() } else { shown.join(", ") }),
    )
}

fn members(metadata: &Metadata) -> impl Iterator<Item = &Package> {
    metadata.packages.iter().filter(|package| metadata.workspace_members.contains(&package.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walls() {
        for (from, to, allowed) in [
            ("orlop-pool", "orlop-device", true),
            ("orlop-device", "orlop-pool", false),
            ("orlop-nvmf", "orlop-engine", false),
            ("orlop-pool", "orlop-model", true),
            ("orlop-nvmf", "orlop-model", false),
            ("orlop-engine", "orlop-store", false),
            ("orlop-api", "orlop-manager", true),
            ("orlop-k8s", "orlop-store", true),
            ("orlop-store", "orlop-k8s", false),
            ("orlop-manager", "orlop-api", false),
            ("orlop-manager", "orlop-pool", false),
            ("orlop-sim", "orlop-manager", true),
            ("orlop-sim", "orlop-api", false),
            ("orlop", "orlop-api", true),
            ("xtask", "orlop-rt", false),
        ] {
            assert_eq!(may_depend(from, to), allowed, "{from} -> {to}");
        }
    }

    #[test]
    fn licences() {
        for (expression, fine) in [
            ("MIT", true),
            ("MIT OR Apache-2.0", true),
            ("MIT/Apache-2.0", true),
            ("GPL-3.0", false),
            ("GPL-3.0 OR MIT", true),
            ("MIT AND GPL-3.0", false),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT", true),
        ] {
            assert_eq!(licence_is_fine(expression), fine, "{expression}");
        }
    }
}

//! `orlop preflight`: what this machine allows, and what to do about the rest; `dev` and `demo` say the rest at their start.

use crate::arguments::Preflight;
use crate::failure::{Failure, Outcome};
use crate::output;
use rt::preflight::{Finding, Need};
use serde::Serialize;
use std::path::Path;

/// One feature, as programs see it.
#[derive(Debug, Serialize)]
pub(crate) struct Checked {
    feature: &'static str,
    ok: bool,
    need: &'static str,
    detail: String,
    remedy: String,
}

impl From<Finding> for Checked {
    fn from(finding: Finding) -> Self {
        let Finding { feature, ok, need, detail, remedy } = finding;
        Self { feature, ok, need: name(need), detail, remedy }
    }
}

const fn name(need: Need) -> &'static str {
    match need {
        Need::Required => "Required",
        Need::Helpful => "Helpful",
        Need::Attach => "Attach",
    }
}

/// Everything that can be found out, with the folder of the disks if there is one.
fn find(data: Option<&Path>) -> Vec<Finding> {
    let mut findings = rt::preflight::check();
    findings.extend(data.map(rt::preflight::check_folder));
    findings
}

/// Whether volumes can become devices by the kernel's own initiator; they always can over FUSE.
fn nvme_tcp() -> Finding {
    let usable = frontend::nvme::usable(&frontend::nvme::System::default(), true);
    let ok = usable.is_ok();
    let (detail, remedy) = usable.map_or_else(
        |(detail, remedy)| (format!("{detail}; devices can be made over FUSE only"), remedy),
        |detail| (detail, String::new()),
    );
    Finding { feature: "NVMe/TCP devices", ok, need: Need::Helpful, detail, remedy }
}

/// The same, with what only makes another choice: nobody has to be warned of it.
fn find_all(data: Option<&Path>) -> Vec<Finding> {
    let mut findings = find(data);
    findings.push(nvme_tcp());
    findings
}

/// All of it without a folder, for the bundle of support.
pub(crate) fn checked() -> Vec<Checked> {
    find_all(None).into_iter().map(Checked::from).collect()
}

/// Runs `orlop preflight`.
pub(crate) fn run(arguments: &Preflight) -> Outcome {
    let findings = find_all(arguments.data.as_deref());
    let missing: Vec<&str> = findings
        .iter()
        .filter(|finding| !finding.ok && finding.need == Need::Required)
        .map(|finding| finding.feature)
        .collect();
    let failure = Failure::new(format!("this machine cannot run nodes: {}", missing.join(", ")))
        .hint("the remedies are above");
    let failed = !missing.is_empty();
    let features: Vec<Checked> = findings.into_iter().map(Checked::from).collect();
    output::show(arguments.output.output, &features, |features| {
        let row = |feature: &Checked| {
            let state = match (feature.ok, feature.need) {
                (true, _) => "ok",
                (false, "Required") => "nodes cannot run",
                (false, "Attach") => "no block devices",
                (false, _) => "works with less",
            };
            vec![feature.feature.to_owned(), state.to_owned(), feature.detail.clone(), feature.remedy.clone()]
        };
        output::table(&["FEATURE", "STATE", "FOUND", "REMEDY"], features.iter().map(row).collect(), "")
    })?;
    if failed { Err(failure) } else { Ok(()) }
}

/// Says on standard error, in the name of `command`, what is not as it should be, as far as it `matters`: a line each,
/// nothing if all is well.
pub(crate) fn warn(command: &str, data: Option<&Path>, matters: impl Fn(Need) -> bool) {
    for finding in find(data).iter().filter(|finding| !finding.ok && matters(finding.need)) {
        let Finding { feature, detail, remedy, .. } = finding;
        eprintln!("{command}: {feature}: {detail}; {remedy}");
    }
}

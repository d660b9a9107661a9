//! The commands that run other programs: tests, the whole of CI, simulation, journeys, measurements.

use crate::count::Count;
use crate::image;
use crate::stage::{Stages, run};
use crate::tidy;
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Seeds of the simulator in CI.
const SIM_SEEDS: &str = "200";
/// Where the search for planted bugs begins: the rarest of them (I6) is found soon from here on. Another place costs time only.
const SIM_FIND_FROM: &str = "100";

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct TestArguments {
    /// Tests of this package only (for example `orlop-pool`).
    #[arg(long, short)]
    package: Option<String>,
}

/// Arguments of `cargo xtask ci`.
#[derive(clap::Args)]
pub(crate) struct CiArguments {
    /// Leave the journeys out, which need root; CI never does.
    #[arg(long)]
    without_e2e: bool,
}

/// Arguments that go to the program behind the command as they are.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct PassedOn {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// `cargo xtask test`.
pub(crate) fn test(root: &Path, arguments: &TestArguments) -> Result<()> {
    let mut stages = Stages::default();
    stages.run("test", |count| {
        let mut command = cargo(root, &["test"]);
        match &arguments.package {
            Some(package) => command.args(["--package", package]),
            None => command.arg("--workspace"),
        };
        run(command, count)
    })?;
    if arguments.package.is_none() {
        let mut program = PathBuf::new();
        stages.run("build", |count| {
            program = release_build(root, count)?;
            Ok(())
        })?;
        stages.run("sim", |count| simulate(&program, count))?;
    }
    stages.print();
    Ok(())
}

/// Runs the simulator: its seeds must hold, and each planted bug must be found within as many.
fn simulate(program: &Path, count: &mut Count) -> Result<()> {
    let find = ["sim", "--until-found", "--first-seed", SIM_FIND_FROM, "--seeds", SIM_SEEDS];
    for arguments in [&["sim", "--seeds", SIM_SEEDS][..], &find] {
        let mut command = Command::new(program);
        command.args(arguments);
        run(command, count)?;
    }
    Ok(())
}

/// `cargo xtask ci`.
pub(crate) fn ci(root: &Path, arguments: &CiArguments) -> Result<()> {
    if !arguments.without_e2e && !is_root()? {
        bail!("the journeys need root: run it as root, or `cargo xtask ci --without-e2e`");
    }
    let mut stages = Stages::default();
    stages.run("format", |count| run(cargo(root, &["fmt", "--all", "--check"]), count))?;
    stages.run("tidy", |_| tidy::run(root))?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    stages.run("clippy", |count| run(cargo(root, &clippy), count))?;
    stages.run("docs", |count| {
        let mut command = cargo(root, &["doc", "--workspace", "--no-deps", "--document-private-items"]);
        command.env("RUSTDOCFLAGS", "-D warnings");
        run(command, count)
    })?;
    stages.run("test", |count| run(cargo(root, &["test", "--workspace"]), count))?;
    let mut program = PathBuf::new();
    stages.run("build", |count| {
        program = release_build(root, count)?;
        Ok(())
    })?;
    stages.run("sim", |count| simulate(&program, count))?;
    if !arguments.without_e2e {
        stages.run("image", |_| image::check(root, &program))?;
        stages.run("e2e", |count| journeys(root, &program, &[], count))?;
    }
    stages.print();
    Ok(())
}

/// `cargo xtask sim`.
pub(crate) fn sim(root: &Path, rest: &PassedOn) -> Result<()> {
    let mut count = Count::default();
    let mut command = Command::new(release_build(root, &mut count)?);
    command.arg("sim").args(&rest.arguments);
    run(command, &mut count)
}

/// `cargo xtask e2e`.
pub(crate) fn e2e(root: &Path, rest: &PassedOn) -> Result<()> {
    if !is_root()? {
        bail!("the journeys mount file systems and kill processes of their own: run them as root");
    }
    let mut count = Count::default();
    let program = release_build(root, &mut count)?;
    journeys(root, &program, &rest.arguments, &mut count)
}

/// Runs the journeys, which find the release build of `orlop` in `ORLOP`.
fn journeys(root: &Path, program: &Path, arguments: &[String], count: &mut Count) -> Result<()> {
    // `--workspace`: the packages with the features that the tests have compiled already.
    run(cargo(root, &["build", "--quiet", "--workspace", "--bin", "orlop-e2e"]), count)?;
    let mut command = Command::new(tidy::metadata(root)?.target_directory.join("debug/orlop-e2e"));
    command
        .args(arguments)
        .env("ORLOP", program)
        .env("CARGO", cargo(root, &[]).get_program())
        .current_dir(root);
    run(command, count)
}

/// `orlop` in release mode, linked so that it runs on any Linux: for images, and as a plugin of kubectl.
const RELEASE: [&str; 9] =
    ["rustc", "--release", "--package", "orlop", "--bin", "orlop", "--", "-C", "target-feature=+crt-static"];

/// Builds `orlop` in release mode and returns where it is.
fn release_build(root: &Path, count: &mut Count) -> Result<PathBuf> {
    run(cargo(root, &RELEASE), count)?;
    let metadata = tidy::metadata(root)?;
    Ok(metadata.target_directory.join("release/orlop").into())
}

/// The same, with nothing on standard output.
pub(crate) fn release_build_quietly(root: &Path) -> Result<PathBuf> {
    let mut command = cargo(root, &RELEASE);
    let status = command.stdout(Stdio::null()).status().context("cannot start cargo")?;
    ensure!(status.success(), "cargo build ended with {status}");
    Ok(tidy::metadata(root)?.target_directory.join("release/orlop").into())
}

/// The cargo that runs this program, in the root of the project.
fn cargo(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root);
    command
}

fn is_root() -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    Ok(uid.split_whitespace().nth(1) == Some("0"))
}

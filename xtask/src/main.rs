//! Every developer command, the same on a laptop and in CI: `cargo xtask test | ci | tidy | e2e | sim | bench | image`.

mod bench;
mod ci;
mod count;
mod image;
mod stage;
mod tidy;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Developer commands of Orlop.
#[derive(Parser)]
#[command(name = "cargo xtask", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs every test that needs no root: unit, property, crash, simulation, protocol and command-line tests.
    Test(ci::TestArguments),
    /// Runs all that a change must pass: format, lints, docs, tidy, tests, simulation, journeys.
    Ci(ci::CiArguments),
    /// Checks the rules that the compiler does not know: dependency walls, licences, file headers, links.
    Tidy,
    /// Runs the journeys that need root: real mounts, real databases, a real kernel (a release build is made first).
    E2e(ci::PassedOn),
    /// Measures what the design has a budget for, beside fio or the plain device (a release build is made first).
    Bench(bench::BenchArguments),
    /// Cleans up after a run of `bench`.
    #[command(name = bench::GUARD_COMMAND, hide = true)]
    BenchGuard {
        /// The folder of the run.
        folder: PathBuf,
    },
    /// Makes the container image, as an archive (a release build is made first).
    Image(image::ImageArguments),
    /// Runs the simulator (a release build is made first); arguments are those of `orlop sim`.
    Sim(ci::PassedOn),
}

fn main() -> ExitCode {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the root").to_owned();
    let done = match Arguments::parse().command {
        Command::Test(arguments) => ci::test(&root, &arguments),
        Command::Ci(arguments) => ci::ci(&root, &arguments),
        Command::Tidy => tidy::run(&root),
        Command::E2e(rest) => ci::e2e(&root, &rest),
        Command::Bench(arguments) => bench::run(&arguments, || ci::release_build_quietly(&root)),
        Command::BenchGuard { folder } => bench::guard(&folder),
        Command::Image(arguments) => image::run(&root, &arguments, || ci::release_build_quietly(&root)),
        Command::Sim(rest) => ci::sim(&root, &rest),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

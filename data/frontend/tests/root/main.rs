//! The FUSE front-end on the real kernel: mounts, loop devices, ext4, and servers that are killed.
//!
//! Needs root, `/dev/fuse` and loop devices, so it runs only when told to: `cargo test -p orlop-frontend --test root --
//! --run [FILTER]`, which is what the journey `frontend` of `cargo xtask e2e` does. Without that it says so and succeeds.
//! Everything a test makes carries its run id, and a guard removes it on any exit; a test that passed but left something
//! to the guard has failed.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a test runner talks to people")]

mod attach;
mod death;
mod run;
mod server;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

type Test = (&'static str, fn());

const TESTS: &[&[Test]] = &[attach::TESTS, death::TESTS];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("serve") => server::main(arguments),
        Some("fuse-holder") => match frontend::fuse::holder::main(arguments.map(Into::into)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        },
        Some("--run") => run_tests(arguments.next().as_deref().unwrap_or_default()),
        _ => {
            println!(
                "root tests: NOT RUN. As root: cargo test -p orlop-frontend --test root -- --run [FILTER]"
            );
            ExitCode::SUCCESS
        }
    }
}

fn run_tests(filter: &str) -> ExitCode {
    if let Err(missing) = run::preflight() {
        println!("root tests: NOT RUN: {missing}");
        return ExitCode::FAILURE;
    }
    let mut failed = Vec::new();
    let mut passed = 0;
    for (name, test) in TESTS.iter().copied().flatten().filter(|(name, _)| name.contains(filter)) {
        let start = run::now();
        print!("test {name} ... ");
        drop(std::io::Write::flush(&mut std::io::stdout()));
        let ok = catch_unwind(AssertUnwindSafe(test)).is_ok();
        let seconds = Duration::from_nanos(run::now() - start).as_secs_f64();
        println!("{} ({seconds:.1} s)", if ok { "ok" } else { "FAILED" });
        if ok {
            passed += 1;
        } else {
            failed.push(name);
        }
    }
    // As `cargo test` says it: the developer commands count it.
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!("test result: {verdict}. {passed} passed; {} failed; 0 ignored", failed.len());
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("root tests: failed: {failed:?}");
    ExitCode::FAILURE
}

//! The store in a real Kubernetes: what every store promises, and what an API server does that dies, stops, forgets or
//! refuses.
//!
//! Needs the programs `etcd` (Debian's `etcd-server`), `openssl`, and a `kube-apiserver` that `ORLOP_KUBE_APISERVER`
//! names, so it runs only when told to: `cargo test -p orlop-k8s --test apiserver -- --run [FILTER]`, which is what the
//! journey `kubernetes-store` of `cargo xtask e2e` does. Without that it says so and succeeds.
//! Each test has a control plane of its own, in a temporary folder and on free ports, which ends with the test.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a test runner talks to people")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../../../store/tests/it/conformance.rs"]
mod conformance;
mod extender;
mod failover;
mod faults;
mod leaders;
mod objects;
mod printed;
#[path = "../../../store/tests/it/proxy.rs"]
mod proxy;
mod server;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

type Test = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()>>>);

/// A test that hangs has failed; none takes a fifth of this on a quiet machine.
const LIMIT: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some("--run") {
        println!(
            "API server tests: NOT RUN. With etcd and ORLOP_KUBE_APISERVER: \
             cargo test -p orlop-k8s --test apiserver -- --run [FILTER]"
        );
        return ExitCode::SUCCESS;
    }
    let runs =
        |program: &str, argument| Command::new(program).arg(argument).stdout(Stdio::null()).status().is_ok();
    for (program, argument, hint) in [
        ("etcd", "--version", "apt-get install -y etcd-server"),
        ("openssl", "version", "apt-get install -y openssl"),
        (&server::program(), "--version", "ORLOP_KUBE_APISERVER has to name a kube-apiserver"),
    ] {
        if !runs(program, argument) {
            println!("API server tests: NOT RUN: there is no {program:?}: {hint}");
            return ExitCode::FAILURE;
        }
    }
    run_tests(arguments.next().as_deref().unwrap_or_default())
}

fn run_tests(filter: &str) -> ExitCode {
    let mut failed = Vec::new();
    let mut passed = 0;
    let tests =
        [faults::TESTS, objects::TESTS, printed::TESTS, leaders::TESTS, failover::TESTS, extender::TESTS];
    let tests = tests.into_iter().flatten();
    for (name, test) in tests.filter(|(name, _)| name.contains(filter)) {
        print!("test {name} ... ");
        drop(std::io::Write::flush(&mut std::io::stdout()));
        let ok = catch_unwind(AssertUnwindSafe(|| run(*test))).is_ok();
        println!("{}", if ok { "ok" } else { "FAILED" });
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
    eprintln!("API server tests: failed: {failed:?}");
    ExitCode::FAILURE
}

fn run(test: fn() -> Pin<Box<dyn Future<Output = ()>>>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LIMIT, test()).await.expect("it hangs") });
}

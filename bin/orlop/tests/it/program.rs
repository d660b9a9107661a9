//! Running the binary under test.

use std::process::{Command, Output, Stdio};

/// What a run gave.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The binary with a clean environment.
pub(crate) fn orlop(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orlop"));
    command.args(arguments).env_remove("ORLOP_API").stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub(crate) fn run(arguments: &[&str]) -> Run {
    finish(&mut orlop(arguments))
}

/// Runs `command` to its end.
pub(crate) fn finish(command: &mut Command) -> Run {
    let Output { status, stdout, stderr } = command.output().expect("the binary starts");
    let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
    Run { code: status.code().unwrap_or(-1), stdout: text(stdout), stderr: text(stderr) }
}

/// Runs it and checks that it fails as it should: with this code, nothing on standard output, and one line on standard
/// error that contains every one of `parts`.
pub(crate) fn refused(arguments: &[&str], code: i32, parts: &[&str]) {
    let run = run(arguments);
    assert_eq!((run.code, run.stdout.as_str()), (code, ""), "{arguments:?}: {run:?}");
    assert_eq!(run.stderr.lines().count(), 1, "{arguments:?}: {}", run.stderr);
    for part in parts {
        assert!(run.stderr.contains(part), "{arguments:?}: {part:?} is not in {:?}", run.stderr);
    }
}

//! Running the binary under test.

use rustix::process::{Pid, Signal, kill_process};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

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

/// A command that runs longer than this hangs, or does what it should have refused. `volume` waits for up to a minute.
const LIMIT: Duration = Duration::from_secs(90);

/// Runs `command` to its end; kills it, which is exit code -1, if it does not come to one.
pub(crate) fn finish(command: &mut Command) -> Run {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a pid");
    let (ended, end) = channel::<()>();
    let guard = std::thread::spawn(move || {
        if end.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
            // It has not been waited for: the pid is still its own.
            let _just_ended = kill_process(pid, Signal::KILL);
        }
    });
    let Output { status, stdout, stderr } = child.wait_with_output().expect("it can be waited for");
    drop(ended);
    guard.join().expect("it does not panic");
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

//! The programs of the file systems, run to their end.
//!
//! 1. None outlives the plugin: a mkfs that was started by one that is dead must not write beside the next.

use std::process::{Command, Output, Stdio};
use tonic::Status;

/// Not the environment's: a node's image has them in one of these.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs a program that has to succeed, with an exit code of at most `good`; `package` brings it.
pub(crate) fn run(words: &[String], good: i32, package: &str) -> Result<(), Status> {
    output(words, good, package).map(drop)
}

/// What a program says that has to succeed.
pub(crate) fn ask(words: &[String], package: &str) -> Result<String, Status> {
    Ok(String::from_utf8_lossy(&output(words, 0, package)?.stdout).into_owned())
}

fn output(words: &[String], good: i32, package: &str) -> Result<Output, Status> {
    let command = words.join(" ");
    let mut tool = Command::new("setpriv");
    tool.args(["--pdeathsig", "KILL", "--"]).args(words).env("PATH", PATH).env("LC_ALL", "C");
    let output = tool.stdin(Stdio::null()).output().map_err(|error| {
        Status::failed_precondition(format!("cannot run {command}: setpriv: {error}; install util-linux"))
    })?;
    match output.status.code() {
        Some(code) if (0..=good).contains(&code) => Ok(output),
        Some(127) => Err(Status::failed_precondition(format!("cannot run {command}: install {package}"))),
        _ => {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
            Err(Status::internal(format!("{command} failed ({}): {last}", output.status)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn run_words(words: &[&str], good: i32) -> Result<(), Status> {
        run(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>(), good, "some-package")
    }

    #[test]
    fn a_failure_says_what_the_program_said() {
        run_words(&["true"], 0).unwrap();
        assert_eq!(ask(&["echo".into(), "hello".into()], "some-package").unwrap(), "hello\n");
        run_words(&["sh", "-c", "exit 1"], 1).unwrap();
        let failed = run_words(&["sh", "-c", "echo first; echo why >&2; exit 3"], 1).unwrap_err();
        assert!(failed.message().contains("exit status: 3") && failed.message().ends_with("why"), "{failed}");
        let missing = run_words(&["no-such-program-here"], 0).unwrap_err();
        assert_eq!(missing.code(), Code::FailedPrecondition);
        assert!(missing.message().contains("install some-package"), "{missing}");
    }
}

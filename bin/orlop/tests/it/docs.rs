//! The commands of the documentation are run: each `console` block of a document, in order, in one folder beside one
//! cluster, as its reader would. A block that cannot be run here says why in the line before it:
//! `<!-- not run: REASON -->`; reasons are printed and counted.
//!
//! A line with `$` is a command, which has to succeed; any other line has to be in the output of the command above it.

use crate::cluster::Dev;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where a cluster is for readers; here it is elsewhere, beside the clusters of other tests.
const API: &str = "http://127.0.0.1:7070";

/// One fenced block of commands.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    line: usize,
    not_run: Option<String>,
    commands: Vec<(String, Vec<String>)>,
}

/// The `console` blocks of a document.
///
/// # Panics
/// When a block is not closed, is empty, or begins with output.
fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut before = "";
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        if line == "```console" {
            let not_run = before.strip_prefix("<!-- not run: ").and_then(|rest| rest.strip_suffix(" -->"));
            let mut block =
                Block { line: index + 1, not_run: not_run.map(str::to_owned), commands: Vec::new() };
            loop {
                let (_, line) =
                    lines.next().unwrap_or_else(|| panic!("the block of line {} ends", block.line));
                match line.strip_prefix("$ ") {
                    _ if line == "```" => break,
                    Some(command) => block.commands.push((command.to_owned(), Vec::new())),
                    None => {
                        let last = block.commands.last_mut().expect("a block begins with a command");
                        last.1.push(line.to_owned());
                    }
                }
            }
            assert!(!block.commands.is_empty(), "the block of line {} is empty", block.line);
            blocks.push(block);
        }
        if !line.is_empty() {
            before = line;
        }
    }
    blocks
}

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("bin/orlop is two below").to_owned()
}

/// Every document, README first.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("it can be listed") {
            let path = entry.expect("it can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "md") {
                found.push(path);
            }
        }
    }
    found.sort();
    let top = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"];
    top.iter().map(|name| root().join(name)).chain(found).collect()
}

/// Runs a line as a shell does, with the program in its path.
fn run(command: &str, folder: &Path, api: &str) -> Result<String, String> {
    let program = Path::new(env!("CARGO_BIN_EXE_orlop")).parent().expect("a file is in a folder");
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap_or_default());
    let mut shell = Command::new("sh");
    shell.args(["-c", &command.replace(API, api)]).current_dir(folder).stdin(Stdio::null());
    let output = shell.env("PATH", path).env("ORLOP_API", api).output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(said)
    } else {
        Err(format!("{}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr)))
    }
}

/// Runs the blocks of one document; how many commands ran.
fn follow(document: &Path, blocks: &[Block]) -> usize {
    let temp = tempfile::tempdir().expect("a temporary folder");
    let data = temp.path().join("orlop-data");
    let mut dev = None;
    let mut ran = 0;
    for block in blocks {
        let place = format!("{}:{}", document.display(), block.line);
        if let Some(reason) = &block.not_run {
            println!("{place}: not run: {reason}");
            continue;
        }
        for (command, output) in &block.commands {
            ran += 1;
            if command == "orlop dev" {
                assert!(dev.is_none(), "{place}: a second cluster in one document");
                // As typed, but for the port: three nodes, disks of the usual size.
                dev = Some(Dev::start_with(&data, &[]));
                continue;
            }
            let api = dev.get_or_insert_with(|| Dev::start_with(&data, &[])).api.clone();
            let said =
                run(command, temp.path(), &api).unwrap_or_else(|error| panic!("{place}: {command}: {error}"));
            for line in output {
                assert!(said.contains(line.as_str()), "{place}: {command}: {line:?} is not in {said:?}");
            }
        }
        println!("{place}: {} commands ran", block.commands.len());
    }
    if let Some(dev) = dev {
        dev.stop();
    }
    ran
}

#[test]
fn the_commands_of_the_documentation_work() {
    let (mut ran, mut not_run, mut documented) = (0, 0, 0);
    for document in documents() {
        let text = std::fs::read_to_string(&document).expect("a document is text");
        let blocks = blocks(&text);
        assert_eq!(
            text.matches("```console").count(),
            blocks.len(),
            "{}: an indented block",
            document.display()
        );
        not_run += blocks.iter().filter(|block| block.not_run.is_some()).count();
        documented += usize::from(blocks.iter().any(|block| block.not_run.is_none()));
        ran += follow(&document, &blocks);
    }
    println!("{ran} commands of {documented} documents ran, {not_run} blocks did not");
    assert!(ran >= 10 && documented >= 2, "the blocks are no longer found");
}

#[test]
fn blocks_are_found_with_their_reasons_and_output() {
    let text = "Text.\n\n```console\n$ a b\nout\n$ c\n```\n\n<!-- not run: it takes a day -->\n\n```console\n$ d\n```\n\
                ```json\n$ no\n```\n";
    let block = |line, not_run: Option<&str>, commands: &[(&str, &[&str])]| Block {
        line,
        not_run: not_run.map(str::to_owned),
        commands: commands
            .iter()
            .map(|(command, output)| {
                ((*command).to_owned(), output.iter().map(|s| (*s).to_owned()).collect())
            })
            .collect(),
    };
    assert_eq!(
        blocks(text),
        [block(3, None, &[("a b", &["out"]), ("c", &[])]), block(11, Some("it takes a day"), &[("d", &[])])]
    );
    for bad in ["```console\n$ a\n", "```console\n```\n", "```console\nout\n```\n"] {
        assert!(std::panic::catch_unwind(|| blocks(bad)).is_err(), "{bad}");
    }
    let here = std::env::temp_dir();
    assert!(run("exit 3", &here, API).is_err());
    assert_eq!(run(&format!("echo {API}"), &here, "there"), Ok("there\n".into()));
}

//! `--help` of every command.

use crate::program::run;

/// The commands that `help` lists below `path`, read from the program itself.
fn commands(path: &[String]) -> Vec<Vec<String>> {
    let mut arguments: Vec<&str> = path.iter().map(String::as_str).collect();
    arguments.push("--help");
    let help = run(&arguments);
    assert_eq!((help.code, help.stderr.as_str()), (0, ""), "{path:?}");
    let after = help.stdout.split("Commands:\n").nth(1).unwrap_or_default();
    let names = after
        .lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let mut all = Vec::new();
    for name in names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help") {
        let mut path = path.to_vec();
        path.push(name.to_owned());
        all.push(path.clone());
        all.extend(commands(&path));
    }
    all
}

#[test]
fn every_command_explains_itself() {
    let all = commands(&[]);
    let names: Vec<String> = all.iter().map(|path| path.join(" ")).collect();
    for expected in [
        "bench",
        "check",
        "completion",
        "demo",
        "dev",
        "volume",
        "volume create",
        "node cordon",
        "node delete",
        "node drain",
        "node get",
        "node list",
        "node uncordon",
        "pool delete",
        "pool list",
        "preflight",
        "sim",
        "support bundle",
        "volume recover",
        "wipe",
    ] {
        assert!(names.iter().any(|name| name == expected), "{expected} is missing in {names:?}");
    }
    for hidden in ["controller", "csi", "node run"] {
        assert!(!names.iter().any(|name| name == hidden), "{hidden} is for the program itself");
    }
    for path in all {
        let mut arguments: Vec<&str> = path.iter().map(String::as_str).collect();
        arguments.push("--help");
        let help = run(&arguments).stdout;
        assert!(help.contains("Usage: orlop"), "{path:?}: {help}");
        assert!(help.is_ascii() && help.lines().all(|line| line.len() <= 110), "{path:?}: {help}");
    }
}

#[test]
fn completions_are_printed_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(&["completion", shell]);
        assert_eq!(script.code, 0);
        assert!(script.stdout.contains("volume"), "{shell}");
    }
}

#[test]
fn the_version_is_printed() {
    assert_eq!(run(&["--version"]).stdout, concat!("orlop ", env!("CARGO_PKG_VERSION"), "\n"));
}

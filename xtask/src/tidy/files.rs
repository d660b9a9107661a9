//! Rules of single files: headers, ASCII, length, where `unsafe` may be, no test that is switched off.

use super::{Finding, Source};

/// Lines a source file may have at the very most.
const LINES_MAX: usize = 900;

/// Where `unsafe` is allowed: the walls to the operating system.
const UNSAFE_ALLOWED: [&str; 2] = ["data/rt/", "data/frontend/"];

/// All rules of one file.
pub(super) fn check(source: &Source) -> Vec<Finding> {
    let Source { path, text } = source;
    let mut findings = Vec::new();
    let mut find = |what: String| findings.push(Finding(what));
    let rust = has_extension(path, "rs");
    if rust || has_extension(path, "toml") || has_extension(path, "sh") || path.starts_with(".ci/") {
        for (number, line) in text.lines().enumerate() {
            if let Some(odd) = line.chars().find(|c| !c.is_ascii()) {
                find(format!("{path}:{}: {odd:?} is not ASCII", number + 1));
            }
        }
    }
    if !rust {
        return findings;
    }
    if !text.starts_with("//!") {
        find(format!("{path}: open it with `//!`: what it is, and where on the path of a byte"));
    }
    let lines = text.lines().count();
    if lines > LINES_MAX {
        find(format!("{path}: {lines} lines; split it by meaning (at most {LINES_MAX})"));
    }
    let switched_off = concat!("#[", "ignore");
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with(switched_off) {
            find(format!("{path}:{}: a test that does not run is no test; remove it", number + 1));
        }
        // The workspace denies the lint, so every use of unsafe code needs this word.
        let lifts = line.contains(concat!("unsafe", "_code"));
        if lifts && !UNSAFE_ALLOWED.iter().any(|folder| path.starts_with(folder)) {
            find(format!("{path}:{}: unsafe code lives in {} only", number + 1, UNSAFE_ALLOWED.join(", ")));
        }
    }
    findings
}

fn has_extension(path: &str, extension: &str) -> bool {
    std::path::Path::new(path).extension().is_some_and(|found| found == extension)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        let source = Source { path: path.to_owned(), text: text.to_owned() };
        check(&source).into_iter().map(|Finding(text)| text).collect()
    }

    #[test]
    fn a_tidy_file_has_no_findings() {
        assert_eq!(findings("data/pool/src/map.rs", "//! The map.\nfn f() {}\n"), Vec::<String>::new());
        assert_eq!(findings("docs/x.md", "\u{2192} arrows are fine in prose\n"), Vec::<String>::new());
    }

    #[test]
    fn each_rule_is_found_with_its_line() {
        let no_header = findings("a.rs", "fn f() {}\n");
        assert!(no_header[0].starts_with("a.rs: open it"), "{no_header:?}");
        let odd = findings("a.rs", "//! A.\n// caf\u{e9}\n");
        assert!(odd[0].starts_with("a.rs:2:"), "{odd:?}");
        let long = findings("a.rs", &format!("//! A.\n{}", "\n".repeat(LINES_MAX)));
        assert!(long[0].contains("901 lines"), "{long:?}");
        let off = findings("a.rs", concat!("//! A.\n#[", "ignore]\nfn t() {}\n"));
        assert!(off[0].starts_with("a.rs:2:"), "{off:?}");
        let attribute = concat!("//! A.\n#![expect(unsafe", "_code, reason = \"\")]\n");
        assert!(findings("control/api/src/lib.rs", attribute)[0].contains("unsafe code lives in"));
        assert_eq!(findings("data/rt/src/os/ring.rs", attribute), Vec::<String>::new());
    }
}

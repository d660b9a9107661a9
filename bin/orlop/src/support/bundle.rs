//! The tar archive that `orlop support bundle` makes.
//!
//! 1. No text is in it that has not been through [`redact`].
//! 2. What is missing is named in it, in `missing.txt`.
//! 3. The same answers give the same bytes: names and what is missing are sorted, and nothing says who made it, or when.

use super::redact::redact;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Result, Write};
use tar::{Builder, EntryType, Header};

/// What all names begin with.
const FOLDER: &str = "orlop-support";
const MISSING: &str = "missing.txt";

/// Files by their names, and what there is not.
#[derive(Debug, Default)]
pub(super) struct Bundle {
    files: BTreeMap<String, String>,
    missing: BTreeSet<String>,
}

impl Bundle {
    /// Adds a file, or says why there is none.
    pub(super) fn add(&mut self, name: &str, text: std::result::Result<String, String>) {
        match text {
            Ok(text) => {
                self.files.insert(name.to_owned(), redact(&text));
            }
            Err(why) => self.miss(name, &why),
        }
    }

    /// Says why something is not there, in one line.
    pub(super) fn miss(&mut self, name: &str, why: &str) {
        let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
        self.missing.insert(redact(&format!("{name}: {why}")));
    }

    /// The names of its files.
    pub(super) fn names(&self) -> Vec<String> {
        let names = self.files.keys().map(String::as_str).chain([MISSING]);
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort();
        names
    }

    /// What is not in it, and why.
    pub(super) fn missing(&self) -> Vec<String> {
        self.missing.iter().cloned().collect()
    }

    /// Writes the archive.
    pub(super) fn write(mut self, out: impl Write) -> Result<()> {
        let missing = self.missing();
        let missing = if missing.is_empty() { "nothing".to_owned() } else { missing.join("\n") };
        self.files.insert(MISSING.to_owned(), missing + "\n");
        let mut archive = Builder::new(out);
        for (name, text) in &self.files {
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::Regular);
            header.set_mode(0o600);
            header.set_size(text.len().try_into().expect("what is in memory has a size"));
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            archive.append_data(&mut header, format!("{FOLDER}/{name}"), text.as_bytes())?;
        }
        archive.into_inner()?.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_order_of_adding_does_not_matter_and_secrets_stay_out() {
        let made = |names: [&str; 2]| {
            let mut bundle = Bundle::default();
            for name in names {
                bundle.add(name, Ok(format!("of {name}, secret=planted")));
                bundle.miss(&format!("logs/{name}"), "no\nanswer of http://user:planted@host");
            }
            assert_eq!(bundle.names(), ["a", "b/c", "missing.txt"]);
            assert_eq!(bundle.missing().len(), 2);
            let mut bytes = Vec::new();
            bundle.write(&mut bytes).unwrap();
            bytes
        };
        let bytes = made(["a", "b/c"]);
        assert_eq!(bytes, made(["b/c", "a"]));
        let mut all = Vec::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            all.push((entry.path().unwrap().display().to_string(), text));
        }
        let file = |name: &str, text: &str| (format!("orlop-support/{name}"), text.to_owned());
        assert_eq!(
            all,
            [
                file("a", "of a, secret=[removed]"),
                file("b/c", "of b/c, secret=[removed]"),
                file(
                    "missing.txt",
                    "logs/a: no answer of http://[removed]@host\nlogs/b/c: no answer of http://[removed]@host\n"
                ),
            ]
        );
    }

    #[test]
    fn that_nothing_is_missing_is_said() {
        let mut bytes = Vec::new();
        Bundle::default().write(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("missing.txt") && text.contains("nothing\n"));
    }
}

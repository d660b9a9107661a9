//! The allow-list: which devices may be looked at.
//!
//! 1. An empty list allows nothing.
//! 2. `*` means disks: what is odd (see [`Odd`]) has to be named.

use glob::{MatchOptions, Pattern};

/// Globs over `/dev/NAME` and `/dev/disk/by-id/LINK`.
#[derive(Clone, Debug, Default)]
pub struct Allow(Vec<Pattern>);

/// Why a device is no common disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Odd {
    /// Of a kind whose names begin so, such as `loop`; a glob that begins with `/dev/loop` names it.
    Kind(&'static str),
    /// Removable, behind a network, or virtual in another way: only its whole path names it.
    Single,
}

impl Allow {
    /// The list of these globs.
    ///
    /// # Errors
    /// One of them is malformed, or can match no device.
    pub fn new<T: AsRef<str>>(globs: &[T]) -> Result<Self, String> {
        let pattern = |glob: &T| {
            let glob = glob.as_ref();
            if !glob.starts_with("/dev/") && !glob.starts_with('*') {
                return Err(format!(
                    "{glob:?} matches no device: begin it with /dev/, or write * for all disks"
                ));
            }
            Pattern::new(glob).map_err(|error| format!("{glob:?} is not a pattern: {error}"))
        };
        globs.iter().map(pattern).collect::<Result<_, _>>().map(Self)
    }

    /// Whether nothing is allowed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the device with these paths may be looked at.
    pub(crate) fn allows(&self, paths: &[String], odd: Option<Odd>) -> bool {
        self.0.iter().any(|pattern| match odd {
            None => paths.iter().any(|path| matches(pattern, path)),
            Some(Odd::Kind(kind)) => {
                let named = literal(pattern).strip_prefix("/dev/").is_some_and(|name| name.starts_with(kind));
                named && paths.iter().any(|path| matches(pattern, path))
            }
            Some(Odd::Single) => paths.iter().any(|path| path == pattern.as_str()),
        })
    }
}

fn matches(pattern: &Pattern, path: &str) -> bool {
    // `*` alone is every disk; elsewhere it does not reach over a slash.
    let across = pattern.as_str() == "*";
    let options = MatchOptions { require_literal_separator: !across, ..MatchOptions::new() };
    pattern.matches_with(path, options)
}

/// What comes before the first wildcard.
fn literal(pattern: &Pattern) -> &str {
    let text = pattern.as_str();
    text.find(['*', '?', '[']).map_or(text, |end| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(glob: &str, paths: &[&str], odd: Option<Odd>) -> bool {
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        Allow::new(&[glob]).unwrap().allows(&paths, odd)
    }

    #[test]
    fn disks_are_matched_by_path_and_by_link() {
        let paths = ["/dev/sda", "/dev/disk/by-id/wwn-0x5000c500a1b2c3d4"];
        for glob in ["*", "/dev/sd*", "/dev/sda", "/dev/disk/by-id/wwn-*", "/dev/sd[ab]"] {
            assert!(allows(glob, &paths, None), "{glob}");
        }
        for glob in ["/dev/sdb", "/dev/*/wwn-*", "/dev/nvme*"] {
            assert!(!allows(glob, &paths, None), "{glob}");
        }
        assert!(!Allow::default().allows(&["/dev/sda".into()], None), "invariant 1");
    }

    #[test]
    fn what_is_odd_has_to_be_named() {
        let odd = Some(Odd::Kind("loop"));
        for (glob, allowed) in
            [("*", false), ("/dev/*", false), ("/dev/lo*", false), ("/dev/loop*", true), ("/dev/loop7", true)]
        {
            assert_eq!(allows(glob, &["/dev/loop7"], odd), allowed, "{glob}");
        }
        for (glob, allowed) in [("*", false), ("/dev/sd*", false), ("/dev/sdc", true)] {
            assert_eq!(allows(glob, &["/dev/sdc"], Some(Odd::Single)), allowed, "{glob}");
        }
    }

    #[test]
    fn what_can_match_nothing_is_refused() {
        for glob in ["sda", "", "/dev/[", "disk:///dev/sda"] {
            assert!(Allow::new(&[glob]).is_err(), "{glob}");
        }
    }
}

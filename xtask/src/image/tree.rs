//! A tree of files in memory, and the tar archive that it is.
//!
//! 1. The same files give the same bytes, whoever makes them, where and when: names are sorted, everything belongs to
//!    root, times are zero, and modes are those given here, not those of the machine.
//! 2. One name has one content.

use anyhow::{Result, ensure};
use std::collections::BTreeMap;
use tar::{Builder, EntryType, Header};

/// Paths without a slash at the beginning, and what is there.
#[derive(Debug, Default)]
pub(super) struct Tree(BTreeMap<String, Node>);

#[derive(Debug, PartialEq, Eq)]
enum Node {
    Folder { mode: u32 },
    File { mode: u32, bytes: Vec<u8> },
    Link { target: String },
}

impl Tree {
    /// Adds a folder; those above it come by themselves.
    pub(super) fn folder(&mut self, path: &str, mode: u32) -> Result<()> {
        self.add(path, Node::Folder { mode })
    }

    /// Adds a file.
    pub(super) fn file(&mut self, path: &str, mode: u32, bytes: impl Into<Vec<u8>>) -> Result<()> {
        self.add(path, Node::File { mode, bytes: bytes.into() })
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.add(path, Node::Link { target: target.to_owned() })
    }

    fn add(&mut self, path: &str, node: Node) -> Result<()> {
        for (end, _) in path.match_indices('/') {
            let above = self.0.entry(path[..end].to_owned()).or_insert(Node::Folder { mode: 0o755 });
            ensure!(matches!(above, Node::Folder { .. }), "{path} is below something that is no folder");
        }
        let same = self.0.get(path).is_none_or(|there| *there == node);
        ensure!(same, "{path} is there already, and is something else");
        self.0.insert(path.to_owned(), node);
        Ok(())
    }

    /// The archive.
    pub(super) fn tar(&self) -> Result<Vec<u8>> {
        let mut archive = Builder::new(Vec::new());
        for (path, node) in &self.0 {
            match node {
                Node::Folder { mode } => {
                    let mut header = header(EntryType::Directory, *mode, 0);
                    archive.append_data(&mut header, format!("{path}/"), &[][..])?;
                }
                Node::File { mode, bytes } => {
                    let mut header = header(EntryType::Regular, *mode, u64::try_from(bytes.len())?);
                    archive.append_data(&mut header, path, bytes.as_slice())?;
                }
                Node::Link { target } => {
                    archive.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, target)?;
                }
            }
        }
        Ok(archive.into_inner()?)
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_adding_does_not_matter() {
        let (mut one, mut two) = (Tree::default(), Tree::default());
        one.file("usr/bin/a", 0o755, "a").unwrap();
        one.file("usr/b", 0o644, "b").unwrap();
        one.link("bin", "usr/bin").unwrap();
        two.link("bin", "usr/bin").unwrap();
        two.file("usr/b", 0o644, "b").unwrap();
        two.file("usr/bin/a", 0o755, "a").unwrap();
        assert_eq!(one.tar().unwrap(), two.tar().unwrap());
    }

    #[test]
    fn the_archive_says_nothing_of_its_maker() {
        let mut tree = Tree::default();
        tree.folder("tmp", 0o1777).unwrap();
        tree.file("usr/bin/a", 0o755, "a").unwrap();
        tree.link("bin", "usr/bin").unwrap();
        let bytes = tree.tar().unwrap();
        let mut found = Vec::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, 0));
            found.push((entry.path().unwrap().display().to_string(), header.mode().unwrap()));
        }
        let wanted =
            [("bin", 0o777), ("tmp/", 0o1777), ("usr/", 0o755), ("usr/bin/", 0o755), ("usr/bin/a", 0o755)];
        assert_eq!(found, wanted.map(|(path, mode)| (path.to_owned(), mode)));
    }

    #[test]
    fn a_name_has_one_content() {
        let mut tree = Tree::default();
        tree.file("a", 0o644, "x").unwrap();
        tree.file("a", 0o644, "x").unwrap();
        assert!(tree.file("a", 0o644, "y").unwrap_err().to_string().contains("a is there already"));
        assert!(tree.file("a/b", 0o644, "y").unwrap_err().to_string().contains("no folder"));
    }
}

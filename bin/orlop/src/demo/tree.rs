//! A real tree of files for the volume: taken from /usr, generated where that is too small.

use crate::failure::Outcome;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Files larger than this are left out, so that the tree has many.
const FILE_MAX_BYTES: u64 = 16 << 20;
/// The length of a generated file.
const GENERATED_BYTES: usize = 1 << 20;

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Copied {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

/// Hands files below `from` to `store` until there are `want_bytes`, and generates what is missing.
pub(super) fn copy(
    from: &Path,
    want_bytes: u64,
    mut store: impl FnMut(&Path, Vec<u8>) -> Outcome,
) -> Outcome<Copied> {
    let mut copied = Copied::default();
    let mut take = |name: &Path, bytes: Vec<u8>, copied: &mut Copied| {
        copied.files += 1;
        copied.bytes += bytes.len() as u64;
        store(name, bytes)
    };
    let mut folders = vec![from.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in entries(&folder) {
            let Ok(found) = fs::symlink_metadata(&path) else { continue };
            if found.is_dir() {
                folders.push(path);
            } else if found.is_file() && (1..=FILE_MAX_BYTES).contains(&found.len()) {
                if copied.bytes >= want_bytes {
                    return Ok(copied);
                }
                // A file that cannot be read, or changes meanwhile, is not ours to judge.
                if let Some(bytes) = read(&path, found.len()) {
                    take(path.strip_prefix(from).unwrap_or(&path), bytes, &mut copied)?;
                }
            }
        }
    }
    while copied.bytes < want_bytes {
        let name = PathBuf::from(format!("generated/{:06}", copied.files));
        take(&name, generate(copied.files + 1, GENERATED_BYTES), &mut copied)?;
    }
    Ok(copied)
}

/// `len` bytes that no disk can shorten, the same for the same seed (Marsaglia's xorshift).
pub(super) fn generate(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// What a folder holds, in an order that does not depend on the disk.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn read(path: &Path, len: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(len).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 == len).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn copied(from: &Path, want_bytes: u64) -> (Copied, BTreeMap<String, usize>) {
        let mut stored = BTreeMap::new();
        let copied = copy(from, want_bytes, |name, bytes| {
            stored.insert(name.to_string_lossy().into_owned(), bytes.len());
            Ok(())
        });
        (copied.unwrap(), stored)
    }

    #[test]
    fn a_small_tree_is_copied_and_filled_up() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir_all(temp.path().join("sub")).unwrap();
        fs::write(temp.path().join("sub/a"), b"hello").unwrap();
        fs::write(temp.path().join("empty"), b"").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", temp.path().join("link")).unwrap();
        let (copied, stored) = copied(temp.path(), 2_000_000);
        assert_eq!((copied.files, copied.bytes), (3, 5 + 2 * (1 << 20)));
        assert_eq!(stored["sub/a"], 5);
        assert_eq!(stored["generated/000001"], 1 << 20);
    }

    #[test]
    fn enough_is_enough() {
        let temp = tempfile::tempdir().unwrap();
        (0..10).for_each(|n| fs::write(temp.path().join(n.to_string()), [7; 1000]).unwrap());
        let (copied, stored) = copied(temp.path(), 2500);
        assert_eq!((copied, stored.len()), (Copied { files: 3, bytes: 3000 }, 3));
    }
}

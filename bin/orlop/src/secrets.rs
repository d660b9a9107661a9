//! Keys in files: never an argument or the environment, where every process of the machine sees them, and never logged.

use crate::failure::{Failure, Kind, OrFail, Outcome};
use nvmf::Key;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A key is one short line.
const BYTES_MAX: u64 = 4096;
/// Access for anybody but the owner.
const OTHERS: u32 = 0o077;

/// Reads the key in a file (or a pipe), which nobody else may read.
pub(crate) fn read(path: &Path) -> Outcome<Key> {
    let shown = path.display();
    let cannot = || format!("cannot read the key in {shown}");
    let file = File::open(path).or_fail(cannot)?;
    let metadata = file.metadata().or_fail(cannot)?;
    if metadata.is_file() && metadata.permissions().mode() & OTHERS != 0 {
        return Err(Failure::new(format!("the key in {shown} can be read by others"))
            .hint(format!("run `chmod 600 {shown}`, and make a new key if others have been here")));
    }
    let mut text = String::new();
    file.take(BYTES_MAX).read_to_string(&mut text).or_fail(cannot)?;
    Key::parse(&text).map_err(|error| Failure::new(format!("what is in {shown} {error}")).kind(Kind::Usage))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, set_permissions, write};

    #[test]
    fn a_key_is_read_from_a_file_that_is_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let key = Key::new([7; nvmf::KEY_LEN]);
        assert!(read(&path).unwrap_err().to_string().contains("No such file"));
        write(&path, format!("{}\n", key.reveal())).unwrap();
        set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("chmod 600"));
        set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        assert_eq!(read(&path).unwrap(), key);
        set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        write(&path, "not a key, but secret").unwrap();
        let refused = read(&path).unwrap_err().to_string();
        assert!(refused.contains("openssl rand -base64 32") && !refused.contains("but secret"), "{refused}");
    }
}

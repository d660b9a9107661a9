//! Where the tests keep what is slow to make: programs, guests, images.

use anyhow::{Result, bail};
use std::env::var_os;
use std::path::PathBuf;

/// The folder of all that Orlop's tests keep for this user.
pub(crate) fn cache() -> Result<PathBuf> {
    let folder = match (var_os("XDG_CACHE_HOME"), var_os("HOME")) {
        (Some(cache), _) if !cache.is_empty() => PathBuf::from(cache),
        (_, Some(home)) => PathBuf::from(home).join(".cache"),
        _ => bail!("neither XDG_CACHE_HOME nor HOME is set: they name the cache"),
    };
    Ok(folder.join("orlop"))
}

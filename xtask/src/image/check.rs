//! Whether an image is what it should be: made a second time, and its programs run in a root of nothing but its files.

use super::archive::Image;
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

const MIB: u64 = 1 << 20;

/// A command for the file `/tmp/disk`, once that is this large.
type Step = (u64, &'static [&'static str]);

/// As the plugin starts them, with files for devices, and what finds fault with the results.
const STEPS: [Step; 11] = [
    (512 * MIB, &["setpriv", "--pdeathsig", "KILL", "--", "mkfs.ext4", "-q", "-F", "-E", "nodiscard"]),
    (512 * MIB, &["e2fsck", "-p"]),
    (768 * MIB, &["e2fsck", "-f", "-p"]),
    (768 * MIB, &["resize2fs"]),
    (768 * MIB, &["e2fsck", "-f", "-n"]),
    (768 * MIB, &["setpriv", "--pdeathsig", "KILL", "--", "mkfs.xfs", "-q", "-f", "-K"]),
    (768 * MIB, &["xfs_repair", "-n"]),
    (768 * MIB, &["xfs_growfs", "-V"]),
    (768 * MIB, &["setpriv", "--pdeathsig", "KILL", "--", "mkfs.btrfs", "-q", "-f", "-K"]),
    // With a progress it cancels a thread, for which libgcc_s is loaded.
    (768 * MIB, &["btrfs", "check", "--progress"]),
    (768 * MIB, &["btrfs", "inspect-internal", "dump-super"]),
];

/// Makes the image anew of a program whose file is another one in everything but its bytes.
pub(super) fn same_again(
    orlop: &Path,
    first: &Image,
    make: impl FnOnce(&Path) -> Result<Image>,
) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("touched");
    fs::write(&copy, fs::read(orlop)?)?;
    // Of today, and not even executable.
    let second = make(&copy)?;
    ensure!(
        first.archive == second.archive,
        "the same files gave another image: {}, {}",
        first.digest,
        second.digest
    );
    println!("made again of files of another time: {} again", second.digest);
    Ok(())
}

/// Runs what is in the archive at `path`.
pub(super) fn works(path: &Path, version: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (parts, root) = (folder.path().join("parts"), folder.path().join("root"));
    unpack(path, &parts)?;
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(parts.join("manifest.json"))?)?;
    unpack(&parts.join(manifest[0]["Layers"][0].as_str().context("there is a layer")?), &root)?;

    let said = run(&root, &["orlop", "--version"])?;
    ensure!(said.trim() == format!("orlop {version}"), "the program says that it is {said:?}");
    let disk = root.join("tmp/disk");
    for (bytes, words) in STEPS {
        File::options().create(true).append(true).open(&disk)?.set_len(bytes)?;
        let words: Vec<&str> = words.iter().copied().chain(["/tmp/disk"]).collect();
        run(&root, &words)?;
        println!("ran in the image: {}", words.join(" "));
    }
    Ok(())
}

fn unpack(archive: &Path, folder: &Path) -> Result<()> {
    let file = File::open(archive).with_context(|| format!("cannot open {}", archive.display()))?;
    let mut archive = tar::Archive::new(file);
    archive.set_preserve_permissions(true);
    archive.unpack(folder).with_context(|| format!("cannot unpack to {}", folder.display()))
}

/// Runs a program below `root` that has to succeed, with namespaces of its own as in a container, but no `/dev`.
fn run(root: &Path, words: &[&str]) -> Result<String> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--mount-proc", "--root"]).arg(root).args(words);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C").stdin(Stdio::null());
    let output = command.output().context("cannot run unshare (util-linux)")?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if !output.status.success() {
        bail!("in the image, {} ended with {}: {}", words.join(" "), output.status, said.trim());
    }
    Ok(said)
}

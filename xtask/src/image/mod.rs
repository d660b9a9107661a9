//! `cargo xtask image`: the container image of Orlop, made of the release build and of this machine's Debian packages,
//! without a registry, a network or a daemon.
//!
//! 1. The same program and packages give the same image, byte for byte.
//! 2. It has the programs that Orlop runs, what these need, and nothing else: no shell, no package manager.
//! 3. It says where everything is from, with the licences: `/usr/share/doc`.

mod archive;
mod check;
mod machine;
mod tree;

use anyhow::{Context, Result, ensure};
use archive::Image;
use machine::{Package, Taken};
use std::fs;
use std::path::{Path, PathBuf};
use tree::Tree;

const NAME: &str = "orlop.io/orlop";
/// The workspace's.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `nonroot` is for what needs no right at all, such as the controller.
const PASSWD: &str = "root:x:0:0:root:/root:/usr/sbin/nologin\n\
                      nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n\
                      nonroot:x:65532:65532:nonroot:/nonexistent:/usr/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\nnonroot:x:65532:\n";

/// Arguments of `cargo xtask image`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ImageArguments {
    /// Where to write the archive, which `ctr images import`, `docker load` and `podman load` read; below the target
    /// folder without.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Take this program instead of building one.
    #[arg(long, value_name = "PROGRAM")]
    orlop: Option<PathBuf>,
    /// The image's tag.
    #[arg(long, default_value = VERSION)]
    tag: String,
    /// Make it twice, and run the programs in it (needs root).
    #[arg(long)]
    check: bool,
}

/// Runs `cargo xtask image`; `build` makes the program when none is given.
pub(crate) fn run(
    project: &Path,
    arguments: &ImageArguments,
    build: impl FnOnce() -> Result<PathBuf>,
) -> Result<()> {
    let orlop = arguments.orlop.clone().map_or_else(build, Ok)?;
    let out = arguments.out.clone().map_or_else(|| default_out(project), Ok)?;
    write(project, &orlop, &arguments.tag, &out, arguments.check)
}

fn default_out(project: &Path) -> Result<PathBuf> {
    let target = crate::tidy::metadata(project)?.target_directory;
    Ok(target.join(format!("image/orlop-{VERSION}.tar")).into())
}

/// The same with a program that is there, as a stage of CI.
pub(crate) fn check(project: &Path, orlop: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    write(project, orlop, VERSION, &folder.path().join("orlop.tar"), true)
}

fn write(project: &Path, orlop: &Path, tag: &str, out: &Path, check: bool) -> Result<()> {
    ensure!(orlop.is_file(), "{} is no program", orlop.display());
    let (image, packages) = make(project, orlop, tag)?;
    if let Some(folder) = out.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::write(out, &image.archive).with_context(|| format!("cannot write {}", out.display()))?;
    print!("{}", list(&packages));
    println!("{NAME}:{tag} {}", image.digest);
    println!("{} ({} MB)", out.display(), image.archive.len() / 1_000_000);
    if check {
        check::same_again(orlop, &image, |copy| Ok(make(project, copy, tag)?.0))?;
        check::works(out, VERSION)?;
    }
    Ok(())
}

/// The image with this program and tag, and the packages that the rest is from.
fn make(project: &Path, orlop: &Path, tag: &str) -> Result<(Image, Vec<Package>)> {
    let taken = Taken::for_program(orlop)?;
    let packages = taken.packages()?;
    let mut tree = bare()?;
    for file in &taken.programs {
        tree.file(&place(file), 0o755, read(file)?)?;
    }
    for file in &taken.data {
        tree.file(&place(file), 0o644, read(file)?)?;
    }
    for package in &packages {
        let path = format!("{}/copyright", package.documents());
        tree.file(&path, 0o644, read(&Path::new("/").join(&path))?)?;
    }
    tree.file("usr/share/doc/orlop/packages.txt", 0o644, list(&packages))?;
    tree.file("usr/share/doc/orlop/copyright", 0o644, read(&project.join("LICENSE"))?)?;
    tree.file("usr/bin/orlop", 0o755, read(orlop)?)?;
    Ok((archive::image(NAME, tag, &tree)?, packages))
}

/// What a container has before anything is in it.
fn bare() -> Result<Tree> {
    let mut tree = Tree::default();
    for folder in ["bin", "lib", "lib64", "sbin"] {
        tree.folder(&format!("usr/{folder}"), 0o755)?;
        tree.link(folder, &format!("usr/{folder}"))?;
    }
    // The runtime mounts over these also where the root is read only.
    for (folder, mode) in
        [("dev", 0o755), ("proc", 0o755), ("run", 0o755), ("sys", 0o755), ("root", 0o700), ("tmp", 0o1777)]
    {
        tree.folder(folder, mode)?;
    }
    tree.file("etc/passwd", 0o644, PASSWD)?;
    tree.file("etc/group", 0o644, GROUP)?;
    // The order is not the same in all versions of glibc.
    tree.file("etc/nsswitch.conf", 0o644, "passwd: files\ngroup: files\nhosts: files dns\n")?;
    Ok(tree)
}

/// Where a file of this machine is in the image, in which /bin and the like are links.
fn place(file: &Path) -> String {
    let path = file.to_string_lossy();
    let path = path.trim_start_matches('/');
    let top = path.split('/').next().unwrap_or_default();
    if ["bin", "lib", "lib64", "sbin"].contains(&top) { format!("usr/{path}") } else { path.to_owned() }
}

fn list(packages: &[Package]) -> String {
    packages.iter().map(Package::line).collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_lie_where_the_loader_looks() {
        for (file, wanted) in [
            ("/lib64/ld-linux-x86-64.so.2", "usr/lib64/ld-linux-x86-64.so.2"),
            ("/lib/x86_64-linux-gnu/libc.so.6", "usr/lib/x86_64-linux-gnu/libc.so.6"),
            ("/usr/sbin/mkfs.ext4", "usr/sbin/mkfs.ext4"),
            ("/etc/mke2fs.conf", "etc/mke2fs.conf"),
        ] {
            assert_eq!(place(Path::new(file)), wanted);
        }
    }
}

//! What an image takes from the machine that builds it: programs, their libraries, their data, and the names of the
//! Debian packages that these come from.
//!
//! 1. Everything that is taken belongs to an installed package; what is missing is answered with the package to install.
//! 2. The list of programs is that of `control/csi` (`filesystem`, `node::read_only`, `node::tool`), and what repairs a file system by hand.

use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Where the plugin looks for programs, too.
const PATH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Programs, and the packages that bring them.
const PROGRAMS: [(&str, &str); 10] = [
    // Every other program is started by it.
    ("setpriv", "util-linux"),
    ("losetup", "mount"),
    ("mkfs.ext4", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("resize2fs", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("xfs_growfs", "xfsprogs"),
    ("xfs_repair", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("btrfs", "btrfs-progs"),
];

/// Files, and folders of files, that these programs read; the copyrights of all packages refer to the last one.
const DATA: [(&str, &str); 2] =
    [("/etc/mke2fs.conf", "e2fsprogs"), ("/usr/share/common-licenses", "base-files")];

/// Files of this machine.
pub(super) struct Taken {
    /// Programs and libraries.
    pub(super) programs: Vec<PathBuf>,
    /// Everything else.
    pub(super) data: Vec<PathBuf>,
}

impl Taken {
    /// All that a container needs where `orlop` runs.
    pub(super) fn for_program(orlop: &Path) -> Result<Self> {
        let (mut programs, mut missing) = (Vec::new(), BTreeSet::new());
        for (name, package) in PROGRAMS {
            match PATH.map(|folder| Path::new(folder).join(name)).into_iter().find(|path| path.is_file()) {
                Some(path) => programs.push(path),
                None => _ = missing.insert(package),
            }
        }
        missing.extend(DATA.iter().filter(|(path, _)| !Path::new(path).exists()).map(|(_, package)| package));
        if !missing.is_empty() {
            let missing = missing.into_iter().collect::<Vec<_>>().join(" ");
            bail!("programs of the image are missing on this machine: apt install {missing}");
        }
        let linked = programs.iter().map(PathBuf::as_path).chain([orlop]);
        let libraries = libraries(linked)?;
        programs.extend(libraries);
        let mut data = Vec::new();
        for (path, _) in DATA {
            data.extend(files_at(Path::new(path))?);
        }
        Ok(Self { programs, data })
    }

    /// The packages that they come from.
    pub(super) fn packages(&self) -> Result<Vec<Package>> {
        let names = owners(self.programs.iter().chain(&self.data).map(PathBuf::as_path))?;
        let mut query = Command::new("dpkg-query");
        let format = "${binary:Package}\\t${Version}\\t${source:Package}\\t${source:Version}\\n";
        query.args(["--show", "--showformat", format]).args(names);
        let shown = success(query)?;
        shown.lines().map(Package::parse).collect()
    }
}

/// The file, or the files in the folder.
fn files_at(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let folder = std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(folder.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?)
}

/// The shared libraries of these programs, with their loader.
///
/// None of the programs or libraries calls `dlopen`; `pthread_cancel`, which btrfs calls, loads `libgcc_s`, from beside
/// the C library.
fn libraries<'a>(programs: impl Iterator<Item = &'a Path>) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for program in programs {
        let mut magic = [0; 4];
        File::open(program)?.read_exact(&mut magic)?;
        ensure!(
            &magic == b"\x7fELF",
            "{} is no program: the image has nothing to run scripts",
            program.display()
        );
        let mut ldd = Command::new("ldd");
        ldd.arg(program).env_remove("LD_LIBRARY_PATH").env_remove("LD_PRELOAD");
        let Output { status, stdout, stderr } = output(ldd)?;
        let (listed, said) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        let is_static = said.contains("not a dynamic executable");
        ensure!(status.success() || is_static, "ldd {} failed: {}", program.display(), said.trim());
        let paths = resolved(&listed).with_context(|| format!("libraries of {}", program.display()))?;
        found.extend(paths);
    }
    let c_library =
        found.iter().find(|path| path.ends_with("libc.so.6")).context("nobody needs libc.so.6")?;
    let loaded = c_library.with_file_name("libgcc_s.so.1");
    ensure!(loaded.is_file(), "{} is missing on this machine: apt install libgcc-s1", loaded.display());
    found.insert(loaded);
    Ok(found)
}

/// The paths that `ldd` names.
fn resolved(listed: &str) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in listed.lines().map(str::trim) {
        ensure!(!line.contains("not found"), "{line}");
        // `NAME => PATH (ADDRESS)`; the loader has no name, and the kernel's library no path.
        let path = line.split_once(" => ").map_or(line, |(_, path)| path);
        if let Some((path, _)) = path.split_once(" (0x").filter(|(path, _)| path.starts_with('/')) {
            paths.push(path.into());
        }
    }
    Ok(paths)
}

/// The names of the packages that own the files.
fn owners<'a>(files: impl Iterator<Item = &'a Path>) -> Result<BTreeSet<String>> {
    // dpkg knows the real files only, and some of them by the paths of the time before /bin was a link to /usr/bin.
    let mut spellings = Vec::new();
    for file in files {
        let real = file.canonicalize()?.to_string_lossy().into_owned();
        let old = real.strip_prefix("/usr").unwrap_or(&real).to_owned();
        spellings.push([real, old]);
    }
    let mut query = Command::new("dpkg-query");
    query.arg("--search").args(spellings.as_flattened());
    // It fails if it does not know one of two spellings.
    let searched = output(query)?.stdout;
    let searched = String::from_utf8_lossy(&searched);
    let known: Vec<(&str, &str)> = searched
        .lines()
        .filter(|line| !line.starts_with("diversion "))
        .filter_map(|line| line.rsplit_once(": "))
        .collect();
    let mut names = BTreeSet::new();
    for spelling in &spellings {
        let mut owners =
            known.iter().filter(|(_, path)| spelling.iter().any(|known| known == path)).peekable();
        ensure!(
            owners.peek().is_some(),
            "{} belongs to no Debian package: the image takes no others",
            spelling[0]
        );
        names.extend(owners.flat_map(|(owners, _)| owners.split(", ")).map(str::to_owned));
    }
    Ok(names)
}

/// An installed package.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Package {
    /// With its architecture if it can be there for several.
    name: String,
    version: String,
    /// What to ask Debian for to get the source.
    source: String,
}

impl Package {
    fn parse(line: &str) -> Result<Self> {
        let [name, version, source, source_version] = line.split('\t').collect::<Vec<_>>()[..] else {
            bail!("dpkg-query says {line:?}");
        };
        let source = format!("{source} {source_version}");
        Ok(Self { name: name.to_owned(), version: version.to_owned(), source })
    }

    /// The folder of its documents.
    pub(super) fn documents(&self) -> String {
        let name = self.name.split(':').next().unwrap_or_default();
        format!("usr/share/doc/{name}")
    }

    /// For people and programs.
    pub(super) fn line(&self) -> String {
        format!("{:<22} {:<22} source: {}\n", self.name, self.version, self.source)
    }
}

/// Runs a program in plain English.
fn output(mut command: Command) -> Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.env("LC_ALL", "C").output().with_context(|| {
        format!(
            "cannot run {program}: an image is made of Debian packages, on Debian or what derives from it"
        )
    })
}

/// Runs a program that has to succeed.
fn success(command: Command) -> Result<String> {
    let shown = format!("{command:?}");
    let Output { status, stdout, stderr } = output(command)?;
    ensure!(status.success(), "{shown} ended with {status}: {}", String::from_utf8_lossy(&stderr).trim());
    Ok(String::from_utf8(stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_ldd_is_understood() {
        let listed = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f97)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f98)\n";
        let paths = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(resolved(listed).unwrap(), paths.map(PathBuf::from));
        assert_eq!(resolved("\tstatically linked\n").unwrap(), Vec::<PathBuf>::new());
        let error = resolved("\tlibx.so.1 => not found\n").unwrap_err().to_string();
        assert!(error.contains("libx.so.1"), "{error}");
    }

    #[test]
    fn packages_are_understood() {
        let package = Package::parse("libc6:amd64\t2.36-9\tglibc\t2.36-8").unwrap();
        assert_eq!(package.documents(), "usr/share/doc/libc6");
        let words: Vec<_> = package.line().split_whitespace().map(str::to_owned).collect();
        assert_eq!(words, ["libc6:amd64", "2.36-9", "source:", "glibc", "2.36-8"]);
        assert!(Package::parse("libc6").is_err());
    }
}

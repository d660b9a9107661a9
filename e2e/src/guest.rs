//! A throw-away Linux guest under QEMU's software emulation: the kernel's own NVMe/TCP initiator and target as judges.
//!
//! 1. The guest is built once per recipe (`e2e/vm/`, its hash names the folder in the cache) and never changed by a run:
//!    its root disk is read-only, a tmpfs lies over it.
//! 2. A run shares one folder with the guest (`/vm` there); the host's loopback is 10.0.2.2.
//! 3. Only a guest that died or hung is booted again, once; the exit code of the commands is the verdict otherwise.

use crate::cache::cache;
use crate::process::{Running, tail};
use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The recipe: a change of any of these is another guest.
const RECIPE: [&str; 3] = ["build.sh", "initrd-init", "guest-init"];
const MEMORY_MIB: u32 = 1024;

/// A guest that is ready to boot.
#[derive(Debug)]
pub(crate) struct Guest {
    folder: PathBuf,
}

/// What a boot gave.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// Exit code of the commands.
    pub(crate) code: i32,
    /// What they printed.
    pub(crate) output: String,
    /// Seconds of the guest's clock when the commands started.
    pub(crate) boot_seconds: String,
    /// The whole run as the host saw it.
    pub(crate) elapsed: Duration,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "booted in {} s, ended after {:.1} s", self.boot_seconds, self.elapsed.as_secs_f64())
    }
}

enum Boot {
    Ended(Verdict),
    /// It died or was still running at its limit: the reason, with the end of its console.
    Lost(String),
}

impl Guest {
    /// The guest of this source tree, built if the cache does not have it (half a minute to three).
    pub(crate) fn ready() -> Result<Self> {
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("vm");
        let mut hash = Sha256::new();
        for name in RECIPE {
            hash.update(
                fs::read(recipe.join(name)).with_context(|| format!("read the guest's recipe {name}"))?,
            );
        }
        let key = key(hash);
        let folder = cache()?.join("vm").join(key);
        // The tools may be missing although the guest is cached: a restored cache on a new machine.
        if !folder.join("versions").exists() || which("qemu-system-x86_64").is_none() {
            let begun = Instant::now();
            let status =
                Command::new("nice").arg("bash").arg(recipe.join("build.sh")).arg(&folder).status()?;
            if !status.success() {
                bail!("the guest could not be built (e2e/vm/build.sh: {status})");
            }
            println!("  guest built in {:.0} s", begun.elapsed().as_secs_f64());
        }
        Ok(Self { folder })
    }

    /// Kernel and tools in the guest.
    pub(crate) fn versions(&self) -> Result<String> {
        Ok(fs::read_to_string(self.folder.join("versions"))?)
    }

    /// A file for what was found about this guest by `script`, which holds for as long as both stay what they are.
    pub(crate) fn finding(&self, script: &str) -> PathBuf {
        self.folder.join(format!("judged-{}", key(Sha256::new_with_prefix(script))))
    }

    /// Boots, runs `script` with bash as root, and returns its exit code; `shared` is `/vm` in the guest.
    /// # Errors  When the guest died or hung twice.
    pub(crate) fn run(&self, shared: &Path, script: &str, limit: Duration) -> Result<Verdict> {
        let boot = || self.start(shared, script, None)?.end(limit);
        match boot()? {
            Boot::Ended(verdict) => Ok(verdict),
            Boot::Lost(reason) => {
                println!("  booting the guest again: {reason}");
                match boot()? {
                    Boot::Ended(verdict) => Ok(verdict),
                    Boot::Lost(reason) => bail!("the guest was lost twice: {reason}"),
                }
            }
        }
    }

    /// Boots with `script` and comes back at once; the host's loopback port `forwarded` is the guest's port 4420.
    pub(crate) fn start(&self, shared: &Path, script: &str, forwarded: Option<u16>) -> Result<Booted> {
        fs::create_dir_all(shared)?;
        for name in ["code", "booted"] {
            if shared.join(name).exists() {
                fs::remove_file(shared.join(name))?;
            }
        }
        fs::write(shared.join("command"), script)?;
        let running = Running::start(self.qemu(shared, forwarded), &shared.join("output.log"))?;
        Ok(Booted { running, shared: shared.to_owned() })
    }

    fn qemu(&self, shared: &Path, forwarded: Option<u16>) -> Command {
        let file = |name: &str| self.folder.join(name).display().to_string();
        // setpriv: the guest dies with the harness, whatever ends that. Its clock is this machine's: a guest that waits
        // for a core loses time, so it has the same right to one as everybody.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        command.args([
            "-accel",
            "tcg,thread=multi,tb-size=256",
            "-cpu",
            "max,la57=off",
            "-M",
            "q35",
            "-smp",
            "1",
        ]);
        command.args([
            "-m",
            &MEMORY_MIB.to_string(),
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ]);
        command.args(["-kernel", &file("vmlinux"), "-initrd", &file("initrd"), "-append"]);
        command.arg(
            "console=ttyS0 reboot=t panic=-1 mitigations=off nokaslr audit=0 apparmor=0 random.trust_cpu=on \
             no_timer_check quiet loglevel=4",
        );
        command.arg("-serial").arg(format!("file:{}", shared.join("console.log").display()));
        command.args(["-device", "virtio-serial-pci", "-chardev", "stdio,id=out,signal=off"]);
        command.args(["-device", "virtconsole,chardev=out"]);
        command.arg("-drive").arg(format!(
            "file={},if=none,id=root,format=raw,readonly=on,cache=unsafe,file.locking=off",
            file("rootfs.img")
        ));
        command.args(["-device", "virtio-blk-pci,drive=root"]);
        command.arg("-fsdev").arg(format!("local,id=vm,path={},security_model=none", shared.display()));
        command.args(["-device", "virtio-9p-pci,fsdev=vm,mount_tag=vm"]);
        command.args([
            "-object",
            "rng-random,id=rng,filename=/dev/urandom",
            "-device",
            "virtio-rng-pci,rng=rng",
        ]);
        let forward = forwarded.map_or(String::new(), |port| format!(",hostfwd=tcp:127.0.0.1:{port}-:4420"));
        command.args([
            "-netdev",
            &format!("user,id=net{forward}"),
            "-device",
            "virtio-net-pci,netdev=net,romfile=",
        ]);
        command
    }
}

fn key(hash: Sha256) -> String {
    hash.finalize().iter().take(6).fold(String::new(), |key, byte| format!("{key}{byte:02x}"))
}

/// A guest that is booting or running.
pub(crate) struct Booted {
    running: Running,
    shared: PathBuf,
}

impl Booted {
    /// Waits until the guest has written the file `name` into the shared folder.
    pub(crate) fn wait_for(&mut self, name: &str, limit: Duration) -> Result<()> {
        let begun = Instant::now();
        while !self.shared.join(name).exists() {
            let output = self.running.output();
            ensure!(
                self.running.runs() && begun.elapsed() < limit,
                "the guest did not write {name}:\n{output}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Waits until the guest has ended.
    fn end(self, limit: Duration) -> Result<Boot> {
        let Self { running, shared } = self;
        let outcome = running.wait(limit)?;
        let read = |name: &str| fs::read(shared.join(name)).unwrap_or_default();
        let text = |name: &str| String::from_utf8_lossy(&read(name)).trim().to_owned();
        if let (Some(_), Ok(code)) = (outcome.code, text("code").parse()) {
            let (boot_seconds, elapsed) = (text("booted"), outcome.elapsed);
            return Ok(Boot::Ended(Verdict { code, output: outcome.output, boot_seconds, elapsed }));
        }
        let what = match outcome.code {
            None => format!("the guest had not ended after {} s", limit.as_secs()),
            Some(_) => "the guest died before its commands ended".to_owned(),
        };
        Ok(Boot::Lost(format!(
            "{what}; the end of its output:\n{}\nthe end of its console:\n{}",
            tail(&outcome.output, 20),
            tail(&text("console.log"), 20)
        )))
    }

    /// The same, where a lost guest is a failure.
    pub(crate) fn verdict(self, limit: Duration) -> Result<Verdict> {
        match self.end(limit)? {
            Boot::Ended(verdict) => Ok(verdict),
            Boot::Lost(reason) => bail!("{reason}"),
        }
    }
}

/// The program's path, if it is installed.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

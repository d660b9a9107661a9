//! By what a node makes block devices, as its command line says it.

use clap::ValueEnum;

/// By what a volume becomes a block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Frontend {
    /// NVMe/TCP where the kernel has it, else FUSE.
    #[default]
    Auto,
    /// A file over FUSE with a loop device over it.
    Fuse,
    /// The kernel's NVMe/TCP initiator.
    NvmeTcp,
}

impl Frontend {
    /// As it is written.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Fuse => "fuse",
            Self::NvmeTcp => "nvme-tcp",
        }
    }
}

impl From<Frontend> for engine::Frontend {
    fn from(frontend: Frontend) -> Self {
        match frontend {
            Frontend::Auto => Self::Auto,
            Frontend::Fuse => Self::Fuse,
            Frontend::NvmeTcp => Self::NvmeTcp,
        }
    }
}

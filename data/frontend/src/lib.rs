//! Front-ends: a volume as something that a kernel can open.
//!
//! On the path of a byte this is the stage above the nexus: programs see a block device, and its requests arrive here.
//! - [`fuse`]: a file over FUSE with a loop device over it; works with nothing but FUSE.

mod error;
pub mod fuse;
mod protect;

pub use error::{Error, ErrorKind};
pub use protect::protect_process;

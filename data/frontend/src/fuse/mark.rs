//! The mark that our mounts and loop devices carry: `orlop:RUN:VOLUME`, within the 63 bytes that a loop device keeps.

use crate::{Error, ErrorKind};
use std::fmt;
use uuid::Uuid;

/// Longest run id: the mark must fit.
const RUN_LEN_MAX: usize = 24;

/// Who made a mount or a loop device, and for which volume.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mark {
    pub(crate) run_id: String,
    pub(crate) volume: Uuid,
}

impl Mark {
    pub(crate) fn new(run_id: &str, volume: Uuid) -> Result<Self, Error> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if run_id.is_empty() || run_id.len() > RUN_LEN_MAX || !run_id.bytes().all(allowed) {
            let message = format!(
                "run id {run_id:?} cannot mark devices: at most {RUN_LEN_MAX} of a-z, 0-9, '-', '_', '.'"
            );
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        Ok(Self { run_id: run_id.into(), volume })
    }

    /// Reads a mark back; `None` for everything that is not ours.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let (run_id, volume) = text.strip_prefix("orlop:")?.split_once(':')?;
        Self::new(run_id, Uuid::try_parse(volume).ok()?).ok()
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "orlop:{}:{}", self.run_id, self.volume.simple())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_back_and_fit() {
        let mark = Mark::new(&"r".repeat(RUN_LEN_MAX), Uuid::from_u128(7)).unwrap();
        assert!(mark.to_string().len() <= 63);
        assert_eq!(Mark::read(&mark.to_string()), Some(mark));
    }

    #[test]
    fn strangers_are_not_ours() {
        for text in ["", "/var/lib/image", "orlop:", "orlop:run", "orlop:run:volume", "orlop::0"] {
            assert_eq!(Mark::read(text), None, "{text}");
        }
        assert!(Mark::new("a/b", Uuid::nil()).is_err());
        assert!(Mark::new(&"r".repeat(RUN_LEN_MAX + 1), Uuid::nil()).is_err());
    }
}

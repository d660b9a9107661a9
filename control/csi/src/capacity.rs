//! Sizes: what a range of bytes allows, in the units of volumes.

use crate::{
    capability::{Access, Kind},
    filesystem::{Filesystem, RESERVED_BYTES},
    refusal::invalid,
    v1::CapacityRange,
};
use model::{
    SizeText,
    limits::{SIZE_MAX_BYTES, SIZE_UNIT_BYTES},
};
use tonic::Status;

/// Where nobody says how large.
const DEFAULT_BYTES: u64 = 1 << 30;
/// The smallest block device, and the smallest file system.
pub(crate) const MIN_BYTES: u64 = 16 << 20;

/// A range that makes sense: at least this, at most that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    required_bytes: u64,
    limit_bytes: Option<u64>,
}

impl Range {
    /// Understands a range; nothing asked for is a range, too.
    pub(crate) fn parse(range: Option<&CapacityRange>) -> Result<Self, Status> {
        let &CapacityRange { required_bytes, limit_bytes } = range.unwrap_or(&CapacityRange::default());
        let (Ok(required_bytes), Ok(limit)) = (u64::try_from(required_bytes), u64::try_from(limit_bytes))
        else {
            return Err(invalid("capacity_range has a negative number of bytes"));
        };
        let limit_bytes = (limit > 0).then_some(limit);
        if limit_bytes.is_some_and(|limit| limit < required_bytes) {
            return Err(invalid("capacity_range asks for more bytes than it allows"));
        }
        Ok(Self { required_bytes, limit_bytes })
    }

    /// Whether a volume of this size will do.
    pub(crate) fn holds(self, bytes: u64) -> bool {
        bytes >= self.required_bytes && self.limit_bytes.is_none_or(|limit| bytes <= limit)
    }

    /// The size of a new volume to be used like this.
    pub(crate) fn new_size(self, access: &[Access], default: Filesystem) -> Result<u64, Status> {
        let least = Least::of(access, default);
        let required = match (self.required_bytes, self.limit_bytes) {
            (0, None) => DEFAULT_BYTES,
            (0, Some(limit)) => limit.min(DEFAULT_BYTES),
            (required, _) => required,
        };
        if required < least.bytes {
            let (asked, least_size) = (SizeText(required), SizeText(least.bytes));
            return Err(Status::out_of_range(format!(
                "{asked} are too few for {}: ask for {least_size} or more",
                least.what
            )));
        }
        self.rounded(required.max(least.with_reserve))
    }

    /// The size of a volume that has `now` and is to grow.
    pub(crate) fn grown_size(self, now: u64) -> Result<u64, Status> {
        if self.limit_bytes.is_some_and(|limit| now > limit) {
            return Err(Status::out_of_range(format!("the volume has {}, and cannot shrink", SizeText(now))));
        }
        if self.required_bytes <= now { Ok(now) } else { self.rounded(self.required_bytes) }
    }

    /// The next whole unit, if the range has room for it.
    fn rounded(self, bytes: u64) -> Result<u64, Status> {
        let size = bytes.div_ceil(SIZE_UNIT_BYTES).saturating_mul(SIZE_UNIT_BYTES);
        let out = |why: String| Err(Status::out_of_range(why));
        if size > SIZE_MAX_BYTES {
            return out(format!(
                "{} are too many: a volume has at most {}",
                SizeText(size),
                SizeText(SIZE_MAX_BYTES)
            ));
        }
        match self.limit_bytes {
            // Nobody asked for so much: the default gives way.
            Some(limit) if size > limit && self.required_bytes == 0 && limit / SIZE_UNIT_BYTES > 0 => {
                Ok(limit / SIZE_UNIT_BYTES * SIZE_UNIT_BYTES)
            }
            Some(limit) if size > limit => {
                out(format!("{size} bytes are needed, and at most {limit} allowed: sizes are whole MiB"))
            }
            _ => Ok(size),
        }
    }
}

/// The smallest volume for a use.
struct Least {
    bytes: u64,
    with_reserve: u64,
    what: &'static str,
}

impl Least {
    fn of(access: &[Access], default: Filesystem) -> Self {
        let least = access.iter().map(|access| match &access.kind {
            Kind::Block => Self { bytes: MIN_BYTES, with_reserve: MIN_BYTES, what: "a block device" },
            Kind::Mount { filesystem, .. } => match filesystem.unwrap_or(default) {
                // It makes smaller ones, too.
                Filesystem::Ext4 => Self { bytes: MIN_BYTES, with_reserve: MIN_BYTES, what: "ext4" },
                other => {
                    let bytes = other.min_bytes();
                    Self { bytes, with_reserve: bytes + RESERVED_BYTES, what: other.name() }
                }
            },
        });
        least.max_by_key(|least| least.bytes).unwrap_or(Self {
            bytes: MIN_BYTES,
            with_reserve: MIN_BYTES,
            what: "a volume",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::MkfsOptions;
    use proptest::prelude::*;
    use tonic::Code;

    const MIB: u64 = 1 << 20;

    fn range(required: u64, limit: u64) -> Range {
        let bytes = |n: u64| i64::try_from(n).unwrap();
        Range::parse(Some(&CapacityRange { required_bytes: bytes(required), limit_bytes: bytes(limit) }))
            .unwrap()
    }

    fn use_as(kind: Kind) -> [Access; 1] {
        [Access { kind, read_only: false, single_writer: false, many_nodes: false }]
    }

    fn file_system(filesystem: Filesystem) -> [Access; 1] {
        use_as(Kind::Mount {
            filesystem: Some(filesystem),
            flags: Vec::new(),
            mkfs_options: MkfsOptions::default(),
        })
    }

    #[test]
    fn sizes_are_rounded_up_and_have_a_minimum() {
        let block = use_as(Kind::Block);
        for (access, required, limit, wanted) in [
            (&block, 0, 0, Some(1024)),
            (&block, 0, 64 * MIB, Some(64)),
            (&block, 0, 64 * MIB + 1, Some(64)),
            (&block, 16 * MIB + 1, 0, Some(17)),
            (&block, 16 * MIB + 1, 16 * MIB + 2, None),
            (&block, 16 * MIB - 1, 0, None),
            (&block, 1, 0, None),
            (&block, 0, 1, None),
            (&block, (64 << 40) + 1, 0, None),
            (&block, u64::MAX >> 1, 0, None),
            (&file_system(Filesystem::Ext4), 16 * MIB, 0, Some(16)),
            (&file_system(Filesystem::Xfs), 300 * MIB, 0, Some(301)),
            (&file_system(Filesystem::Xfs), 300 * MIB - 1, 0, None),
            (&file_system(Filesystem::Xfs), 300 * MIB, 300 * MIB, None),
            (&file_system(Filesystem::Btrfs), 109 * MIB, 0, Some(110)),
            (&file_system(Filesystem::Btrfs), 400 * MIB, 0, Some(400)),
        ] {
            let found = range(required, limit).new_size(access, Filesystem::Ext4);
            match wanted {
                Some(mib) => assert_eq!(found.unwrap(), mib * MIB, "{required} to {limit}"),
                None => assert_eq!(found.unwrap_err().code(), Code::OutOfRange, "{required} to {limit}"),
            }
        }
        let refused = range(MIB, 0).new_size(&file_system(Filesystem::Xfs), Filesystem::Ext4).unwrap_err();
        assert!(refused.message().contains("xfs: ask for 300 MiB"), "{refused}");
    }

    #[test]
    fn volumes_grow_and_never_shrink() {
        assert_eq!(range(3 * MIB - 1, 0).grown_size(2 * MIB).unwrap(), 3 * MIB);
        assert_eq!(range(MIB, 0).grown_size(2 * MIB).unwrap(), 2 * MIB);
        assert_eq!(range(0, MIB).grown_size(2 * MIB).unwrap_err().code(), Code::OutOfRange);
    }

    #[test]
    fn ranges_that_make_no_sense_are_refused() {
        for (required_bytes, limit_bytes) in [(-1, 0), (0, -1), (2, 1), (i64::MIN, i64::MIN)] {
            let refused = Range::parse(Some(&CapacityRange { required_bytes, limit_bytes })).unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument);
        }
    }

    proptest! {
        #[test]
        fn a_size_is_in_its_range(required in 0..u64::MAX >> 1, more in 0..u64::MAX >> 2, limited: bool) {
            let limit = if limited { required.saturating_add(more).min(u64::MAX >> 1) } else { 0 };
            let range = range(required, limit);
            if let Ok(size) = range.new_size(&use_as(Kind::Block), Filesystem::Ext4) {
                prop_assert!(range.holds(size) && size.is_multiple_of(MIB) && size >= 16 * MIB);
            }
        }
    }
}

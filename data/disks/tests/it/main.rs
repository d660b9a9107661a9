//! The disks of whole machines, of `tests/machines`, and a pool that was really made.

#![expect(clippy::expect_used, reason = "tests lay machines out as files")]

mod capture;
mod captured;
mod machine;
mod machines;
mod partitions;
mod pools;

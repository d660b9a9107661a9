//! Control crate `api`.

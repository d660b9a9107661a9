//! Control crate `store`.

//! Control crate `manager`.

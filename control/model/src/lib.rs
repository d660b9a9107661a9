//! Control crate `model`.

//! Stage `nvmf` of the path of a byte.

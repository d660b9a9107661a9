//! Stage `nexus` of the path of a byte.

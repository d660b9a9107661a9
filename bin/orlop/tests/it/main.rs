//! The program as its users meet it: its real binary, its output and its exit codes.

mod bench;
mod dev;
mod help;
mod program;
mod usage;

//! The program as its users meet it: its real binary, its output and its exit codes.

mod auth;
mod bad_input;
mod bench;
mod class;
mod cluster;
mod csi;
mod dev;
mod docs;
mod help;
mod metrics;
mod node;
mod plugin;
mod preflight;
mod program;
mod recover;
mod replace;
mod sim;
mod support;
mod usage;
mod volume;
mod wipe;

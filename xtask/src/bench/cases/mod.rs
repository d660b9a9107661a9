//! The benchmarks: each answers one question of the design's budgets.

mod copies;
mod idle;
mod local;
mod path;
mod rebuild;
mod stall;
mod target;
mod thin;

use super::bed::Bed;
use super::line::Line;
use anyhow::Result;

/// One benchmark.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    /// Whether it needs a block device of Orlop's own, and so root.
    pub(crate) needs_root: bool,
    pub(crate) run: fn(&Bed) -> Result<Vec<Line>>,
}

/// All of them, in the order in which they run.
pub(crate) const ALL: &[Case] = &[
    local::CASE,
    path::CASE,
    target::CASE,
    copies::CASE,
    thin::CASE,
    idle::CASE,
    rebuild::CASE,
    stall::CASE,
];

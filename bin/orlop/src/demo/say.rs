//! What the demo prints: one line per step with how long it took, and a bar while something progresses.

use crate::output;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

/// The steps of the story.
#[derive(Debug)]
pub(super) struct Steps {
    number: u32,
    began: Instant,
}

impl Steps {
    pub(super) fn new() -> Self {
        Self { number: 0, began: Instant::now() }
    }

    /// Ends a step: what happened, and how long it took since the last one.
    pub(super) fn done(&mut self, what: &str) {
        self.number += 1;
        let took = seconds(self.began.elapsed());
        // A reader that went away does not end the demo: it still has to clean up.
        let _unread = output::line(&format!("{:>2}. {what} [{took}]", self.number));
        self.began = Instant::now();
    }
}

/// A duration for people.
pub(super) fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

/// A bar of bytes; drawn on a terminal only, gone when dropped.
pub(super) fn bar(what: &str, total_bytes: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total_bytes), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("    {msg} [{bar:30}] {bytes} of {total_bytes}");
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(what.to_owned());
    bar
}

//! Progress bars on a terminal. A pipe or a log gets none.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const TEMPLATE: &str =
    "{msg:14} {bar:32} {bytes:>10} / {total_bytes:10} {bytes_per_sec:>12} {eta:>4}";

/// A progress bar that counts bytes up to a total.
#[derive(Debug)]
pub(super) struct Bar(ProgressBar);

impl Bar {
    /// Creates a bar, which is visible only if standard error is a terminal and `quiet` is not set.
    pub(super) fn new(what: &'static str, total: u64, quiet: bool) -> Self {
        let visible = !quiet && std::io::stderr().is_terminal();
        let target = if visible {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(total), target).with_message(what);
        // The template is a constant that a test builds.
        Self(match ProgressStyle::with_template(TEMPLATE) {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        })
    }

    /// Returns the count, which the code that moves the bytes advances.
    pub(super) fn counter(&self) -> &ProgressBar {
        &self.0
    }

    /// Removes the bar from the screen.
    pub(super) fn finish(&self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_valid_and_counts_add_up() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
        let bar = Bar::new("test", 10, true);
        bar.counter().inc(4);
        assert_eq!(bar.0.position(), 4);
    }
}

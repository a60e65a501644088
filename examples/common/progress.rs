//! Progress on the standard error stream: a bar on a terminal, plain lines elsewhere.

use std::fmt::Arguments;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// Plain lines come at least this far apart.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Shows how far a loop has come.
pub struct ProgressDisplay {
    bar: Option<ProgressBar>,
    /// The first step shown, which may be far into the loop, and when that was.
    first: Option<(u64, Instant)>,
    last_line: Instant,
}

impl ProgressDisplay {
    pub fn new() -> Self {
        let style =
            ProgressStyle::with_template("{wide_bar} {pos}/{len} | {msg} | {eta} left").expect("a valid template");
        let bar = std::io::stderr().is_terminal().then(|| ProgressBar::new(0).with_style(style));
        Self { bar, first: None, last_line: Instant::now() }
    }

    /// Shows that `step` of `steps` is done. The message is formatted only if it is shown.
    pub fn update(&mut self, step: u64, steps: u64, message: Arguments<'_>) {
        let new = self.first.is_none();
        let (first, start) = *self.first.get_or_insert_with(|| (step, Instant::now()));
        if let Some(bar) = &self.bar {
            bar.set_length(steps);
            bar.set_message(message.to_string());
            bar.set_position(step);
            if new {
                bar.reset_eta();
            }
        } else if self.last_line.elapsed() >= LINE_INTERVAL || step == steps {
            self.last_line = Instant::now();
            let made = step.saturating_sub(first).max(1);
            let left = start.elapsed().mul_f64((steps - step) as f64 / made as f64);
            eprintln!("step {step}/{steps} | {message} | {} left", HumanDuration(left));
        }
    }

    /// A line that stays.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    /// Removes the bar.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

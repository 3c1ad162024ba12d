//! Progress on stderr: moving spinners on a terminal, one plain line per finished step elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::output::Paint;

/// A place for steps.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    bars: Option<MultiProgress>,
}

/// One step that takes time.
#[derive(Debug)]
pub(crate) struct Step {
    bar: Option<ProgressBar>,
    bars: Option<MultiProgress>,
    what: String,
    began: Instant,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            bars: std::io::stderr().is_terminal().then(MultiProgress::new),
        }
    }

    /// Prints a line above the spinners.
    pub(crate) fn say(&self, line: &str) {
        match &self.bars {
            Some(bars) => {
                // A terminal that cannot be written to is no reason to stop.
                let _ = bars.println(line);
            }
            None => eprintln!("{line}"),
        }
    }

    /// Begins a step.
    pub(crate) fn step(&self, what: impl Into<String>) -> Step {
        let what = what.into();
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new_spinner());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}") {
                bar.set_style(style);
            }
            bar.set_message(what.clone());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Step {
            bar,
            bars: self.bars.clone(),
            what,
            began: Instant::now(),
        }
    }
}

impl Step {
    /// Tells how far it is.
    pub(crate) fn update(&self, detail: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {detail}", self.what));
        }
    }

    /// It worked.
    pub(crate) fn done(self, text: &str) {
        let took = self.began.elapsed().as_secs_f64();
        let paint = Paint::stderr();
        let took = paint.dim(&format!("({took:.1} s)"));
        self.end(&format!("{} {text} {took}", paint.good("✓")));
    }

    /// It did not.
    pub(crate) fn fail(self, text: &str) {
        self.end(&format!("{} {text}", Paint::stderr().bad("✗")));
    }

    fn end(self, line: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        match &self.bars {
            Some(bars) => {
                let _ = bars.println(line);
            }
            None => eprintln!("{line}"),
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

//! Definition and outcome of an experiment: plain data, and the fold from observations to a verdict.
//!
//! Field names follow what users of Chaos Mesh (`action`, `mode`, `selector`, `duration`) and Litmus (probe modes and
//! verdicts) already know. The JSON form of [`Outcome`] is a contract: tools read it.

use std::time::Duration;

use serde::Serialize;

use crate::load::Summary;

/// What an experiment is about to do, known before it runs.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Definition {
    /// Name on the command line.
    pub name: &'static str,
    /// One sentence: what is broken and what must hold.
    pub summary: &'static str,
    /// What is broken.
    pub target: Target,
    /// How: `pod-kill`, `pod-delete`, `scale-to-zero`.
    pub action: &'static str,
    /// On how many of the targets: `all`, `one`, `each`.
    pub mode: &'static str,
    /// For how long the fault is held.
    #[serde(serialize_with = "as_seconds")]
    pub duration: Duration,
    /// Largest share of requests that may fail. 0 means: none.
    pub error_budget: f64,
    /// When the experiment gives up early.
    pub abort: Abort,
    /// What must be seen.
    pub probes: Vec<Probe>,
}

/// Which component an experiment breaks.
#[derive(Debug, Clone, Serialize)]
pub struct Target {
    /// Component, e.g. `istio-pilot`.
    pub component: String,
    /// Its namespace.
    pub namespace: String,
    /// Label selector of its pods.
    pub selector: String,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.component)
    }
}

/// Gives up when too much breaks: an experiment must not become an outage.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Abort {
    /// Share of failed requests …
    pub failed_share: f64,
    /// … over this time.
    #[serde(serialize_with = "as_seconds")]
    pub window: Duration,
}

impl Default for Abort {
    fn default() -> Self {
        Self {
            failed_share: 0.5,
            window: Duration::from_secs(5),
        }
    }
}

/// When a probe looks, relative to the fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Mode {
    /// Before the fault.
    Before,
    /// While the fault holds.
    During,
    /// After the fault is gone.
    After,
    /// All the time.
    Continuous,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Before => "before",
            Self::During => "during",
            Self::After => "after",
            Self::Continuous => "continuous",
        })
    }
}

/// Something that must be seen.
#[derive(Debug, Clone, Serialize)]
pub struct Probe {
    /// Short name, unique in the experiment.
    pub name: &'static str,
    /// When it looks.
    pub mode: Mode,
    /// What must be seen, in words.
    pub expected: String,
}

impl Probe {
    /// A probe.
    pub fn new(name: &'static str, mode: Mode, expected: impl Into<String>) -> Self {
        Self {
            name,
            mode,
            expected: expected.into(),
        }
    }
}

/// The word at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Verdict {
    /// As expected.
    Pass,
    /// Not as expected, or it could not be found out.
    Fail,
    /// The user or the abort condition ended it; nothing can be said.
    Stopped,
}

impl Verdict {
    /// `Pass` if so, else `Fail`.
    pub fn from_ok(ok: bool) -> Self {
        if ok { Self::Pass } else { Self::Fail }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Pass => "Pass",
            Self::Fail => "Fail",
            Self::Stopped => "Stopped",
        })
    }
}

/// Expected against seen.
#[derive(Debug, Clone, Serialize)]
pub struct ProbeResult {
    /// The probe's name.
    pub name: &'static str,
    /// When it looked.
    pub mode: Mode,
    /// What had to be seen.
    pub expected: String,
    /// What was seen.
    pub observed: String,
    /// Whether that is the same.
    pub verdict: Verdict,
}

/// Something that happened, at `t` seconds after the experiment's start.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// Seconds since the experiment began.
    pub t: f64,
    /// What happened.
    pub event: String,
}

/// The time in which something was broken, in seconds since the experiment began.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Fault {
    /// Its beginning.
    pub from: f64,
    /// Its end.
    pub to: f64,
}

/// The load in numbers.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Requests {
    /// Requests sent.
    pub total: u64,
    /// Answered below 400 with a whole page.
    pub ok: u64,
    /// Everything else.
    pub failed: u64,
    /// Largest share that may fail.
    pub error_budget: f64,
    /// Share that did fail.
    pub failed_share: f64,
    /// Median latency in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile in milliseconds.
    pub p99_ms: f64,
}

/// What an experiment found.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// The experiment's name.
    pub name: &'static str,
    /// `namespace/component`.
    pub target: String,
    /// What was done to it.
    pub action: String,
    /// All probes together.
    pub verdict: Verdict,
    /// From the end of the fault until everything was as it should be; `null` if that never came.
    pub recovery_seconds: Option<f64>,
    /// Expected against seen.
    pub probes: Vec<ProbeResult>,
    /// What happened when.
    pub timeline: Vec<Event>,
    /// When the fault held, in seconds since the experiment began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// One sentence about the experiment.
    pub summary: &'static str,
    /// Wall-clock time of the start.
    pub started_at: jiff::Timestamp,
    /// How long it took, restoring included.
    pub seconds: f64,
    /// The load in numbers.
    pub requests: Requests,
    /// Why the script ended early, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Outcomes over time, for the picture.
    #[serde(skip)]
    pub load: Summary,
}

/// One result per declared probe, in declared order. A probe that nothing was seen for has `fallback` (`Fail` when the
/// script broke, `Stopped` when it was stopped).
pub(crate) fn settle(
    declared: &[Probe],
    mut seen: Vec<(&'static str, Verdict, String)>,
    fallback: Verdict,
) -> Vec<ProbeResult> {
    declared
        .iter()
        .map(|probe| {
            let found = seen
                .iter()
                .position(|(name, ..)| *name == probe.name)
                .map(|at| seen.swap_remove(at));
            let (verdict, observed) = match found {
                Some((_, verdict, observed)) => (verdict, observed),
                None => (fallback, "not reached".to_owned()),
            };
            ProbeResult {
                name: probe.name,
                mode: probe.mode,
                expected: probe.expected.clone(),
                observed,
                verdict,
            }
        })
        .collect()
}

/// All probes together: one `Fail` is `Fail`, else one `Stopped` is `Stopped`.
pub(crate) fn overall(probes: &[ProbeResult], error: bool) -> Verdict {
    if error || probes.iter().any(|p| p.verdict == Verdict::Fail) {
        Verdict::Fail
    } else if probes.iter().any(|p| p.verdict == Verdict::Stopped) || probes.is_empty() {
        Verdict::Stopped
    } else {
        Verdict::Pass
    }
}

fn as_seconds<S: serde::Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(value.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared() -> Vec<Probe> {
        vec![
            Probe::new("traffic", Mode::Continuous, "none fails"),
            Probe::new("config", Mode::After, "arrives"),
        ]
    }

    #[test]
    fn a_probe_nobody_answered_is_never_a_pass() {
        let seen = vec![("traffic", Verdict::Pass, "0 of 10".to_owned())];
        let failed = settle(&declared(), seen.clone(), Verdict::Fail);
        assert_eq!(failed[1].verdict, Verdict::Fail);
        assert_eq!(failed[1].observed, "not reached");
        assert_eq!(overall(&failed, false), Verdict::Fail);
        let stopped = settle(&declared(), seen, Verdict::Stopped);
        assert_eq!(overall(&stopped, false), Verdict::Stopped);
    }

    #[test]
    fn order_is_as_declared_and_everything_seen_passes() {
        let seen = vec![
            ("config", Verdict::Pass, "after 1 s".to_owned()),
            ("traffic", Verdict::Pass, "0 of 10".to_owned()),
        ];
        let results = settle(&declared(), seen, Verdict::Fail);
        assert_eq!(
            results.iter().map(|p| p.name).collect::<Vec<_>>(),
            ["traffic", "config"]
        );
        assert_eq!(overall(&results, false), Verdict::Pass);
        assert_eq!(
            overall(&results, true),
            Verdict::Fail,
            "an error outweighs all"
        );
    }

    #[test]
    fn a_failure_outweighs_a_stop() {
        let seen = vec![("traffic", Verdict::Fail, "3 of 10".to_owned())];
        assert_eq!(
            overall(&settle(&declared(), seen, Verdict::Stopped), false),
            Verdict::Fail
        );
    }
}

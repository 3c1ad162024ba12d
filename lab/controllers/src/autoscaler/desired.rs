//! How many replicas a metric asks for. Pure.
//!
//! desired = ceil(replicas × current ÷ target), unchanged while the ratio is within the tolerance. Pods without a
//! measurement and pods that are not ready yet are assumed to be at the value that moves the result least.

use jiff::{SignedDuration, Timestamp};

/// Ratios from 0.9 to 1.1 change nothing.
const TOLERANCE: f64 = 0.1;
/// 1.1 is within the tolerance, whatever binary fractions make of it.
const ROUNDING: f64 = 1e-9;
/// CPU of a pod this young counts only once it is ready.
const CPU_INITIALIZATION: SignedDuration = SignedDuration::from_mins(5);
/// A pod that was never ready this long after its start has not become unready: it has not started yet.
const INITIAL_READINESS_DELAY: SignedDuration = SignedDuration::from_secs(30);

/// A measurement of one pod.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) milli: i64,
    pub(crate) at: Timestamp,
    pub(crate) window: SignedDuration,
}

/// What the calculation knows of a pod.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) phase: String,
    pub(crate) deleted: bool,
    pub(crate) started: Option<Timestamp>,
    /// The Ready condition and since when it has held.
    pub(crate) ready: Option<(bool, Timestamp)>,
    /// What the pod requests of the resource; the error names the container that requests nothing.
    pub(crate) request: Result<i64, String>,
    pub(crate) usage: Option<Usage>,
}

/// What is wanted of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// Percent of the request.
    Utilization(i32),
    /// Thousandths per pod.
    AverageValue(i64),
}

/// What a metric says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proposal {
    pub(crate) replicas: i32,
    /// Percent of the request over the measured pods; only for `Target::Utilization`.
    pub(crate) utilization: Option<i32>,
    /// Thousandths per measured pod.
    pub(crate) average: i64,
    /// When the newest measurement was taken.
    pub(crate) at: Option<Timestamp>,
}

enum Group {
    Ready(i64),
    Unready,
    Missing,
    Ignored,
}

fn group(sample: &Sample, cpu: bool, now: Timestamp) -> Group {
    if sample.deleted || sample.phase == "Failed" {
        return Group::Ignored;
    }
    if sample.phase == "Pending" {
        return Group::Unready;
    }
    let Some(usage) = sample.usage else {
        return Group::Missing;
    };
    if cpu && !cpu_counts(sample, &usage, now) {
        Group::Unready
    } else {
        Group::Ready(usage.milli)
    }
}

fn cpu_counts(sample: &Sample, usage: &Usage, now: Timestamp) -> bool {
    let (Some((ready, since)), Some(started)) = (sample.ready, sample.started) else {
        return false;
    };
    if now.duration_since(started) < CPU_INITIALIZATION {
        // The measurement must not reach back before the pod was ready.
        ready && usage.at.duration_since(since) >= usage.window
    } else {
        ready || since.duration_since(started) > INITIAL_READINESS_DELAY
    }
}

struct Measured {
    request: i64,
    usage: i64,
}

/// The replicas `resource` asks for, given that there are `current`.
pub(crate) fn propose(
    samples: &[Sample],
    resource: &str,
    target: Target,
    current: i32,
    now: Timestamp,
) -> Result<Proposal, String> {
    let failed = |text: &str| match target {
        Target::Utilization(_) => format!("failed to get {resource} utilization: {text}"),
        Target::AverageValue(_) => format!("failed to get {resource} usage: {text}"),
    };
    if samples.iter().all(|s| s.usage.is_none()) {
        return Err(failed(&format!(
            "unable to get metrics for resource {resource}: no metrics returned from resource metrics API"
        )));
    }
    let mut measured = Vec::new();
    let (mut unready, mut missing) = (Vec::new(), Vec::new());
    for sample in samples {
        let request = match (&target, &sample.request) {
            (Target::Utilization(_), Ok(request)) => *request,
            (Target::Utilization(_), Err(text)) => return Err(failed(text)),
            (Target::AverageValue(_), _) => 0,
        };
        match group(sample, resource == "cpu", now) {
            Group::Ready(usage) => measured.push(Measured { request, usage }),
            Group::Unready => unready.push(request),
            Group::Missing => missing.push(request),
            Group::Ignored => {}
        }
    }
    if measured.is_empty() {
        return Err(failed(
            "did not receive metrics for targeted pods (pods might be unready)",
        ));
    }
    let first =
        ratio(&measured, target).ok_or_else(|| failed("no metrics returned matched known pods"))?;
    let total: i64 = measured.iter().map(|m| m.usage).sum();
    let average = total / i64::try_from(measured.len()).unwrap_or(1);
    let requests: i64 = measured.iter().map(|m| m.request).sum();
    let utilization = match target {
        Target::Utilization(_) if requests > 0 => i32::try_from(total * 100 / requests).ok(),
        _ => None,
    };
    let at = samples.iter().filter_map(|s| s.usage.map(|u| u.at)).max();
    let replicas = replicas(measured, &unready, &missing, target, first, current);
    Ok(Proposal {
        replicas,
        utilization,
        average,
        at,
    })
}

fn replicas(
    mut measured: Vec<Measured>,
    unready: &[i64],
    missing: &[i64],
    target: Target,
    first: f64,
    current: i32,
) -> i32 {
    let fill_unready = !unready.is_empty() && first > 1.0;
    if !fill_unready && missing.is_empty() {
        return if close(first) {
            current
        } else {
            ceil(first * as_f64(measured.len()))
        };
    }
    let full = |request: i64| match target {
        Target::Utilization(percent) => request * i64::from(percent.max(100)) / 100,
        Target::AverageValue(value) => value,
    };
    if first < 1.0 {
        measured.extend(missing.iter().map(|request| Measured {
            request: *request,
            usage: full(*request),
        }));
    } else if first > 1.0 {
        measured.extend(missing.iter().map(|request| Measured {
            request: *request,
            usage: 0,
        }));
    }
    if fill_unready {
        measured.extend(unready.iter().map(|request| Measured {
            request: *request,
            usage: 0,
        }));
    }
    let Some(second) = ratio(&measured, target) else {
        return current;
    };
    // An assumption must not turn the direction around.
    if close(second) || (first < 1.0 && second > 1.0) || (first > 1.0 && second < 1.0) {
        return current;
    }
    let wanted = ceil(second * as_f64(measured.len()));
    if (second < 1.0 && wanted > current) || (second > 1.0 && wanted < current) {
        current
    } else {
        wanted
    }
}

fn ratio(measured: &[Measured], target: Target) -> Option<f64> {
    let total: i64 = measured.iter().map(|m| m.usage).sum();
    match target {
        Target::Utilization(percent) => {
            let requests: i64 = measured.iter().map(|m| m.request).sum();
            // Whole percents, as they are shown.
            (requests > 0).then(|| {
                as_f64(usize::try_from(total * 100 / requests).unwrap_or(0))
                    / f64::from(percent.max(1))
            })
        }
        Target::AverageValue(value) => {
            let average = total / i64::try_from(measured.len()).ok().filter(|n| *n > 0)?;
            #[expect(
                clippy::cast_precision_loss,
                reason = "usages are far below 2^52 thousandths"
            )]
            Some(average as f64 / value.max(1) as f64)
        }
    }
}

fn close(ratio: f64) -> bool {
    (1.0 - ratio).abs() <= TOLERANCE + ROUNDING
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of pods and percents are small"
)]
fn as_f64(n: usize) -> f64 {
    n as f64
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "`as` saturates, and the result is clamped to maxReplicas"
)]
fn ceil(value: f64) -> i32 {
    value.ceil() as i32
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().unwrap()
    }

    fn sample(usage: Option<i64>) -> Sample {
        Sample {
            phase: "Running".into(),
            deleted: false,
            started: Some("2026-01-01T00:00:00Z".parse().unwrap()),
            ready: Some((true, "2026-01-01T00:00:10Z".parse().unwrap())),
            request: Ok(100),
            usage: usage.map(|milli| Usage {
                milli,
                at: now(),
                window: SignedDuration::from_secs(15),
            }),
        }
    }

    fn unready(usage: i64) -> Sample {
        Sample {
            ready: Some((false, "2026-01-01T00:00:10Z".parse().unwrap())),
            ..sample(Some(usage))
        }
    }

    #[test]
    fn the_documented_arithmetic() {
        let half = Target::Utilization(50);
        for (name, samples, target, expected) in [
            ("at target", vec![sample(Some(50)); 2], half, 2),
            ("within tolerance", vec![sample(Some(55)); 2], half, 2),
            ("double", vec![sample(Some(100)); 2], half, 4),
            ("a little over", vec![sample(Some(60)); 2], half, 3),
            ("idle", vec![sample(Some(0)); 4], half, 0),
            ("a quarter", vec![sample(Some(12)); 4], half, 1),
            (
                "missing dampens up",
                vec![sample(Some(100)), sample(None)],
                half,
                2,
            ),
            (
                "missing dampens down",
                vec![sample(Some(10)), sample(Some(10)), sample(None)],
                half,
                3,
            ),
            (
                "unready pods count as idle",
                vec![sample(Some(100)), unready(900)],
                half,
                2,
            ),
            (
                "unready pods do not stop a large rise",
                vec![sample(Some(400)), unready(900)],
                half,
                8,
            ),
            (
                "average value",
                vec![sample(Some(300)), sample(Some(100))],
                Target::AverageValue(100),
                4,
            ),
            (
                "deleted pods do not count",
                vec![
                    sample(Some(100)),
                    Sample {
                        deleted: true,
                        ..sample(Some(900))
                    },
                ],
                half,
                2,
            ),
        ] {
            let current = i32::try_from(samples.len()).unwrap();
            let proposal = propose(&samples, "cpu", target, current, now()).unwrap();
            assert_eq!(proposal.replicas, expected, "{name}");
        }
    }

    #[test]
    fn shown_values() {
        let proposal = propose(
            &[sample(Some(251)), sample(Some(251))],
            "cpu",
            Target::Utilization(50),
            2,
            now(),
        )
        .unwrap();
        assert_eq!((proposal.utilization, proposal.average), (Some(251), 251));
        let proposal = propose(
            &[sample(Some(40))],
            "memory",
            Target::AverageValue(80),
            1,
            now(),
        )
        .unwrap();
        assert_eq!((proposal.utilization, proposal.average), (None, 40));
    }

    #[test]
    fn young_pods_count_once_ready_for_a_window() {
        let young = |ready: bool, since: &str| Sample {
            started: Some("2026-01-01T00:59:00Z".parse().unwrap()),
            ready: Some((ready, since.parse().unwrap())),
            ..sample(Some(100))
        };
        let counts = |sample: Sample| matches!(group(&sample, true, now()), Group::Ready(_));
        assert!(!counts(young(false, "2026-01-01T00:59:00Z")));
        assert!(
            !counts(young(true, "2026-01-01T00:59:50Z")),
            "measured partly before it was ready"
        );
        assert!(counts(young(true, "2026-01-01T00:59:30Z")));
        assert!(
            matches!(
                group(&young(false, "2026-01-01T00:59:00Z"), false, now()),
                Group::Ready(_)
            ),
            "memory always"
        );
    }

    #[test]
    fn errors_say_what_is_missing() {
        let text = |samples: &[Sample]| {
            propose(samples, "cpu", Target::Utilization(50), 1, now()).unwrap_err()
        };
        assert_eq!(
            text(&[sample(None)]),
            "failed to get cpu utilization: unable to get metrics for resource cpu: no metrics returned from resource metrics API"
        );
        let no_request = Sample {
            request: Err("missing request for cpu in container c of Pod p".into()),
            ..sample(Some(1))
        };
        assert_eq!(
            text(&[no_request]),
            "failed to get cpu utilization: missing request for cpu in container c of Pod p"
        );
        assert!(
            text(&[unready(5)])
                .ends_with("did not receive metrics for targeted pods (pods might be unready)")
        );
    }
}

//! How fast an autoscaler may follow its metrics: windows, policies, limits. Pure.

use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::{
    HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerBehavior,
};
use tokio::time::Instant;

/// One direction's rules with all defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) window: Duration,
    pub(crate) select: Select,
    pub(crate) policies: Vec<Policy>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Select {
    Max,
    Min,
    Disabled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    Pods(i32, Duration),
    Percent(i32, Duration),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Behavior {
    pub(crate) up: Rules,
    pub(crate) down: Rules,
}

const PERIOD: Duration = Duration::from_secs(15);

impl Behavior {
    /// Defaults: up without window, by the larger of 100 % or 4 pods per 15 s; down to the highest wish of 300 s.
    pub(crate) fn from_spec(spec: Option<&HorizontalPodAutoscalerBehavior>) -> Self {
        let up = Rules {
            window: Duration::ZERO,
            select: Select::Max,
            policies: vec![Policy::Percent(100, PERIOD), Policy::Pods(4, PERIOD)],
        };
        let down = Rules {
            window: Duration::from_secs(300),
            select: Select::Max,
            policies: vec![Policy::Percent(100, PERIOD)],
        };
        Self {
            up: overlay(up, spec.and_then(|s| s.scale_up.as_ref())),
            down: overlay(down, spec.and_then(|s| s.scale_down.as_ref())),
        }
    }
}

fn overlay(mut rules: Rules, spec: Option<&HPAScalingRules>) -> Rules {
    let Some(spec) = spec else { return rules };
    let seconds = |n: i32| Duration::from_secs(u64::try_from(n).unwrap_or(0));
    if let Some(window) = spec.stabilization_window_seconds {
        rules.window = seconds(window);
    }
    match spec.select_policy.as_deref() {
        Some("Disabled") => rules.select = Select::Disabled,
        Some("Min") => rules.select = Select::Min,
        _ => {}
    }
    let policies: Vec<_> = spec
        .policies
        .iter()
        .flatten()
        .filter_map(
            |HPAScalingPolicy {
                 period_seconds,
                 type_,
                 value,
             }| match type_.as_str() {
                "Pods" => Some(Policy::Pods(*value, seconds(*period_seconds))),
                "Percent" => Some(Policy::Percent(*value, seconds(*period_seconds))),
                _ => None,
            },
        )
        .collect();
    if !policies.is_empty() {
        rules.policies = policies;
    }
    rules
}

/// What an autoscaler remembers between looks.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    wishes: Vec<(Instant, i32)>,
    ups: Vec<(Instant, i32)>,
    downs: Vec<(Instant, i32)>,
}

/// The outcome with the words for the conditions.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Limited {
    pub(crate) replicas: i32,
    pub(crate) able: (&'static str, &'static str),
    pub(crate) limited: bool,
    pub(crate) limit: (&'static str, &'static str),
}

const WITHIN: (&str, &str) = (
    "DesiredWithinRange",
    "the desired count is within the acceptable range",
);

impl Memory {
    /// An autoscaler seen for the first time takes the size it finds for the wish so far: no scale-down at once.
    pub(crate) fn begin(&mut self, current: i32, now: Instant) {
        if self.wishes.is_empty() {
            self.wishes.push((now, current));
        }
    }

    /// Notes a change that was carried out, for the rate policies.
    pub(crate) fn scaled(&mut self, from: i32, to: i32, now: Instant) {
        if to > from {
            self.ups.push((now, to - from));
        } else {
            self.downs.push((now, from - to));
        }
    }

    /// From what the metrics wish to what is allowed now.
    pub(crate) fn limit(
        &mut self,
        behavior: &Behavior,
        current: i32,
        wish: i32,
        (min, max): (i32, i32),
        now: Instant,
    ) -> Limited {
        let stable = self.stabilize(behavior, current, wish, now);
        let able = match stable {
            _ if stable == wish => ("ReadyForNewScale", "recommended size matches current size"),
            _ if stable > wish => (
                "ScaleDownStabilized",
                "recent recommendations were higher than current one, applying the highest recent recommendation",
            ),
            _ => (
                "ScaleUpStabilized",
                "recent recommendations were lower than current one, applying the lowest recent recommendation",
            ),
        };
        let (replicas, limited, limit) = if stable > current {
            let rate = self.up_limit(&behavior.up, current, now).max(current);
            let most = rate.min(max);
            if stable <= most {
                (stable, false, WITHIN)
            } else if rate < max {
                let text =
                    "the desired replica count is increasing faster than the maximum scale rate";
                (most, true, ("ScaleUpLimit", text))
            } else {
                let text = "the desired replica count is more than the maximum replica count";
                (most, true, ("TooManyReplicas", text))
            }
        } else if stable < current {
            let rate = self.down_limit(&behavior.down, current, now).min(current);
            let least = rate.max(min);
            if stable >= least {
                (stable, false, WITHIN)
            } else if rate > min {
                let text =
                    "the desired replica count is decreasing faster than the maximum scale rate";
                (least, true, ("ScaleDownLimit", text))
            } else {
                let text = "the desired replica count is less than the minimum replica count";
                (least, true, ("TooFewReplicas", text))
            }
        } else if wish > max {
            let text = "the desired replica count is more than the maximum replica count";
            (stable, true, ("TooManyReplicas", text))
        } else if wish < min {
            let text = "the desired replica count is less than the minimum replica count";
            (stable, true, ("TooFewReplicas", text))
        } else {
            (stable, false, WITHIN)
        };
        Limited {
            replicas,
            able,
            limited,
            limit,
        }
    }

    /// Up to the lowest wish of the up window, down to the highest wish of the down window.
    fn stabilize(&mut self, behavior: &Behavior, current: i32, wish: i32, now: Instant) -> i32 {
        let keep = behavior.up.window.max(behavior.down.window);
        self.wishes.retain(|(at, _)| now.duration_since(*at) < keep);
        let within = |window: Duration| {
            self.wishes
                .iter()
                .filter(move |(at, _)| now.duration_since(*at) < window)
                .map(|(_, wish)| *wish)
        };
        let up = within(behavior.up.window).fold(wish, i32::min);
        let down = within(behavior.down.window).fold(wish, i32::max);
        self.wishes.push((now, wish));
        current.max(up).min(down)
    }

    fn changed(events: &[(Instant, i32)], period: Duration, now: Instant) -> i32 {
        events
            .iter()
            .filter(|(at, _)| now.duration_since(*at) < period)
            .map(|(_, n)| n)
            .sum()
    }

    /// Where the count stood when the period of a policy began.
    fn period_start(&mut self, current: i32, period: Duration, now: Instant) -> i32 {
        // 30 minutes is the longest period the API accepts.
        let longest = Duration::from_secs(1800);
        self.ups.retain(|(at, _)| now.duration_since(*at) < longest);
        self.downs
            .retain(|(at, _)| now.duration_since(*at) < longest);
        current - Self::changed(&self.ups, period, now) + Self::changed(&self.downs, period, now)
    }

    fn up_limit(&mut self, rules: &Rules, current: i32, now: Instant) -> i32 {
        let proposals: Vec<i32> = rules
            .policies
            .iter()
            .map(|policy| match *policy {
                Policy::Pods(n, period) => {
                    self.period_start(current, period, now).saturating_add(n)
                }
                Policy::Percent(p, period) => {
                    let start = i64::from(self.period_start(current, period, now));
                    // Rounded up: 100 % of one pod is one more, 10 % of one pod too.
                    i32::try_from((start * (100 + i64::from(p)) + 99).div_euclid(100))
                        .unwrap_or(i32::MAX)
                }
            })
            .collect();
        match rules.select {
            Select::Disabled => current,
            Select::Max => proposals.into_iter().max().unwrap_or(current),
            Select::Min => proposals.into_iter().min().unwrap_or(current),
        }
    }

    fn down_limit(&mut self, rules: &Rules, current: i32, now: Instant) -> i32 {
        let proposals: Vec<i32> = rules
            .policies
            .iter()
            .map(|policy| match *policy {
                Policy::Pods(n, period) => {
                    self.period_start(current, period, now).saturating_sub(n)
                }
                Policy::Percent(p, period) => {
                    let start = i64::from(self.period_start(current, period, now));
                    i32::try_from((start * (100 - i64::from(p))).div_euclid(100)).unwrap_or(0)
                }
            })
            .collect();
        match rules.select {
            Select::Disabled => current,
            // The largest change is the smallest result.
            Select::Max => proposals.into_iter().min().unwrap_or(current),
            Select::Min => proposals.into_iter().max().unwrap_or(current),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    const RANGE: (i32, i32) = (1, 10);

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn up_at_once_but_not_faster_than_the_policies() {
        let behavior = Behavior::from_spec(None);
        let mut memory = Memory::default();
        let t0 = Instant::now();
        memory.begin(1, t0);
        let first = memory.limit(&behavior, 1, 10, RANGE, t0);
        assert_eq!(
            (first.replicas, first.limit.0),
            (5, "ScaleUpLimit"),
            "one pod and four more"
        );
        memory.scaled(1, 5, t0);
        assert_eq!(
            memory
                .limit(&behavior, 5, 10, RANGE, t0 + seconds(10))
                .replicas,
            5,
            "the period is not over"
        );
        let later = memory.limit(&behavior, 5, 30, RANGE, t0 + seconds(15));
        assert_eq!((later.replicas, later.limit.0), (10, "TooManyReplicas"));
    }

    #[test]
    fn down_after_the_window() {
        let behavior = Behavior::from_spec(None);
        let mut memory = Memory::default();
        let t0 = Instant::now();
        memory.begin(5, t0);
        let held = memory.limit(&behavior, 5, 1, RANGE, t0 + seconds(60));
        assert_eq!((held.replicas, held.able.0), (5, "ScaleDownStabilized"));
        memory.limit(&behavior, 5, 3, RANGE, t0 + seconds(100));
        assert_eq!(
            memory
                .limit(&behavior, 5, 1, RANGE, t0 + seconds(301))
                .replicas,
            3,
            "the highest wish since"
        );
        let done = memory.limit(&behavior, 3, 0, RANGE, t0 + seconds(700));
        assert_eq!(
            (done.replicas, done.able.0, done.limit.0),
            (1, "ReadyForNewScale", "TooFewReplicas")
        );
    }

    #[test]
    fn the_specs_own_rules() {
        let spec: HorizontalPodAutoscalerBehavior = serde_json::from_value(json!({
            "scaleUp": {"stabilizationWindowSeconds": 30, "selectPolicy": "Min",
                "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}, {"type": "Percent", "value": 100, "periodSeconds": 60}]},
            "scaleDown": {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}]}}))
        .unwrap();
        let behavior = Behavior::from_spec(Some(&spec));
        let t0 = Instant::now();
        let mut memory = Memory::default();
        memory.begin(2, t0);
        assert_eq!(
            memory.limit(&behavior, 2, 9, RANGE, t0 + seconds(1)).able.0,
            "ScaleUpStabilized"
        );
        assert_eq!(
            memory
                .limit(&behavior, 2, 9, RANGE, t0 + seconds(31))
                .replicas,
            3,
            "one pod a minute"
        );
        memory.scaled(2, 3, t0 + seconds(31));
        assert_eq!(
            memory
                .limit(&behavior, 3, 9, RANGE, t0 + seconds(50))
                .replicas,
            3
        );
        let down = memory.limit(&behavior, 8, 1, RANGE, t0 + seconds(120));
        assert_eq!((down.replicas, down.limit.0), (6, "ScaleDownLimit"));

        let spec = serde_json::from_value(
            json!({"scaleDown": {"selectPolicy": "Disabled", "stabilizationWindowSeconds": 0}}),
        );
        let behavior = Behavior::from_spec(Some(&spec.unwrap()));
        assert_eq!(
            Memory::default().limit(&behavior, 8, 1, RANGE, t0).replicas,
            8
        );
    }
}

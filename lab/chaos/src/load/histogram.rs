//! Latencies in a fixed array: 8 steps per power of two of microseconds, so a percentile is at most 12% too high.

use std::time::Duration;

const STEPS: usize = 8;
const SIZE: usize = 34 * STEPS;

/// Counts of latencies. 2 KiB, whatever is recorded.
#[derive(Debug, Clone)]
pub(super) struct Histogram {
    counts: Box<[u64; SIZE]>,
    total: u64,
}

impl Histogram {
    pub(super) fn new() -> Self {
        Self {
            counts: Box::new([0; SIZE]),
            total: 0,
        }
    }

    pub(super) fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.counts[slot(micros)] += 1;
        self.total += 1;
    }

    /// The latency below which the share `q` of all lies; zero when nothing was recorded.
    pub(super) fn quantile(&self, q: f64) -> Duration {
        let rank = (q * self.total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_micros(upper(index));
            }
        }
        Duration::ZERO
    }
}

fn slot(micros: u64) -> usize {
    if micros < STEPS as u64 {
        return micros as usize;
    }
    let exponent = 63 - micros.leading_zeros() as usize;
    let step = (micros >> (exponent - 3)) as usize & (STEPS - 1);
    ((exponent - 2) * STEPS + step).min(SIZE - 1)
}

fn upper(index: usize) -> u64 {
    if index < STEPS {
        return index as u64;
    }
    let exponent = index / STEPS + 2;
    let step = (index % STEPS) as u64;
    ((STEPS as u64 + step + 1) << (exponent - 3)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lies_within_its_slot() {
        for micros in [
            0, 1, 7, 8, 9, 15, 16, 100, 1_000, 12_345, 999_999, 10_000_000,
        ] {
            let top = upper(slot(micros));
            assert!(top >= micros, "{micros} in slot up to {top}");
            assert!(
                top as f64 <= micros as f64 * 1.13 + 1.0,
                "{micros} in slot up to {top}"
            );
        }
    }

    #[test]
    fn quantiles_of_a_known_distribution() {
        let mut histogram = Histogram::new();
        for ms in 1..=100 {
            histogram.record(Duration::from_millis(ms));
        }
        let p50 = histogram.quantile(0.5).as_secs_f64();
        let p99 = histogram.quantile(0.99).as_secs_f64();
        assert!((0.050..0.057).contains(&p50), "{p50}");
        assert!((0.099..0.112).contains(&p99), "{p99}");
        assert_eq!(Histogram::new().quantile(0.5), Duration::ZERO);
    }
}

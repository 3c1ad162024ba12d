//! `google.protobuf.Duration` whose JSON also reads Go durations.
//!
//! Proto3 JSON knows only `"1.5s"`. Istio 1.4 read config with a Go library that accepts everything Go's
//! `time.ParseDuration` does, so users write `500ms`, `10m` and `1h30m`. We read both and write proto3 JSON.

use std::fmt;
use std::str::FromStr;

const NANOS_PER_SECOND: i128 = 1_000_000_000;
/// Bound of `google.protobuf.Duration`: 10,000 years of 365.2425 days.
const MAX_SECONDS: i64 = 315_576_000_000;

/// A signed span of time; on the wire the same as `google.protobuf.Duration`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Message)]
pub struct Duration {
    /// Whole seconds.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// The rest, with the same sign as `seconds`.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not of the form number and unit, repeated.
    #[error(
        "{0:?} is not a duration; accepted: numbers with a unit of h, m, s, ms, us or ns, such as 5s, 1.5s, 250ms or 1h30m"
    )]
    Syntax(String),
    /// Beyond what the type can hold.
    #[error("{0:?} is longer than the longest duration, 10,000 years")]
    Range(String),
}

impl Duration {
    /// No time at all.
    pub const ZERO: Self = Self {
        seconds: 0,
        nanos: 0,
    };

    /// A duration of whole seconds.
    pub const fn from_secs(seconds: i64) -> Self {
        Self { seconds, nanos: 0 }
    }

    /// A duration of whole milliseconds.
    pub const fn from_millis(millis: i64) -> Self {
        Self {
            seconds: millis / 1000,
            nanos: (millis % 1000) as i32 * 1_000_000,
        }
    }

    /// All of it in nanoseconds.
    pub const fn as_nanos(&self) -> i128 {
        self.seconds as i128 * NANOS_PER_SECOND + self.nanos as i128
    }

    /// As a duration of the standard library; negative ones become zero.
    pub fn to_std(&self) -> std::time::Duration {
        let nanos = self.as_nanos().max(0);
        std::time::Duration::new(
            u64::try_from(nanos / NANOS_PER_SECOND).unwrap_or(u64::MAX),
            u32::try_from(nanos % NANOS_PER_SECOND).unwrap_or(0),
        )
    }

    fn from_nanos(nanos: i128) -> Option<Self> {
        let seconds = i64::try_from(nanos / NANOS_PER_SECOND).ok()?;
        (seconds.abs() <= MAX_SECONDS).then_some(Self {
            seconds,
            nanos: (nanos % NANOS_PER_SECOND) as i32,
        })
    }
}

impl From<std::time::Duration> for Duration {
    fn from(d: std::time::Duration) -> Self {
        Self {
            seconds: i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
            nanos: d.subsec_nanos() as i32,
        }
    }
}

impl From<Duration> for pbjson_types::Duration {
    fn from(d: Duration) -> Self {
        Self {
            seconds: d.seconds,
            nanos: d.nanos,
        }
    }
}

/// Reads an unsigned decimal number from the front: its digits as an integer, and how many of them follow the point.
fn number(text: &str) -> Option<(i128, u32, &str)> {
    let (mut value, mut scale, mut digits, mut point) = (0i128, 0u32, 0usize, false);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        match c {
            '0'..='9' => {
                digits += 1;
                // Beyond 27 digits no legal value is left, and an i128 could overflow.
                if digits > 27 {
                    return None;
                }
                value = value * 10 + i128::from(c as u8 - b'0');
                scale += u32::from(point);
            }
            '.' if !point => point = true,
            _ => break,
        }
        rest = &rest[1..];
    }
    (digits > 0).then_some((value, scale, rest))
}

fn unit(text: &str) -> Option<(i128, &str)> {
    // Longer units first: `ms` is not `m` followed by rubbish.
    const UNITS: [(&str, i128); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("μs", 1_000),
        ("ms", 1_000_000),
        ("s", NANOS_PER_SECOND),
        ("m", 60 * NANOS_PER_SECOND),
        ("h", 3600 * NANOS_PER_SECOND),
    ];
    UNITS
        .iter()
        .find_map(|(name, nanos)| text.strip_prefix(name).map(|rest| (*nanos, rest)))
}

impl FromStr for Duration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let syntax = || DurationError::Syntax(text.chars().take(64).collect());
        let (sign, mut rest) = match text.as_bytes().first() {
            Some(b'-') => (-1, &text[1..]),
            Some(b'+') => (1, &text[1..]),
            _ => (1, text),
        };
        if rest == "0" {
            return Ok(Self::ZERO);
        }
        if rest.is_empty() {
            return Err(syntax());
        }
        let mut total = 0i128;
        while !rest.is_empty() {
            let (value, scale, after) = number(rest).ok_or_else(syntax)?;
            let (nanos, after) = unit(after).ok_or_else(syntax)?;
            // 27 digits times the nanoseconds of an hour still fit; digits below a nanosecond are cut, as in Go.
            total = value
                .checked_mul(nanos)
                .map(|v| v / 10i128.pow(scale))
                .and_then(|v| total.checked_add(v))
                .ok_or_else(|| DurationError::Range(text.chars().take(64).collect()))?;
            rest = after;
        }
        Self::from_nanos(sign * total)
            .ok_or_else(|| DurationError::Range(text.chars().take(64).collect()))
    }
}

/// Proto3 JSON form: seconds with 0, 3, 6 or 9 decimals.
impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.as_nanos();
        let sign = if total < 0 { "-" } else { "" };
        let (seconds, nanos) = (
            total.unsigned_abs() / NANOS_PER_SECOND as u128,
            total.unsigned_abs() % NANOS_PER_SECOND as u128,
        );
        match nanos {
            0 => write!(f, "{sign}{seconds}s"),
            n if n % 1_000_000 == 0 => write!(f, "{sign}{seconds}.{:03}s", n / 1_000_000),
            n if n % 1_000 == 0 => write!(f, "{sign}{seconds}.{:06}s", n / 1_000),
            n => write!(f, "{sign}{seconds}.{n:09}s"),
        }
    }
}

impl serde::Serialize for Duration {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Duration {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Duration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as 5s, 250ms or 1h30m")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Duration, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use prost::Message as _;

    use super::*;

    fn parse(text: &str) -> Duration {
        text.parse().unwrap()
    }

    #[test]
    fn reads_go_durations_and_writes_proto_ones() {
        for (text, seconds, nanos, out) in [
            ("5s", 5, 0, "5s"),
            ("0", 0, 0, "0s"),
            ("0s", 0, 0, "0s"),
            ("1.5s", 1, 500_000_000, "1.500s"),
            ("500ms", 0, 500_000_000, "0.500s"),
            ("1h30m", 5400, 0, "5400s"),
            ("1m0.25s", 60, 250_000_000, "60.250s"),
            ("15us", 0, 15_000, "0.000015s"),
            ("15µs", 0, 15_000, "0.000015s"),
            ("7ns", 0, 7, "0.000000007s"),
            ("-1.5s", -1, -500_000_000, "-1.500s"),
            (".5h", 1800, 0, "1800s"),
            ("0.000000001s", 0, 1, "0.000000001s"),
            ("315576000000s", 315_576_000_000, 0, "315576000000s"),
        ] {
            let d = parse(text);
            assert_eq!((d.seconds, d.nanos), (seconds, nanos), "{text}");
            assert_eq!(d.to_string(), out, "{text}");
            assert_eq!(parse(out), d, "{text}");
        }
    }

    #[test]
    fn refuses_the_rest() {
        let digits = "9".repeat(100_000);
        for text in [
            "", "5", "s", "5 s", "5x", "1h30", "--1s", "1..5s", "5S", "-", ".s", "é", &digits,
        ] {
            let error = text.parse::<Duration>().unwrap_err();
            assert!(matches!(error, DurationError::Syntax(_)), "{text}: {error}");
            assert!(
                error.to_string().len() < 300,
                "an error must not repeat a huge input"
            );
        }
        for text in [
            "315576000001s",
            "99999999999999999999h",
            "999999999999999999999999999h",
        ] {
            assert!(
                matches!(text.parse::<Duration>(), Err(DurationError::Range(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn json_and_wire() {
        let d: Duration = serde_json::from_str("\"250ms\"").unwrap();
        assert_eq!(serde_json::to_string(&d).unwrap(), "\"0.250s\"");
        assert!(
            serde_json::from_str::<Duration>("5")
                .unwrap_err()
                .to_string()
                .contains("250ms")
        );
        // seconds = 1 (field 1, varint), nanos = 500000000 (field 2, varint)
        assert_eq!(
            parse("1.5s").encode_to_vec(),
            [0x08, 1, 0x10, 0x80, 0xca, 0xb5, 0xee, 0x01]
        );
        assert_eq!(
            parse("1.5s").to_std(),
            std::time::Duration::from_millis(1500)
        );
        assert_eq!(parse("-1s").to_std(), std::time::Duration::ZERO);
        assert_eq!(Duration::from_millis(1500), parse("1.5s"));
    }
}

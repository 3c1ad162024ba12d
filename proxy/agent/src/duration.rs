//! Durations as Go writes them: `45s`, `1m0s`, `1.5h`, `100ms`.

use std::time::Duration;

/// Parses a Go duration that is not negative.
pub fn parse(text: &str) -> Result<Duration, String> {
    let refuse = || format!("{text:?} is not a duration; give e.g. 45s, 1m0s, 1.5h or 100ms");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(refuse)?;
        let number: f64 = rest[..digits].parse().map_err(|_| refuse())?;
        rest = &rest[digits..];
        let unit = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        seconds += number
            * match &rest[..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" | "μs" => 1e-6,
                "ns" => 1e-9,
                _ => return Err(refuse()),
            };
        rest = &rest[unit..];
    }
    if text.is_empty() {
        return Err(refuse());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| refuse())
}

/// The JSON form of a protobuf duration.
pub fn proto(duration: Duration) -> String {
    let nanos = duration.subsec_nanos();
    if nanos == 0 {
        return format!("{}s", duration.as_secs());
    }
    let fraction = format!("{nanos:09}");
    format!("{}.{}s", duration.as_secs(), fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations() {
        for (text, millis) in [
            ("45s", 45_000),
            ("1m0s", 60_000),
            ("1.5h", 5_400_000),
            ("100ms", 100),
            ("0", 0),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "45", "s", "1x", "-3s", "1e400h"] {
            assert!(parse(text).unwrap_err().contains("45s"), "{text}");
        }
        assert_eq!(proto(Duration::from_millis(1250)), "1.25s");
    }
}

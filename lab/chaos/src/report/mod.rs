//! What was found, for programs (JSON) and for people (a page).

/// Seconds in words: `0.4 s`, `12 s`.
pub fn seconds(duration: std::time::Duration) -> String {
    let value = duration.as_secs_f64();
    if value.fract() == 0.0 || value >= 100.0 {
        format!("{value:.0} s")
    } else {
        format!("{value:.1} s")
    }
}

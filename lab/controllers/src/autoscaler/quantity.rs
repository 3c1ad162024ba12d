//! Kubernetes quantities in thousandths. Pure.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The value in thousandths, rounded up; `None` if it is not a quantity.
pub(crate) fn milli(quantity: &Quantity) -> Option<i64> {
    let text = quantity.0.trim();
    let split = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let number: f64 = number.parse().ok()?;
    let factor = match suffix {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => f64::from(1 << 10),
        "Mi" => f64::from(1 << 20),
        "Gi" => f64::from(1 << 30),
        "Ti" => 2_f64.powi(40),
        "Pi" => 2_f64.powi(50),
        "Ei" => 2_f64.powi(60),
        exponent => 10_f64.powi(exponent.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    // Binary fractions of decimal numbers must not push 100m to 101.
    let thousandths = number * factor * 1000.0;
    let nearest = thousandths.round();
    let value = if (thousandths - nearest).abs() < 1e-6 {
        nearest
    } else {
        thousandths.ceil()
    };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "`as` saturates; 9·10^15 units are no pod's usage"
    )]
    Some(value as i64)
}

/// The shortest decimal form, as the API prints it: `125m`, `2`, `3895296`, `4k`.
pub(crate) fn from_milli(value: i64) -> Quantity {
    if value % 1000 != 0 {
        return Quantity(format!("{value}m"));
    }
    let mut whole = value / 1000;
    let mut suffix = "";
    for next in ["k", "M", "G", "T", "P"] {
        if whole == 0 || whole % 1000 != 0 {
            break;
        }
        whole /= 1000;
        suffix = next;
    }
    Quantity(format!("{whole}{suffix}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways() {
        for (text, expected) in [
            ("125m", Some(125)),
            ("100m", Some(100)),
            ("1", Some(1000)),
            ("0.5", Some(500)),
            ("1034567n", Some(2)),
            ("250000000n", Some(250)),
            ("3804Ki", Some(3_895_296_000)),
            ("1e3", Some(1_000_000)),
            ("2k", Some(2_000_000)),
            ("1Q", None),
            ("", None),
            ("m", None),
        ] {
            assert_eq!(milli(&Quantity(text.into())), expected, "{text}");
        }
        for (value, expected) in [
            (125, "125m"),
            (2000, "2"),
            (3_895_296_000, "3895296"),
            (4_000_000, "4k"),
            (0, "0"),
            (1500, "1500m"),
        ] {
            assert_eq!(from_milli(value).0, expected);
        }
    }
}

//! Kubernetes' quantities: `500m`, `64Mi`, `1e3`.

use serde_json::Value;

/// A Kubernetes quantity in thousandths of its unit (`500m` → 500, `1Ki` → 1,024,000), rounded
/// up; `None` if it is not one, negative, or beyond what an i64 holds.
pub fn quantity(value: &Value) -> Option<i64> {
    let text = match value {
        Value::String(text) => text.trim().to_owned(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 18 {
        return None;
    }
    // In units of 10^-9, so that "n" is exact.
    let (factor, divisor): (i128, i128) = match suffix {
        "n" => (1, 1_000_000),
        "u" => (1, 1_000),
        "m" => (1, 1),
        "" => (1_000, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (1_000_000_000_000, 1),
        "T" => (1_000_000_000_000_000, 1),
        "Ki" => (1_000 << 10, 1),
        "Mi" => (1_000 << 20, 1),
        "Gi" => (1_000 << 30, 1),
        "Ti" => (1_000 << 40, 1),
        exponent => {
            let power: u32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            (1_000_i128.checked_mul(10_i128.checked_pow(power)?)?, 1)
        }
    };
    let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let divisor = divisor.checked_mul(scale)?;
    let amount = digits.checked_mul(factor)?;
    let rounded_up = amount.checked_add(divisor - 1)? / divisor;
    i64::try_from(rounded_up).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn quantities_are_those_of_kubernetes() {
        let of = |text: &str| quantity(&json!(text));
        assert_eq!(of("500m"), Some(500));
        assert_eq!(of("2"), Some(2000));
        assert_eq!(of("0.5"), Some(500));
        assert_eq!(of("1.5Gi"), Some((3 << 29) * 1000));
        assert_eq!(of("64Mi"), Some((64 << 20) * 1000));
        assert_eq!(of("1k"), Some(1_000_000));
        assert_eq!(of("1e3"), Some(1_000_000));
        assert_eq!(of("100n"), Some(1));
        assert_eq!(quantity(&json!(2)), Some(2000));
        for bad in ["", "m", "1x", "-1", "1e999", "99999999999999999999", "1.2.3", "é"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}

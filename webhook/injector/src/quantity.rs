//! Parses and compares Kubernetes' quantities (`resource.Quantity` of apimachinery).

use std::ops::Add;

use serde_json::Value;

/// An amount in billionths; smaller fractions are rounded up, as Kubernetes does. Amounts that overflow saturate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity {
    billionths: i128,
}

/// Number of fraction digits that are read.
const FRACTION_DIGITS: usize = 27;

impl Quantity {
    /// Parses texts like `1.5`, `100m`, `128Mi` and `1e3`; returns `None` if the text is not a quantity.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return None;
        }
        // More digits do not change the billionths, even with the largest suffix.
        let fraction = &fraction[..fraction.len().min(FRACTION_DIGITS)];
        let (decimal, binary) = scale(suffix)?;
        let mut digits: i128 = 0;
        for digit in whole.bytes().chain(fraction.bytes()) {
            digits = digits.saturating_mul(10).saturating_add(i128::from(digit - b'0'));
        }
        let exponent = decimal + 9 - i64::try_from(fraction.len()).ok()?;
        let billionths = if digits == 0 {
            0
        } else {
            let scaled = digits.saturating_mul(1i128 << binary);
            if let Ok(exponent) = u32::try_from(exponent) {
                scaled.saturating_mul(10i128.saturating_pow(exponent))
            } else {
                let divisor = 10i128.saturating_pow(u32::try_from(-exponent).unwrap_or(u32::MAX));
                scaled / divisor + i128::from(scaled % divisor != 0)
            }
        };
        Some(Self { billionths: if negative { -billionths } else { billionths } })
    }

    /// Rounds up to an integer.
    pub(crate) fn ceil(self) -> i64 {
        let one = 1_000_000_000;
        let whole = self.billionths.div_euclid(one) + i128::from(self.billionths.rem_euclid(one) != 0);
        i64::try_from(whole).unwrap_or(i64::MAX)
    }

    /// Reads a field, which may be a string or a number.
    pub fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Self::parse(text),
            Value::Number(number) => Self::parse(&number.to_string()),
            _ => None,
        }
    }

    pub(crate) const fn is_negative(self) -> bool {
        self.billionths < 0
    }
}

impl Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { billionths: self.billionths.saturating_add(other.billionths) }
    }
}

/// Returns the power of ten and the power of two of a suffix.
fn scale(suffix: &str) -> Option<(i64, u32)> {
    let binary = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].iter().zip(1..).find(|(name, _)| **name == suffix);
    if let Some((_, step)) = binary {
        return Some((0, step * 10));
    }
    let decimal =
        [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
    if let Some((_, power)) = decimal.iter().find(|(name, _)| *name == suffix) {
        return Some((*power, 0));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    let short = (1..=3).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    short.then(|| exponent.parse().ok()).flatten().map(|power| (power, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Quantity {
        Quantity::parse(text).unwrap_or_else(|| panic!("{text} is a quantity"))
    }

    #[test]
    fn different_spellings_of_an_amount_are_equal() {
        for (one, other) in [
            ("100m", "0.1"),
            ("1Ki", "1024"),
            ("2000m", "2"),
            ("1.5Gi", "1536Mi"),
            ("1e3", "1k"),
            ("+5", "5."),
            (".5", "500m"),
            ("1E", "1e18"),
            ("1500000u", "1.5"),
            ("0", "-0"),
            ("0.0000000001", "1n"),
            ("0.5000000000000000000000000000000000000000000", "500m"),
        ] {
            assert_eq!(of(one), of(other), "{one} {other}");
        }
    }

    #[test]
    fn amounts_are_ordered_and_added() {
        assert!(of("128Mi") > of("128M"));
        assert!(of("99m") < of("0.1"));
        assert!(of("-1").is_negative() && !of("0").is_negative());
        assert_eq!(of("100m") + of("1.9"), of("2"));
        assert!(of("9999999999999999999999999999999999999999E") + of("1") >= of("1E"));
        assert_eq!(of("1e-999"), of("1n"));
    }

    #[test]
    fn other_texts_are_not_quantities() {
        for text in
            ["", " 1", "1 ", "1 2", "lots", "1KiB", "1.2.3", ".", "-", "1e", "1e5000", "1mm", "0x10", "1,5", "٣"]
        {
            assert_eq!(Quantity::parse(text), None, "{text}");
        }
    }
}

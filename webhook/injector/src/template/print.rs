//! Prints values as Go's `fmt` does. The engine prints floating point numbers as Rust does: `1000620000`, where Go prints
//! `1.00062e+09`. All numbers of the document `values` are floating point.

use std::fmt::Write as _;

use gotmpl::Value as Data;

/// Returns a value as Go's verb `%v` prints it.
pub(super) fn go_string(value: &Data) -> String {
    let mut out = String::new();
    write(&mut out, value);
    out
}

fn write(out: &mut String, value: &Data) {
    match value {
        Data::Float(number) => float(out, *number),
        Data::List(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index > 0 { " " } else { "" });
                write(out, item);
            }
            out.push(']');
        }
        Data::Map(fields) => {
            out.push_str("map[");
            for (index, (name, field)) in fields.iter().enumerate() {
                out.push_str(if index > 0 { " " } else { "" });
                out.push_str(name);
                out.push(':');
                write(out, field);
            }
            out.push(']');
        }
        // Writing to a string does not fail.
        other => drop(write!(out, "{other}")),
    }
}

/// Prints as `strconv.FormatFloat(number, 'g', -1, 64)` does: the shortest digits that identify the number, with an exponent below
/// 1e-4 and from 1e6 on.
fn float(out: &mut String, number: f64) {
    if !number.is_finite() {
        out.push_str(if number.is_nan() {
            "NaN"
        } else if number > 0.0 {
            "+Inf"
        } else {
            "-Inf"
        });
        return;
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let _ = if (-4..6).contains(&exponent) {
        write!(out, "{number}")
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        write!(out, "{digits}e{sign}{:02}", exponent.abs())
    };
}

/// Prints as `fmt.Sprint` does: with a space between operands if neither is a string.
pub(super) fn sprint(values: &[Data]) -> String {
    let mut out = String::new();
    let mut before_is_string = true;
    for (index, value) in values.iter().enumerate() {
        let is_string = matches!(value, Data::String(_));
        if index > 0 && !is_string && !before_is_string {
            out.push(' ');
        }
        write(&mut out, value);
        before_is_string = is_string;
    }
    out
}

/// Prints as `fmt.Sprintln` does.
pub(super) fn sprintln(values: &[Data]) -> String {
    values.iter().map(go_string).collect::<Vec<_>>().join(" ") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_printed_as_go_prints_them() {
        for (number, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (0.5, "0.5"),
            (999_999.0, "999999"),
            (1e6, "1e+06"),
            (1_000_620_000.0, "1.00062e+09"),
            (-2e6, "-2e+06"),
            (123_456_789.5, "1.234567895e+08"),
            (1e21, "1e+21"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (f64::INFINITY, "+Inf"),
        ] {
            assert_eq!(go_string(&Data::Float(number)), text);
        }
    }

    #[test]
    fn spaces_separate_operands_that_are_not_strings() {
        let values = [Data::Int(1), Data::Int(2), Data::String("x".into()), Data::Bool(true), Data::Nil];
        assert_eq!(sprint(&values), "1 2xtrue <nil>");
        assert_eq!(sprintln(&values), "1 2 x true <nil>\n");
    }
}

//! Lists of ports as annotations spell them: decimal numbers, separated by commas.
//!
//! Spaces around a number and empty elements (`80,`) are accepted, as Istio's init container does. Order is kept, repeated ports are
//! dropped.

use std::fmt::{self, Write as _};

use crate::limits;
use crate::text::truncate;

/// Selection of TCP ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortSelection {
    /// `*`: every port.
    All,
    /// These ports only; an empty list selects none.
    Only(Vec<u16>),
}

impl fmt::Display for PortSelection {
    /// Writes the selection as the annotation spells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Only(ports) => f.write_str(&print(ports)),
        }
    }
}

/// Parses a list of ports.
///
/// # Errors
/// Returns one fault for each invalid element, or one for a list of more than [`limits::MAX_PORTS`].
pub fn parse(text: &str) -> Result<Vec<u16>, Vec<String>> {
    parse_list(text, "'*' is not allowed here: list each port")
}

/// Parses `*` or a list of ports; an empty text selects none.
pub fn parse_selection(text: &str) -> Result<PortSelection, Vec<String>> {
    if text.trim() == "*" {
        return Ok(PortSelection::All);
    }
    parse_list(text, "'*' cannot be combined with other values").map(PortSelection::Only)
}

fn parse_list(text: &str, star: &str) -> Result<Vec<u16>, Vec<String>> {
    let elements = || text.split(',').map(str::trim).filter(|element| !element.is_empty());
    limits::check_count(elements().count(), limits::MAX_PORTS, "ports").map_err(|fault| vec![fault])?;
    let mut ports = Vec::new();
    let mut faults = Vec::new();
    for element in elements() {
        match element {
            "*" => faults.push(star.to_owned()),
            _ => parse_one(element).map_or_else(|fault| faults.push(fault), |port| ports.push(port)),
        }
    }
    if faults.is_empty() { Ok(without_repeats(ports)) } else { Err(faults) }
}

/// Formats a list of ports such that [`parse`] reads it back.
pub fn print(ports: &[u16]) -> String {
    let mut text = String::new();
    for port in ports {
        let comma = if text.is_empty() { "" } else { "," };
        let _ = write!(text, "{comma}{port}"); // writing to a String cannot fail
    }
    text
}

/// Keeps each port at its first position only.
pub fn without_repeats(mut ports: Vec<u16>) -> Vec<u16> {
    let mut seen = std::collections::HashSet::new();
    ports.retain(|port| seen.insert(*port));
    ports
}

fn parse_one(element: &str) -> Result<u16, String> {
    let shown = truncate(element);
    if !element.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("port '{shown}' is not a number"));
    }
    element.parse().map_err(|_| format!("port {shown} is out of range (0-65535)"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn accepts_spaces_empty_elements_and_repeats() {
        assert_eq!(parse(" 80, 443 ,,80,0,"), Ok(vec![80, 443, 0]));
        assert_eq!(parse(""), Ok(vec![]));
        assert_eq!(parse_selection(""), Ok(PortSelection::Only(vec![])));
        assert_eq!(parse_selection("*"), Ok(PortSelection::All));
    }

    #[test]
    fn names_every_invalid_element() {
        insta::assert_snapshot!(parse("80,http,65536,+1,-1,8 0,*,80-90").unwrap_err().join("\n"), @r"
        port 'http' is not a number
        port 65536 is out of range (0-65535)
        port '+1' is not a number
        port '-1' is not a number
        port '8 0' is not a number
        '*' is not allowed here: list each port
        port '80-90' is not a number
        ");
    }

    proptest! {
        #[test]
        fn parse_reads_back_what_print_writes(ports in proptest::collection::vec(any::<u16>(), 0..40)) {
            let ports = without_repeats(ports);
            prop_assert_eq!(parse(&print(&ports)), Ok(ports));
        }

        #[test]
        fn never_panics(text in any::<String>()) {
            let _ = parse_selection(&text);
        }
    }
}

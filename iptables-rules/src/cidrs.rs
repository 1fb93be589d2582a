//! Lists of networks as annotations spell them: `address/prefix`, separated by commas, without spaces.

use std::collections::HashSet;
use std::fmt::{self, Write as _};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::limits;
use crate::text::truncate;

/// Selection of destinations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CidrSelection {
    /// `*`: every address of both families.
    All,
    /// These networks only; an empty list selects none.
    Only(Vec<IpNet>),
}

impl fmt::Display for CidrSelection {
    /// Writes the selection as the annotation spells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Only(nets) => f.write_str(&print(nets)),
        }
    }
}

/// Parses a list of networks. Host bits are cleared: `10.1.2.3/24` is `10.1.2.0/24`.
///
/// # Errors
/// Returns one fault for each invalid element, or one for a list of more than [`limits::MAX_CIDRS`].
pub fn parse(text: &str) -> Result<Vec<IpNet>, Vec<String>> {
    parse_list(text, "'*' is not allowed here: list each network")
}

/// Parses `*` or a list of networks; an empty text selects none.
pub fn parse_selection(text: &str) -> Result<CidrSelection, Vec<String>> {
    if text == "*" {
        return Ok(CidrSelection::All);
    }
    parse_list(text, "'*' cannot be combined with other values").map(CidrSelection::Only)
}

fn parse_list(text: &str, star: &str) -> Result<Vec<IpNet>, Vec<String>> {
    let elements = || text.split(',').filter(|element| !element.is_empty());
    limits::check_count(elements().count(), limits::MAX_CIDRS, "CIDRs").map_err(|fault| vec![fault])?;
    let mut nets = Vec::new();
    let mut faults = Vec::new();
    for element in elements() {
        match element {
            "*" => faults.push(star.to_owned()),
            _ => parse_one(element).map_or_else(|fault| faults.push(fault), |net| nets.push(net.trunc())),
        }
    }
    let mut seen = HashSet::new();
    nets.retain(|net| seen.insert(*net));
    if faults.is_empty() { Ok(nets) } else { Err(faults) }
}

/// Parses one network and keeps its host bits.
///
/// # Errors
/// Returns a fault that names the element.
pub fn parse_one(element: &str) -> Result<IpNet, String> {
    let shown = || truncate(element);
    if element.contains(char::is_whitespace) {
        return Err(format!("'{}' contains a space", shown()));
    }
    let Some((address, prefix)) = element.split_once('/') else {
        return Err(format!("'{}' has no prefix length (a single address is ADDRESS/32 or ADDRESS/128)", shown()));
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        return Err(format!("'{}' has an invalid IP address", shown()));
    };
    // Digits only: no sign, and no leading zero, which some programs read as octal.
    let plain = prefix.bytes().all(|b| b.is_ascii_digit()) && (prefix.len() == 1 || !prefix.starts_with('0'));
    let longest = if address.is_ipv4() { 32 } else { 128 };
    prefix
        .parse()
        .ok()
        .filter(|_| plain)
        .and_then(|length| IpNet::new(address, length).ok())
        .ok_or_else(|| format!("'{}' has an invalid prefix length (0-{longest})", shown()))
}

/// Formats a list of networks such that [`parse`] reads it back.
pub fn print(nets: &[IpNet]) -> String {
    let mut text = String::new();
    for net in nets {
        let comma = if text.is_empty() { "" } else { "," };
        let _ = write!(text, "{comma}{net}"); // writing to a String cannot fail
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn clears_host_bits() {
        assert_eq!(print(&parse("10.1.2.3/24,2001:db8::1/32,").unwrap()), "10.1.2.0/24,2001:db8::/32");
    }

    #[test]
    fn names_every_invalid_element() {
        let text = "10.0.0.0/8, 10.0.0.0/8,10.0.0.1,10.0.0/8,10.0.0.0/33,::/129,10.0.0.0/08,10.0.0.0/+8,10.0.0.0/,fe80::1%eth0/64,*";
        insta::assert_snapshot!(parse(text).unwrap_err().join("\n"), @r"
        ' 10.0.0.0/8' contains a space
        '10.0.0.1' has no prefix length (a single address is ADDRESS/32 or ADDRESS/128)
        '10.0.0/8' has an invalid IP address
        '10.0.0.0/33' has an invalid prefix length (0-32)
        '::/129' has an invalid prefix length (0-128)
        '10.0.0.0/08' has an invalid prefix length (0-32)
        '10.0.0.0/+8' has an invalid prefix length (0-32)
        '10.0.0.0/' has an invalid prefix length (0-32)
        'fe80::1%eth0/64' has an invalid IP address
        '*' is not allowed here: list each network
        ");
    }

    proptest! {
        #[test]
        fn parse_reads_back_what_print_writes(raw in proptest::collection::vec((any::<IpAddr>(), 0_u8..=128), 0..20)) {
            let nets: Vec<IpNet> = raw
                .into_iter()
                .map(|(address, length)| IpNet::new(address, if address.is_ipv4() { length % 33 } else { length }).unwrap().trunc())
                .collect::<std::collections::BTreeSet<_>>()
                .into_iter()
                .collect();
            prop_assert_eq!(parse(&print(&nets)), Ok(nets));
        }

        #[test]
        fn never_panics(text in any::<String>()) {
            let _ = parse_selection(&text);
        }
    }
}

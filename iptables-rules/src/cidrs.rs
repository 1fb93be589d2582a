//! Lists of networks as annotations spell them: `address/prefix` with commas, no spaces.

use std::fmt;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::text::shorten;

/// A choice of destinations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CidrSelection {
    /// `*`: every address of either family.
    All,
    /// These networks only; an empty list is none.
    Only(Vec<IpNet>),
}

impl fmt::Display for CidrSelection {
    /// As the annotation spells it: `*`, or networks with commas.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Only(nets) => f.write_str(&print(nets)),
        }
    }
}

/// Reads a list of networks of either family. Bits of the host are cleared: `10.1.2.3/24` is `10.1.2.0/24`.
///
/// # Errors
/// One reason for each element that is none, as a half sentence that names it.
pub fn parse(text: &str) -> Result<Vec<IpNet>, Vec<String>> {
    parse_list(text, "'*' is not possible here: this list has to name each network")
}

/// Reads `*` or a list of networks; an empty text selects none.
///
/// # Errors
/// As [`parse`].
pub fn parse_selection(text: &str) -> Result<CidrSelection, Vec<String>> {
    if text == "*" {
        return Ok(CidrSelection::All);
    }
    parse_list(text, "'*' has to stand alone").map(CidrSelection::Only)
}

fn parse_list(text: &str, star: &str) -> Result<Vec<IpNet>, Vec<String>> {
    let mut nets = Vec::new();
    let mut faults = Vec::new();
    for element in text.split(',').filter(|element| !element.is_empty()) {
        match element {
            "*" => faults.push(star.to_owned()),
            _ => parse_one(element).map_or_else(|fault| faults.push(fault), |net| nets.push(net.trunc())),
        }
    }
    let mut seen = HashSet::new();
    nets.retain(|net| seen.insert(*net));
    if faults.is_empty() { Ok(nets) } else { Err(faults) }
}

/// Reads one network, bits of the host as written.
///
/// # Errors
/// The reason why it is none, as a half sentence that names it.
pub fn parse_one(element: &str) -> Result<IpNet, String> {
    let shown = || shorten(element);
    if element.contains(char::is_whitespace) {
        return Err(format!("'{}' has a space in it", shown()));
    }
    let Some((address, prefix)) = element.split_once('/') else {
        return Err(format!("'{}' has no prefix length (a single address is ADDRESS/32 or ADDRESS/128)", shown()));
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        return Err(format!("'{}' does not start with an IP address", shown()));
    };
    // Digits only, no leading zero: neither a sign nor a number that somebody may read as octal.
    let plain = prefix.bytes().all(|b| b.is_ascii_digit()) && (prefix.len() == 1 || !prefix.starts_with('0'));
    let longest = if address.is_ipv4() { 32 } else { 128 };
    prefix
        .parse()
        .ok()
        .filter(|_| plain)
        .and_then(|length| IpNet::new(address, length).ok())
        .ok_or_else(|| format!("'{}' does not end with a prefix length (0 to {longest})", shown()))
}

/// Writes a list of networks; [`parse`] reads it back.
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
    fn clears_the_bits_of_the_host() {
        assert_eq!(print(&parse("10.1.2.3/24,2001:db8::1/32,").unwrap()), "10.1.2.0/24,2001:db8::/32");
    }

    #[test]
    fn names_every_bad_element() {
        let text = "10.0.0.0/8, 10.0.0.0/8,10.0.0.1,10.0.0/8,10.0.0.0/33,::/129,10.0.0.0/08,10.0.0.0/+8,10.0.0.0/,fe80::1%eth0/64,*";
        insta::assert_snapshot!(parse(text).unwrap_err().join("\n"), @r"
        ' 10.0.0.0/8' has a space in it
        '10.0.0.1' has no prefix length (a single address is ADDRESS/32 or ADDRESS/128)
        '10.0.0/8' does not start with an IP address
        '10.0.0.0/33' does not end with a prefix length (0 to 32)
        '::/129' does not end with a prefix length (0 to 128)
        '10.0.0.0/08' does not end with a prefix length (0 to 32)
        '10.0.0.0/+8' does not end with a prefix length (0 to 32)
        '10.0.0.0/' does not end with a prefix length (0 to 32)
        'fe80::1%eth0/64' does not start with an IP address
        '*' is not possible here: this list has to name each network
        ");
    }

    proptest! {
        #[test]
        fn printing_and_parsing_is_the_identity(raw in proptest::collection::vec((any::<IpAddr>(), 0_u8..=128), 0..20)) {
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

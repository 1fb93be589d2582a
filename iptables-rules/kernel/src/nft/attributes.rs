//! Netlink attributes in one buffer.
//!
//! The library's nested types compute the length of every value again on each level above it. In a rule, five levels deep, that was four
//! fifths of all instructions of an ADD. Here the length of a level is set once its content has been written.

use netlink_packet_core::{DefaultNla, Emitable as _, NLA_F_NESTED, NLA_HEADER_SIZE, Nla};

/// `NFTA_LIST_ELEM`, linux/netfilter/nf_tables.h: an element of a list of expressions or set elements.
pub(super) const LIST_ELEMENT: u16 = 1;

/// Attributes in wire format.
#[derive(Debug, Clone, Default)]
pub(super) struct Attributes {
    bytes: Vec<u8>,
}

impl Attributes {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes) }
    }

    /// Appends an attribute of a library type.
    pub(super) fn put(&mut self, attribute: &impl Nla) {
        let start = self.bytes.len();
        self.bytes.resize(start + attribute.buffer_len(), 0);
        attribute.emit(&mut self.bytes[start..]);
    }

    /// Appends an attribute with bytes as value.
    pub(super) fn value(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend_from_slice(&header(NLA_HEADER_SIZE + value.len(), kind));
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }

    /// Appends an attribute with a zero-terminated text as value.
    pub(super) fn text(&mut self, kind: u16, text: &str) {
        self.bytes.extend_from_slice(&header(NLA_HEADER_SIZE + text.len() + 1, kind));
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.resize((self.bytes.len() + 1).next_multiple_of(ALIGNMENT), 0);
    }

    /// Appends an attribute that contains attributes.
    pub(super) fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; NLA_HEADER_SIZE]);
        inner(self);
        let header = header(self.bytes.len() - start, kind | NLA_F_NESTED);
        self.bytes[start..start + NLA_HEADER_SIZE].copy_from_slice(&header);
    }

    /// Returns the attributes in wire format.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the attributes as value of one attribute.
    pub(super) fn into_nested(self, kind: u16) -> DefaultNla {
        DefaultNla::new(kind | NLA_F_NESTED, self.bytes)
    }
}

/// Attributes start at multiples of this (`NLA_ALIGNTO`, linux/netlink.h).
const ALIGNMENT: usize = 4;

/// Builds a header from the length including it, and the kind (`struct nlattr`, linux/netlink.h). The kernel rejects attributes that are too
/// long for the field; long lists are split before.
fn header(length: usize, kind: u16) -> [u8; NLA_HEADER_SIZE] {
    let ([a, b], [c, d]) = (u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes(), kind.to_ne_bytes());
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use netlink_packet_netfilter::nftables::{Cmp, DataAttribute, Operator, Register};

    use super::*;

    #[test]
    fn encodes_as_the_library_does() {
        let library = [
            Cmp::SourceRegister(Register::Reg1),
            Cmp::Op(Operator::NotEqual),
            Cmp::Data(DataAttribute::Value(b"eth10".to_vec())),
        ];
        let mut expected = vec![0; library.as_slice().buffer_len()];
        library.as_slice().emit(&mut expected);

        let mut ours = Attributes::default();
        ours.put(&library[0]);
        ours.put(&library[1]);
        ours.nest(library[2].kind(), |data| data.value(1, b"eth10"));
        assert_eq!(ours.bytes, expected);
    }
}

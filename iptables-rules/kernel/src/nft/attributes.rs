//! Netlink attributes, written one behind the other into one buffer.
//!
//! The library's own nested types ask every value for its length again on each level above it: five levels deep, in a rule, that was four
//! fifths of all instructions of an ADD. Here a level knows its length once what is in it has been written.

use netlink_packet_core::{DefaultNla, Emitable as _, NLA_F_NESTED, NLA_HEADER_SIZE, Nla};

/// Attributes in wire format.
#[derive(Debug, Clone, Default)]
pub(super) struct Attributes {
    bytes: Vec<u8>,
}

impl Attributes {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes) }
    }

    /// Appends an attribute of the library.
    pub(super) fn put(&mut self, attribute: &impl Nla) {
        let start = self.bytes.len();
        self.bytes.resize(start + attribute.buffer_len(), 0);
        attribute.emit(&mut self.bytes[start..]);
    }

    /// Appends an attribute with these bytes as value.
    pub(super) fn value(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend_from_slice(&header(NLA_HEADER_SIZE + value.len(), kind));
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }

    /// Appends an attribute with a text as value, which ends with a zero byte.
    pub(super) fn text(&mut self, kind: u16, text: &str) {
        self.bytes.extend_from_slice(&header(NLA_HEADER_SIZE + text.len() + 1, kind));
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.resize((self.bytes.len() + 1).next_multiple_of(ALIGNMENT), 0);
    }

    /// Appends an attribute that holds attributes.
    pub(super) fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; NLA_HEADER_SIZE]);
        inner(self);
        let header = header(self.bytes.len() - start, kind | NLA_F_NESTED);
        self.bytes[start..start + NLA_HEADER_SIZE].copy_from_slice(&header);
    }

    /// All of them in wire format.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All of them as the value of one attribute.
    pub(super) fn into_nested(self, kind: u16) -> DefaultNla {
        DefaultNla::new(kind | NLA_F_NESTED, self.bytes)
    }
}

/// Attributes start at multiples of this (`NLA_ALIGNTO`, linux/netlink.h).
const ALIGNMENT: usize = 4;

/// Length with header, and kind (`struct nlattr`, linux/netlink.h). What is too long for the field is too long for the kernel, too, and
/// refused there; lists are cut to size before.
fn header(length: usize, kind: u16) -> [u8; NLA_HEADER_SIZE] {
    let ([a, b], [c, d]) = (u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes(), kind.to_ne_bytes());
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use netlink_packet_netfilter::nftables::{Cmp, DataAttribute, Operator, Register};

    use super::*;

    #[test]
    fn writes_what_the_library_would_write() {
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

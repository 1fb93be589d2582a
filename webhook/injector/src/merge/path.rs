use std::fmt;

/// Path of a field in the pod, formatted only for findings.
#[derive(Debug, Clone, Copy)]
pub(super) enum FieldPath<'a> {
    Root,
    Field(&'a FieldPath<'a>, &'a str),
    Item(&'a FieldPath<'a>, &'a str),
    Position(&'a FieldPath<'a>, usize),
}

impl fmt::Display for FieldPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("."),
            Self::Field(Self::Root, name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Item(parent, name) => write!(f, "{parent}[{name}]"),
            Self::Position(parent, position) => write!(f, "{parent}[{position}]"),
        }
    }
}

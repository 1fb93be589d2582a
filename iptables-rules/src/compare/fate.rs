//! Fates of packets, and where two fates are the same after all.

use std::fmt;

use super::diagram::{Set, TooLarge};
use super::space::{Changed, Space, Value};

/// What happens to a class of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fate {
    /// Where they end.
    pub action: FateAction,
    pub(super) mark: Value,
    pub(super) connection_mark: Value,
    /// Conntrack zone of their connection.
    pub zone: u16,
}

/// Where a class of packets ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FateAction {
    /// Redirected to a local port by NAT.
    Redirected {
        /// The port.
        port: u16,
    },
    /// Handed over to the transparent socket on a local port.
    Tproxied {
        /// The port.
        port: u16,
        /// Destination port after NAT, if a rule redirects the packet as well.
        redirected: Option<u16>,
    },
    /// Dropped.
    Dropped,
    /// Passes unchanged.
    Passes {
        /// Whether a sent packet leaves by `lo`.
        over_lo: bool,
    },
}

/// Where two fates differ.
pub(super) struct FateDifference {
    /// Packets for which they differ in any case.
    pub(super) always: Set,
    /// Packets for which they differ if the mark of the packet is not that of its connection.
    pub(super) if_marks_differ: Set,
}

impl Fate {
    pub(super) const DROPPED: Self =
        Self { action: FateAction::Dropped, mark: Value::Mark, connection_mark: Value::ConnectionMark, zone: 0 };

    pub(super) fn of(changed: &Changed, over_lo: bool) -> Self {
        let action = match (changed.assigned, changed.redirected) {
            (Some(port), redirected) => FateAction::Tproxied { port, redirected },
            (None, Some(port)) => FateAction::Redirected { port },
            (None, None) => FateAction::Passes { over_lo },
        };
        let zone = changed.zone.unwrap_or(0);
        Self { action, mark: changed.mark, connection_mark: changed.connection_mark, zone }
    }

    /// Returns whether the proxy or the agent gets the packets.
    pub const fn is_captured(&self) -> bool {
        matches!(self.action, FateAction::Redirected { .. } | FateAction::Tproxied { .. })
    }

    /// Returns for which packets another fate is not the same.
    pub(super) fn difference(&self, other: &Self, space: &mut Space<'_>) -> Result<FateDifference, TooLarge> {
        let mut difference = FateDifference { always: Set::EMPTY, if_marks_differ: Set::EMPTY };
        if (self.action, self.zone) != (other.action, other.zone) {
            difference.always = Set::ALL;
            return Ok(difference);
        }
        for (one, another) in [(self.mark, other.mark), (self.connection_mark, other.connection_mark)] {
            let unequal = match (one, another) {
                (one, another) if one == another => continue,
                (Value::Number(_), Value::Number(_)) => Set::ALL,
                (Value::Number(number), value) | (value, Value::Number(number)) => {
                    let equal = space.is(value, number)?;
                    space.diagram.complement(equal)?
                }
                _ => {
                    difference.if_marks_differ = Set::ALL;
                    continue;
                }
            };
            difference.always = space.diagram.or(difference.always, unequal)?;
        }
        difference.if_marks_differ = space.diagram.minus(difference.if_marks_differ, difference.always)?;
        Ok(difference)
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.action {
            FateAction::Redirected { port } => write!(f, "captured on port {port}")?,
            FateAction::Tproxied { port, redirected: None } => write!(f, "captured by TPROXY on port {port}")?,
            FateAction::Tproxied { port, redirected: Some(other) } => {
                write!(f, "captured by TPROXY on port {port}, destination port changed to {other}")?;
            }
            FateAction::Dropped => f.write_str("dropped")?,
            FateAction::Passes { over_lo: false } => f.write_str("not captured")?,
            FateAction::Passes { over_lo: true } => f.write_str("not captured, stays in the pod")?,
        }
        match self.mark {
            Value::Mark => {}
            Value::ConnectionMark => f.write_str(", gets the mark of its connection")?,
            Value::Number(mark) => write!(f, ", gets mark {mark}")?,
        }
        match self.connection_mark {
            Value::ConnectionMark => {}
            Value::Mark => f.write_str(", its connection gets its mark")?,
            Value::Number(mark) => write!(f, ", its connection gets mark {mark}")?,
        }
        if self.zone != 0 {
            write!(f, ", conntrack zone {}", self.zone)?;
        }
        Ok(())
    }
}

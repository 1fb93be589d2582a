//! Sets of packets as reduced, ordered binary decision diagrams.
//!
//! Every node is stored once, so equal sets have equal handles. The size of a set depends on the prefixes that conditions name, not on the
//! product of the dimensions.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Limit of nodes, some 100 MB.
const MAX_NODES: usize = 3_000_000;
/// Remembered operations; all are forgotten beyond.
const MAX_MEMO: usize = 1_000_000;

/// Handle of a set in its [`Diagram`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Set(u32);

impl Set {
    pub(super) const EMPTY: Self = Self(0);
    pub(super) const ALL: Self = Self(1);
}

/// Error returned when the sets need more than [`MAX_NODES`] nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLarge;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Node {
    variable: u16,
    low: Set,
    high: Set,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Operation {
    And,
    Or,
    Minus,
}

/// All nodes.
#[derive(Debug)]
pub(super) struct Diagram {
    nodes: Vec<Node>,
    unique: HashMap<Node, Set, BuildHasherDefault<WordHasher>>,
    memo: HashMap<(Operation, Set, Set), Set, BuildHasherDefault<WordHasher>>,
}

impl Diagram {
    pub(super) fn new() -> Self {
        // Both terminals, below every variable.
        let terminal = |set| Node { variable: u16::MAX, low: set, high: set };
        let nodes = vec![terminal(Set::EMPTY), terminal(Set::ALL)];
        Self { nodes, unique: HashMap::default(), memo: HashMap::default() }
    }

    /// Returns the set that is `low` where the variable is 0, and `high` where it is 1. Both must only have later variables.
    pub(super) fn node(&mut self, variable: u16, low: Set, high: Set) -> Result<Set, TooLarge> {
        if low == high {
            return Ok(low);
        }
        let node = Node { variable, low, high };
        if let Some(known) = self.unique.get(&node) {
            return Ok(*known);
        }
        if self.nodes.len() >= MAX_NODES {
            return Err(TooLarge);
        }
        let set = Set(u32::try_from(self.nodes.len()).map_err(|_| TooLarge)?);
        self.nodes.push(node);
        self.unique.insert(node, set);
        Ok(set)
    }

    pub(super) fn and(&mut self, a: Set, b: Set) -> Result<Set, TooLarge> {
        self.apply(Operation::And, a.min(b), a.max(b))
    }

    pub(super) fn or(&mut self, a: Set, b: Set) -> Result<Set, TooLarge> {
        self.apply(Operation::Or, a.min(b), a.max(b))
    }

    pub(super) fn minus(&mut self, a: Set, b: Set) -> Result<Set, TooLarge> {
        self.apply(Operation::Minus, a, b)
    }

    pub(super) fn complement(&mut self, set: Set) -> Result<Set, TooLarge> {
        self.minus(Set::ALL, set)
    }

    /// Returns the first variable that the set depends on; `u16::MAX` for a terminal.
    pub(super) fn variable(&self, set: Set) -> u16 {
        self.get(set).variable
    }

    /// Returns the parts of a set where a variable, its first one or an earlier one, is 0 and 1.
    pub(super) fn branches(&self, set: Set, variable: u16) -> (Set, Set) {
        let node = self.get(set);
        if node.variable == variable { (node.low, node.high) } else { (set, set) }
    }

    /// Returns what is in the set whatever the values of the variables from `first` on, which are the last ones.
    pub(super) fn for_all_from(&mut self, set: Set, first: u16) -> Result<Set, TooLarge> {
        let mut known = HashMap::new();
        self.universal(set, first, &mut known)
    }

    fn universal(&mut self, set: Set, first: u16, known: &mut HashMap<Set, Set>) -> Result<Set, TooLarge> {
        let node = self.get(set);
        if node.variable == u16::MAX {
            return Ok(set);
        }
        if node.variable >= first {
            return Ok(Set::EMPTY);
        }
        if let Some(result) = known.get(&set) {
            return Ok(*result);
        }
        let low = self.universal(node.low, first, known)?;
        let high = self.universal(node.high, first, known)?;
        let result = self.node(node.variable, low, high)?;
        known.insert(set, result);
        Ok(result)
    }

    fn get(&self, set: Set) -> Node {
        // Handles are indexes of this vector, which only grows.
        self.nodes[set.0 as usize]
    }

    fn apply(&mut self, operation: Operation, a: Set, b: Set) -> Result<Set, TooLarge> {
        let trivial = match operation {
            Operation::And if a == Set::EMPTY || a == b => Some(a),
            Operation::And if a == Set::ALL => Some(b),
            Operation::Or if a == Set::EMPTY || a == b => Some(b),
            Operation::Or if a == Set::ALL => Some(a),
            Operation::Minus if a == Set::EMPTY || b == Set::EMPTY => Some(a),
            Operation::Minus if a == b || b == Set::ALL => Some(Set::EMPTY),
            _ => None,
        };
        if let Some(result) = trivial {
            return Ok(result);
        }
        if let Some(result) = self.memo.get(&(operation, a, b)) {
            return Ok(*result);
        }
        let variable = self.variable(a).min(self.variable(b));
        let ((a_low, a_high), (b_low, b_high)) = (self.branches(a, variable), self.branches(b, variable));
        let ordered = |a: Set, b: Set| if operation == Operation::Minus { (a, b) } else { (a.min(b), a.max(b)) };
        let (left, right) = ordered(a_low, b_low);
        let low = self.apply(operation, left, right)?;
        let (left, right) = ordered(a_high, b_high);
        let high = self.apply(operation, left, right)?;
        let result = self.node(variable, low, high)?;
        if self.memo.len() >= MAX_MEMO {
            self.memo.clear();
        }
        self.memo.insert((operation, a, b), result);
        Ok(result)
    }
}

/// Hashes a few small numbers by multiplication and rotation. Keys are handles, whose values nobody chooses.
#[derive(Debug, Default, Clone, Copy)]
struct WordHasher(u64);

impl WordHasher {
    const fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

impl Hasher for WordHasher {
    fn finish(&self) -> u64 {
        self.0.rotate_left(26)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.add(u64::from(*byte));
        }
    }

    fn write_u16(&mut self, word: u16) {
        self.add(word.into());
    }

    fn write_u32(&mut self, word: u32) {
        self.add(word.into());
    }

    fn write_isize(&mut self, word: isize) {
        self.add(word.unsigned_abs() as u64);
    }
}

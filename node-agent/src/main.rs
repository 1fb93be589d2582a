//! The node agent `weir-agent`.

fn main() {}

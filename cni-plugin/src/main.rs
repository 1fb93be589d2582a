//! The chained CNI plugin `weir-cni`.

fn main() {}

//! Support of the tests across crates: where the binaries are, which privileges there are.

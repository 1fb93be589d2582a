//! The chained CNI plugin `weir-cni`.
//!
//! ```text
//! stdin + CNI_* ──▶ request ──▶ who is this pod? ──▶ CaptureConfig ──▶ RuleSet ──▶ netns: nft, lo address ──▶ prevResult on stdout
//! ```

//! The `caBundle` of our MutatingWebhookConfigurations: kept right, and compared with what is served.
//!
//! ```text
//! objects labelled weir.dev/rev ──Cache──▶ Facts ─┬─ differs from what is to be trusted? ──▶ server-side apply of that field
//!                                                 └─ verifies the certificate served? ──▶ readiness, metric, event
//! ```
//!
//! Only `clientConfig.caBundle` of entries named `…sidecar-injector.weir.dev` is written, under a field manager of its own and against the
//! uid and version that were seen: an object that was deleted is not made again, and what somebody else has written meanwhile is looked at
//! first. All replicas do it. They want the same, and the version lets one of two writes win; waiting for the holder of the Lease would
//! only add a way to wait in vain.

mod facts;
mod file;
mod keep;
mod trust;
pub mod verify;

pub use self::facts::{Entry, Facts, SUFFIX};
pub use self::file::CaFile;
pub use self::keep::{BundleMetrics, Bundles, Keeper, Mode, Observed};
pub use self::trust::{Refresh, Trust};

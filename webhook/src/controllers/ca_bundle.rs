//! The `caBundle` of our MutatingWebhookConfigurations: written, and verified against the serving certificate.
//!
//! ```text
//! objects labelled weir.dev/rev ──Cache──▶ ObservedConfiguration ─┬─ differs from the trust bundle? ──▶ server-side apply of caBundle
//!                                                                 └─ verifies the certificate? ──▶ condition, metric, event
//! ```
//!
//! Only `clientConfig.caBundle` of entries named `…sidecar-injector.weir.dev` is written, by a field manager of its own and against the uid
//! and version that were observed: a deleted object is not recreated, and another writer's change is observed first. All replicas write:
//! they want the same, and the version lets one of two writes win. Waiting for the leader would only add a way to wait in vain.

mod file;
mod metrics;
mod observed;
mod reconciler;
mod status;
mod trust;
mod verify;

pub use self::file::CaFile;
pub use self::reconciler::{CaBundleMode, CaBundleReconciler};
pub use self::status::{BundleStatus, BundleStatusReader};
pub use self::trust::{TrustBundle, TrustFetcher};

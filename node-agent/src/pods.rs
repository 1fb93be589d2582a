//! Cache of this node's pods, kept current by one watch.
//!
//! ```text
//! API server ──watch.rs──▶ PodObject ──object.rs──▶ PodFacts ──▶ PodCache ──▶ socket (answers), repair (every meshed pod)
//! ```

mod cache;
mod object;
mod watch;

pub use weir_runtime::ClientFactory;

pub use self::cache::PodCache;
#[cfg(test)]
pub(crate) use self::object::facts;
pub use self::object::{Owner, PodFacts, PodObject};
pub use self::watch::PodReflector;

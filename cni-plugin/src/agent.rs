//! The plugin's side of the node agent's sockets: one question with a hard bound on its time, and one report that nobody waits for.

mod ask;
mod report;

pub use self::ask::{AskError, ask};
pub use self::report::send;

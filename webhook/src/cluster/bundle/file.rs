//! What is to be trusted, from a file beside the certificate's.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use weir_runtime::health::Weight;

use super::trust::Trust;
use crate::cluster::Context;
use crate::server::watch::{Look, Watched, follow, tell};

/// Follows the file.
pub struct CaFile {
    file: Watched<Trust>,
    trust: watch::Sender<Option<Arc<Trust>>>,
}

impl CaFile {
    /// Reads it for the first time.
    ///
    /// # Errors
    /// It cannot be read, or is no bundle.
    pub fn open(path: PathBuf, trust: watch::Sender<Option<Arc<Trust>>>) -> Result<Self, String> {
        let name = path.display().to_string();
        let build = move |bytes: &[Vec<u8>]| {
            let text = bytes.first().map(|bytes| String::from_utf8_lossy(bytes)).unwrap_or_default();
            Trust::parse(&text).map_err(|reason| format!("the CA in {name} cannot be used: {reason}"))
        };
        let file = Watched::open(vec![path], Box::new(build))?;
        trust.send_replace(Some(file.current().load_full()));
        Ok(Self { file, trust })
    }

    /// Looks again and again, until told to stop. A file that cannot be used keeps the last good one.
    pub async fn run(self, context: Context, interval: Duration) {
        let Self { file, trust } = self;
        let condition = context.health.register("ca-file", Weight::Advisory, "");
        condition.good("ok");
        let told = |file: &Watched<Trust>, look| {
            tell(&condition, "the file of the CA", &look);
            if !matches!(look, Look::Refused(_)) {
                trust.send_replace(Some(file.current().load_full()));
            }
        };
        tokio::select! {
            () = follow(file, interval, told) => {}
            () = context.stop.requested() => {}
        }
    }
}

//! The trust bundle of certificate files, from a file.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use weir_runtime::health::ReadinessImpact;

use super::trust::TrustBundle;
use crate::controllers::ControllerContext;
use crate::file_watch::{FileChange, WatchedFiles, poll_forever, report_change};

/// Watches the file.
pub struct CaFile {
    file: WatchedFiles<TrustBundle>,
    trust: watch::Sender<Option<Arc<TrustBundle>>>,
}

impl CaFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// It cannot be read, or is not a bundle.
    pub fn open(path: PathBuf, trust: watch::Sender<Option<Arc<TrustBundle>>>) -> Result<Self, String> {
        let name = path.display().to_string();
        let build = move |bytes: &[Vec<u8>]| {
            let text = bytes.first().map(|bytes| String::from_utf8_lossy(bytes)).unwrap_or_default();
            TrustBundle::parse(&text).map_err(|reason| format!("cannot use CA {name}: {reason}"))
        };
        let file = WatchedFiles::open(vec![path], Box::new(build))?;
        trust.send_replace(Some(file.current().load_full()));
        Ok(Self { file, trust })
    }

    /// Polls the file until shutdown. An unusable file keeps the last good bundle.
    pub async fn run(self, context: ControllerContext, interval: Duration) {
        let Self { file, trust } = self;
        let conditions = context.health.conditions();
        let condition = conditions.register("ca-file", ReadinessImpact::Advisory, "FileLoaded", "ok");
        condition.set_ok("FileLoaded", "ok");
        let report = |file: &WatchedFiles<TrustBundle>, change| {
            report_change(&condition, "CA", &change);
            if change == FileChange::Reloaded {
                trust.send_replace(Some(file.current().load_full()));
            }
        };
        let poll = poll_forever(file, interval, WatchedFiles::poll, report);
        context.shutdown.run_until_cancelled(poll).await;
    }
}

//! Watches directories with inotify.

use std::collections::BTreeSet;
use std::path::PathBuf;

use futures_util::StreamExt as _;
use inotify::{EventStream, Inotify, WatchMask, Watches};
use tracing::{debug, warn};

use crate::install::file_system::TEMPORARY_PREFIX;

/// Events of a changed file, and of a removed or renamed directory.
const EVENTS: WatchMask = WatchMask::CLOSE_WRITE
    .union(WatchMask::MOVE)
    .union(WatchMask::CREATE)
    .union(WatchMask::DELETE)
    .union(WatchMask::ATTRIB)
    .union(WatchMask::DELETE_SELF)
    .union(WatchMask::MOVE_SELF)
    .union(WatchMask::ONLYDIR);

pub(super) struct DirWatcher {
    /// `None` where inotify fails: then the caller polls.
    inotify: Option<(Watches, EventStream<[u8; 4096]>)>,
    watched: BTreeSet<PathBuf>,
}

impl DirWatcher {
    pub(super) fn new() -> Self {
        let inotify = Inotify::init().and_then(|inotify| {
            let watches = inotify.watches();
            Ok((watches, inotify.into_event_stream([0; 4096])?))
        });
        if let Err(error) = &inotify {
            warn!(%error, "cannot watch directories; polling instead");
        }
        Self { inotify: inotify.ok(), watched: BTreeSet::new() }
    }

    /// Watches these directories, also one that was replaced by another of the same name. Returns whether one was added.
    pub(super) fn set_dirs(&mut self, dirs: &[PathBuf]) -> bool {
        let Some((watches, _)) = &mut self.inotify else { return false };
        // Adding the same directory again changes nothing in the kernel.
        let now: BTreeSet<PathBuf> = dirs.iter().filter(|dir| watches.add(dir, EVENTS).is_ok()).cloned().collect();
        let added = now.difference(&self.watched).next().is_some();
        self.watched = now;
        added
    }

    /// Waits until something changes other than our own temporary files.
    pub(super) async fn changed(&mut self) {
        let Some((_, events)) = &mut self.inotify else { return std::future::pending().await };
        loop {
            match events.next().await {
                Some(Ok(event)) => {
                    let name = event.name.as_ref().map(|name| name.to_string_lossy());
                    if !name.is_some_and(|name| name.starts_with(TEMPORARY_PREFIX)) {
                        return debug!(mask = ?event.mask, name = ?event.name, "directory changed");
                    }
                }
                ended => {
                    if let Some(Err(error)) = ended {
                        warn!(%error, "directory watcher stopped; polling instead");
                    }
                    self.inotify = None;
                    return;
                }
            }
        }
    }
}

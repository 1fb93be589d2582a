//! Listeners that answer every connection with one line: what they saw of it.

use std::io::Write;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::error::{During, LabError};
use crate::serve::{self, Stop};
use crate::user::User;
use crate::{Netns, Sighting};

/// Listeners on some ports of a namespace, both families; stopped by being dropped.
pub struct Echo {
    stop: Option<Stop>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Listens as `user`. The listeners are there when this returns.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn start(netns: &Netns, user: User, ports: &[u16]) -> Result<Self, LabError> {
        let listeners = serve::bind(netns, user, ports)?;
        let (stop, stopped) = serve::stop()?;
        let thread = thread::Builder::new()
            .name(format!("echo@{}", netns.name()))
            .spawn(move || {
                serve::accept(&listeners, &stopped, |mut stream| {
                    if let Ok(sighting) = Sighting::of(&stream) {
                        // A client that does not take its answer finds out by itself.
                        let _ = stream.set_write_timeout(Some(Duration::from_secs(1)));
                        let _ = writeln!(stream, "{sighting}");
                    }
                });
            })
            .during(|| format!("echo thread for {}", netns.name()))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

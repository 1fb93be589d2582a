//! Telling every part that the process ends.

use tokio::sync::watch;

/// Says when to end.
#[derive(Debug)]
pub struct Stopper(watch::Sender<bool>);

/// Hears when to end.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

/// Both ends.
pub fn pair() -> (Stopper, Stop) {
    let (sender, receiver) = watch::channel(false);
    (Stopper(sender), Stop(receiver))
}

impl Stopper {
    /// Tells everybody. Nobody to tell means that all have ended.
    pub fn stop(&self) {
        let _ = self.0.send(true);
    }
}

impl Stop {
    /// Until the end is asked for, or nobody is left who could ask.
    pub async fn requested(&self) {
        let mut receiver = self.0.clone();
        let _ = receiver.wait_for(|stop| *stop).await;
    }

    /// Whether it has been asked for.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }
}

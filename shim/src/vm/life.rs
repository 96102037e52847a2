//! Whether a VMM lives: work at it ends with its process, at once and with its last words. Called by the VMMs.

use std::time::Duration;

use tokio::sync::watch;

use super::Death;
use crate::error::{Error, Kind, Result};

/// How long a VMM that has hung up may take to end.
const END: Duration = Duration::from_secs(2);

/// The life of one VMM process.
#[derive(Debug)]
pub(super) struct Life {
    name: &'static str,
    death: watch::Sender<Option<Death>>,
}

impl Life {
    /// Of a VMM that a person calls `name`.
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, death: watch::Sender::new(None) }
    }

    /// For the one that watches the process.
    pub(super) fn sender(&self) -> watch::Sender<Option<Death>> {
        self.death.clone()
    }

    /// For those who wait for its end.
    pub(super) fn receiver(&self) -> watch::Receiver<Option<Death>> {
        self.death.subscribe()
    }

    /// What `work` answers, or how the VMM has ended.
    ///
    /// # Errors
    /// `Unavailable` with its last words when it is dead, else the work's.
    pub(super) async fn unless_dead<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let failure = tokio::select! {
            result = work => match result {
                Err(error) if error.kind() == Kind::Unavailable => error,
                other => return other,
            },
            death = self.dead() => return Err(self.obituary(what, &death)),
        };
        // It has hung up: its end, which says more, is a moment away.
        match tokio::time::timeout(END, self.dead()).await {
            Ok(death) => Err(self.obituary(what, &death)),
            Err(_) => Err(failure),
        }
    }

    async fn dead(&self) -> Death {
        let mut receiver = self.death.subscribe();
        match receiver.wait_for(Option::is_some).await.map(|death| death.clone()) {
            Ok(Some(death)) => death,
            // The sender is ours.
            _ => std::future::pending().await,
        }
    }

    fn obituary(&self, what: &str, death: &Death) -> Error {
        let Death { status, last_words } = death;
        Error::new(
            Kind::Unavailable,
            format!("{} has ended during {what} with {status}: {last_words}", self.name),
        )
    }
}

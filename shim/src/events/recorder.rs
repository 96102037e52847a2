//! Keeps events instead of sending them, for the tests of `sandbox` and `service`.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use containerd_shim_protos::shim::event::Envelope;

use super::{Rejection, Sender, Sink};

/// What was sent so far, as containerd would have got it. [`Sender::flush`] first.
#[derive(Debug, Clone, Default)]
pub struct Recorder(Arc<Mutex<Vec<Envelope>>>);

/// A sender whose events end in a recorder.
///
/// # Panics
/// Outside of a Tokio runtime.
#[must_use]
pub fn recorder() -> (Sender, Recorder) {
    let recorder = Recorder::default();
    (Sender::start("test", recorder.clone()), recorder)
}

impl Recorder {
    /// All envelopes, oldest first.
    #[must_use]
    pub fn envelopes(&self) -> Vec<Envelope> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Their topics without `/tasks/`, oldest first.
    #[must_use]
    pub fn topics(&self) -> Vec<String> {
        self.envelopes()
            .iter()
            .map(|envelope| envelope.topic.trim_start_matches("/tasks/").to_owned())
            .collect()
    }
}

#[async_trait]
impl Sink for Recorder {
    async fn forward(&self, envelope: &Envelope) -> Result<(), Rejection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(envelope.clone());
        Ok(())
    }
}

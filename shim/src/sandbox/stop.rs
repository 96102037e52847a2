//! Stop: the pod ends and leaves nothing on the host. The same list is undone here, after a failed start, and by
//! `delete` when the shim is gone.

use std::sync::Arc;

use super::pod::Pod;
use super::{Sandbox, watch};
use crate::error::Error;

/// Ends the VM and whatever still ran in it, then undoes everything that the ledger lists. Answers what failed.
pub(super) async fn stop(sandbox: &Sandbox, pod: &Arc<Pod>) -> Vec<Error> {
    pod.set_stopping();
    let _busy = pod.busy.lock().await;
    watch::collapse(sandbox, pod, "it is stopped").await;
    let mut failures: Vec<Error> = pod.share.stop().await.err().into_iter().collect();
    let ledger = pod.ledger.clone();
    match super::pod::blocking(move || Ok(ledger.release_all())).await {
        Ok(more) => failures.extend(more),
        Err(error) => failures.push(error),
    }
    failures
}

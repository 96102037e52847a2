//! A few threads for work on RAM: it is bound by memory and CPU, not by waiting. Called by the rest of `ram`.

use std::thread;

use crate::error::{Error, Kind, Result};

/// Threads that such work uses: never more than 4, so that the host's other pods are not starved.
pub(super) fn count() -> usize {
    thread::available_parallelism().map_or(1, |count| count.get().min(4))
}

/// Runs `work` once for each of `states`, each on its own thread. Answers what they made, in the order of the
/// states, or the first failure; all have ended by then.
pub(super) fn run<S: Send, T: Send>(
    states: impl IntoIterator<Item = S>,
    work: impl Fn(S) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = states.into_iter().map(|state| scope.spawn(move || work(state))).collect();
        let ends = threads.into_iter().map(|thread| {
            let panicked = || Error::new(Kind::Internal, "A thread that works on RAM panicked");
            thread.join().unwrap_or_else(|_| Err(panicked()))
        });
        ends.collect::<Vec<_>>().into_iter().collect()
    })
}

//! The life of one process, as pure policy: what may be asked of it in which state, and what follows. Called by
//! `container`; no I/O, so that every sequence of requests can be tested.

use crate::error::{Error, Kind, Result};
use crate::task::{Exit, Status};

/// Where a process is in its life. What is legal in a state is the data that the state carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// Exists in the guest (or will, at its start) and runs nothing.
    Created,
    /// Its start is on the way; its exit is held back until the start has been announced.
    Starting,
    /// Runs.
    Running,
    /// Is frozen on request.
    Paused,
    /// Has ended.
    Stopped(Exit),
}

/// What somebody asks of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Run what it was created for.
    Start,
    /// Run another process beside it.
    Exec,
    /// Deliver a signal.
    Kill,
    /// Freeze it.
    Pause,
    /// Thaw it.
    Resume,
    /// Change its limits.
    Update,
    /// Forget it.
    Delete,
}

/// What to do with a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Send it into the guest.
    Deliver,
    /// Nothing runs yet: the process ends here and now, without the guest.
    EndNow,
}

impl Life {
    /// What containerd is told.
    pub(crate) fn status(self) -> Status {
        match self {
            Life::Created | Life::Starting => Status::Created,
            Life::Running => Status::Running,
            Life::Paused => Status::Paused,
            Life::Stopped(_) => Status::Stopped,
        }
    }

    /// How it ended, if it did.
    pub(crate) fn exit(self) -> Option<Exit> {
        match self {
            Life::Stopped(exit) => Some(exit),
            _ => None,
        }
    }

    /// Refuses what is not legal in this state, with the code that containerd's clients act upon. `what` names the
    /// process in the error's text.
    pub(crate) fn allow(self, ask: Ask, what: &str) -> Result<()> {
        let legal = match ask {
            Ask::Start => matches!(self, Life::Created),
            Ask::Exec | Ask::Pause => matches!(self, Life::Running),
            Ask::Resume => matches!(self, Life::Paused),
            Ask::Kill | Ask::Update => !matches!(self, Life::Stopped(_)),
            Ask::Delete => matches!(self, Life::Created | Life::Stopped(_)),
        };
        if legal {
            return Ok(());
        }
        // containerd takes NOT_FOUND at Kill for "its exit event is under way"; any other code makes it wait for ever.
        let kind =
            if matches!((ask, self), (Ask::Kill, _)) { Kind::NotFound } else { Kind::FailedPrecondition };
        Err(Error::new(kind, format!("Cannot {} {what}: it {}", ask.verb(), self.words())))
    }

    /// What a signal means for a container's first process in this state.
    pub(crate) fn signal(self) -> Signal {
        if matches!(self, Life::Created) { Signal::EndNow } else { Signal::Deliver }
    }

    fn words(self) -> &'static str {
        match self {
            Life::Created => "has not been started",
            Life::Starting => "is being started",
            Life::Running => "is running",
            Life::Paused => "is paused",
            Life::Stopped(_) => "has ended already",
        }
    }
}

impl Ask {
    fn verb(self) -> &'static str {
        match self {
            Ask::Start => "start",
            Ask::Exec => "run a process in",
            Ask::Kill => "signal",
            Ask::Pause => "pause",
            Ask::Resume => "resume",
            Ask::Update => "update",
            Ask::Delete => "delete",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    const ASKS: [Ask; 7] =
        [Ask::Start, Ask::Exec, Ask::Kill, Ask::Pause, Ask::Resume, Ask::Update, Ask::Delete];

    fn lives() -> [Life; 5] {
        let exit = Exit { status: 0, at: SystemTime::UNIX_EPOCH };
        [Life::Created, Life::Starting, Life::Running, Life::Paused, Life::Stopped(exit)]
    }

    #[test]
    fn table_of_what_is_legal() {
        let rows: Vec<String> = lives()
            .iter()
            .map(|life| {
                let legal = ASKS.iter().filter(|ask| life.allow(**ask, "x").is_ok());
                format!("{}: {}", life.words(), legal.map(|ask| ask.verb()).collect::<Vec<_>>().join(", "))
            })
            .collect();
        assert_eq!(
            rows,
            [
                "has not been started: start, signal, update, delete",
                "is being started: signal, update",
                "is running: run a process in, signal, pause, update",
                "is paused: signal, resume, update",
                "has ended already: delete",
            ]
        );
    }

    #[test]
    fn an_ended_process_answers_kill_with_not_found_and_the_rest_with_failed_precondition() {
        let [.., ended] = lives();
        for ask in ASKS.into_iter().filter(|ask| *ask != Ask::Delete) {
            let want = if ask == Ask::Kill { Kind::NotFound } else { Kind::FailedPrecondition };
            assert_eq!(ended.allow(ask, "container a").unwrap_err().kind(), want, "{ask:?}");
        }
    }

    #[test]
    fn the_error_names_the_deed_the_process_and_the_reason() {
        let error = Life::Running.allow(Ask::Delete, "container web").unwrap_err();
        assert_eq!(error.to_string(), "Cannot delete container web: it is running");
    }
}

//! The demo's voice: each step says what it does, shows that it is alive, and how long it took. Called by the demo.

use std::io::Write;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Prints the steps and remembers how long each took.
#[derive(Debug)]
pub(super) struct Steps {
    started: Instant,
    taken: Vec<(String, Duration)>,
}

impl Steps {
    pub(super) fn new() -> Steps {
        Steps { started: Instant::now(), taken: Vec::new() }
    }

    /// Runs one step. Its lines follow when it is done.
    pub(super) fn run<T>(&mut self, title: &str, step: impl FnOnce(&mut Lines) -> Result<T>) -> Result<T> {
        print!("[{:>5.1} s] {title} ", self.started.elapsed().as_secs_f32());
        flush();
        let mut lines = Lines::default();
        let begun = Instant::now();
        let result = alive(|| step(&mut lines));
        let took = begun.elapsed();
        self.taken.push((title.to_owned(), took));
        match &result {
            Ok(_) => println!("({:.2} s)", took.as_secs_f32()),
            Err(_) => println!("FAILED after {:.2} s", took.as_secs_f32()),
        }
        for line in lines.0 {
            println!("            {line}");
        }
        result.with_context(|| title.to_owned())
    }

    /// Time since the first step.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// What a step has to say.
#[derive(Debug, Default)]
pub(super) struct Lines(Vec<String>);

impl Lines {
    pub(super) fn say(&mut self, line: impl Into<String>) {
        self.0.push(line.into());
    }
}

/// Prints a dot for each second that the work takes.
fn alive<T>(work: impl FnOnce() -> T) -> T {
    let (done, wait) = mpsc::channel::<()>();
    let dots = std::thread::spawn(move || {
        while wait.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
            print!(".");
            flush();
        }
    });
    let result = work();
    drop(done);
    // The thread only prints: had it panicked, nothing would be lost.
    let _ = dots.join();
    result
}

fn flush() {
    // A closed terminal is no reason to end the demo before it has cleaned up.
    let _ = std::io::stdout().flush();
}

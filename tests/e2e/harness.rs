//! Runs tests one by one, each with a deadline and a leak check, and prints what a failure needs. Called by `main.rs`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use nix::sys::signal::Signal;
use tests::cri::Cri;
use tests::host::containerd::{Containerd, tail};
use tests::leaks::{self, Snapshot};
use tests::{images, programs};

/// How long one test may take. The slowest (checkpoint and two restores) takes a fifth of it.
const TEST_DEADLINE: Duration = Duration::from_secs(150);

/// The same where the machine itself is emulated, and slower by as much.
const NESTED_DEADLINE: Duration = Duration::from_secs(900);

/// Where `xtask` lays crictl, which it builds if there is Go.
const CRICTL: &str = "/usr/local/bin/crictl";

/// One test.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Test {
    /// `topic::what_is_tested`
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Bench) -> Result<()>,
    /// Whether runc can do it as well.
    pub(crate) runc: bool,
}

/// What tests work with.
#[derive(Debug)]
pub(crate) struct Bench {
    /// The CRI's name of the runtime.
    pub(crate) handler: String,
    pub(crate) cri: Cri,
    containerd: Mutex<Option<Containerd>>,
}

impl Bench {
    /// containerd's name of the runtime.
    pub(crate) fn runtime(&self) -> &'static str {
        if self.is_runc() { "io.containerd.runc.v2" } else { "io.containerd.microvm.v1" }
    }

    pub(crate) fn is_runc(&self) -> bool {
        self.handler == "runc"
    }

    /// Ends containerd by a signal and starts it again; pods run on meanwhile.
    pub(crate) fn restart_containerd(&self, signal: Signal) -> Result<()> {
        let mut containerd = self.containerd.lock().unwrap_or_else(PoisonError::into_inner);
        let running = containerd.take().ok_or_else(|| anyhow!("An earlier restart of containerd failed"))?;
        *containerd = Some(running.bounce(signal)?);
        Ok(())
    }
}

/// A list of the tests of one file: `tests![one, two; microvm only: three]`.
macro_rules! tests {
    ($($test:ident),* $(,)? $(; microvm only: $($own:ident),* $(,)?)?) => {
        pub(crate) const TESTS: &[crate::harness::Test] = &[
            $(crate::harness::Test { name: crate::harness::name(concat!(module_path!(), "::", stringify!($test))), run: $test, runc: true },)*
            $($(crate::harness::Test { name: crate::harness::name(concat!(module_path!(), "::", stringify!($own))), run: $own, runc: false },)*)?
        ];
    };
}
pub(crate) use tests;

/// The test's path without the program's name.
pub(crate) const fn name(path: &'static str) -> &'static str {
    match path.split_at_checked("e2e::".len()) {
        Some((_, rest)) => rest,
        None => path,
    }
}

/// Runs the tests in the test host; the exit code.
pub(crate) fn run(tests: &[Test], handler: &str, nested: bool) -> Result<i32> {
    let begun = Instant::now();
    let containerd = Containerd::start()?;
    for namespace in ["default", "k8s.io"] {
        images::import(namespace, &images::shared()?)?;
    }
    if handler != "runc" {
        // What most tests need, so that none pays for it.
        for interfaces in ["0", "1"] {
            let words = ["template", "make", "--interfaces", interfaces];
            programs::run(Command::new("microvmctl").args(words))?;
        }
    }
    let bench = Arc::new(Bench {
        handler: handler.to_owned(),
        cri: Cri::connect()?,
        containerd: Mutex::new(Some(containerd)),
    });
    println!("running {} tests with {}", tests.len(), bench.runtime());
    let (mut passed, mut skipped, mut failed) = (0, 0, Vec::new());
    for test in tests {
        if bench.is_runc() && !test.runc {
            println!("test {} ... skipped: runc cannot do it", test.name);
            skipped += 1;
            continue;
        }
        // `xtask` has said what is left out, and in CI it would have been an error.
        if test.name.starts_with("crictl::") && !Path::new(CRICTL).exists() {
            println!("test {} ... skipped: Go was missing, so there is no crictl", test.name);
            skipped += 1;
            continue;
        }
        let started = Instant::now();
        let mark = log_length();
        let result = run_one(&bench, *test, if nested { NESTED_DEADLINE } else { TEST_DEADLINE });
        let took = started.elapsed().as_secs_f32();
        match result {
            Ok(()) => {
                println!("test {} ... ok ({took:.1} s)", test.name);
                passed += 1;
            }
            Err(error) => {
                println!("test {} ... FAILED ({took:.1} s)\n{error:#}", test.name);
                print_evidence(mark);
                failed.push(test.name);
                clean_up(&bench);
            }
        }
    }
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    for name in &failed {
        println!("failed: {name}");
    }
    println!(
        "\ntest result: {verdict}. {passed} passed; {} failed; {skipped} ignored; finished in {:.1}s",
        failed.len(),
        begun.elapsed().as_secs_f32()
    );
    if let Some(containerd) = bench.containerd.lock().unwrap_or_else(PoisonError::into_inner).take() {
        containerd.stop()?;
    }
    Ok(i32::from(!failed.is_empty()))
}

fn run_one(bench: &Arc<Bench>, test: Test, deadline: Duration) -> Result<()> {
    let before = Snapshot::take()?;
    let (done, result) = mpsc::channel();
    let own = Arc::clone(bench);
    // A test that hangs is left behind in its thread: the clean-up takes away what it waits for.
    std::thread::spawn(move || {
        let result = catch_unwind(AssertUnwindSafe(|| (test.run)(&own)));
        let _ = done.send(result.unwrap_or_else(|_| Err(anyhow!("The test panicked; its words are above"))));
    });
    match result.recv_timeout(deadline) {
        Ok(result) => result?,
        Err(_) => return Err(anyhow!("The test did not end within {deadline:?}")),
    }
    leaks::assert_clean(&before)
}

fn log() -> std::path::PathBuf {
    Path::new(tests::host::LOGS).join("containerd.log")
}

fn log_length() -> usize {
    std::fs::metadata(log()).map_or(0, |file| usize::try_from(file.len()).unwrap_or(0))
}

/// What containerd and the shim have logged since the test began, and what guests have on their consoles.
fn print_evidence(mark: usize) {
    let text = std::fs::read(log()).unwrap_or_default();
    let new = String::from_utf8_lossy(text.get(mark..).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = new.lines().filter(|line| !line.contains("level=debug")).collect();
    println!("--- containerd and shim:");
    for line in &lines[lines.len().saturating_sub(25)..] {
        println!("{}", line.chars().take(600).collect::<String>());
    }
    let consoles = programs::output(Command::new("find").args(["/run/microvm", "-name", "console.log"]));
    for console in consoles.unwrap_or_default().lines() {
        println!("--- {console}:\n{}", tail(Path::new(console), 15));
    }
    println!("---");
}

/// Takes away what a failed test left, so that the next one is judged by itself. What fails here shows as a leak there.
fn clean_up(bench: &Bench) {
    let _ = bench.cri.remove_all_pods();
    for (list, remove) in [("tasks", &["--force"][..]), ("containers", &[])] {
        let ids = programs::output(Command::new("ctr").args([list, "list", "--quiet"])).unwrap_or_default();
        for id in ids.lines() {
            let _ = programs::run(
                Command::new("timeout").args(["20", "ctr", list, "delete"]).args(remove).arg(id),
            );
        }
    }
}

//! More than fits: output that nobody reads, output without end, a root filesystem that is full.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::cri::{Container, Pod};
use tests::programs;

use crate::harness::Bench;
use crate::support::{BUSYBOX, exec, idle, remove_container, wait_for, with_plain, with_pod};

crate::harness::tests![
    output_that_nobody_reads_holds_nothing_up,
    output_without_end_holds_nothing_up,
    the_log_of_a_pod_may_flood;
    microvm only: a_full_root_filesystem_is_the_containers_own_trouble,
];

/// Prints for ever.
const FLOOD: &[&str] = &["yes", "a line of the flood, long enough that not everything is overhead"];
/// Within what containerd's own deadlines leave: kubelet gives a status two seconds.
const STATE: Duration = Duration::from_secs(2);
/// An exec needs the same stream as the flood.
const EXEC: Duration = Duration::from_secs(10);
const KILL: Duration = Duration::from_secs(5);

/// The task's state, which must be told in time.
fn state(id: &str) -> Result<String> {
    let begun = Instant::now();
    let list = programs::output(Command::new("ctr").args(["tasks", "list"]))?;
    ensure!(begun.elapsed() < STATE, "The state took {:?}", begun.elapsed());
    let line = list.lines().find(|line| line.split_whitespace().next() == Some(id));
    Ok(line.and_then(|line| line.split_whitespace().nth(2)).unwrap_or("none").to_owned())
}

/// While it floods, the state is told, an exec runs and a kill ends it.
fn is_obedient(id: &str) -> Result<()> {
    for _ in 0..5 {
        ensure!(state(id)? == "RUNNING");
    }
    let begun = Instant::now();
    ensure!(exec(id, &["echo", "alive"])? == "alive\n");
    ensure!(begun.elapsed() < EXEC, "An exec took {:?}", begun.elapsed());
    let begun = Instant::now();
    programs::run(Command::new("ctr").args(["tasks", "kill", "--signal", "SIGKILL", id]))?;
    wait_for("the task to stop", || Ok(matches!(state(id)?.as_str(), "STOPPED" | "none")))?;
    ensure!(begun.elapsed() < KILL, "The kill took {:?}", begun.elapsed());
    Ok(())
}

/// `ctr run --detach` leaves: from then on nobody reads the fifo, which holds 64 KiB.
fn output_that_nobody_reads_holds_nothing_up(bench: &Bench) -> Result<()> {
    with_plain(bench, &[&[BUSYBOX, "flood"], FLOOD].concat(), "flood", || {
        // What it wrote has stopped: fifo and pipe are full.
        let written = || exec("flood", &["cat", "/proc/1/io"]);
        let mut last = String::new();
        wait_for("the flood to be held up", || {
            let now = written()?;
            let stands = now == last && now.contains("wchar");
            last = now;
            Ok(stands)
        })?;
        is_obedient("flood")
    })
}

fn output_without_end_holds_nothing_up(bench: &Bench) -> Result<()> {
    let mut ctr = Command::new("ctr");
    ctr.args(["run", "--runtime", bench.runtime(), BUSYBOX, "flood"]).args(FLOOD);
    let mut process = ctr.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("Could not run ctr")?;
    let mut stdout = process.stdout.take().context("ctr has no output")?;
    let count = AtomicU64::new(0);
    let result = std::thread::scope(|scope| {
        let reader = scope.spawn(|| -> Result<()> {
            let mut buffer = vec![0; 64 << 10];
            loop {
                let length = stdout.read(&mut buffer)?;
                if length == 0 {
                    return Ok(());
                }
                count.fetch_add(length as u64, Ordering::Relaxed);
            }
        });
        let more =
            |than: u64| wait_for("more output", || Ok(count.load(Ordering::Relaxed) > than + (1 << 20)));
        let result =
            more(0).and_then(|()| more(count.load(Ordering::Relaxed))).and_then(|()| is_obedient("flood"));
        if result.is_err() {
            // The reader would wait for ever.
            let _ = process.kill();
        }
        result.and(reader.join().unwrap_or_else(|_| Err(anyhow::anyhow!("The reader panicked"))))
    });
    let ended = process.wait()?;
    let removed = remove_container("flood");
    result?;
    ensure!(ended.code() == Some(137), "ctr run ended with {ended}");
    removed
}

/// containerd reads what a pod prints and writes it to the log: state, exec and stop are as fast as ever.
fn the_log_of_a_pod_may_flood(bench: &Bench) -> Result<()> {
    with_pod(bench, &Pod::new("flood", "l1"), |pod, pod_id| {
        let container = Container::new("flood", BUSYBOX).command(FLOOD);
        let id = bench.cri.run(pod_id, pod, &container)?;
        let log = pod.log_folder().join(container.log_path());
        wait_for("a long log", || Ok(std::fs::metadata(&log).is_ok_and(|file| file.len() > 2 << 20)))?;
        let begun = Instant::now();
        bench.cri.status(&id)?;
        ensure!(begun.elapsed() < STATE, "The status took {:?}", begun.elapsed());
        let begun = Instant::now();
        ensure!(bench.cri.read(&id, &["echo", "alive"])? == "alive\n");
        ensure!(begun.elapsed() < EXEC, "An exec took {:?}", begun.elapsed());
        let begun = Instant::now();
        bench.cri.stop(&id, Duration::ZERO)?;
        let status = bench.cri.status(&id)?;
        ensure!(begun.elapsed() < KILL && status.exit_code == 137, "{status:?} after {:?}", begun.elapsed());
        std::fs::remove_file(&log).context("Could not remove the log")
    })
}

fn a_full_root_filesystem_is_the_containers_own_trouble(bench: &Bench) -> Result<()> {
    with_pod(bench, &Pod::new("full", "l2"), |pod, pod_id| {
        let cri = &bench.cri;
        let id = cri.run(pod_id, pod, &idle("one"))?;
        let other = cri.run(pod_id, pod, &idle("two"))?;
        let script = "dd if=/dev/zero of=/big bs=1M count=100000 2>&1; stat -c %s /big";
        let text = cri.read(&id, &["sh", "-c", script])?;
        ensure!(text.contains("No space left on device"), "{text}");
        let size: u64 = text.lines().last().unwrap_or_default().parse().with_context(|| text.clone())?;
        ensure!(size > 16 << 20, "Only {size} bytes fit: {text}");
        let used = cri.stats(&id)?.memory.and_then(|memory| memory.usage_bytes).map_or(0, |used| used.value);
        ensure!(used >= size, "{size} bytes fit, and the container's memory is {used}");
        // The other container has a root filesystem of its own, and this one works again when there is room.
        cri.read(&other, &["sh", "-c", "echo fits > /small; cat /small"])?;
        ensure!(cri.read(&id, &["sh", "-c", "rm /big; echo fits > /small; cat /small"])? == "fits\n");
        Ok(())
    })
}

//! Plain containers by `ctr`: every flag and sub-command that the project promises, each a test.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::programs;

use crate::harness::Bench;
use crate::support::{BUSYBOX, wait_for};

crate::harness::tests![
    run_prints_and_ends,
    run_gives_the_exit_code,
    run_detached,
    run_with_terminal,
    run_with_stdin,
    run_with_env,
    run_with_cwd,
    run_with_user,
    run_with_mount,
    run_read_only,
    run_with_memory_limit,
    run_with_cpus,
    run_with_hostname,
    run_with_cap_add,
    run_with_seccomp,
    run_with_cni,
    task_ls,
    task_ps,
    task_exec,
    task_exec_of_a_missing_program,
    task_attach,
    task_kill,
    task_pause_and_resume,
    task_metrics,
    task_delete,
    run_of_a_missing_program;
    microvm only: task_checkpoint_and_restore,
];

/// How a `ctr` command ended.
#[derive(Debug)]
struct Ended {
    stdout: String,
    stderr: String,
    code: i32,
}

/// `ctr run` with flags before the image, and the command after the container's name.
fn run(bench: &Bench, flags: &[&str], id: &str, command: &[&str]) -> Result<Ended> {
    run_image(bench, flags, BUSYBOX, id, command)
}

fn run_image(bench: &Bench, flags: &[&str], image: &str, id: &str, command: &[&str]) -> Result<Ended> {
    let mut ctr = Command::new("ctr");
    ctr.args(["run", "--runtime", bench.runtime()]).args(flags).args([image, id]).args(command);
    end(&mut ctr)
}

/// `ctr tasks …`
fn task(arguments: &[&str]) -> Result<String> {
    programs::output(Command::new("ctr").arg("tasks").args(arguments))
}

fn end(command: &mut Command) -> Result<Ended> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("Could not run {command:?}"))?;
    Ok(Ended {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        code: output.status.code().unwrap_or(-1),
    })
}

/// Runs a command whose program prints `ready` first, and only then gives it its standard input: ctr forgets to pass on
/// an end of input that comes while it still creates the task. What was printed after `ready`, and the exit code.
fn fed(command: &mut Command, input: &str) -> Result<(String, i32)> {
    let mut process = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("Could not run {command:?}"))?;
    let (Some(mut pipe), Some(stdout)) = (process.stdin.take(), process.stdout.take()) else {
        bail!("The process has no pipes");
    };
    let mut stdout = BufReader::new(stdout);
    let mut first = String::new();
    stdout.read_line(&mut first)?;
    ensure!(first == "ready\n", "It did not begin: {first:?}");
    // Written beside the reading: a program that answers as it reads would block both.
    let input = input.to_owned();
    let writer = std::thread::spawn(move || pipe.write_all(input.as_bytes()));
    let mut text = String::new();
    stdout.read_to_string(&mut text)?;
    let status = process.wait()?;
    ensure!(matches!(writer.join(), Ok(Ok(()))), "Not all of the input was taken");
    Ok((text, status.code().unwrap_or(-1)))
}

/// `ctr run --rm`, which must succeed; what it printed.
fn printed(bench: &Bench, flags: &[&str], command: &[&str]) -> Result<String> {
    let flags = [&["--rm"], flags].concat();
    let ended = run(bench, &flags, "c", command)?;
    ensure!(ended.code == 0, "ctr run {flags:?} {command:?} ended with {}: {}", ended.code, ended.stderr);
    Ok(ended.stdout)
}

/// Starts a container that does nothing until it is told to end.
fn idle(bench: &Bench, flags: &[&str]) -> Result<()> {
    let script = "trap 'exit 0' TERM; touch /ready; while true; do sleep 1000 & wait $!; done";
    let flags = [&["--detach"], flags].concat();
    let ended = run(bench, &flags, "c", &["sh", "-c", script])?;
    ensure!(ended.code == 0, "ctr run --detach ended with {}: {}", ended.code, ended.stderr);
    Ok(())
}

/// Kills and removes the container of [`idle`].
fn remove() -> Result<()> {
    task(&["kill", "--signal", "SIGKILL", "c"])?;
    wait_for("the task to stop", || Ok(status()?.as_deref() == Some("STOPPED")))?;
    task(&["delete", "c"])?;
    programs::run(Command::new("ctr").args(["containers", "delete", "c"]))
}

/// The state of the container's task, as `ctr tasks ls` prints it.
fn status() -> Result<Option<String>> {
    let list = task(&["list"])?;
    let mut lines = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    Ok(lines
        .find(|words| words.first() == Some(&"c"))
        .and_then(|words| words.get(2).map(|&word| word.to_owned())))
}

fn run_prints_and_ends(bench: &Bench) -> Result<()> {
    let ended = run(bench, &["--rm"], "c", &["sh", "-c", "echo out; echo err >&2"])?;
    ensure!((ended.stdout.as_str(), ended.stderr.as_str(), ended.code) == ("out\n", "err\n", 0), "{ended:?}");
    Ok(())
}

fn run_gives_the_exit_code(bench: &Bench) -> Result<()> {
    for (script, code) in [("exit 7", 7), ("kill -KILL $$", 137)] {
        let ended = run(bench, &["--rm"], "c", &["sh", "-c", &format!("sh -c '{script}'; exit $?")])?;
        ensure!(ended.code == code, "{script:?}: {ended:?}");
    }
    Ok(())
}

fn run_detached(bench: &Bench) -> Result<()> {
    idle(bench, &[])?;
    ensure!(status()?.as_deref() == Some("RUNNING"), "{:?}", status()?);
    remove()
}

fn run_with_terminal(bench: &Bench) -> Result<()> {
    // `script` gives ctr a terminal of its own.
    let ctr = format!(
        "stty rows 31 cols 97; ctr run --rm --tty --runtime {} {BUSYBOX} c sh -c 'tty; stty size; echo $TERM'",
        bench.runtime()
    );
    let text = programs::output(Command::new("script").args([
        "--quiet",
        "--return",
        "--command",
        &ctr,
        "/dev/null",
    ]))?;
    ensure!(text.contains("/dev/"), "The container has no terminal: {text:?}");
    ensure!(text.contains("31 97"), "The terminal has another size: {text:?}");
    ensure!(text.contains("xterm"), "TERM is not set: {text:?}");
    Ok(())
}

fn run_with_stdin(bench: &Bench) -> Result<()> {
    let text = "one\ntwo\n".repeat(20_000);
    let mut ctr = Command::new("ctr");
    ctr.args([
        "run",
        "--rm",
        "--runtime",
        bench.runtime(),
        BUSYBOX,
        "c",
        "sh",
        "-c",
        "echo ready; cat; echo end",
    ]);
    let (back, code) = fed(&mut ctr, &text)?;
    ensure!(code == 0, "It ended with {code}");
    ensure!(back == format!("{text}end\n"), "{} of {} bytes came back", back.len(), text.len() + 4);
    Ok(())
}

fn run_with_env(bench: &Bench) -> Result<()> {
    let text = printed(bench, &["--env", "WORD=a b", "--env", "EMPTY="], &["env"])?;
    ensure!(
        text.lines().any(|line| line == "WORD=a b") && text.lines().any(|line| line == "EMPTY="),
        "{text}"
    );
    Ok(())
}

fn run_with_cwd(bench: &Bench) -> Result<()> {
    let text = printed(bench, &["--cwd", "/etc"], &["pwd"])?;
    ensure!(text == "/etc\n", "{text:?}");
    Ok(())
}

fn run_with_user(bench: &Bench) -> Result<()> {
    let numbers = printed(bench, &["--user", "1000:2000"], &["sh", "-c", "id -u; id -g; touch /etc/x 2>&1"]);
    ensure!(numbers.is_err(), "A user without rights wrote to /etc: {numbers:?}");
    let text = printed(bench, &["--user", "1000:2000"], &["sh", "-c", "id -u; id -g"])?;
    ensure!(text == "1000\n2000\n", "{text:?}");
    let name = printed(bench, &["--user", "alice"], &["id", "-un"])?;
    ensure!(name == "alice\n", "{name:?}");
    Ok(())
}

fn run_with_mount(bench: &Bench) -> Result<()> {
    let folder = Path::new("/tmp/e2e-mount");
    fs::create_dir_all(folder)?;
    fs::write(folder.join("given"), "from the host")?;
    let source = folder.display();
    let writable = format!("type=bind,src={source},dst=/data,options=rbind:rw");
    let text =
        printed(bench, &["--mount", &writable], &["sh", "-c", "cat /data/given; echo back > /data/made"])?;
    ensure!(text == "from the host", "{text:?}");
    ensure!(fs::read_to_string(folder.join("made"))? == "back\n");
    let read_only = format!("type=bind,src={source},dst=/data,options=rbind:ro");
    let refused = printed(bench, &["--mount", &read_only], &["sh", "-c", "echo no > /data/refused"]);
    ensure!(
        refused.is_err() && !folder.join("refused").exists(),
        "A read-only mount was written to: {refused:?}"
    );
    fs::remove_dir_all(folder)?;
    Ok(())
}

fn run_read_only(bench: &Bench) -> Result<()> {
    let refused = run(bench, &["--rm", "--read-only"], "c", &["touch", "/new"])?;
    ensure!(refused.code != 0 && refused.stderr.contains("Read-only"), "{refused:?}");
    Ok(())
}

fn run_with_memory_limit(bench: &Bench) -> Result<()> {
    let eat = ["dd", "if=/dev/zero", "of=/dev/null", "bs=96M", "count=1"];
    let killed = run(bench, &["--rm", "--memory-limit", "33554432"], "c", &eat)?;
    ensure!(killed.code == 137, "dd with 96 MiB under a limit of 32 MiB: {killed:?}");
    let fits = run(bench, &["--rm", "--memory-limit", "150994944"], "c", &eat)?;
    ensure!(fits.code == 0, "dd with 96 MiB under a limit of 144 MiB: {fits:?}");
    Ok(())
}

fn run_with_cpus(bench: &Bench) -> Result<()> {
    // Four seconds on the clock with a quarter of a processor are about one second of work.
    let script = "timeout 4 sh -c 'while :; do :; done'; cat /proc/self/stat | cut -d' ' -f16";
    let text = printed(
        bench,
        &["--cpus", "0.25"],
        &["sh", "-c", &format!("{script}; cut -d' ' -f16 /proc/$$/stat")],
    )?;
    let ticks: u64 = text.lines().last().unwrap_or_default().trim().parse().with_context(|| text.clone())?;
    ensure!(
        (20..=200).contains(&ticks),
        "{ticks} hundredths of a second were used of 400, at a quarter of one CPU"
    );
    Ok(())
}

fn run_with_hostname(bench: &Bench) -> Result<()> {
    let text = printed(bench, &["--hostname", "somewhere"], &["hostname"])?;
    ensure!(text == "somewhere\n", "{text:?}");
    Ok(())
}

fn run_with_cap_add(bench: &Bench) -> Result<()> {
    let mount = ["mount", "-t", "tmpfs", "none", "/root"];
    let refused = printed(bench, &[], &mount);
    ensure!(refused.is_err(), "mount succeeded without CAP_SYS_ADMIN");
    printed(bench, &["--cap-add", "CAP_SYS_ADMIN"], &mount)?;
    Ok(())
}

fn run_with_seccomp(bench: &Bench) -> Result<()> {
    let show = ["grep", "Seccomp:", "/proc/self/status"];
    let without = printed(bench, &[], &show)?;
    ensure!(without.trim().ends_with('0'), "{without:?}");
    let with = printed(bench, &["--seccomp"], &show)?;
    ensure!(with.trim().ends_with('2'), "{with:?}");
    Ok(())
}

fn run_with_cni(bench: &Bench) -> Result<()> {
    let ended = run_image(bench, &["--detach", "--cni"], "localhost/web:1", "c", &[])?;
    ensure!(ended.code == 0, "{ended:?}");
    let text =
        task(&["exec", "--exec-id", "a", "c", "ip", "-4", "-o", "address", "show", "scope", "global"])?;
    let address =
        text.split_whitespace().find_map(|word| word.strip_suffix("/24")).context(text.clone())?.to_owned();
    let url = format!("http://{address}:8080/");
    wait_for("the container's page", || {
        Ok(programs::output(Command::new("busybox").args(["wget", "-T", "5", "-q", "-O", "-", &url]))
            .is_ok_and(|page| page == "web is here\n"))
    })?;
    remove()
}

fn task_ls(bench: &Bench) -> Result<()> {
    idle(bench, &[])?;
    let list = task(&["list"])?;
    let line = list.lines().find(|line| line.starts_with("c ")).context(list.clone())?;
    let pid = line.split_whitespace().nth(1).context("There is no pid")?;
    ensure!(Path::new("/proc").join(pid).exists(), "No process {pid} for {line:?}");
    remove()
}

fn task_ps(bench: &Bench) -> Result<()> {
    idle(bench, &[])?;
    let list = task(&["ps", "c"])?;
    let pids: Vec<&str> = list.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    ensure!(!pids.is_empty() && pids.iter().all(|pid| Path::new("/proc").join(pid).exists()), "{list}");
    remove()
}

fn task_exec(bench: &Bench) -> Result<()> {
    idle(bench, &["--env", "WORD=inherited"])?;
    let text = task(&["exec", "--exec-id", "a", "--cwd", "/etc", "c", "sh", "-c", "pwd; echo $WORD"])?;
    ensure!(text == "/etc\ninherited\n", "{text:?}");
    let mut failing = Command::new("ctr");
    failing.args(["tasks", "exec", "--exec-id", "b", "c", "sh", "-c", "echo err >&2; exit 9"]);
    let ended = end(&mut failing)?;
    ensure!(ended.code == 9 && ended.stderr == "err\n", "{ended:?}");
    let mut reading = Command::new("ctr");
    reading.args(["tasks", "exec", "--exec-id", "d", "c", "sh", "-c", "echo ready; cat"]);
    let (back, code) = fed(&mut reading, "through stdin")?;
    ensure!(back == "through stdin" && code == 0, "{back:?}, {code}");
    remove()
}

fn task_exec_of_a_missing_program(bench: &Bench) -> Result<()> {
    idle(bench, &[])?;
    let mut ctr = Command::new("ctr");
    ctr.args(["tasks", "exec", "--exec-id", "a", "c", "/no/such/program"]);
    let begun = Instant::now();
    let ended = end(&mut ctr)?;
    ensure!(ended.code != 0 && ended.stderr.contains("/no/such/program"), "{ended:?}");
    ensure!(begun.elapsed() < Duration::from_secs(5), "The error took {:?}", begun.elapsed());
    remove()
}

fn task_attach(bench: &Bench) -> Result<()> {
    let script = "echo ready; while read -r line; do echo \"got $line\"; [ \"$line\" = end ] && exit 3; done";
    let ended = run(bench, &["--detach"], "c", &["sh", "-c", script])?;
    ensure!(ended.code == 0, "{ended:?}");
    let mut attach = Command::new("ctr");
    attach.args(["tasks", "attach", "c"]);
    let (back, code) = fed(&mut attach, "one\nend\n")?;
    ensure!(back == "got one\ngot end\n" && code == 3, "{back:?}, {code}");
    programs::run(Command::new("ctr").args(["containers", "delete", "c"]))
}

fn task_kill(bench: &Bench) -> Result<()> {
    idle(bench, &[])?;
    let ready = || task(&["exec", "--exec-id", "ready", "c", "ls", "/ready"]);
    wait_for("the container's trap", || Ok(ready().is_ok()))?;
    task(&["kill", "c"])?;
    wait_for("the task to end by SIGTERM", || Ok(status()?.as_deref() == Some("STOPPED")))?;
    let mut delete = Command::new("ctr");
    let ended = end(delete.args(["tasks", "delete", "c"]))?;
    ensure!(ended.code == 0, "The trap said exit 0: {ended:?}");
    programs::run(Command::new("ctr").args(["containers", "delete", "c"]))
}

fn task_pause_and_resume(bench: &Bench) -> Result<()> {
    let ended = run_image(bench, &["--detach"], "localhost/counter:1", "c", &[])?;
    ensure!(ended.code == 0, "{ended:?}");
    let count = |id: &str| task(&["exec", "--exec-id", id, "c", "cat", "/count"]);
    wait_for("a count", || Ok(count("a").is_ok_and(|text| !text.trim().is_empty())))?;
    task(&["pause", "c"])?;
    ensure!(status()?.as_deref() == Some("PAUSED"), "{:?}", status()?);
    let log_pause = Instant::now();
    while log_pause.elapsed() < Duration::from_secs(1) {
        ensure!(status()?.as_deref() == Some("PAUSED"), "It did not stay paused");
    }
    task(&["resume", "c"])?;
    let first: u64 = count("b")?.trim().parse()?;
    wait_for("the count to go on", || Ok(count("d")?.trim().parse::<u64>()? > first))?;
    remove()
}

fn task_metrics(bench: &Bench) -> Result<()> {
    idle(bench, &[])?;
    let text = task(&["metrics", "c"])?;
    let names = ["memory", "cpu", "pids"];
    ensure!(names.iter().all(|name| text.contains(name)), "{text}");
    remove()
}

fn task_delete(bench: &Bench) -> Result<()> {
    idle(bench, &[])?;
    let refused = task(&["delete", "c"]);
    ensure!(
        refused.is_err() && status()?.as_deref() == Some("RUNNING"),
        "A running task was deleted: {refused:?}"
    );
    task(&["delete", "--force", "c"])?;
    ensure!(status()?.is_none(), "The task is still there");
    programs::run(Command::new("ctr").args(["containers", "delete", "c"]))
}

fn run_of_a_missing_program(bench: &Bench) -> Result<()> {
    let ended = run(bench, &["--rm"], "c", &["/no/such/program"])?;
    ensure!(ended.code != 0 && ended.stderr.contains("/no/such/program"), "{ended:?}");
    Ok(())
}

fn task_checkpoint_and_restore(bench: &Bench) -> Result<()> {
    let ended = run_image(bench, &["--detach"], "localhost/counter:1", "c", &[])?;
    ensure!(ended.code == 0, "{ended:?}");
    let count =
        || -> Result<u64> { Ok(task(&["exec", "--exec-id", "a", "c", "cat", "/count"])?.trim().parse()?) };
    wait_for("a count", || Ok(count().is_ok_and(|count| count >= 5)))?;
    let before = count()?;
    let path = "/tmp/e2e-checkpoint";
    task(&["checkpoint", "--image-path", path, "c"])?;
    ensure!(status()?.as_deref() == Some("RUNNING"), "It does not run on: {:?}", status()?);
    let after = count()?;
    wait_for("the count to be well past the checkpoint", || Ok(count()? > after + 20))?;
    remove()?;
    fs::remove_dir_all(path)?;
    ensure!(before <= after);
    Ok(())
}

//! Pods by hand: each command of crictl, as a person types it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tests::programs;

use crate::harness::Bench;
use crate::support::{BUSYBOX, wait_for};

crate::harness::tests![
    a_pod_is_run_listed_and_removed,
    exec_has_a_terminal_and_an_exit_code,
    attach_talks_to_the_first_process,
    logs_are_followed_to_the_end,
    port_forward_reaches_loopback_of_both_families,
    port_forward_half_closes_and_carries_many_streams,
    port_forward_to_nobody_fails,
    stats_and_limits_are_those_of_the_container,
    events_tell_the_life_of_a_pod,
    processes_are_shared_where_asked_for,
    a_target_is_seen_by_an_ephemeral_container,
    masked_paths_are_empty;
    microvm only: processes_of_another_pod_stay_unseen,
];

/// Longest wait for one command that ends by itself, or for one line of another.
const LIMIT: Duration = Duration::from_secs(30);

fn crictl(arguments: &[&str]) -> Command {
    let mut crictl = Command::new("crictl");
    crictl.args(arguments);
    crictl
}

/// What a command prints that must end with 0.
fn run(arguments: &[&str]) -> Result<String> {
    Ok(programs::output(&mut crictl(arguments))?.trim_end().to_owned())
}

fn parsed(arguments: &[&str]) -> Result<Value> {
    let text = run(arguments)?;
    serde_json::from_str(&text).with_context(|| format!("crictl {arguments:?} printed {text:?}"))
}

/// Runs a command in a container.
fn exec(container: &str, script: &str) -> Result<String> {
    run(&["exec", container, "sh", "-c", script])
}

/// A pod made by `runp`, with its configuration in files as a person has them.
struct Pod {
    id: String,
    config: PathBuf,
    folder: PathBuf,
}

impl Pod {
    fn run(bench: &Bench, name: &str, namespaces: &Value) -> Result<Pod> {
        let folder = PathBuf::from("/var/tmp/crictl").join(name);
        fs::create_dir_all(&folder)?;
        let config = folder.join("pod.json");
        let value = json!({
            "metadata": { "name": name, "namespace": "default", "uid": format!("crictl-{name}") },
            "hostname": name,
            "log_directory": folder.join("logs"),
            "linux": {
                "cgroup_parent": format!("/kubepods/podcrictl-{name}"),
                "security_context": { "namespace_options": namespaces },
            },
        });
        fs::write(&config, value.to_string())?;
        let id = run(&["runp", "--runtime", &bench.handler, &config.to_string_lossy()])?;
        Ok(Pod { id, config, folder })
    }

    /// `create`; `more` is merged into the container's configuration.
    fn create(&self, name: &str, command: &[&str], more: &Value) -> Result<String> {
        let mut value = json!({
            "metadata": { "name": name },
            "image": { "image": BUSYBOX },
            "command": command,
            "log_path": format!("{name}.log"),
            // Kubernetes' default, which CRI's is not.
            "linux": { "security_context": { "namespace_options": { "pid": 1 } } },
        });
        for (key, part) in more.as_object().into_iter().flatten() {
            value[key] = part.clone();
        }
        let file = self.folder.join(format!("{name}.json"));
        fs::write(&file, value.to_string())?;
        run(&["create", &self.id, &file.to_string_lossy(), &self.config.to_string_lossy()])
    }

    fn start(&self, name: &str, command: &[&str], more: &Value) -> Result<String> {
        let id = self.create(name, command, more)?;
        run(&["start", &id])?;
        Ok(id)
    }

    /// A container that does nothing.
    fn idle(&self, name: &str) -> Result<String> {
        self.start(name, &["sleep", "100000"], &json!({}))
    }

    fn remove(&self) -> Result<()> {
        run(&["rmp", "--force", &self.id])?;
        Ok(fs::remove_dir_all(&self.folder)?)
    }
}

/// Kubernetes' default: a process namespace for each container.
fn own_processes() -> Value {
    json!({ "pid": 1 })
}

fn with_pod(bench: &Bench, name: &str, test: impl FnOnce(&Pod) -> Result<()>) -> Result<()> {
    with_pod_of(bench, name, &own_processes(), test)
}

fn with_pod_of(
    bench: &Bench,
    name: &str,
    namespaces: &Value,
    test: impl FnOnce(&Pod) -> Result<()>,
) -> Result<()> {
    let pod = Pod::run(bench, name, namespaces)?;
    let result = test(&pod);
    let removed = pod.remove();
    result?;
    removed
}

/// A command that goes on by itself; ended when dropped.
struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    fn start(command: &mut Command) -> Result<Running> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .with_context(|| format!("Could not run {command:?}"))?;
        let output = child.stdout.take().context("A command has no output")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Running { child, lines })
    }

    fn type_in(&mut self, text: &str) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("Its input is closed")?;
        stdin.write_all(text.as_bytes()).context("It does not read its input")
    }

    /// The next line that holds `text`.
    fn line(&self, text: &str) -> Result<String> {
        let deadline = Instant::now() + LIMIT;
        let mut seen = Vec::new();
        loop {
            let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
                bail!("No line with {text:?} came within {LIMIT:?}, but {seen:?}");
            };
            if line.contains(text) {
                return Ok(line);
            }
            seen.push(line);
        }
    }

    /// Waits for its end; the exit code and the lines that were left.
    fn end(mut self) -> Result<(Option<i32>, Vec<String>)> {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok((status.code(), self.lines.iter().collect()));
            }
            ensure!(Instant::now() < deadline, "It did not end within {LIMIT:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn a_pod_is_run_listed_and_removed(bench: &Bench) -> Result<()> {
    let pod = Pod::run(bench, "whole", &own_processes())?;
    let id = pod.create("one", &["sleep", "100000"], &json!({}))?;
    ensure!(run(&["ps", "--all", "--quiet", "--state", "created"])? == id);
    run(&["start", &id])?;
    let listed = parsed(&["pods", "--output", "json", "--id", &pod.id])?;
    ensure!(listed["items"][0]["state"] == "SANDBOX_READY", "{listed}");
    let inspected = parsed(&["inspect", &id])?;
    ensure!(inspected["status"]["state"] == "CONTAINER_RUNNING", "{inspected}");
    ensure!(inspected["info"]["runtimeType"] == bench.runtime(), "{}", inspected["info"]["runtimeType"]);
    let pid = inspected["info"]["pid"].as_u64().context("inspect tells no pid")?;
    ensure!(Path::new(&format!("/proc/{pid}")).exists(), "The pid {pid} of inspect is no process");
    let sandbox = parsed(&["inspectp", &pod.id])?;
    ensure!(sandbox["status"]["network"]["ip"].as_str().is_some_and(|ip| !ip.is_empty()), "{sandbox}");
    run(&["stop", "--timeout", "1", &id])?;
    ensure!(run(&["ps", "--all", "--quiet", "--state", "exited"])? == id);
    run(&["rm", &id])?;
    run(&["stopp", &pod.id])?;
    run(&["rmp", &pod.id])?;
    ensure!(run(&["pods", "--quiet"])?.is_empty());
    Ok(fs::remove_dir_all(&pod.folder)?)
}

fn exec_has_a_terminal_and_an_exit_code(bench: &Bench) -> Result<()> {
    with_pod(bench, "exec", |pod| {
        let id = pod.idle("one")?;
        ensure!(exec(&id, "echo out; hostname")? == "out\nexec");
        let failing = crictl(&["exec", &id, "sh", "-c", "exit 7"]).output()?;
        let text = String::from_utf8_lossy(&failing.stderr).into_owned();
        ensure!(!failing.status.success() && text.contains("exit code 7"), "{failing:?}");
        // `script` is the terminal that the person sits at.
        let typed = format!("crictl exec -i -t {id} sh");
        let mut shell = Running::start(Command::new("script").args([
            "--quiet",
            "--return",
            "--command",
            &typed,
            "/dev/null",
        ]))?;
        shell.type_in("stty rows 33 cols 44; tty; stty size; echo $((6*7))\n")?;
        shell.line("/dev/pts/")?;
        shell.line("33 44")?;
        shell.line("42")?;
        shell.type_in("exit 0\n")?;
        let (code, left) = shell.end()?;
        ensure!(code == Some(0), "{code:?} {left:?}");
        Ok(())
    })
}

fn attach_talks_to_the_first_process(bench: &Bench) -> Result<()> {
    with_pod(bench, "attach", |pod| {
        let script = "while read line; do echo \"heard $line\"; done; echo over";
        let id = pod.start("one", &["sh", "-c", script], &json!({ "stdin": true, "stdin_once": true }))?;
        let mut attached = Running::start(&mut crictl(&["attach", "--stdin", &id]))?;
        attached.type_in("something\n")?;
        attached.line("heard something")?;
        attached.type_in("more\n")?;
        attached.line("heard more")?;
        let (code, left) = attached.end()?;
        ensure!(code == Some(0) && left == ["over"], "{code:?} {left:?}");
        wait_for("the end of what lost its input", || {
            Ok(parsed(&["inspect", &id])?["status"]["state"] == "CONTAINER_EXITED")
        })
    })
}

fn logs_are_followed_to_the_end(bench: &Bench) -> Result<()> {
    with_pod(bench, "logs", |pod| {
        let script = "i=0; while [ ! -e /stop ]; do echo line $i; i=$((i+1)); sleep 0.1; done; echo last; echo bad >&2";
        let id = pod.start("one", &["sh", "-c", script], &json!({}))?;
        let logs = Running::start(&mut crictl(&["logs", "--follow", &id]))?;
        logs.line("line 0")?;
        logs.line("line 5")?;
        exec(&id, "touch /stop")?;
        logs.line("last")?;
        let (code, _) = logs.end()?;
        ensure!(code == Some(0), "crictl logs --follow ended with {code:?}");
        let all = crictl(&["logs", &id]).output()?;
        ensure!(String::from_utf8_lossy(&all.stdout).ends_with("last\n"), "{all:?}");
        ensure!(String::from_utf8_lossy(&all.stderr) == "bad\n", "{all:?}");
        Ok(())
    })
}

/// `crictl port-forward`, until it is dropped.
fn forward(pod: &Pod, local: u16, remote: u16) -> Result<Running> {
    let ports = format!("{local}:{remote}");
    let running = Running::start(&mut crictl(&["port-forward", &pod.id, &ports]))?;
    running.line("Forwarding from 127.0.0.1")?;
    Ok(running)
}

fn connect(port: u16) -> Result<TcpStream> {
    let stream =
        TcpStream::connect(("127.0.0.1", port)).with_context(|| format!("Nobody is at port {port}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// The body of `path` from the web server behind a local port.
fn get(port: u16, path: &str) -> Result<Vec<u8>> {
    let mut stream = connect(port)?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").context("There is no answer")?;
    Ok(answer.split_off(end + 4))
}

fn port_forward_reaches_loopback_of_both_families(bench: &Bench) -> Result<()> {
    with_pod(bench, "forward", |pod| {
        // The first server is not to be reached at the pod's address, the second not by IPv4.
        let serve = "mkdir -p /www; echo four > /www/four; echo six > /www/six; \
                     httpd -p 127.0.0.1:9090 -h /www; httpd -p '[::1]:9091' -h /www; sleep 100000";
        let id = pod.start("web", &["sh", "-c", serve], &json!({}))?;
        wait_for("the servers", || {
            let listening = exec(&id, "netstat -ltn")?;
            Ok(listening.contains("127.0.0.1:9090") && listening.contains("::1:9091"))
        })?;
        let _four = forward(pod, 18090, 9090)?;
        ensure!(get(18090, "/four")? == b"four\n");
        let _six = forward(pod, 18091, 9091)?;
        ensure!(get(18091, "/six")? == b"six\n");
        Ok(())
    })
}

fn port_forward_half_closes_and_carries_many_streams(bench: &Bench) -> Result<()> {
    with_pod(bench, "streams", |pod| {
        let serve = "mkdir -p /www; head -c 300000 /dev/urandom > /www/big; httpd -p 127.0.0.1:9090 -h /www; \
                     exec nc -ll -p 9092 -e cat";
        let id = pod.start("web", &["sh", "-c", serve], &json!({}))?;
        wait_for("the servers", || {
            let listening = exec(&id, "netstat -ltn")?;
            Ok(listening.contains("127.0.0.1:9090") && listening.contains(":9092"))
        })?;
        let _echo = forward(pod, 18092, 9092)?;
        // More than all buffers on the way: the writer has to be held back until somebody reads.
        let sent: Vec<u8> = (0..4_000_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
        let mut stream = connect(18092)?;
        let mut writer = stream.try_clone()?;
        let bytes = sent.clone();
        let writing = std::thread::spawn(move || -> Result<()> {
            writer.write_all(&bytes)?;
            Ok(writer.shutdown(Shutdown::Write)?)
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received)?;
        writing.join().ok().context("The writer panicked")??;
        ensure!(received == sent, "{} of {} bytes came back", received.len(), sent.len());

        let _web = forward(pod, 18090, 9090)?;
        let sums = exec(&id, "md5sum < /www/big")?;
        let clients: Vec<_> = (0..8).map(|_| std::thread::spawn(|| get(18090, "/big"))).collect();
        for client in clients {
            let body = client.join().ok().context("A client panicked")??;
            fs::write(pod.folder.join("big"), &body)?;
            let got =
                programs::output(Command::new("md5sum").stdin(fs::File::open(pod.folder.join("big"))?))?;
            ensure!(got.trim() == sums, "{} bytes: {got} is not {sums}", body.len());
        }
        Ok(())
    })
}

fn port_forward_to_nobody_fails(bench: &Bench) -> Result<()> {
    with_pod(bench, "nobody", |pod| {
        pod.idle("one")?;
        let _running = forward(pod, 18099, 9999)?;
        let mut answer = Vec::new();
        let result = connect(18099)?.read_to_end(&mut answer);
        ensure!(answer.is_empty(), "Somebody answered: {result:?} {answer:?}");
        Ok(())
    })
}

fn stats_and_limits_are_those_of_the_container(bench: &Bench) -> Result<()> {
    with_pod(bench, "stats", |pod| {
        let more = json!({ "linux": {
            "resources": { "memory_limit_in_bytes": 64 << 20, "cpu_period": 100_000, "cpu_quota": 50_000 },
            "security_context": { "namespace_options": { "pid": 1 } },
        }});
        let script = "head -c 20000000 /dev/zero > /fill; i=0; while true; do i=$((i+1)); done";
        let id = pod.start("busy", &["sh", "-c", script], &more)?;
        let number =
            |value: &Value| value["value"].as_str().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        wait_for("statistics", || {
            let stats = parsed(&["stats", "--output", "json", &id])?;
            let stats = &stats["stats"][0];
            Ok(number(&stats["cpu"]["usageCoreNanoSeconds"]) > 100_000_000
                && number(&stats["memory"]["usageBytes"]) > 10 << 20)
        })?;
        let stats = parsed(&["statsp", "--output", "json", "--id", &pod.id])?;
        let linux = &stats["stats"][0]["linux"];
        ensure!(number(&linux["memory"]["usageBytes"]) > 10 << 20, "{stats}");
        ensure!(number(&linux["network"]["defaultInterface"]["rxBytes"]) > 0, "{stats}");
        ensure!(linux["containers"].as_array().map(Vec::len) == Some(1), "{stats}");
        run(&["update", "--memory", &(96 << 20).to_string(), &id])?;
        let status = parsed(&["inspect", &id])?;
        let limit = &status["status"]["resources"]["linux"]["memoryLimitInBytes"];
        ensure!(limit.as_str() == Some("100663296"), "{limit}");
        let seen = exec(
            &id,
            "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes",
        )?;
        ensure!(seen == "100663296", "The container sees a limit of {seen}");
        Ok(())
    })
}

fn events_tell_the_life_of_a_pod(bench: &Bench) -> Result<()> {
    let events = Running::start(&mut crictl(&["--timeout", "120s", "events"]))?;
    with_pod(bench, "events", |pod| {
        let id = pod.create("one", &["sleep", "100000"], &json!({}))?;
        run(&["start", &id])?;
        run(&["stop", "--timeout", "0", &id])?;
        run(&["rm", &id])?;
        for kind in ["CREATED", "STARTED", "STOPPED", "DELETED"] {
            // An event's lines begin with these two.
            events.line(&format!("\"containerId\": \"{id}\""))?;
            let line = events.line("containerEventType")?;
            ensure!(line.contains(kind), "Want {kind}: {line}");
        }
        Ok(())
    })
}

fn processes_are_shared_where_asked_for(bench: &Bench) -> Result<()> {
    let shared = json!({ "pid": 0 });
    with_pod_of(bench, "shared", &shared, |pod| {
        let more = json!({ "linux": { "security_context": { "namespace_options": shared } } });
        let one = pod.start("one", &["sleep", "11111"], &more)?;
        let two = pod.start("two", &["sleep", "22222"], &more)?;
        let own = pod.idle("own")?;
        let seen = exec(&two, "ps -o pid,args")?;
        ensure!(seen.contains("sleep 11111") && seen.contains("sleep 22222"), "{seen}");
        ensure!(
            !exec(&two, "tr '\\0' ' ' < /proc/1/cmdline")?.contains("sleep"),
            "The first process is a container's"
        );
        ensure!(!exec(&own, "ps -o args")?.contains("11111"), "A container sees what it did not ask for");
        exec(&two, "kill $(ps -o pid,args | grep '[s]leep 11111' | awk '{ print $1 }')")?;
        wait_for("the death of a process that another container killed", || {
            Ok(parsed(&["inspect", &one])?["status"]["state"] == "CONTAINER_EXITED")
        })
    })
}

fn a_target_is_seen_by_an_ephemeral_container(bench: &Bench) -> Result<()> {
    with_pod(bench, "target", |pod| {
        let app = pod.start("app", &["sleep", "33333"], &json!({}))?;
        let options = json!({ "pid": 3, "target_id": app });
        let more = json!({ "linux": { "security_context": { "namespace_options": options } } });
        let debugger = pod.start("debugger", &["sleep", "44444"], &more)?;
        let first = exec(&debugger, "tr '\\0' ' ' < /proc/1/cmdline")?;
        ensure!(first.contains("sleep 33333"), "The first process is {first}");
        // Its files too, through /proc, as a person who debugs wants them.
        exec(&app, "echo here > /only-in-app")?;
        ensure!(exec(&debugger, "cat /proc/1/root/only-in-app")? == "here");
        run(&["stop", "--timeout", "0", &debugger])?;
        ensure!(parsed(&["inspect", &app])?["status"]["state"] == "CONTAINER_RUNNING");
        Ok(())
    })
}

fn processes_of_another_pod_stay_unseen(bench: &Bench) -> Result<()> {
    with_pod(bench, "nosy", |pod| {
        // containerd checks the target itself; a client of its own API names any process.
        let path = "pid:/proc/1/ns/pid";
        let output = Command::new("ctr")
            .args(["run", "--rm", "--runtime", bench.runtime(), "--with-ns", path, BUSYBOX, "nosy", "true"])
            .output()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && text.contains("can't be seen in a micro-VM"), "{text}");
        pod.idle("one").map(drop)
    })
}

fn masked_paths_are_empty(bench: &Bench) -> Result<()> {
    with_pod(bench, "masked", |pod| {
        let more = json!({ "linux": { "security_context": {
            "namespace_options": { "pid": 1 },
            "masked_paths": ["/etc/passwd", "/tmp", "/no/such/path"],
            "readonly_paths": ["/root"],
        }}});
        let id = pod.start("one", &["sleep", "100000"], &more)?;
        ensure!(exec(&id, "wc -c < /etc/passwd; ls -A /tmp | wc -l")? == "0\n0");
        for path in ["/tmp/new", "/root/new"] {
            let refused = exec(&id, &format!("touch {path} 2>&1 || true"))?;
            ensure!(refused.contains("Read-only"), "{path}: {refused:?}");
        }
        Ok(())
    })
}

//! Pods by CRI: what kubelet does with them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::cri::{Container, Pod, read_logs, v1};

use crate::harness::Bench;
use crate::support::{BUSYBOX, idle, wait_for, wait_until_ready, with_pod};

crate::harness::tests![
    a_pod_lives_and_ends,
    two_containers_share_a_pod,
    exec_gives_output_and_exit_code,
    exec_ends_at_its_limit,
    logs_keep_streams_and_lines_apart,
    a_container_is_restarted_in_its_pod,
    stop_is_gentle_first,
    stats_are_those_of_the_container,
    volumes_come_from_the_host,
    limits_are_updated,
    the_pod_has_its_hostname_and_dns,
    an_image_that_is_missing_is_named,
    root_may_be_read_only;
    microvm only: host_namespaces_are_refused,
];

fn a_pod_lives_and_ends(bench: &Bench) -> Result<()> {
    let cri = &bench.cri;
    let pod = Pod::new("lives", "u1");
    let pod_id = cri.run_pod(&pod, &bench.handler)?;
    ensure!(cri.pod_status(&pod_id)?.state() == v1::PodSandboxState::SandboxReady);
    let container = idle("one");
    let id = cri.create(&pod_id, &pod, &container)?;
    ensure!(cri.status(&id)?.state() == v1::ContainerState::ContainerCreated);
    cri.start(&id)?;
    ensure!(cri.status(&id)?.state() == v1::ContainerState::ContainerRunning);
    wait_until_ready(bench, &id)?;
    cri.stop(&id, Duration::from_secs(10))?;
    let status = cri.status(&id)?;
    ensure!(status.state() == v1::ContainerState::ContainerExited && status.exit_code == 0, "{status:?}");
    ensure!(status.finished_at >= status.started_at && status.started_at >= status.created_at, "{status:?}");
    cri.remove(&id)?;
    cri.stop_pod(&pod_id)?;
    ensure!(cri.pod_status(&pod_id)?.state() == v1::PodSandboxState::SandboxNotready);
    cri.stop_pod(&pod_id)?;
    cri.remove_pod(&pod_id)
}

fn two_containers_share_a_pod(bench: &Bench) -> Result<()> {
    with_pod(bench, &Pod::new("two", "u2"), |pod, pod_id| {
        let cri = &bench.cri;
        let counter = cri.run(pod_id, pod, &Container::new("counter", "localhost/counter:1"))?;
        let web = cri.run(pod_id, pod, &Container::new("web", "localhost/web:1"))?;
        let boot = |id| cri.read(id, &["cat", "/proc/sys/kernel/random/boot_id"]);
        ensure!(boot(&counter)? == boot(&web)?, "They run under different kernels");
        let host = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        ensure!(bench.is_runc() == (boot(&web)? == host), "Whose kernel is it?");
        // One network: the loopback of one is that of the other. Two root filesystems.
        wait_for("web to answer on localhost", || {
            Ok(cri.exec(&counter, &["wget", "-q", "-O", "-", "http://127.0.0.1:8080/"])?.stdout
                == "web is here\n")
        })?;
        cri.read(&web, &["touch", "/only-in-web"])?;
        ensure!(cri.exec(&counter, &["ls", "/only-in-web"])?.code != 0, "Their root filesystem is one");
        Ok(())
    })
}

fn exec_gives_output_and_exit_code(bench: &Bench) -> Result<()> {
    with_pod(bench, &Pod::new("exec", "u3"), |pod, pod_id| {
        let id = bench.cri.run(pod_id, pod, &idle("one"))?;
        let output = bench.cri.exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 5"])?;
        ensure!(
            (output.stdout.as_str(), output.stderr.as_str(), output.code) == ("out\n", "err\n", 5),
            "{output:?}"
        );
        let big = bench.cri.read(&id, &["sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x"])?;
        ensure!(big.len() == 3_000_000, "{} of 3,000,000 bytes came", big.len());
        let missing = bench.cri.exec(&id, &["/no/such/program"]);
        let text = format!("{missing:?}");
        ensure!(text.contains("/no/such/program") || text.contains("127"), "{text}");
        Ok(())
    })
}

fn exec_ends_at_its_limit(bench: &Bench) -> Result<()> {
    with_pod(bench, &Pod::new("limit", "u4"), |pod, pod_id| {
        let id = bench.cri.run(pod_id, pod, &idle("one"))?;
        let begun = Instant::now();
        let result = bench.cri.exec_within(&id, &["sleep", "100"], Duration::from_secs(1));
        ensure!(result.is_err(), "{result:?}");
        ensure!(begun.elapsed() < Duration::from_secs(8), "It took {:?}", begun.elapsed());
        let left = bench.cri.read(&id, &["ps"])?;
        ensure!(!left.contains("sleep 100\n"), "{left}");
        Ok(())
    })
}

fn logs_keep_streams_and_lines_apart(bench: &Bench) -> Result<()> {
    with_pod(bench, &Pod::new("logs", "u5"), |pod, pod_id| {
        let script = "echo one; echo two >&2; i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; printf tail";
        let container = Container::new("writer", BUSYBOX).command(&["sh", "-c", script]);
        let id = bench.cri.run(pod_id, pod, &container)?;
        let status = bench.cri.wait_exited(&id, Duration::from_secs(60))?;
        ensure!(status.exit_code == 0 && status.reason == "Completed", "{status:?}");
        let mut lines = Vec::new();
        wait_for("the whole log", || {
            lines = read_logs(pod, &container)?;
            Ok(lines.len() >= 3003)
        })
        .with_context(|| format!("There are {} of 3003 lines", lines.len()))?;
        let of = |stream: &str| {
            lines.iter().filter(|line| line.stream == stream).map(|line| &*line.text).collect::<Vec<_>>()
        };
        ensure!(of("stderr") == ["two"], "{:?}", of("stderr"));
        let out = of("stdout");
        ensure!(
            out.first() == Some(&"one") && out.last() == Some(&"tail"),
            "{:?} … {:?}",
            out.first(),
            out.last()
        );
        ensure!(
            out[1..3001].iter().enumerate().all(|(number, line)| *line == format!("line {number}")),
            "Lines are out of order"
        );
        Ok(())
    })
}

fn a_container_is_restarted_in_its_pod(bench: &Bench) -> Result<()> {
    with_pod(bench, &Pod::new("restart", "u6"), |pod, pod_id| {
        let mut container = idle("again");
        for attempt in 0..3 {
            container.attempt = attempt;
            let id = bench.cri.run(pod_id, pod, &container)?;
            ensure!(
                bench.cri.exec(&id, &["ls", "/made"])?.code != 0,
                "A file of attempt {attempt} - 1 is still there"
            );
            bench.cri.read(&id, &["touch", "/made"])?;
            bench.cri.stop(&id, Duration::from_secs(5))?;
            bench.cri.remove(&id)?;
        }
        Ok(())
    })
}

fn stop_is_gentle_first(bench: &Bench) -> Result<()> {
    with_pod(bench, &Pod::new("stop", "u7"), |pod, pod_id| {
        let stubborn = Container::new("stubborn", BUSYBOX).command(&[
            "sh",
            "-c",
            "trap '' TERM; while true; do sleep 1; done",
        ]);
        let id = bench.cri.run(pod_id, pod, &stubborn)?;
        let begun = Instant::now();
        bench.cri.stop(&id, Duration::from_secs(2))?;
        let took = begun.elapsed();
        ensure!(took >= Duration::from_secs(2) && took < Duration::from_secs(8), "Stop took {took:?}");
        let status = bench.cri.status(&id)?;
        ensure!(status.exit_code == 137, "{status:?}");
        Ok(())
    })
}

fn stats_are_those_of_the_container(bench: &Bench) -> Result<()> {
    with_pod(bench, &Pod::new("stats", "u8"), |pod, pod_id| {
        let busy = Container::new("busy", BUSYBOX).command(&["sh", "-c", "while true; do :; done"]);
        let id = bench.cri.run(pod_id, pod, &busy)?;
        let used = || -> Result<u64> {
            let stats = bench.cri.stats(&id)?;
            Ok(stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).map_or(0, |value| value.value))
        };
        wait_for("half a second of CPU time", || Ok(used()? > 500_000_000))?;
        let memory =
            bench.cri.stats(&id)?.memory.and_then(|memory| memory.usage_bytes).map_or(0, |value| value.value);
        ensure!((1 << 12..64 << 20).contains(&memory), "A shell uses {memory} bytes");
        let pod_stats = bench.cri.pod_stats(pod_id)?;
        let network =
            pod_stats.linux.and_then(|linux| linux.network).and_then(|network| network.default_interface);
        ensure!(
            network.is_some_and(|interface| interface.name == "eth0"),
            "The pod has no eth0 in its stats"
        );
        Ok(())
    })
}

fn volumes_come_from_the_host(bench: &Bench) -> Result<()> {
    let folder = PathBuf::from("/tmp/e2e-volume");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("given"), "one")?;
    let result = with_pod(bench, &Pod::new("volumes", "u9"), |pod, pod_id| {
        let mut container = idle("one");
        container.mounts = vec![
            (folder.clone(), "/rw".into(), false),
            (folder.clone(), "/ro".into(), true),
            (folder.join("given"), "/etc/single".into(), true),
        ];
        let id = bench.cri.run(pod_id, pod, &container)?;
        ensure!(bench.cri.read(&id, &["cat", "/rw/given", "/ro/given", "/etc/single"])? == "oneoneone");
        bench.cri.read(&id, &["sh", "-c", "echo back > /rw/made"])?;
        ensure!(fs::read_to_string(folder.join("made"))? == "back\n");
        ensure!(bench.cri.exec(&id, &["touch", "/ro/no"])?.code != 0, "/ro is writable");
        ensure!(
            bench.cri.exec(&id, &["sh", "-c", "echo no > /etc/single"])?.code != 0,
            "/etc/single is writable"
        );
        // ConfigMaps change under a running container.
        fs::write(folder.join("given"), "two")?;
        wait_for("the change to be seen", || Ok(bench.cri.read(&id, &["cat", "/ro/given"])? == "two"))
    });
    fs::remove_dir_all(&folder)?;
    result
}

fn limits_are_updated(bench: &Bench) -> Result<()> {
    with_pod(bench, &Pod::new("update", "u10"), |pod, pod_id| {
        let mut container = idle("one");
        container.resources =
            Some(v1::LinuxContainerResources { memory_limit_in_bytes: 256 << 20, ..Default::default() });
        let id = bench.cri.run(pod_id, pod, &container)?;
        let limit = || -> Result<u64> {
            let v1 = "/sys/fs/cgroup/memory/memory.limit_in_bytes";
            let script = format!("cat /sys/fs/cgroup/memory.max 2>/dev/null || cat {v1}");
            Ok(bench.cri.read(&id, &["sh", "-c", &script])?.trim().parse()?)
        };
        ensure!(limit()? == 256 << 20, "{}", limit()?);
        bench.cri.update(
            &id,
            v1::LinuxContainerResources { memory_limit_in_bytes: 128 << 20, ..Default::default() },
        )?;
        ensure!(limit()? == 128 << 20, "{}", limit()?);
        Ok(())
    })
}

fn the_pod_has_its_hostname_and_dns(bench: &Bench) -> Result<()> {
    let mut pod = Pod::new("names", "u11");
    pod.hostname = Some("my-host".into());
    pod.dns_servers = vec!["192.0.2.99".into()];
    with_pod(bench, &pod, |pod, pod_id| {
        let id = bench.cri.run(pod_id, pod, &idle("one"))?;
        ensure!(bench.cri.read(&id, &["hostname"])? == "my-host\n");
        let resolv = bench.cri.read(&id, &["cat", "/etc/resolv.conf"])?;
        ensure!(resolv.contains("nameserver 192.0.2.99"), "{resolv}");
        let address = bench.cri.read(&id, &["ip", "-4", "-o", "address", "show", "eth0"])?;
        let ip = bench.cri.pod_ip(pod_id)?;
        ensure!(address.contains(&format!(" {ip}/24 ")), "eth0 has {address:?}, the pod {ip}");
        Ok(())
    })
}

fn an_image_that_is_missing_is_named(bench: &Bench) -> Result<()> {
    with_pod(bench, &Pod::new("missing", "u12"), |pod, pod_id| {
        let error = match bench.cri.create(pod_id, pod, &Container::new("one", "localhost/none:1")) {
            Ok(_) => bail!("A container was made from nothing"),
            Err(error) => format!("{error:#}"),
        };
        ensure!(error.contains("localhost/none:1"), "{error}");
        Ok(())
    })
}

fn root_may_be_read_only(bench: &Bench) -> Result<()> {
    with_pod(bench, &Pod::new("read-only", "u13"), |pod, pod_id| {
        let mut container = idle("one");
        container.read_only_root = true;
        let id = bench.cri.run(pod_id, pod, &container)?;
        let output = bench.cri.exec(&id, &["touch", "/new"])?;
        ensure!(output.code != 0 && output.stderr.contains("Read-only"), "{output:?}");
        Ok(())
    })
}

fn host_namespaces_are_refused(bench: &Bench) -> Result<()> {
    let mut pod = Pod::new("host-network", "u14");
    pod.host_network = true;
    match bench.cri.run_pod(&pod, &bench.handler) {
        Ok(id) => {
            bench.cri.remove_pod(&id)?;
            bail!("A pod in the network of the host was run")
        }
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(text.to_lowercase().contains("network"), "The error does not say why: {text}");
            ensure!(
                !Path::new("/run/microvm")
                    .join("k8s.io")
                    .read_dir()
                    .is_ok_and(|mut all| all.next().is_some())
            );
            Ok(())
        }
    }
}

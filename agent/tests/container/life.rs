//! From creation to removal, exec, signals, freezing.
use crate::world::{LONG, outcome, read_until, shell, test};
use agent::container::State;
use agent::error::Kind;
use tokio::time::timeout;

#[test]
fn a_container_runs_and_tells_its_exit_code() {
    test(async |world| {
        let container = world.create(world.spec("echo out; echo err >&2; exit 7")).await.unwrap();
        assert_eq!(container.state("").unwrap(), State::Created);
        container.start().await.unwrap();
        let end = outcome(&container, "").await;
        assert_eq!((end.code, end.out.as_str(), end.err.as_str()), (7, "out\n", "err\n"));
        assert_eq!(container.state("").unwrap(), State::Stopped(7));
        assert_eq!(container.start().await.unwrap_err().kind(), Kind::FailedPrecondition);
        assert_eq!(container.signal("", libc::SIGTERM).unwrap_err().kind(), Kind::NotFound);
        world.remove(&container).await;
    });
}

#[test]
fn an_exec_runs_beside_it_and_both_see_each_other() {
    test(async |world| {
        let container = world.start("exec sleep 1000").await;
        container.exec("one", shell("ps ax | grep -c '[s]leep'; exit 3")).await.unwrap();
        let end = outcome(&container, "one").await;
        assert_eq!((end.code, end.out.trim()), (3, "1"), "{end:?}");
        // All has been told: the code stays, the id may be used again.
        assert_eq!(container.wait("one").await.unwrap(), 3);
        container.exec("one", shell("exit 4")).await.unwrap();
        assert_eq!(container.wait("one").await.unwrap(), 4);
        assert_eq!(container.wait("two").await.unwrap_err().kind(), Kind::NotFound);

        container.exec("long", shell("exec sleep 1000")).await.unwrap();
        assert_eq!(container.exec("long", shell("true")).await.unwrap_err().kind(), Kind::AlreadyExists);
        container.signal("long", libc::SIGTERM).unwrap();
        assert_eq!(timeout(LONG, container.wait("long")).await.unwrap().unwrap(), 143);
        container.signal("", libc::SIGKILL).unwrap();
        assert_eq!(timeout(LONG, container.wait("")).await.unwrap().unwrap(), 137);
        assert_eq!(container.exec("late", shell("true")).await.unwrap_err().kind(), Kind::FailedPrecondition);
        world.remove(&container).await;
    });
}

#[test]
fn a_missing_program_fails_the_start_with_its_name() {
    test(async |world| {
        for (program, text, code) in [
            ("foo", "exec: \"foo\": executable file not found in $PATH", 127),
            ("/bin/foo", "exec: \"/bin/foo\": stat /bin/foo: no such file or directory", 127),
            ("/etc/passwd", "exec: \"/etc/passwd\": permission denied", 126),
        ] {
            let mut spec = world.spec("");
            spec.Process.mut_or_insert_default().Args = vec![program.to_owned()];
            let container = world.create(spec).await.unwrap();
            let error = container.start().await.unwrap_err().chain();
            assert!(error.contains(text), "{error}");
            assert_eq!(container.wait("").await.unwrap(), code);
            world.remove(&container).await;
        }
        // No #! and no ELF: an error, and not a shell that nobody asked for.
        std::fs::write(world.path("/script"), "echo hello\n").unwrap();
        std::fs::set_permissions(world.path("/script"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let container = world.start("exec sleep 1000").await;
        let mut process = shell("");
        process.Args = vec!["/script".to_owned()];
        let error = container.exec("x", process.clone()).await.unwrap_err().chain();
        assert!(error.contains("exec /script: exec format error"), "{error}");
        process.Args = vec!["bar".to_owned()];
        let error = container.exec("x", process).await.unwrap_err().chain();
        assert!(error.contains("exec: \"bar\": executable file not found in $PATH"), "{error}");
        assert_eq!(container.wait("x").await.unwrap_err().kind(), Kind::NotFound);
        world.remove(&container).await;
    });
}

#[test]
fn a_container_that_was_never_started_can_be_killed_and_removed() {
    test(async |world| {
        let container = world.create(world.spec("true")).await.unwrap();
        container.signal("", libc::SIGKILL).unwrap();
        assert_eq!(timeout(LONG, container.wait("")).await.unwrap().unwrap(), 137);
        assert_eq!(container.start().await.unwrap_err().kind(), Kind::FailedPrecondition);
        world.remove(&container).await;
        let container = world.create(world.spec("true")).await.unwrap();
        world.remove(&container).await;
    });
}

#[test]
fn a_frozen_container_stands_still_until_thawed_and_dies_frozen() {
    test(async |world| {
        let container = world.start("while read line; do echo got $line; done").await;
        container.write_stdin("", b"one\n").await.unwrap();
        read_until(&container, "", "got one").await;
        container.pause().await.unwrap();
        container.pause().await.unwrap();
        assert_eq!(container.state("").unwrap(), State::Paused);
        assert_eq!(container.exec("x", shell("true")).await.unwrap_err().kind(), Kind::FailedPrecondition);
        container.write_stdin("", b"two\n").await.unwrap();
        let quiet = timeout(std::time::Duration::from_millis(100), container.read_stdout("", 100)).await;
        assert!(quiet.is_err(), "a frozen process wrote {quiet:?}");
        container.resume().await.unwrap();
        read_until(&container, "", "got two").await;
        container.pause().await.unwrap();
        container.signal("", libc::SIGKILL).unwrap();
        assert_eq!(timeout(LONG, container.wait("")).await.unwrap().unwrap(), 137);
        world.remove(&container).await;
    });
}

#[test]
fn signals_and_removal_work_while_everything_else_hangs() {
    test(async |world| {
        let container = world.start("trap '' TERM; echo up; sleep 1000 & wait").await;
        read_until(&container, "", "up").await;
        let (waiter, writer, reader) = (container.clone(), container.clone(), container.clone());
        let wait = tokio::spawn(async move { waiter.wait("").await });
        let write = tokio::spawn(async move { writer.write_stdin("", &vec![0; 1 << 20]).await });
        let read = tokio::spawn(async move { reader.read_stdout("", 100).await });
        tokio::task::yield_now().await;
        assert_eq!(container.state("").unwrap(), State::Running);
        container.stats().unwrap();
        container.signal("", libc::SIGKILL).unwrap();
        assert_eq!(timeout(LONG, wait).await.unwrap().unwrap().unwrap(), 137);
        assert!(timeout(LONG, write).await.unwrap().unwrap().is_err());
        assert!(timeout(LONG, read).await.unwrap().unwrap().unwrap().is_empty());
        world.remove(&container).await;
    });
}

#[test]
fn all_processes_end_with_the_first_also_in_a_shared_pid_namespace() {
    test(async |world| {
        let mut spec = world.spec("sleep 1000 & echo $!; exec sleep 0.1");
        // Joins the namespace of this test, as with a sandbox that shares one.
        spec.Linux.mut_or_insert_default().Namespaces.retain(|namespace| namespace.Type != "pid");
        let namespaces =
            agent::container::Namespaces { pid: Some("/proc/self/ns/pid".into()), ..Default::default() };
        let container = world.create_in(spec, namespaces).await.unwrap();
        container.start().await.unwrap();
        let pid = read_until(&container, "", "\n").await;
        assert_eq!(timeout(LONG, container.wait("")).await.unwrap().unwrap(), 0);
        let process = std::path::PathBuf::from(format!("/proc/{}", pid.trim()));
        let gone = async {
            while std::fs::read_to_string(process.join("stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG, gone).await.expect("a child outlives the first process");
        world.remove(&container).await;
    });
}

#[test]
fn an_ignored_signal_changes_nothing() {
    test(async |world| {
        let container = world.start("trap '' TERM; echo up; while :; do sleep 0.05; done").await;
        read_until(&container, "", "up").await;
        container.signal("", libc::SIGTERM).unwrap();
        container.exec("x", shell("true")).await.unwrap();
        assert_eq!(container.wait("x").await.unwrap(), 0);
        assert_eq!(container.state("").unwrap(), State::Running);
        world.remove(&container).await;
    });
}

#[test]
fn an_exec_follows_an_init_system_into_its_own_cgroup() {
    test(async |world| {
        let mut spec = world.spec(
            "mkdir /sys/fs/cgroup/below && echo 0 > /sys/fs/cgroup/below/cgroup.procs &&
            echo +hugetlb > /sys/fs/cgroup/cgroup.subtree_control; echo up; exec sleep 1000",
        );
        for mount in spec.Mounts.iter_mut().filter(|mount| mount.type_ == "cgroup") {
            mount.options.retain(|option| option != "ro");
        }
        let container = world.create(spec).await.unwrap();
        container.start().await.unwrap();
        read_until(&container, "", "up").await;
        container
            .exec("x", shell("grep ^0 /proc/self/cgroup"))
            .await
            .unwrap_or_else(|error| panic!("{}", error.chain()));
        assert_eq!(outcome(&container, "x").await.out, "0::/below\n");
        world.remove(&container).await;
    });
}

#[test]
fn nothing_of_the_agent_is_open_in_a_container() {
    test(async |world| {
        let list = "ls /proc/self/fd | tr '\\n' ' '; exec sleep 1000";
        let container = world.start(list).await;
        // The one more is the listing's own.
        assert_eq!(read_until(&container, "", "3 ").await, "0 1 2 3 ");
        container.exec("x", shell(list)).await.unwrap();
        assert_eq!(read_until(&container, "x", "3 ").await, "0 1 2 3 ");
        let environment = std::fs::read(format!("/proc/{}/environ", container.pid())).unwrap();
        assert!(!String::from_utf8_lossy(&environment).contains("CARGO"), "the agent's environment shows");
        world.remove(&container).await;
    });
}

//! Users, capabilities, seccomp, limits, namespaces, sysctls, hooks.
use std::fs;

use crate::world::{World, outcome, read_until, shell, test};
use agent_proto::oci::{Hook, LinuxSeccomp, LinuxSyscall, POSIXRlimit, Spec};

/// The wanted lines of /proc/self/status, in the container.
const STATUS: &str = "exec grep -E '^(Cap|NoNewPrivs|Seccomp:|Sig|Uid|Gid|Groups)' /proc/self/status";

fn line<'a>(text: &'a str, key: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {key} in {text}")).trim()
}

fn no_mkdir() -> LinuxSeccomp {
    let mut rule = LinuxSyscall::new();
    rule.Action = "SCMP_ACT_ERRNO".to_owned();
    rule.errnoret = u32::try_from(libc::EDOM).unwrap();
    rule.Names = vec!["mkdir".to_owned(), "mkdirat".to_owned(), "setuid".to_owned(), "setresuid".to_owned()];
    let mut profile = LinuxSeccomp::new();
    profile.DefaultAction = "SCMP_ACT_ALLOW".to_owned();
    profile.Architectures = vec!["SCMP_ARCH_X86_64".to_owned()];
    profile.Syscalls.push(rule);
    profile
}

#[test]
fn absent_capabilities_are_none_for_the_first_process_and_for_execs() {
    test(async |world| {
        let mut spec = world.spec("grep ^Cap /proc/self/status; exec sleep 1000");
        spec.Process.mut_or_insert_default().Capabilities = None.into();
        let container = world.create(spec).await.unwrap();
        container.start().await.unwrap();
        let first = read_until(&container, "", "CapAmb:\t0000000000000000\n").await;
        let mut process = shell("grep ^Cap /proc/self/status");
        process.Capabilities = None.into();
        container.exec("x", process).await.unwrap();
        let second = outcome(&container, "x").await.out;
        for text in [&first, &second] {
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert_eq!(line(text, set), "0000000000000000", "{text}");
            }
        }
        world.remove(&container).await;
    });
}

#[test]
fn the_five_sets_are_as_asked() {
    test(async |world| {
        let mut spec = world.spec(STATUS);
        let process = spec.Process.mut_or_insert_default();
        process.User.mut_or_insert_default().UID = 1000;
        process.User.mut_or_insert_default().GID = 1001;
        process.User.mut_or_insert_default().AdditionalGids = vec![5, 77];
        let sets = process.Capabilities.mut_or_insert_default();
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        sets.Bounding = names(&["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"]);
        sets.Permitted = names(&["CAP_CHOWN", "CAP_KILL"]);
        sets.Effective = names(&["CAP_CHOWN"]);
        sets.Inheritable = names(&["CAP_CHOWN", "CAP_KILL"]);
        sets.Ambient = names(&["CAP_KILL"]);
        let end = world.run(spec).await;
        assert_eq!(line(&end.out, "CapBnd"), "0000000000002021", "{end:?}");
        assert_eq!(line(&end.out, "CapInh"), "0000000000000021");
        // The program of a user who is not root starts with the ambient ones.
        assert_eq!(
            (line(&end.out, "CapPrm"), line(&end.out, "CapEff"), line(&end.out, "CapAmb")),
            ("0000000000000020", "0000000000000020", "0000000000000020")
        );
        assert_eq!(
            (line(&end.out, "Uid"), line(&end.out, "Gid")),
            ("1000\t1000\t1000\t1000", "1001\t1001\t1001\t1001")
        );
        assert_eq!(line(&end.out, "Groups"), "5 77");
        assert_eq!(line(&end.out, "NoNewPrivs"), "0");
    });
}

#[test]
fn seccomp_holds_for_the_first_process_and_execs_with_and_without_new_privileges() {
    test(async |world| {
        for (no_new_privileges, uid) in [(false, 0), (false, 1000), (true, 0), (true, 1000)] {
            let check = "mkdir /tmp-x 2>&1 | grep -o 'Numerical argument'; grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status";
            let mut spec = world.spec(&format!("{check}; exec sleep 1000"));
            spec.Linux.mut_or_insert_default().Seccomp = Some(no_mkdir()).into();
            let mut process = shell(check);
            for process in [spec.Process.mut_or_insert_default(), &mut process] {
                process.NoNewPrivileges = no_new_privileges;
                process.User.mut_or_insert_default().UID = uid;
            }
            let container = world.create(spec).await.unwrap();
            container.start().await.unwrap_or_else(|error| panic!("{}", error.chain()));
            let first = read_until(&container, "", "Seccomp:\t2\n").await;
            container.exec("x", process).await.unwrap_or_else(|error| panic!("{}", error.chain()));
            let second = outcome(&container, "x").await.out;
            for text in [&first, &second] {
                assert!(text.contains("Numerical argument"), "{text}");
                assert_eq!(
                    (line(text, "Seccomp"), line(text, "NoNewPrivs")),
                    ("2", if no_new_privileges { "1" } else { "0" })
                );
            }
            world.remove(&container).await;
        }
    });
}

#[test]
fn a_strict_profile_does_not_get_in_the_way_of_the_set_up() {
    test(async |world| {
        let mut profile = no_mkdir();
        // All that the set-up did before: allowed to the agent, not to the program.
        let more = [
            "mount",
            "umount2",
            "pivot_root",
            "setns",
            "unshare",
            "setgroups",
            "setresgid",
            "chdir",
            "fchown",
            "setrlimit",
            "prlimit64",
        ];
        profile.Syscalls[0].Names.extend(more.map(str::to_owned));
        let mut spec = world.spec("echo fine");
        let process = spec.Process.mut_or_insert_default();
        (process.User.mut_or_insert_default().UID, process.Cwd) = (1000, "/made".to_owned());
        spec.Linux.mut_or_insert_default().Seccomp = Some(profile).into();
        assert_eq!(world.run(spec).await.out, "fine\n");
    });
}

#[test]
fn signals_are_at_their_defaults() {
    test(async |world| {
        let container = world.start("grep ^Sig /proc/self/status; exec sleep 1000").await;
        let first = read_until(&container, "", "SigCgt").await;
        container.exec("x", shell(STATUS)).await.unwrap();
        let second = outcome(&container, "x").await.out;
        for text in [&first, &second] {
            assert_eq!(
                (line(text, "SigBlk"), line(text, "SigIgn")),
                ("0000000000000000", "0000000000000000"),
                "{text}"
            );
        }
        world.remove(&container).await;
        // What that is for: a writer ends when its reader does.
        let end = world.script("yes | head -n 1").await;
        assert_eq!((end.code, end.out.as_str(), end.err.as_str()), (0, "y\n", ""));
    });
}

#[test]
fn home_is_always_set_and_comes_from_the_containers_passwd() {
    test(async |world| {
        // A name service of the image must not be asked, let alone loaded.
        fs::write(world.path("/etc/nsswitch.conf"), "passwd: evil\n").unwrap();
        for (uid, home) in [(0, "/root"), (1000, "/home/me"), (4242, "/")] {
            let mut spec = world.spec("echo $HOME; exec sleep 1000");
            spec.Process.mut_or_insert_default().User.mut_or_insert_default().UID = uid;
            let container = world.create(spec).await.unwrap();
            container.start().await.unwrap();
            assert_eq!(read_until(&container, "", "\n").await.trim(), home);
            let mut process = shell("echo $HOME");
            process.User.mut_or_insert_default().UID = uid;
            container.exec("x", process.clone()).await.unwrap();
            assert_eq!(outcome(&container, "x").await.out.trim(), home);
            process.Env.push("HOME=/else".to_owned());
            container.exec("x", process).await.unwrap();
            assert_eq!(outcome(&container, "x").await.out.trim(), "/else");
            world.remove(&container).await;
        }
        fs::remove_file(world.path("/etc/passwd")).unwrap();
        nix::unistd::mkfifo(&world.path("/etc/passwd"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(world.script("echo $HOME").await.out, "/\n", "a pipe as passwd file must not block");
    });
}

#[test]
fn limits_scores_and_the_hostname_are_set() {
    test(async |world| {
        let mut spec =
            world.spec("ulimit -n; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj; hostname; pwd");
        let process = spec.Process.mut_or_insert_default();
        process.OOMScoreAdj = 321;
        process.Cwd = "/usr/bin/".to_owned();
        for (kind, soft, hard) in [("RLIMIT_NOFILE", 64, 128), ("RLIMIT_CORE", 0, 0)] {
            let mut limit = POSIXRlimit::new();
            (limit.Type, limit.Soft, limit.Hard) = (kind.to_owned(), soft, hard);
            process.Rlimits.push(limit);
        }
        spec.Hostname = "inside".to_owned();
        let end = world.run(spec.clone()).await;
        assert_eq!(end.out, "64\n128\n0\n321\ninside\n/usr/bin\n", "{end:?}");
        // The agent itself is as before.
        assert_eq!(fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim(), own_score(&world).await);
        // In a shared namespace the name is the sandbox's, and the spec's is left alone.
        spec.Linux.mut_or_insert_default().Namespaces.retain(|namespace| namespace.Type != "uts");
        let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
        assert!(world.run(spec).await.out.contains(&format!("\n{host}\n")));
    });
}

async fn own_score(world: &World) -> String {
    // 0 in the spec is 0 in the container, whatever the agent's own is.
    assert_eq!(world.script("cat /proc/self/oom_score_adj").await.out, "0\n");
    fs::read_to_string(format!("/proc/{}/oom_score_adj", std::process::id())).unwrap().trim().to_owned()
}

#[test]
fn namespaces_are_new_or_joined() {
    test(async |world| {
        let links = "for kind in pid ipc uts net mnt cgroup; do readlink /proc/self/ns/$kind; done";
        let own = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
        let end = world.script(links).await;
        let inside: Vec<_> = end.out.lines().collect();
        assert_eq!(inside.len(), 6, "{end:?}");
        for kind in ["pid", "ipc", "uts", "mnt", "cgroup"] {
            assert!(!inside.contains(&own(kind).as_str()), "{kind} is the agent's");
        }
        assert!(inside.contains(&own("net").as_str()), "the network is the sandbox's");
        // Private network on request, with a loopback interface that works.
        let mut spec = world.spec(&format!("{links}; cat /sys/class/net/lo/operstate; ls /sys/class/net; cat /proc/sys/net/ipv4/ip_default_ttl"));
        let mut namespace = agent_proto::oci::LinuxNamespace::new();
        namespace.Type = "network".to_owned();
        let linux = spec.Linux.mut_or_insert_default();
        linux.Namespaces.push(namespace);
        linux.Sysctl.insert("net.ipv4.ip_default_ttl".to_owned(), "77".to_owned());
        linux.Sysctl.insert("kernel.msgmax".to_owned(), "4096".to_owned());
        let end = world.run(spec.clone()).await;
        assert!(!end.out.contains(&own("net")) && end.out.ends_with("\nlo\n77\n"), "{end:?}");
        assert!(end.out.contains("unknown\nlo"), "the loopback interface is up: {}", end.out);
        // Joined by path: two containers of one sandbox. The first one's namespaces are the sandbox's here.
        let first = world.start("exec sleep 1000").await;
        let joins = agent::container::Namespaces {
            ipc: Some(format!("/proc/{}/ns/ipc", first.pid()).into()),
            uts: Some(format!("/proc/{}/ns/uts", first.pid()).into()),
            pid: Some(format!("/proc/{}/ns/pid", first.pid()).into()),
        };
        let expected: Vec<_> = ["pid", "ipc", "uts"]
            .map(|kind| {
                fs::read_link(format!("/proc/{}/ns/{kind}", first.pid())).unwrap().display().to_string()
            })
            .into();
        let second = agent::container::CreateSpec {
            id: "second".to_owned(),
            spec: world.spec(links),
            root: world.root.path().to_owned(),
            namespaces: joins,
        };
        let second = agent::container::Container::create(&world.runtime, second).await.unwrap();
        second.start().await.unwrap();
        let end = outcome(&second, "").await;
        assert_eq!(end.out.lines().take(3).collect::<Vec<_>>(), expected, "{end:?}");
        world.remove(&second).await;
        world.remove(&first).await;
    });
}

#[test]
fn a_working_directory_outside_the_container_is_refused() {
    test(async |world| {
        for number in 3..10 {
            let container = world.start("exec sleep 1000").await;
            let mut process = shell("pwd; ls");
            process.Cwd = format!("/proc/self/fd/{number}");
            let result = container.exec("x", process).await;
            if result.is_ok() {
                panic!("got out: {:?}", outcome(&container, "x").await);
            }
            world.remove(&container).await;
        }
        let mut process = shell("true");
        process.Cwd = "/nowhere".to_owned();
        let container = world.start("exec sleep 1000").await;
        let error = container.exec("x", process).await.unwrap_err().chain();
        assert!(error.contains("Could not enter the working directory /nowhere: ENOENT"), "{error}");
        world.remove(&container).await;
    });
}

#[test]
fn hooks_run_in_the_container_with_its_state_and_a_deadline() {
    test(async |world| {
        let hook = |path: &str, script: &str, timeout: i64| {
            let mut hook = Hook::new();
            hook.Path = path.to_owned();
            hook.Args = ["sh", "-c", script].map(str::to_owned).to_vec();
            hook.Env = vec![format!("WHERE={}", world.root.path().display())];
            hook.Timeout = timeout;
            hook
        };
        let mut spec = world.spec("cat /created /started; echo");
        let hooks = spec.Hooks.mut_or_insert_default();
        hooks.CreateContainer.push(hook("/bin/sh", "cat > $WHERE/created", 10));
        hooks.StartContainer.push(hook("/usr/bin/sh", "cat > /started", 10));
        let end = world.run(spec.clone()).await;
        assert!(
            end.out.contains("\"status\":\"creating\"") && end.out.contains("\"status\":\"created\""),
            "{end:?}"
        );
        assert_eq!(end.out.matches(&format!("\"id\":\"{}\"", world.id())).count(), 2);

        let bad = |script: &str, timeout| -> Spec {
            let mut spec = world.spec("true");
            spec.Hooks.mut_or_insert_default().CreateContainer.push(hook("/bin/sh", script, timeout));
            spec
        };
        let text = world.refused(bad("echo because >&2; exit 3", 10)).await;
        assert!(text.contains("Hook /bin/sh failed (exit status: 3): because"), "{text}");
        let text = world.refused(bad("sleep 1000 & sleep 1000", 1)).await;
        assert!(text.contains("Hook /bin/sh did not end within 1 s"), "{text}");

        let mut spec = world.spec("true");
        spec.Hooks.mut_or_insert_default().StartContainer.push(hook("/no/such/hook", "", 1));
        let container = world.create(spec).await.unwrap();
        let text = container.start().await.unwrap_err().chain();
        assert!(text.contains("Could not run hook /no/such/hook"), "{text}");
        world.remove(&container).await;
    });
}

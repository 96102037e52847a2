//! Standard streams and terminals.
use crate::world::{LONG, outcome, read_until, shell, test};
use tokio::time::timeout;

#[test]
fn input_reaches_a_process_and_its_end_too() {
    test(async |world| {
        let container = world.start("cat; echo end").await;
        container.write_stdin("", b"hello\n").await.unwrap();
        read_until(&container, "", "hello").await;
        container.close_stdin("").unwrap();
        let end = outcome(&container, "").await;
        assert_eq!((end.code, end.out.as_str()), (0, "end\n"));
        world.remove(&container).await;
    });
}

#[test]
fn output_waits_for_its_reader_and_nothing_is_lost() {
    test(async |world| {
        let container = world.start("head -c 1000000 /dev/zero; echo end").await;
        // Far more than a pipe holds: the process must stand and wait.
        assert!(timeout(std::time::Duration::from_millis(200), container.wait("")).await.is_err());
        // Calls that are dropped while they wait for more take nothing with them.
        let mut total = 0;
        loop {
            let Ok(data) =
                timeout(std::time::Duration::from_millis(50), container.read_stdout("", 1 << 20)).await
            else {
                continue;
            };
            let data = data.unwrap();
            assert!(data.len() <= 32 * 1024);
            if data.is_empty() {
                break;
            }
            total += data.len();
        }
        assert_eq!(total, 1_000_004);
        assert_eq!(container.wait("").await.unwrap(), 0);
        world.remove(&container).await;
    });
}

#[test]
fn a_terminal_is_the_containers_own_and_has_a_size() {
    test(async |world| {
        let mut spec = world.spec(
            "tty; stty size; test -c /dev/console && echo console; ps -o tty= -p $$; read x; echo got $x",
        );
        let process = spec.Process.mut_or_insert_default();
        process.Terminal = true;
        let size = process.ConsoleSize.mut_or_insert_default();
        (size.Height, size.Width) = (33, 101);
        let container = world.create(spec).await.unwrap();
        container.start().await.unwrap();
        let text = read_until(&container, "", "console\r\n").await;
        assert!(text.starts_with("/dev/pts/0\r\n33 101\r\n"), "{text:?}");
        assert!(timeout(LONG, container.read_stderr("", 1)).await.unwrap().unwrap().is_empty());
        container
            .exec("tty", {
                let mut process = shell("trap 'stty size; exit 5' WINCH; tty; while :; do sleep 0.05; done");
                process.Terminal = true;
                process
            })
            .await
            .unwrap();
        let text = read_until(&container, "tty", "\r\n").await;
        assert!(text.starts_with("/dev/pts/1"), "{text:?}");
        container.resize("tty", 40, 120).unwrap();
        let end = outcome(&container, "tty").await;
        assert_eq!((end.code, end.out.as_str()), (5, "40 120\r\n"));
        container.write_stdin("", b"line\n").await.unwrap();
        read_until(&container, "", "got line").await;
        let end = outcome(&container, "").await;
        assert_eq!(end.code, 0);
        assert!(container.resize("none", 1, 1).is_err());
        world.remove(&container).await;
    });
}

#[test]
fn ctrl_c_reaches_the_foreground_of_a_terminal() {
    test(async |world| {
        let mut spec = world.spec("trap 'exit 9' INT; echo up; while :; do sleep 0.05; done");
        spec.Process.mut_or_insert_default().Terminal = true;
        let container = world.create(spec).await.unwrap();
        container.start().await.unwrap();
        read_until(&container, "", "up").await;
        container.write_stdin("", b"\x03").await.unwrap();
        assert_eq!(outcome(&container, "").await.code, 9);
        world.remove(&container).await;
    });
}

#[test]
fn a_user_may_open_its_own_streams_by_their_path() {
    test(async |world| {
        for terminal in [false, true] {
            let mut spec = world.spec("echo to-out > /dev/stdout && echo to-err > /dev/stderr && id -u");
            let process = spec.Process.mut_or_insert_default();
            process.Terminal = terminal;
            process.User.mut_or_insert_default().UID = 1000;
            let end = world.run(spec).await;
            assert_eq!(end.code, 0, "{end:?}");
            assert!(end.out.contains("to-out") && end.out.contains("1000"), "{end:?}");
        }
    });
}

#[test]
fn an_exec_with_a_forged_terminal_device_is_refused() {
    test(async |world| {
        let mut spec =
            world.spec("umount /dev/pts; mkdir -p /dev/pts; echo > /dev/pts/ptmx; echo up; exec sleep 1000");
        let sets = spec.Process.mut_or_insert_default().Capabilities.mut_or_insert_default();
        for set in [&mut sets.Bounding, &mut sets.Effective, &mut sets.Permitted] {
            set.push("CAP_SYS_ADMIN".to_owned());
        }
        let container = world.create(spec).await.unwrap();
        container.start().await.unwrap();
        read_until(&container, "", "up").await;
        let mut process = shell("true");
        process.Terminal = true;
        let error = container.exec("tty", process).await.unwrap_err().chain();
        assert!(error.contains("/dev/pts/ptmx is not the one of a devpts"), "{error}");
        world.remove(&container).await;
    });
}

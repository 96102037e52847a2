//! The reaper waits for every child of its process, so its tests have a process of their own, and are one test.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use agent::error::Kind;
use agent::reaper::{ExitStatus, Reaper};
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(10);

fn shell(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]);
    command
}

#[tokio::test]
async fn tells_every_waiter_and_forgets_strangers() {
    let reaper = Reaper::start().unwrap();
    let child = reaper.spawn(&mut shell("exit 7")).unwrap();
    let other = child.clone();
    let ends = timeout(LONG, async { tokio::join!(child.wait(), other.wait()) }).await.unwrap();
    assert_eq!(ends, (ExitStatus::Code(7), ExitStatus::Code(7)));
    assert_eq!(child.signal(libc::SIGTERM).unwrap_err().kind(), Kind::NotFound);

    let child = reaper.spawn(&mut shell("kill -35 $$")).unwrap();
    let end = timeout(LONG, child.wait()).await.unwrap();
    assert_eq!(
        (end, end.code()),
        (ExitStatus::Signal(35), 163),
        "real-time signals have no name but a number"
    );

    let child = reaper.spawn(Command::new("/bin/sleep").arg("1000")).unwrap();
    assert_eq!(child.signal(4000).unwrap_err().kind(), Kind::InvalidArgument);
    child.signal(libc::SIGKILL).unwrap();
    assert_eq!(timeout(LONG, child.wait()).await.unwrap().code(), 137);

    // Ended and reaped before anybody has named it: kept for the window that was open by then, for no later one.
    let window = reaper.window();
    let pid = shell("exit 3").spawn().unwrap().id();
    let process = PathBuf::from(format!("/proc/{pid}"));
    let reaped = async {
        while process.exists() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, reaped).await.unwrap();
    let late = reaper.window();
    assert_eq!(late.register(pid.cast_signed()).exit(), None);
    assert_eq!(window.register(pid.cast_signed()).exit(), Some(ExitStatus::Code(3)));
    drop(window);
    assert_eq!(late.register(pid.cast_signed()).exit(), None);
}

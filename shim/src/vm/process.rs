//! A VMM as a child process: started in the pod's namespace and cgroups, watched until it ends. Called by the VMMs.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::console::{self, Log};
use super::{Death, Placement};
use crate::error::{Context, Error, Kind, Result};
use crate::ledger::{Ledger, Resource};

/// Longest wait for a killed process to be gone; a big guest's memory is given back in that time.
const GONE: Duration = Duration::from_secs(10);
/// Longest wait for the rest of what a dead process printed, in case somebody inherited its pipes.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What to run.
#[derive(Debug)]
pub(super) struct Program {
    /// The executable.
    pub(super) path: PathBuf,
    /// Its arguments, without its own name.
    pub(super) arguments: Vec<String>,
    /// File descriptors that it inherits under the same numbers.
    pub(super) inherited: Vec<OwnedFd>,
    /// Directory of the sandbox: the working directory, and where `console.log` goes, which is its stdout.
    pub(super) dir: PathBuf,
}

/// A VMM that runs or has ended.
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    claim: Resource,
    ledger: Arc<Ledger>,
    death: watch::Receiver<Option<Death>>,
    kill: Arc<Notify>,
}

impl Process {
    /// Starts `program` at its place and writes it into the ledger. `death` hears of its end.
    pub(super) fn start(
        program: &Program,
        placement: &Placement,
        ledger: &Arc<Ledger>,
        death: watch::Sender<Option<Death>>,
    ) -> Result<Self> {
        let what = || format!("Could not start {}", program.path.display());
        let log = console::path(&program.dir);
        let console = Log::create(&log).context(|| format!("Could not create {}", log.display()))?;
        let mut command = Command::new(&program.path);
        command.args(&program.arguments).current_dir(&program.dir).env_clear().kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        place(&mut command, placement, program.inherited.iter().map(AsRawFd::as_raw_fd).collect())?;
        let mut child = command.spawn().context(what)?;

        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (Some(pid), Some(stdout), Some(stderr)) = (child.id(), stdout, stderr) else {
            return Err(Error::new(Kind::Internal, what()));
        };
        // From here on an error drops, and so kills, the child.
        let claim = Resource::process(pid, name_of(&program.path))?;
        ledger.claim(claim.clone())?;
        let printed =
            tokio::spawn(
                async move { tokio::join!(console::keep_last(stderr), console.fill_from(stdout)).0 },
            );
        let kill = Arc::new(Notify::new());
        let receiver = death.subscribe();
        tokio::spawn(watch_over(child, Arc::clone(&kill), printed, log, death));
        Ok(Self { pid, claim, ledger: Arc::clone(ledger), death: receiver, kill })
    }

    /// Its process id while it runs.
    pub(super) fn pid(&self) -> Option<u32> {
        self.death.borrow().is_none().then_some(self.pid)
    }

    /// Kills it, if need be, and waits until it is reaped.
    pub(super) async fn stop(&self) -> Result<()> {
        self.kill.notify_one();
        let mut death = self.death.clone();
        match tokio::time::timeout(GONE, death.wait_for(Option::is_some)).await {
            Ok(_) => self.ledger.forget(&self.claim),
            Err(_) => {
                let text = format!("Process {} was killed and is not gone after {GONE:?}", self.pid);
                Err(Error::new(Kind::DeadlineExceeded, text))
            }
        }
    }
}

/// Waits for the end of `child`, or brings it about, and tells `death`.
async fn watch_over(
    mut child: Child,
    kill: Arc<Notify>,
    mut printed: JoinHandle<Vec<u8>>,
    log: PathBuf,
    death: watch::Sender<Option<Death>>,
) {
    let status = tokio::select! {
        status = child.wait() => status,
        () = kill.notified() => match child.start_kill() {
            Ok(()) => child.wait().await,
            Err(error) => Err(error),
        },
    };
    let errors = match tokio::time::timeout(LAST_WORDS, &mut printed).await {
        Ok(bytes) => bytes.unwrap_or_default(),
        Err(_) => {
            printed.abort();
            Vec::new()
        }
    };
    let last_words = [("stderr", console::last_lines(&errors)), ("console", console::tail_of(&log))]
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(source, text)| format!("{source}: {text}"))
        .collect::<Vec<_>>()
        .join("; ");
    death.send_replace(Some(Death { status: describe(status), last_words }));
}

fn describe(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => status.to_string(),
        },
        Err(error) => format!("unknown status: {error}"),
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Makes the child of `command` a leader of its own session in the cgroups and the network namespace of
/// `placement`, without any descriptor of ours but `inherited`.
pub(super) fn place(command: &mut Command, placement: &Placement, inherited: Vec<RawFd>) -> Result<()> {
    let open = |path: &PathBuf, options: &OpenOptions| {
        options.open(path).context(|| format!("Could not open {}", path.display()))
    };
    let cgroups: Vec<File> = placement
        .cgroup_procs
        .iter()
        .map(|path| open(path, OpenOptions::new().write(true)))
        .collect::<Result<_>>()?;
    let netns = placement.netns.as_ref().map(|path| open(path, OpenOptions::new().read(true))).transpose()?;
    let prepare = move || settle(&cgroups, netns.as_ref(), &inherited);
    // SAFETY: between fork and exec `settle` makes nothing but system calls on descriptors opened before: it takes
    // no lock and allocates nothing.
    unsafe { command.pre_exec(prepare) };
    Ok(())
}

/// Runs in the child, before it becomes the VMM.
fn settle(cgroups: &[File], netns: Option<&File>, inherited: &[RawFd]) -> io::Result<()> {
    nix::unistd::setsid()?;
    for procs in cgroups {
        // "0" is the process that writes.
        nix::unistd::write(procs, b"0")?;
    }
    if let Some(netns) = netns {
        nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET)?;
    }
    // Not closed but marked: the parent learns through one of them whether exec succeeded.
    // SAFETY: the call takes plain integers and changes flags only.
    let marked = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    nix::errno::Errno::result(marked)?;
    for fd in inherited {
        // SAFETY: the parent keeps `fd` open over the fork; the call changes its flags only.
        nix::errno::Errno::result(unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::tests::ledger;

    fn shell(dir: &Path, script: &str) -> Program {
        Program {
            path: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            inherited: Vec::new(),
            dir: dir.to_owned(),
        }
    }

    async fn run(script: &str) -> (Process, watch::Receiver<Option<Death>>, tempfile::TempDir, Arc<Ledger>) {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(dir.path());
        let (sender, receiver) = watch::channel(None);
        let placement = Placement::default();
        let process = Process::start(&shell(dir.path(), script), &placement, &ledger, sender).unwrap();
        (process, receiver, dir, ledger)
    }

    #[tokio::test]
    async fn a_death_carries_its_status_and_last_words() {
        let (process, mut death, dir, ledger) = run("echo hello; echo 'no such device' >&2; exit 3").await;
        let death = death.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        assert_eq!(death.status, "exit status 3");
        assert_eq!(death.last_words, "stderr: no such device; console: hello");
        assert_eq!(std::fs::read(console::path(dir.path())).unwrap(), b"hello\n");
        assert_eq!(process.pid(), None);
        process.stop().await.unwrap();
        assert_eq!(ledger.resources(), []);
    }

    #[tokio::test]
    async fn stop_kills_and_reaps_a_process_that_would_not_end() {
        let (process, death, _dir, ledger) = run("trap '' TERM; while :; do read x; done < /dev/zero").await;
        let pid = process.pid().unwrap();
        assert_eq!(ledger.resources(), [Resource::process(pid, "sh").unwrap()]);
        process.stop().await.unwrap();
        assert_eq!(death.borrow().as_ref().unwrap().status, "signal 9");
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        assert_eq!(ledger.resources(), []);
    }

    #[tokio::test]
    async fn the_process_gets_its_own_session_and_nothing_but_what_it_shall_inherit() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(dir.path());
        // Neither is marked close-on-exec; only one shall survive.
        let keep = nix::unistd::dup(std::io::stderr()).unwrap();
        let leak = nix::unistd::dup(std::io::stderr()).unwrap();
        let (number, other) = (keep.as_raw_fd(), leak.as_raw_fd());
        let script = format!(
            "[ -e /proc/$$/fd/{number} ] && [ ! -e /proc/$$/fd/{other} ] && \
             read -r _ _ _ _ _ session _ < /proc/$$/stat && [ $session = $$ ] && [ -z \"$HOME\" ]"
        );
        let program = Program { inherited: vec![keep], ..shell(dir.path(), &script) };
        let (sender, mut death) = watch::channel(None);
        let process = Process::start(&program, &Placement::default(), &ledger, sender).unwrap();
        let death = death.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        assert_eq!(death.status, "exit status 0", "{}", death.last_words);
        process.stop().await.unwrap();
    }

    #[tokio::test]
    async fn the_process_starts_in_the_pods_namespace_and_cgroups() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(dir.path());
        let netns = dir.path().join("netns");
        crate::network::create_netns(&netns, &ledger).unwrap();
        let procs = dir.path().join("cgroup.procs");
        std::fs::write(&procs, "").unwrap();
        let placement = Placement { netns: Some(netns.clone()), cgroup_procs: vec![procs.clone()] };
        let (sender, mut death) = watch::channel(None);
        let program = shell(dir.path(), "stat -L -c %i /proc/self/ns/net");
        let process = Process::start(&program, &placement, &ledger, sender).unwrap();
        death.wait_for(Option::is_some).await.unwrap();
        let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&netns).unwrap());
        assert_eq!(std::fs::read_to_string(console::path(dir.path())).unwrap(), format!("{inode}\n"));
        assert_eq!(std::fs::read_to_string(&procs).unwrap(), "0", "the kernel takes 0 for the writer itself");
        process.stop().await.unwrap();
        ledger.release(&Resource::Netns(netns)).unwrap();
    }

    #[tokio::test]
    async fn a_place_that_does_not_exist_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(dir.path());
        let placement = Placement { netns: Some("/nonexistent/netns".into()), ..Placement::default() };
        let (sender, _receiver) = watch::channel(None);
        let error = Process::start(&shell(dir.path(), "true"), &placement, &ledger, sender).unwrap_err();
        assert!(error.chain().contains("/nonexistent/netns"), "{}", error.chain());
        assert_eq!(ledger.resources(), []);
    }
}

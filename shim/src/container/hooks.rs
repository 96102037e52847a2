//! OCI hooks that run on the host: `prestart`, `createRuntime` and `poststart`, each with the container's state as JSON
//! on its standard input and a deadline; `poststop` is written down in the ledger, which runs it whatever happens.
//! Called by the container's create, start and delete.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use oci_spec::runtime::{ContainerState, Hook, Spec, StateBuilder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::error::{Context, Error, Kind, Result};
use crate::ledger::{Poststop, Resource};

/// Most of a hook's output that an error text quotes, in bytes.
const QUOTE: u64 = 2048;

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// At Create, before anything of the container runs; nerdctl's networking hangs on it.
    Create,
    /// After Start.
    Started,
}

/// What the hooks are told about the container.
#[derive(Debug, Clone, Copy)]
pub(crate) struct About<'a> {
    pub(crate) id: &'a str,
    pub(crate) pid: u32,
    pub(crate) bundle: &'a Path,
}

/// Runs every hook of `moment`, in the spec's order.
///
/// # Errors
/// The first hook that can't be run, fails, or exceeds its own timeout or `deadline`.
pub(crate) async fn run(spec: &Spec, moment: Moment, about: About<'_>, deadline: Duration) -> Result<()> {
    let Some(hooks) = spec.hooks() else { return Ok(()) };
    #[allow(deprecated)] // The OCI spec deprecates prestart, and every runtime still has to run it.
    let lists = match moment {
        Moment::Create => [("prestart", hooks.prestart()), ("createRuntime", hooks.create_runtime())],
        Moment::Started => [("poststart", hooks.poststart()), ("", &None)],
    };
    let state = state_json(
        spec,
        match moment {
            Moment::Create => ContainerState::Creating,
            Moment::Started => ContainerState::Running,
        },
        about,
    )?;
    for (name, list) in lists {
        for hook in list.iter().flatten() {
            let own = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
            run_one(hook, &state, own.unwrap_or(deadline))
                .await
                .context(|| format!("{name} hook {} of container {}", hook.path().display(), about.id))?;
        }
    }
    Ok(())
}

/// The container's poststop hooks as resources of the ledger: claimed at Create, run by their release.
pub(crate) fn poststop(spec: &Spec, about: About<'_>, deadline: Duration) -> Result<Vec<Resource>> {
    let hooks = spec.hooks().as_ref().and_then(|hooks| hooks.poststop().as_deref()).unwrap_or_default();
    let state = String::from_utf8_lossy(&state_json(spec, ContainerState::Stopped, about)?).into_owned();
    let default = i64::try_from(deadline.as_secs()).unwrap_or(i64::MAX);
    let resource = |hook: &Hook| {
        Resource::Poststop(Poststop {
            path: hook.path().clone(),
            args: hook.args().clone().unwrap_or_default(),
            env: hook.env().clone().unwrap_or_default(),
            timeout: u32::try_from(hook.timeout().unwrap_or(default)).unwrap_or(u32::MAX),
            state: state.clone(),
        })
    };
    Ok(hooks.iter().map(resource).collect())
}

fn state_json(spec: &Spec, status: ContainerState, about: About<'_>) -> Result<Vec<u8>> {
    let state = StateBuilder::default()
        .version(spec.version().clone())
        .id(about.id)
        .status(status)
        .pid(i32::try_from(about.pid).unwrap_or(0))
        .bundle(about.bundle.to_path_buf())
        .annotations(spec.annotations().clone().unwrap_or_default())
        .build()
        .context(|| "Could not describe the container to its hooks".into())?;
    serde_json::to_vec(&state).context(|| "Could not describe the container to its hooks".into())
}

async fn run_one(hook: &Hook, state: &[u8], deadline: Duration) -> Result<()> {
    let mut command = Command::new(hook.path());
    command.env_clear().stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    if let Some([name, args @ ..]) = hook.args().as_deref() {
        command.arg0(name).args(args);
    }
    let variables = hook.env().iter().flatten().filter_map(|entry| entry.split_once('='));
    let mut child = command.envs(variables).spawn().context(|| "Could not be started".into())?;
    let done = tokio::time::timeout(deadline, feed_and_wait(&mut child, state)).await;
    let Ok(ended) = done else {
        child.kill().await.context(|| "Could not be killed at its deadline".into())?;
        return Err(Error::new(Kind::DeadlineExceeded, format!("Not done after {deadline:?}, killed")));
    };
    let (status, words) = ended.context(|| "Could not be waited for".into())?;
    if status.success() {
        return Ok(());
    }
    Err(Error::new(Kind::FailedPrecondition, format!("Failed with {status}: {}", words.trim())))
}

async fn feed_and_wait(
    child: &mut Child,
    state: &[u8],
) -> std::io::Result<(std::process::ExitStatus, String)> {
    if let Some(mut stdin) = child.stdin.take() {
        // A hook may end without reading its input; its exit status tells whether it liked that.
        match stdin.write_all(state).await {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
    }
    let mut words = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let mut stderr = stderr.take(QUOTE);
        stderr.read_to_end(&mut words).await?;
        // Read on without keeping it, else a talkative hook gets SIGPIPE.
        tokio::io::copy(&mut stderr.into_inner(), &mut tokio::io::sink()).await?;
    }
    let status = child.wait().await?;
    Ok((status, String::from_utf8_lossy(&words).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(hooks: &str) -> Spec {
        serde_json::from_str(&format!(r#"{{"ociVersion": "1.2.0", "hooks": {hooks}}}"#)).unwrap()
    }

    fn about() -> About<'static> {
        About { id: "c1", pid: 7, bundle: Path::new("/b") }
    }

    fn shell(script: &str) -> String {
        serde_json::to_string(&["sh", "-c", script]).unwrap()
    }

    #[tokio::test]
    async fn a_hook_reads_the_state_and_gets_only_its_own_environment() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("out");
        let script = format!("cat > {0}; echo \"$X$HOME\" >> {0}", file.display());
        let hooks = format!(
            r#"{{"createRuntime": [{{"path": "/bin/sh", "args": {}, "env": ["X=y"]}}]}}"#,
            shell(&script)
        );
        run(&spec(&hooks), Moment::Create, about(), Duration::from_secs(10)).await.unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        let (state, variables) = text.split_at(text.rfind('}').unwrap() + 1);
        let state: serde_json::Value = serde_json::from_str(state).unwrap();
        assert_eq!(
            (&state["id"], &state["pid"], &state["status"]),
            (&"c1".into(), &7.into(), &"creating".into())
        );
        assert_eq!(variables, "y\n");
    }

    #[tokio::test]
    async fn a_failing_hook_is_named_with_its_words() {
        let hooks =
            format!(r#"{{"poststart": [{{"path": "/bin/sh", "args": {}}}]}}"#, shell("echo no >&2; exit 3"));
        let error = run(&spec(&hooks), Moment::Started, about(), Duration::from_secs(10)).await.unwrap_err();
        assert_eq!(error.chain(), "poststart hook /bin/sh of container c1: Failed with exit status: 3: no");
    }

    #[test]
    fn poststop_hooks_become_resources_with_the_stopped_state_and_a_deadline() {
        let hooks = r#"{"poststop": [{"path": "/bin/a"}, {"path": "/bin/b", "timeout": 3}]}"#;
        let resources = poststop(&spec(hooks), about(), Duration::from_secs(10)).unwrap();
        let timeouts: Vec<u32> = resources
            .iter()
            .map(|resource| match resource {
                Resource::Poststop(hook) => {
                    assert!(hook.state.contains(r#""status":"stopped""#), "{}", hook.state);
                    hook.timeout
                }
                other => panic!("{other}"),
            })
            .collect();
        assert_eq!(timeouts, [10, 3]);
    }

    #[tokio::test]
    async fn a_hook_that_hangs_is_killed_at_its_own_timeout() {
        let hooks = format!(
            r#"{{"createRuntime": [{{"path": "/bin/sh", "timeout": 1, "args": {}}}]}}"#,
            shell("exec sleep 600")
        );
        let error = run(&spec(&hooks), Moment::Create, about(), Duration::from_secs(600)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::DeadlineExceeded);
    }
}

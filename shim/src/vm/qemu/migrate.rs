//! Device state to and from a file, by QEMU's migration. RAM is a shared file that stays where it is
//! (`x-ignore-shared`). Called by the machine's `save` and `restore`.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::MONITOR;
use super::qmp::{Migration, Qmp};
use crate::error::{Context, Error, Kind, Result};

/// The one file of a device state.
const STATE: &str = "state";
/// Longest wait for the whole state. It has about 500 KB and takes some 20 ms, or half a second if virtiofsd knows
/// 20,000 inodes.
const TRANSFER: Duration = Duration::from_secs(60);

/// Writes the device state of a guest that stands still into `dir`.
pub(super) async fn save(monitor: &Qmp, dir: &Path) -> Result<Vec<String>> {
    let status = monitor.execute("query-status", Value::Null, MONITOR).await?;
    if status["running"] == true {
        let text = "A running virtual machine can't be saved; pause it first";
        return Err(Error::new(Kind::FailedPrecondition, text));
    }
    let file = dir.join(STATE);
    let what = || format!("Could not save the device state to {}", file.display());
    // QEMU would make it too, but readable by others, and over one that is there.
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file).context(what)?;
    match transfer(monitor, "migrate", &file).await {
        Ok(()) => Ok(vec![STATE.to_owned()]),
        Err(error) => {
            // A rest of it must neither go on being written nor be taken for a state. QEMU refuses when there is
            // nothing to cancel, which is as well.
            let _ = monitor.execute("migrate_cancel", Value::Null, MONITOR).await;
            let removed = match std::fs::remove_file(&file) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    vec![Error::caused(Kind::Internal, format!("Could not remove {}", file.display()), error)]
                }
                _ => Vec::new(),
            };
            Err(error).context(what).map_err(|error: Error| error.with_cleanup(removed))
        }
    }
}

/// Reads the device state in `dir` into a QEMU that waits for one; the guest then stands still.
pub(super) async fn load(monitor: &Qmp, dir: &Path) -> Result<()> {
    let file = dir.join(STATE);
    // The guest still has the addresses of the pod that was saved: neither QEMU nor its driver shall announce them.
    monitor.execute("migrate-set-parameters", json!({ "announce-rounds": 0 }), MONITOR).await?;
    transfer(monitor, "migrate-incoming", &file)
        .await
        .context(|| format!("Could not load the device state from {}", file.display()))
}

async fn transfer(monitor: &Qmp, command: &str, file: &Path) -> Result<()> {
    let capabilities = ["x-ignore-shared", "events"].map(|name| json!({ "capability": name, "state": true }));
    monitor.execute("migrate-set-capabilities", json!({ "capabilities": capabilities }), MONITOR).await?;
    let mut events = monitor.migration();
    let before = events.borrow_and_update().count;
    monitor.execute(command, channel(file)?, MONITOR).await?;
    let is_over = |migration: &Migration| {
        migration.count > before && matches!(migration.status.as_str(), "completed" | "failed" | "cancelled")
    };
    let status = match tokio::time::timeout(TRANSFER, events.wait_for(is_over)).await {
        Ok(Ok(migration)) => migration.status.clone(),
        Ok(Err(_)) => return Err(Error::new(Kind::Unavailable, "QEMU has closed its monitor")),
        Err(_) => {
            let text = format!("QEMU did not finish {command} within {TRANSFER:?}");
            return Err(Error::new(Kind::DeadlineExceeded, text));
        }
    };
    if status == "completed" {
        return Ok(());
    }
    let answer = monitor.execute("query-migrate", Value::Null, MONITOR).await?;
    let reason = answer["error-desc"].as_str().unwrap_or("QEMU gives no reason").to_owned();
    Err(Error::new(Kind::Internal, format!("{command} has {status}: {reason}")))
}

/// The file as a migration channel. Not as the URI `file:…`, where a comma in the path would start an option.
fn channel(file: &Path) -> Result<Value> {
    let name = file.to_str().ok_or_else(|| {
        Error::new(
            Kind::InvalidArgument,
            format!("QEMU can't be given the path {}: not UTF-8", file.display()),
        )
    })?;
    let address = json!({ "transport": "file", "filename": name, "offset": 0 });
    Ok(json!({ "channels": [{ "channel-type": "main", "addr": address }] }))
}

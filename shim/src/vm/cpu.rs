//! The host's processor, for what a snapshot records. Called by the VMMs.

/// The model of the host's first CPU: by name on amd64, by its part's number on arm64.
pub(super) fn model() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let value =
        |key| text.lines().filter_map(|line| line.split_once(':')).find(|(name, _)| name.trim() == key);
    value("model name").or_else(|| value("CPU part")).map(|(_, model)| model.trim().to_owned())
}

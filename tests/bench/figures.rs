//! Every figure: what it is, its unit, and its goal. Called by the report.

/// What a figure should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Goal {
    /// Shown only.
    None,
    /// At most this many times what runc has.
    Times(f64),
    /// At least this many times what runc has.
    Least(f64),
    /// At most this.
    Most(f64),
    /// At most so much, and so much for each unit of microvm's other figure.
    Line { base: f64, slope: f64, of: &'static str },
}

/// One figure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figure {
    /// How it is chosen with `--only`.
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) goal: Goal,
}

const fn figure(name: &'static str, unit: &'static str, goal: Goal, what: &'static str) -> Figure {
    Figure { name, what, unit, goal }
}

/// Every figure, in the order of the table.
pub(crate) const FIGURES: &[Figure] = &[
    figure("ctr-run", "ms", Goal::Times(3.0), "ctr run --rm … true, from a template"),
    figure("pod-start", "ms", Goal::Times(4.0), "RunPodSandbox + first container running, from a template"),
    figure("exec", "ms", Goal::Times(1.0), "ctr tasks exec … true"),
    figure("pod-remove", "ms", Goal::Times(2.0), "StopPodSandbox + RemovePodSandbox"),
    figure("cold-run", "ms", Goal::None, "ctr run --rm … true, with templates turned off"),
    figure("cold-boot", "ms", Goal::Most(2000.0), "VMM start until the agent answers, from the kernel"),
    figure("clone", "ms", Goal::Most(250.0), "VMM start until the agent answers, from a template"),
    figure("touched-256", "MB", Goal::None, "RAM that a guest of 256 MiB has touched at a checkpoint"),
    figure("still-256", "ms", line("touched-256"), "checkpoint: the guest of 256 MiB stands still"),
    figure("touched-1024", "MB", Goal::None, "RAM that a guest of 1 GiB has touched at a checkpoint"),
    figure("still-1024", "ms", line("touched-1024"), "checkpoint: the guest of 1 GiB stands still"),
    figure("touched-4096", "MB", Goal::None, "RAM that a guest of 4 GiB has touched at a checkpoint"),
    figure("still-4096", "ms", line("touched-4096"), "checkpoint: the guest of 4 GiB stands still"),
    figure("checkpoint", "ms", Goal::None, "ctr tasks checkpoint, all of it (256 MiB)"),
    figure("restore", "ms", Goal::None, "RunPodSandbox from a snapshot until an exec is answered (256 MiB)"),
    figure("guest-restore", "ms", Goal::Most(250.0), "VMM start until the agent answers, from a snapshot"),
    figure("snapshot-plain", "× pages", Goal::Most(1.05), "plain snapshot on disk / non-zero pages of RAM"),
    figure("snapshot-packed", "× pages", Goal::Most(0.4), "packed snapshot on disk / non-zero pages of RAM"),
    figure("pss", "MiB", Goal::Most(60.0), "memory of an idle pod, all of it"),
    figure("pss-guest", "MiB", Goal::Most(35.0), "… RAM that its guest has touched"),
    figure("pss-vmm", "MiB", Goal::Most(18.0), "… VMM without guest RAM"),
    figure("pss-rest", "MiB", Goal::Most(7.0), "… shim, virtiofsd, stubs"),
    figure("log", "MB/s", Goal::Least(0.5), "a container's output to ctr"),
    figure("exec-out", "MB/s", Goal::Least(0.5), "output of an exec to ctr"),
    figure("exec-in", "MB/s", Goal::Least(0.5), "input of an exec from ctr"),
    figure("crowd-start", "ms", beside("pod-start"), "20 pods started at once: CPU's time for one"),
    figure("crowd-remove", "ms", beside("pod-remove"), "20 pods removed at once: CPU's time for one"),
];

/// A checkpoint's goal: what QEMU needs for the device state, and 4 GB/s for the copy.
const fn line(of: &'static str) -> Goal {
    Goal::Line { base: 25.0, slope: 0.25, of }
}

/// A crowd's goal: as much as one pod alone, and a third.
const fn beside(of: &'static str) -> Goal {
    Goal::Line { base: 0.0, slope: 1.3, of }
}

/// The figure of this name.
#[cfg(test)]
pub(crate) fn find(name: &str) -> Option<&'static Figure> {
    FIGURES.iter().find(|figure| figure.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_goals_name_figures() {
        for (number, figure) in FIGURES.iter().enumerate() {
            assert!(FIGURES[..number].iter().all(|other| other.name != figure.name), "{}", figure.name);
            if let Goal::Line { of, .. } = figure.goal {
                assert!(find(of).is_some(), "{of}");
            }
        }
    }
}

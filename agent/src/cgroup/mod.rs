//! cgroup v2: one group per container, its limits, statistics and events.

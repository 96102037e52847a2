//! Limits and statistics. Most need cgroup v2 controllers, which are all the guest's but not always this machine's: where one is missing
//! a test says so and checks that the limit is skipped.

use std::time::Duration;

use crate::world::{LONG, World, outcome, read_until, shell, test};
use agent_proto::oci::{LinuxResources, Spec};
use tokio::time::timeout;

const MIB: i64 = 1 << 20;

fn limited(world: &World, script: &str, set: impl FnOnce(&mut LinuxResources)) -> Spec {
    let mut spec = world.spec(script);
    set(spec.Linux.mut_or_insert_default().Resources.mut_or_insert_default());
    spec
}

fn lacks(world: &World, controller: &str) -> bool {
    let offered = std::fs::read_to_string(world.cgroups.join("microvm/cgroup.subtree_control")).unwrap();
    let lacks = !offered.split_whitespace().any(|name| name == controller);
    if lacks {
        eprintln!("SKIPPED: this machine's cgroup2 has no {controller} controller");
    }
    lacks
}

#[test]
fn limits_are_in_force_or_skipped_and_can_be_changed() {
    test(async |world| {
        let spec = limited(&world, "exec sleep 1000", |resources| {
            let memory = resources.Memory.mut_or_insert_default();
            (memory.Limit, memory.Swap, memory.Reservation) = (64 * MIB, 64 * MIB, 16 * MIB);
            let cpu = resources.CPU.mut_or_insert_default();
            (cpu.Shares, cpu.Quota, cpu.Period, cpu.RealtimeRuntime) = (2048, 50_000, 100_000, 10);
            // More CPUs than any machine has.
            cpu.Cpus = "0-9999".to_owned();
            resources.Pids.mut_or_insert_default().Limit = 50;
        });
        let container = world.create(spec).await.unwrap();
        container.start().await.unwrap();
        let show = "cd /sys/fs/cgroup; cat memory.max memory.low cpu.max cpu.weight pids.max 2>/dev/null";
        container.exec("show", shell(show)).await.unwrap();
        let shown = outcome(&container, "show").await.out;
        if !(lacks(&world, "memory") || lacks(&world, "cpu") || lacks(&world, "pids")) {
            assert_eq!(shown, "67108864\n16777216\n50000 100000\n174\n50\n");
            let stats = container.stats().unwrap();
            assert_eq!((stats.memory_stats.usage.limit, stats.pids_stats.limit), (67_108_864, 50));
            assert!(stats.memory_stats.usage.usage > 0 && stats.pids_stats.current > 0);
        }
        let mut change = LinuxResources::new();
        change.Memory.mut_or_insert_default().Limit = 128 * MIB;
        change.Pids.mut_or_insert_default().Limit = -1;
        container.update(change).await.unwrap();
        container.exec("show", shell(show)).await.unwrap();
        let shown = outcome(&container, "show").await.out;
        if !(lacks(&world, "memory") || lacks(&world, "cpu") || lacks(&world, "pids")) {
            assert_eq!(shown, "134217728\n16777216\n50000 100000\n174\nmax\n");
        }
        world.remove(&container).await;
    });
}

#[test]
fn processor_time_is_counted() {
    test(async |world| {
        let container = world.start("echo up; while :; do :; done").await;
        read_until(&container, "", "up").await;
        let counted = async {
            while container.stats().unwrap().cpu_stats.cpu_usage.total_usage < 20_000_000 {
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG / 2, counted).await.expect("20 ms of a busy loop are counted");
        world.remove(&container).await;
    });
}

#[test]
fn a_kill_for_want_of_memory_is_told() {
    test(async |world| {
        if lacks(&world, "memory") {
            return;
        }
        let spec = limited(&world, "head -c 200000000 /dev/zero | tail | wc -c; exit 3", |resources| {
            let memory = resources.Memory.mut_or_insert_default();
            (memory.Limit, memory.Swap) = (32 * MIB, 32 * MIB);
        });
        let container = world.create(spec).await.unwrap();
        container.start().await.unwrap();
        let id = timeout(LONG / 2, world.runtime.oom()).await.expect("an event");
        assert_eq!(id, container.id());
        assert_eq!(outcome(&container, "").await.code, 3, "the shell itself lives on");
        assert!(
            timeout(Duration::from_millis(50), world.runtime.oom()).await.is_err(),
            "one kill is one event"
        );
        world.remove(&container).await;
    });
}

#[test]
fn a_limit_that_is_too_small_to_start_in_is_named_as_the_cause() {
    test(async |world| {
        if lacks(&world, "memory") {
            return;
        }
        let spec = limited(&world, "true", |resources| {
            let memory = resources.Memory.mut_or_insert_default();
            (memory.Limit, memory.Swap) = (4096, 4096);
        });
        let text = world.refused(spec).await;
        assert!(text.contains("is the memory limit too small"), "{text}");
    });
}

#[test]
fn the_number_of_processes_is_limited() {
    test(async |world| {
        if lacks(&world, "pids") {
            return;
        }
        let script = "for n in 1 2 3 4 5 6 7 8; do sleep 1000 & done 2>&1; wait";
        let spec = limited(&world, script, |resources| resources.Pids.mut_or_insert_default().Limit = 5);
        let container = world.create(spec).await.unwrap();
        container.start().await.unwrap();
        read_until(&container, "", "fork").await;
        assert_eq!(container.stats().unwrap().pids_stats.limit, 5);
        world.remove(&container).await;
    });
}

//! PID 1 of the guest, or with `container-helper` as its first argument the helper that becomes a container.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|arg| arg == agent::container::HELPER) {
        return ExitCode::from(u8::try_from(agent::container::helper_main(args)).unwrap_or(u8::MAX));
    }
    ExitCode::FAILURE
}

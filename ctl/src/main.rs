//! `microvmctl`, the operator's command for `io.containerd.microvm.v1`.
fn main() {}

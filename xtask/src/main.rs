//! The commands of the README: `cargo xtask demo | test | install | shell`.
fn main() {}

//! Parse and dispatch; nothing else.
fn main() {}

//! What PID 1 does before it can serve, called by `main.rs` alone, in one thread.

pub mod params;

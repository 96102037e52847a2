//! containerd shim v2 plugin `io.containerd.microvm.v1`.

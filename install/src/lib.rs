//! What a node needs to run `io.containerd.microvm.v1`, and the installer that lays it down.

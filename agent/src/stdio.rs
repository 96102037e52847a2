//! The standard streams of one process in a container, as the RPCs see them.

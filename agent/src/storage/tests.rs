//! Tests of storages.

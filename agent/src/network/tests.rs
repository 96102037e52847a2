//! Tests of the network in a namespace of their own.

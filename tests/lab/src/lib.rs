//! Real containerd on one machine, for the tests and the demo.

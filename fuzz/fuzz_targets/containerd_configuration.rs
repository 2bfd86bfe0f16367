//! containerd's configuration files, and CRI's status.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nri_unpack::fuzz::containerd_configuration(bytes));

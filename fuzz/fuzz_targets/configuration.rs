//! The plugin's configuration.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nri_unpack::fuzz::configuration(bytes));

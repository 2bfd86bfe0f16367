//! The requests of the runtime.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nri::fuzz::messages(bytes));

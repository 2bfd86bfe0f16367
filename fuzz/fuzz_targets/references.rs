//! References to images.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nri_unpack::fuzz::references(bytes));

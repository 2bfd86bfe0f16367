//! The entries of a rebuilt layer's archive.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nri_unpack::fuzz::archive(bytes));

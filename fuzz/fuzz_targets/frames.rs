//! The bytes of NRI's socket: frames, and the multiplexer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nri::fuzz::frames(bytes));

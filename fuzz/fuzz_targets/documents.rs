//! Manifests, configs and indexes of images.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nri_unpack::fuzz::documents(bytes));

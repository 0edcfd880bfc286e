//! libFuzzer target: [`uc_fuzz::manifest`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| uc_fuzz::manifest(data));

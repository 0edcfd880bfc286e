//! libFuzzer target: [`uc_fuzz::layer`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| uc_fuzz::layer(data));

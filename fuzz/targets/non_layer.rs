//! libFuzzer target: [`uc_fuzz::non_layer`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| uc_fuzz::non_layer(data));

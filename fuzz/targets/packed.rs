//! libFuzzer target: [`uc_fuzz::packed`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| uc_fuzz::packed(data));

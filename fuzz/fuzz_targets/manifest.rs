//! Feeds arbitrary bytes to the reader `manifest`.
#![no_main]

#[allow(dead_code)]
mod readers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = readers::manifest(&readers::folder(), bytes);
});

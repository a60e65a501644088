//! Feeds arbitrary bytes to the reader `analogies`.
#![no_main]

#[allow(dead_code)]
mod readers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = readers::analogies(&readers::folder(), bytes);
});

//! Feeds arbitrary bytes to the reader `token_store`.
#![no_main]

#[allow(dead_code)]
mod readers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = readers::token_store(&readers::folder(), bytes);
});

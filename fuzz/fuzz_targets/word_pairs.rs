//! Feeds arbitrary bytes to the reader `word_pairs`.
#![no_main]

#[allow(dead_code)]
mod readers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = readers::word_pairs(&readers::folder(), bytes);
});

//! Feeds arbitrary bytes to the reader `pairs_tsv`.
#![no_main]

#[allow(dead_code)]
mod readers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = readers::pairs_tsv(&readers::folder(), bytes);
});

//! Feeds arbitrary bytes to the reader `pairs_jsonl`.
#![no_main]

#[allow(dead_code)]
mod readers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = readers::pairs_jsonl(&readers::folder(), bytes);
});

//! Feeds arbitrary bytes to the reader `word2vec_text`.
#![no_main]

#[allow(dead_code)]
mod readers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = readers::word2vec_text(&readers::folder(), bytes);
});

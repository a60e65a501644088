//! Feeds arbitrary bytes to the reader `vectors_safetensors`.
#![no_main]

#[allow(dead_code)]
mod readers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = readers::vectors_safetensors(&readers::folder(), bytes);
});

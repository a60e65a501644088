//! Feeds arbitrary bytes to the reader `token_store`.
#![no_main]

#[allow(dead_code)]
mod readers;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // In memory where there is such a folder: a run writes millions of files.
    let parent = if std::path::Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
    let folder = parent.join(format!("cllm-fuzz-token_store-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for the input");
    let _ = readers::token_store(&folder, bytes);
});

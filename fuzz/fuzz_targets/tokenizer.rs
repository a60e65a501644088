//! Feeds arbitrary bytes to the reader `tokenizer`.
#![no_main]

#[allow(dead_code)]
mod readers;

use std::sync::Once;

use libfuzzer_sys::fuzz_target;

/// The `tokenizers` crate panics on some files, and the reader makes an error of that; libFuzzer's hook would abort.
fn let_tokenizers_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let abort = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !panic.location().is_some_and(|location| location.file().contains("/tokenizers-")) {
                abort(panic);
            }
        }));
    });
}

fuzz_target!(|bytes: &[u8]| {
    let_tokenizers_panic();
    let _ = readers::tokenizer(&readers::folder(), bytes);
});

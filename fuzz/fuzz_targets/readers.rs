//! The readers under test: each takes one file of arbitrary content and must come back, with a value or an error.
//! Included by the fuzz targets and by `tests/hostile.rs`, which runs the seed corpora.

use std::fs;
use std::path::Path;

use cllm::checkpoint::Checkpoint;
use cllm::data::{TokenStore, Tokenizer};
use cllm::{Result, Transformer, TransformerConfig};

/// The model whose tensors a file is expected to hold.
pub fn model() -> TransformerConfig {
    TransformerConfig {
        vocabulary_size: 5,
        context: 3,
        dim: 2,
        heads: 1,
        layers: 1,
        feed_forward: 4,
        ..TransformerConfig::default()
    }
}

pub fn safetensors(folder: &Path, bytes: &[u8]) -> Result<()> {
    let path = folder.join("model.safetensors");
    fs::write(&path, bytes).expect("the folder is there");
    Transformer::load_parameters(model(), &path).map(|_| ())
}

pub fn manifest(folder: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(folder.join("manifest.json"), bytes).expect("the folder is there");
    let checkpoint = Checkpoint::open(folder)?;
    checkpoint.manifest().setting::<TransformerConfig>(&checkpoint.manifest_path(), "model").map(|_| ())
}

pub fn tokenizer(folder: &Path, bytes: &[u8]) -> Result<()> {
    let path = folder.join("tokenizer.json");
    fs::write(&path, bytes).expect("the folder is there");
    let tokenizer = Tokenizer::load(&path)?;
    let mut tokens = Vec::new();
    tokenizer.encode("lowest newer", &mut tokens)?;
    let text = tokenizer.decode(&tokens);
    assert!(text.len() <= 1000 * tokens.len(), "{} bytes of {} tokens", text.len(), tokens.len());
    Ok(())
}

pub fn token_store(folder: &Path, bytes: &[u8]) -> Result<()> {
    let path = folder.join("tokens");
    fs::write(&path, bytes).expect("the folder is there");
    let store = TokenStore::open(&path)?;
    let mut tokens = vec![0; store.len().min(100)];
    store.copy_to(store.len() - tokens.len(), &mut tokens)?;
    assert!(tokens.iter().all(|&token| (token as usize) < store.vocabulary_size()));
    Ok(())
}

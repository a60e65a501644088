//! A folder that the Python package sentence-transformers loads as a `StaticEmbedding` and a `Normalize`.
//!
//! ```text
//! modules.json                          which modules, in which order
//! config_sentence_transformers.json     similarity: cosine
//! 0_StaticEmbedding/model.safetensors   embedding.weight, V × C
//! 0_StaticEmbedding/tokenizer.json      in Hugging Face's form
//! 1_Normalize/config.json
//! ```
//!
//! `StaticEmbedding` has no token weights: they are multiplied into the vectors, which changes no text's vector. It does
//! not cut texts, where training keeps the first tokens of each.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use ndarray::{Array2, ArrayView2};
use serde_json::json;

use crate::checkpoint::{atomic, tensors};
use crate::data::Tokenizer;
use crate::kernels::elementwise::all_finite;
use crate::models::pair_encoder::PairEncoder;
use crate::params::{Initialisation, ParameterLayout, ParameterStore};
use crate::{Error, Result};

/// Writes `encoder` and its tokenizer to `folder`, which is made if need be. A former `modules.json`, without which the
/// folder is not loaded, goes first and the new one comes last: what an interruption leaves is not taken for an encoder.
///
/// In Python, `SentenceTransformer(folder).encode(texts)` then gives the vectors that
/// [`PairEncoder::encode`](crate::models::pair_encoder::PairEncoder::encode) gives for their tokens.
///
/// # Errors
/// [`Error::Tokenizer`] for a tokenizer that is not in Hugging Face's form (of bytes or characters); [`Error::Shape`] if it
/// has another number of tokens than the encoder; [`Error::InvalidRow`] if a token's vector, or its product with the
/// token's weight, is not finite; the folder is then as before. [`Error::Io`].
pub fn write(folder: impl AsRef<Path>, encoder: &PairEncoder, tokenizer: &Tokenizer) -> Result<()> {
    let folder = folder.as_ref();
    if matches!(tokenizer, Tokenizer::Byte | Tokenizer::Character(_)) {
        return Err(Error::Tokenizer("sentence-transformers needs byte pairs, words or a tokenizer.json".into()));
    }
    let (expected, found) = (encoder.config().vocabulary_size, tokenizer.vocabulary_size());
    if expected != found {
        let (expected, found) = (vec![expected], vec![found]);
        return Err(Error::Shape { what: "tokens of the tokenizer".into(), expected, found });
    }
    let weighted = encoder.token_weights().is_some().then(|| encoder.weighted_vectors());
    check_finite(folder, weighted.as_ref().map_or_else(|| encoder.vectors(), |vectors| vectors.view()))?;
    let (embedding, normalize, modules) =
        (folder.join("0_StaticEmbedding"), folder.join("1_Normalize"), folder.join("modules.json"));
    match fs::remove_file(&modules) {
        Ok(()) => atomic::sync_folder_of(&modules).map_err(Error::io(&modules))?,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
        Err(error) => return Err(Error::io(&modules)(error)),
    }
    for folder in [&embedding, &normalize] {
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
    }
    tokenizer.save(&embedding)?;
    write_vectors(&embedding.join("model.safetensors"), encoder, weighted)?;
    let name = "sentence_embedding";
    write_json(&normalize.join("config.json"), &json!({"module_input_name": name, "module_output_name": name}))?;
    let config = json!({
        "model_type": "SentenceTransformer",
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": null,
        "similarity_fn_name": "cosine",
    });
    write_json(&folder.join("config_sentence_transformers.json"), &config)?;
    let value = json!([
        {"idx": 0, "name": "0", "path": "0_StaticEmbedding", "type": "sentence_transformers.models.StaticEmbedding"},
        {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]);
    write_json(&modules, &value)
}

/// Fails at the first token whose vector is not finite.
fn check_finite(folder: &Path, vectors: ArrayView2<'_, f32>) -> Result<()> {
    for (token, vector) in vectors.rows().into_iter().enumerate() {
        let vector = vector.to_slice().expect("rows are contiguous");
        if !all_finite(vector) {
            let value = vector.iter().find(|value| !value.is_finite()).expect("one is not finite");
            return Err(Error::row(folder, token + 1, format!("a value of the token {token} is {value}")));
        }
    }
    Ok(())
}

/// Writes the vectors of `encoder`, or these, weighted, in their place.
fn write_vectors(path: &Path, encoder: &PairEncoder, weighted: Option<Array2<f32>>) -> Result<()> {
    let Some(vectors) = weighted else {
        return tensors::write(path, encoder.layout(), encoder.parameters());
    };
    let mut layout = ParameterLayout::default();
    let id = layout.matrix("embedding.weight", vectors.nrows(), vectors.ncols(), Initialisation::Zeros);
    let mut store = ParameterStore::zeros(&layout);
    store.matrix_mut(id).assign(&vectors);
    tensors::write(path, &layout, &store)
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    atomic::write(path, |file| writeln!(file, "{value:#}"))
}

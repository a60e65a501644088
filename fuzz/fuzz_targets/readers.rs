//! The readers under test: each takes one file of arbitrary content and must come back, with a value or an error.
//! Included by the fuzz targets and by `tests/seeds.rs`, which runs the seed corpora.

use std::fs;
use std::path::{Path, PathBuf};

use cllm::checkpoint::{Checkpoint, Checksum};
use cllm::config::WordTrainingConfig;
use cllm::data::{PairFormat, PairReader, TokenStore, Tokenizer};
use cllm::evaluation::{word_analogies, word_pairs as score_pairs};
use cllm::export::{self, VectorFormat, word2vec};
use cllm::parallel::Parallelism;
use cllm::{MemoryPlan, Result, TrainingConfig, Transformer, TransformerConfig, WordVectors};

/// A folder for the files of this process, in memory where there is such a folder: a fuzzer writes millions of files.
#[allow(dead_code)] // the seeds' test has folders of its own
pub fn folder() -> PathBuf {
    let parent = if Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
    let folder = parent.join(format!("cllm-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder for the input");
    folder
}

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
    let (manifest, path) = (checkpoint.manifest(), checkpoint.manifest_path());
    if manifest.kind == "words" {
        return manifest.setting::<WordTrainingConfig>(&path, "training")?.validate();
    }
    let model = manifest.setting::<TransformerConfig>(&path, "model")?;
    MemoryPlan::of(&model, &manifest.setting::<TrainingConfig>(&path, "training")?).map(|_| ())
}

/// A manifest without its last member, the checksum, which is added: few changes get past it otherwise.
pub fn sealed_manifest(folder: &Path, bytes: &[u8]) -> Result<()> {
    let seal = format!(",\n  \"checksum\": \"{}\"\n}}\n", Checksum::of(bytes));
    manifest(folder, &[bytes, seal.as_bytes()].concat())
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

pub fn word2vec_text(folder: &Path, bytes: &[u8]) -> Result<()> {
    check_table(folder, VectorFormat::Word2vecText, bytes, &word2vec::parse_text(bytes)?);
    Ok(())
}

pub fn word2vec_binary(folder: &Path, bytes: &[u8]) -> Result<()> {
    check_table(folder, VectorFormat::Word2vecBinary, bytes, &word2vec::parse_binary(bytes)?);
    Ok(())
}

pub fn vectors_safetensors(folder: &Path, bytes: &[u8]) -> Result<()> {
    check_table(folder, VectorFormat::Safetensors, bytes, &export::safetensors::parse(bytes)?);
    Ok(())
}

/// Between an array and the words beside it, in the inputs of [`npy`].
pub const WORDS: &[u8] = b"\nWORDS\n";

pub fn npy(folder: &Path, bytes: &[u8]) -> Result<()> {
    let words = bytes.windows(WORDS.len()).rposition(|window| window == WORDS);
    let (array, words) = words.map_or((bytes, &b""[..]), |at| (&bytes[..at], &bytes[at + WORDS.len()..]));
    check_table(folder, VectorFormat::Npy, bytes, &export::npy::parse(array, words)?);
    Ok(())
}

/// What was read is no more than the file can hold, is whole, and is the same when it was written and read again.
fn check_table(folder: &Path, format: VectorFormat, bytes: &[u8], read: &WordVectors) {
    assert!(read.dim() > 0 && 2 * read.vectors().len() <= bytes.len(), "{} values", read.vectors().len());
    assert!(read.vectors().iter().all(|value| value.is_finite()));
    assert!(read.words().enumerate().all(|(row, word)| !word.is_empty() && read.id(word) == Some(row as u32)));
    let path = folder.join("table.npy");
    // Some words that the others read they do not write, such as those with a carriage return.
    let all_are_written = matches!(format, VectorFormat::Word2vecText | VectorFormat::Word2vecBinary);
    if export::write(&path, format, read.words(), read.vectors()).is_ok() || all_are_written {
        assert_eq!(&export::read(&path, Some(format)).expect("it was written"), read);
    }
}

pub fn pairs_tsv(folder: &Path, bytes: &[u8]) -> Result<()> {
    pairs(folder, PairFormat::Tsv, bytes)
}

pub fn pairs_jsonl(folder: &Path, bytes: &[u8]) -> Result<()> {
    pairs(folder, PairFormat::JsonLines, bytes)
}

/// Reads all rows, those after a bad one too; the error is that of the first.
fn pairs(folder: &Path, format: PairFormat, bytes: &[u8]) -> Result<()> {
    let path = folder.join("pairs");
    fs::write(&path, bytes).expect("the folder is there");
    let mut reader = PairReader::open(&path, format, 1)?.with_maximum_line(256);
    let (mut texts, mut length, mut result) = (Vec::new(), 0, Ok(()));
    for _ in 0..=bytes.len() {
        match reader.read(&mut texts) {
            Ok(false) => {
                assert!(length <= bytes.len(), "{length} bytes of text in {}", bytes.len());
                return result;
            }
            Ok(true) => {
                assert!(texts.len() == 3 && texts.iter().all(|text| !text.trim().is_empty()), "{texts:?}");
                length += texts.iter().map(String::len).sum::<usize>();
            }
            Err(error) => result = result.and(Err(error)),
        }
    }
    panic!("more rows than bytes")
}

/// The words that evaluation files may ask about.
fn table() -> WordVectors {
    let text = b"5 2\nking 3 1\nqueen 3 -1\nman 1 1\nwoman 1 -1\nstra\xc3\x9fe -2 0.5\n";
    word2vec::parse_text(text).expect("a table")
}

fn lines(bytes: &[u8]) -> usize {
    bytes.split(|&byte| byte == b'\n').count()
}

pub fn word_pairs(folder: &Path, bytes: &[u8]) -> Result<()> {
    let path = folder.join("pairs");
    fs::write(&path, bytes).expect("the folder is there");
    let report = score_pairs(&table(), &path, None)?;
    assert!(report.pairs + report.missing + report.skipped <= lines(bytes), "{report:?}");
    assert!(report.spearman.is_nan() || report.spearman.abs() <= 1.0 + 1e-9, "{report:?}");
    Ok(())
}

pub fn analogies(folder: &Path, bytes: &[u8]) -> Result<()> {
    let path = folder.join("questions");
    fs::write(&path, bytes).expect("the folder is there");
    let report = word_analogies(&table(), &path, None, Parallelism::SEQUENTIAL)?;
    let rows = report.asked() + report.missing() + report.skipped + report.sections.len();
    assert!(report.correct() <= report.asked() && rows <= lines(bytes), "{report:?}");
    Ok(())
}

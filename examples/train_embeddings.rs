//! Trains word embeddings by skip-gram or CBOW; without arguments, on the Rust sources of the local cargo registry.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use cllm::config::{WordObjective, WordTrainingConfig, WorkerMode};
use cllm::data::{WordSplit, WordVocabulary};
use cllm::export::{self, VectorFormat};
use cllm::parallel::Parallelism;
use cllm::similarity::UnitVectors;
use cllm::train::WordTrainer;

#[path = "common/corpus.rs"]
mod corpus;
#[path = "common/memory.rs"]
mod memory;
#[path = "common/progress.rs"]
mod progress;

#[derive(Parser)]
#[command(about = "Train word embeddings")]
struct Arguments {
    /// Text files and folders; the Rust sources of the local cargo registry if there are none
    #[arg(long, num_args = 1..)]
    data: Vec<PathBuf>,
    #[arg(long, default_value = "skipgram")]
    model: Model,
    /// Width of a vector
    #[arg(long, default_value_t = 100)]
    dim: usize,
    /// Largest distance of a pair of words
    #[arg(long, default_value_t = 5)]
    window: usize,
    /// Negative words for each pair
    #[arg(long, default_value_t = 5.0)]
    negatives: f64,
    /// Occurrences that a word needs to enter the vocabulary
    #[arg(long, default_value_t = 5)]
    min_count: u64,
    /// Threshold of the subsampling of frequent words; 0 keeps all
    #[arg(long, default_value_t = 1e-3)]
    sample: f64,
    /// Passes over the text [default: 5]
    #[arg(long)]
    epochs: Option<u64>,
    /// [default: 0.025, or 0.05 for cbow]
    #[arg(long)]
    learning_rate: Option<f64>,
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, |count| count.get()))]
    workers: usize,
    #[arg(long, default_value = "deterministic")]
    mode: Mode,
    /// Centre words that share their negatives
    #[arg(long)]
    block: Option<usize>,
    /// Negatives that a block shares, a multiple of 16
    #[arg(long)]
    shared_negatives: Option<usize>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to write the vectors
    #[arg(long)]
    out: Option<PathBuf>,
    #[arg(long, default_value = "word2vec")]
    format: Format,
    /// Print one line of JSON at the end
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Model {
    Skipgram,
    Cbow,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    Deterministic,
    Async,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Word2vec,
    Word2vecBin,
    Npy,
    Safetensors,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let sources = arguments.data.is_empty();
    let split = if sources { WordSplit::Identifiers } else { WordSplit::Blanks };
    let corpus = corpus::collect(&arguments.data, None)?;
    let vocabulary = WordVocabulary::build(&corpus, split, arguments.min_count)?;

    let objective = match arguments.model {
        Model::Skipgram => WordObjective::SkipGram,
        Model::Cbow => WordObjective::Cbow,
    };
    let defaults = WordTrainingConfig::default();
    let config = WordTrainingConfig {
        objective,
        dim: arguments.dim,
        window: arguments.window,
        negatives: arguments.negatives,
        sample: arguments.sample,
        epochs: arguments.epochs.unwrap_or(5),
        learning_rate: arguments.learning_rate.unwrap_or(match objective {
            WordObjective::SkipGram => 0.025,
            WordObjective::Cbow => 0.05,
        }),
        workers: arguments.workers,
        mode: match arguments.mode {
            Mode::Deterministic => WorkerMode::Deterministic,
            Mode::Async => WorkerMode::Async,
        },
        block: arguments.block.unwrap_or(defaults.block),
        shared_negatives: arguments.shared_negatives.unwrap_or(defaults.shared_negatives),
        seed: arguments.seed,
        ..defaults
    };
    let mut display = progress::ProgressDisplay::new();
    display.line(&format!("{}: {} words, vocabulary {}", corpus.name(), vocabulary.corpus_words(), vocabulary.len()));
    let all_words = vocabulary.corpus_words() * config.epochs;
    let mut trainer = WordTrainer::new(vocabulary, config)?;
    let summary = trainer.run(&corpus, |progress| {
        let message = format_args!("loss {:.4}, {:.0} words/s", progress.loss, progress.words_per_second);
        display.update(progress.words.min(all_words), all_words, message);
        ControlFlow::Continue(())
    })?;
    display.finish();

    let (vocabulary, vectors) = (trainer.vocabulary(), trainer.model().vectors());
    if sources {
        let search = UnitVectors::new(vectors, Parallelism::SEQUENTIAL);
        for word in ["Vec", "Option", "println", "usize", "impl", "unwrap"] {
            if let Some(id) = vocabulary.id(word) {
                let found = search.similar(id, 6, None, Parallelism::SEQUENTIAL);
                let words: Vec<&str> = found.iter().map(|neighbour| vocabulary.word(neighbour.id)).collect();
                println!("{word}: {}", words.join(" "));
            }
        }
    }
    if let Some(path) = &arguments.out {
        let format = match arguments.format {
            Format::Word2vec => VectorFormat::Word2vecText,
            Format::Word2vecBin => VectorFormat::Word2vecBinary,
            Format::Npy => VectorFormat::Npy,
            Format::Safetensors => VectorFormat::Safetensors,
        };
        export::write(path, format, vocabulary.words(), vectors)?;
    }
    report(&summary, vocabulary, arguments.json);
    Ok(())
}

fn report(summary: &cllm::train::WordSummary, vocabulary: &WordVocabulary, json: bool) {
    let seconds = summary.training_time.as_secs_f64();
    if json {
        let line = serde_json::json!({
            "words": summary.words, "vocabulary": vocabulary.len(), "seconds": seconds,
            "words_per_s": summary.words_per_second().round(), "loss": summary.loss, "peak_rss_mb": memory::peak_rss_mb(),
        });
        println!("{line}");
    } else {
        println!(
            "{} words in {seconds:.1} s, {:.0} words/s, loss {:.4}",
            summary.words,
            summary.words_per_second(),
            summary.loss
        );
    }
}

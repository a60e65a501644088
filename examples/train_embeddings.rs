//! Trains word embeddings by skip-gram or CBOW; without arguments, on the Rust sources of the local cargo registry.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, ValueEnum};
use cllm::OnNonFinite;
use cllm::checkpoint::Accept;
use cllm::config::{SubwordConfig, WordObjective, WordTrainingConfig, WorkerMode};
use cllm::data::{TextFiles, WordSplit, WordVocabulary};
use cllm::export::{self, VectorFormat};
use cllm::parallel::Parallelism;
use cllm::similarity::{Neighbour, UnitVectors};
use cllm::train::WordTrainer;
use ndarray::Axis;
use serde::{Deserialize, Serialize};

#[path = "common/corpus.rs"]
mod corpus;
#[path = "common/interrupt.rs"]
mod interrupt;
#[path = "common/memory.rs"]
mod memory;
#[path = "common/progress.rs"]
mod progress;
#[path = "common/recorded.rs"]
mod recorded;
#[path = "common/run_folder.rs"]
#[allow(dead_code)] // word embeddings have no metrics
mod run_folder;

use interrupt::Interrupt;
use run_folder::{CONFIG, RunFolder};

/// Bytes of Rust source that are read where no text is given.
const SOURCE_BYTES: u64 = 64 << 20;

/// The most frequent words, among which neighbours are looked for: rare ones have seen little.
const FREQUENT: usize = 5000;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Trains word embeddings.
///
/// With --run, an interrupted run (Ctrl-C, SIGTERM) finishes its block, saves and exits with code 75; --resume goes on
/// with it. A second signal ends it at once.
#[derive(Clone, Parser, Serialize, Deserialize)]
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
    /// Passes over the text
    #[arg(long, default_value_t = 5)]
    epochs: u64,
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
    /// Train character n-grams as parts of words, so that words outside the vocabulary get a vector too
    #[arg(long)]
    #[serde(default)]
    subwords: bool,
    /// Rows that n-grams are hashed into
    #[arg(long, default_value_t = SubwordConfig::default().buckets, requires = "subwords", value_name = "N")]
    #[serde(default)]
    buckets: u32,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to write the vectors
    #[arg(long)]
    out: Option<PathBuf>,
    #[arg(long, default_value = "word2vec")]
    format: Format,
    /// Folder for checkpoints; new or empty
    #[arg(long, value_name = "DIR")]
    #[serde(skip)]
    run: Option<PathBuf>,
    /// Words of the text between checkpoints; 0 writes one only at the end, or when interrupted
    #[arg(long, default_value_t = 20_000_000, value_name = "N")]
    save_every: u64,
    /// Checkpoints that are kept, the last ones; 0 keeps all
    #[arg(long, default_value_t = 3, value_name = "K")]
    keep: usize,
    /// What to do about a loss that is not finite: stop, skip the block, or roll-back to the last checkpoint and
    /// halve the learning rate
    #[arg(long, default_value = "stop", value_parser = recorded::word::<OnNonFinite>, value_name = "POLICY")]
    #[serde(default)]
    on_non_finite: OnNonFinite,
    /// Go on with the run in this folder, with its flags and data; --epochs may grow
    #[arg(long, value_name = "DIR", conflicts_with = "run")]
    #[serde(skip)]
    resume: Option<PathBuf>,
    /// What may differ where a run is resumed: exact (nothing that changes the result), rounding (another machine or BLAS)
    /// or anything (other data as well)
    #[arg(long, default_value = "exact", value_parser = recorded::accept, requires = "resume")]
    #[serde(skip)]
    accept: Accept,
    /// Print one line of JSON at the end
    #[arg(long)]
    #[serde(skip)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum, Serialize, Deserialize)]
enum Model {
    Skipgram,
    Cbow,
}

#[derive(Clone, Copy, ValueEnum, Serialize, Deserialize)]
enum Mode {
    Deterministic,
    Async,
}

#[derive(Clone, Copy, ValueEnum, Serialize, Deserialize)]
enum Format {
    Word2vec,
    Word2vecBin,
    Npy,
    Safetensors,
}

/// What `config.json` of a run folder holds.
#[derive(Serialize, Deserialize)]
struct Description {
    files: Vec<PathBuf>,
    /// The command line, completed.
    flags: Arguments,
}

fn main() -> ExitCode {
    let matches = Arguments::command().get_matches();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    train(arguments, &matches).unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

impl Arguments {
    /// With paths that say the same wherever the program runs.
    fn completed(mut self) -> std::io::Result<Self> {
        for path in self.data.iter_mut().chain(&mut self.out) {
            *path = std::path::absolute(&*path)?;
        }
        Ok(self)
    }

    /// Nothing is trained that could not be written.
    fn check_writable(&self) -> Result<()> {
        let Some((path, folder)) = self.out.as_ref().and_then(|path| Some((path, path.parent()?))) else {
            return Ok(());
        };
        if path.is_dir() {
            return Err(format!("{}: a folder, where a file is to be written", path.display()).into());
        }
        tempfile::tempfile_in(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(())
    }

    fn config(&self) -> WordTrainingConfig {
        let objective = match self.model {
            Model::Skipgram => WordObjective::SkipGram,
            Model::Cbow => WordObjective::Cbow,
        };
        let defaults = WordTrainingConfig::default();
        WordTrainingConfig {
            objective,
            dim: self.dim,
            window: self.window,
            negatives: self.negatives,
            sample: self.sample,
            epochs: self.epochs,
            learning_rate: self.learning_rate.unwrap_or(match objective {
                WordObjective::SkipGram => 0.025,
                WordObjective::Cbow => 0.05,
            }),
            workers: self.workers,
            mode: match self.mode {
                Mode::Deterministic => WorkerMode::Deterministic,
                Mode::Async => WorkerMode::Async,
            },
            block: self.block.unwrap_or(defaults.block),
            shared_negatives: self.shared_negatives.unwrap_or(defaults.shared_negatives),
            subwords: self.subwords.then(|| SubwordConfig { buckets: self.buckets, ..Default::default() }),
            save_interval: (self.save_every > 0).then_some(self.save_every),
            keep_checkpoints: (self.keep > 0).then_some(self.keep),
            on_non_finite: self.on_non_finite,
            seed: self.seed,
            ..defaults
        }
    }
}

/// How much text is read: all that was asked for.
fn bytes_of(arguments: &Arguments) -> Option<u64> {
    arguments.data.is_empty().then_some(SOURCE_BYTES)
}

/// The flags, text and folder of a new run, or of the one that is resumed.
fn begin(given: Arguments, matches: &ArgMatches) -> Result<(Arguments, TextFiles, Option<RunFolder>)> {
    let given = given.completed()?;
    given.config().validate()?;
    given.check_writable()?;
    let Some(path) = given.resume.clone() else {
        let corpus = corpus::collect(&given.data, bytes_of(&given))?;
        let folder = given.run.clone().map(RunFolder::create).transpose()?;
        return Ok((given, corpus, folder));
    };
    let folder = RunFolder::of_run(path)?;
    let Description { files, flags } = folder.read_json(CONFIG)?;
    let flags = recorded::continued(&flags, &given, matches, &["epochs"], given.accept)?;
    flags.config().validate()?;
    flags.check_writable()?;
    let corpus = corpus::collect_again(&files, flags.data.is_empty(), bytes_of(&flags))?;
    Ok((Arguments { resume: given.resume, accept: given.accept, json: given.json, ..flags }, corpus, Some(folder)))
}

/// The trainer at its last checkpoint if there is one, or else at its beginning.
fn trainer(arguments: &Arguments, corpus: &TextFiles, folder: Option<&RunFolder>) -> Result<WordTrainer> {
    let new = || {
        let split = if arguments.data.is_empty() { WordSplit::Identifiers } else { WordSplit::Blanks };
        WordTrainer::new(WordVocabulary::build(corpus, split, arguments.min_count)?, arguments.config())
    };
    let Some(folder) = folder else { return Ok(new()?) };
    let mut trainer = match &arguments.resume {
        None => new()?,
        Some(path) => match WordTrainer::resume(path, Some(arguments.config()), arguments.accept) {
            Err(cllm::Error::NoCheckpoint { .. }) => new()?,
            resumed => recorded::taken_up(resumed)?,
        },
    };
    // Held before it is changed: the run may still be going on.
    trainer.save_to(folder.path())?;
    let files = corpus.paths().map(Path::to_path_buf).collect();
    folder.write_json(CONFIG, &Description { files, flags: arguments.clone() })?;
    Ok(trainer)
}

fn train(given: Arguments, matches: &ArgMatches) -> Result<ExitCode> {
    let (arguments, corpus, folder) = begin(given, matches)?;
    let mut trainer = trainer(&arguments, &corpus, folder.as_ref())?;
    let mut display = progress::ProgressDisplay::new();
    let vocabulary = trainer.vocabulary();
    display.line(&format!("{}: {} words, vocabulary {}", corpus.name(), vocabulary.corpus_words(), vocabulary.len()));
    let all_words = vocabulary.corpus_words().saturating_mul(trainer.config().epochs);
    if arguments.resume.is_some() {
        display.line(&format!("resumed at word {}", trainer.words()));
    }
    // Without a folder to save to, a signal ends the process as it always does.
    let interrupt = folder.as_ref().map(|_| Interrupt::watch()).transpose()?;
    let summary = trainer.run(&corpus, |progress| {
        let message = format_args!("loss {:.4}, {:.0} words/s", progress.loss, progress.words_per_second);
        display.update(progress.words.min(all_words), all_words, message);
        let stop = interrupt.as_ref().is_some_and(Interrupt::is_set);
        if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    display.finish();
    let summary = summary.map_err(recorded::explained)?;
    if let Some(folder) = &folder {
        if summary.run_words > 0 {
            trainer.save(folder.path())?;
        }
        if summary.stopped {
            let path = folder.path().display();
            eprintln!("interrupted at word {}, which is saved; --resume {path} goes on", summary.words);
            return Ok(ExitCode::from(interrupt::SAVED));
        }
    }

    let (vocabulary, vectors) = (trainer.vocabulary(), trainer.model().vectors());
    if !vectors.iter().all(|value| value.is_finite()) {
        return Err("the last update made vectors that are not finite".into());
    }
    if arguments.data.is_empty() {
        let search = UnitVectors::new(vectors.view(), Parallelism::SEQUENTIAL);
        let words = |found: &[Neighbour]| -> String {
            let words: Vec<&str> = found.iter().map(|neighbour| vocabulary.word(neighbour.id)).collect();
            words.join(" ")
        };
        for word in ["Vec", "Option", "println", "usize", "impl", "unwrap"] {
            if let Some(id) = vocabulary.id(word) {
                println!("{word}: {}", words(&search.similar(id, 6, Some(FREQUENT), Parallelism::SEQUENTIAL)));
            }
        }
        for word in ["VecOfOptions", "unwrap_or_print", "u128size"] {
            if let (None, Some(vector)) = (vocabulary.id(word), trainer.vector_of(word)) {
                let found =
                    search.nearest(vector.view().insert_axis(Axis(0)), 6, Some(FREQUENT), Parallelism::SEQUENTIAL);
                println!("{word}, not in the vocabulary: {}", words(&found[0]));
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
        export::write(path, format, vocabulary.words(), vectors.view())?;
    }
    if summary.skipped + summary.rolled_back > 0 {
        eprintln!("{} blocks skipped, rolled back {} times", summary.skipped, summary.rolled_back);
    }
    report(&summary, vocabulary, arguments.json);
    Ok(ExitCode::SUCCESS)
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

//! The flags of `train_pairs`.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use cllm::OnNonFinite;
use cllm::checkpoint::Accept;
use cllm::config::{PairEncoderConfig, PairTrainingConfig};
use cllm::data::{PairFormat, TokenizerSource};
use serde::{Deserialize, Serialize};

use crate::{Result, recorded};

/// Trains a static text encoder on pairs of texts.
///
/// With --run, an interrupted run (Ctrl-C, SIGTERM) finishes its step, saves and exits with code 75; --resume goes on with
/// it. A second signal ends it at once.
#[derive(Clone, Parser, Serialize, Deserialize)]
#[command(args_override_self = true)]
pub struct Flags {
    /// Files of pairs [default: functions of the Rust sources in the local cargo registry]
    #[arg(long, num_args = 1.., value_name = "PATH")]
    pub data: Vec<PathBuf>,
    /// tsv or jsonl [default: what a file's ending says]
    #[arg(long)]
    pub format: Option<Format>,
    /// Hard negatives of each pair
    #[arg(long, default_value_t = 0)]
    pub hard_negatives: usize,
    /// bpe:N, words:N (words alone has 30000), byte, char, or a tokenizer.json
    #[arg(long, default_value = if cfg!(feature = "tokenizers") { "bpe:8192" } else { "byte" })]
    pub tokenizer: String,
    /// Tokens of a text that are kept
    #[arg(long, default_value_t = 128)]
    pub max_tokens: usize,
    /// Share of the pairs, at their end, that is held out
    #[arg(long, default_value_t = 0.1)]
    pub held_out: f64,

    /// Width of a vector
    #[arg(long, default_value_t = 256)]
    pub dim: usize,
    /// Learn a weight for every token
    #[arg(long)]
    pub token_weights: bool,
    /// Pairs in a batch
    #[arg(long, default_value_t = 512)]
    pub batch: usize,
    #[arg(long, default_value_t = 0.05)]
    pub temperature: f64,
    /// Let documents look for their queries too
    #[arg(long)]
    pub symmetric: bool,
    /// Widths of prefixes that are trained as vectors of their own, such as 64,128
    #[arg(long, value_delimiter = ',', value_name = "WIDTH")]
    pub matryoshka: Vec<usize>,
    /// Passes over the pairs [default: 10, unless --steps is given]
    #[arg(long)]
    pub epochs: Option<u64>,
    /// Updates; with --epochs, whichever ends first
    #[arg(long)]
    pub steps: Option<u64>,
    /// Peak learning rate
    #[arg(long, default_value_t = 0.1)]
    pub learning_rate: f64,
    #[arg(long, default_value_t = 0.0)]
    pub weight_decay: f64,
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, |count| count.get()))]
    pub workers: usize,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Write the encoder there, as sentence-transformers reads it
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Folder for checkpoints; new or empty
    #[arg(long, value_name = "DIR")]
    #[serde(skip)]
    pub run: Option<PathBuf>,
    /// Updates between checkpoints; 0 writes one only at the end, or when interrupted
    #[arg(long, default_value_t = 1000, value_name = "N")]
    pub save_every: u64,
    /// Checkpoints that are kept, the last ones; 0 keeps all
    #[arg(long, default_value_t = 3, value_name = "K")]
    pub keep: usize,
    /// What to do about a loss or a gradient that is not finite: stop, skip the batch, or roll-back to the last checkpoint and
    /// halve the learning rate
    #[arg(long, default_value = "stop", value_parser = recorded::word::<OnNonFinite>, value_name = "POLICY")]
    #[serde(default)]
    pub on_non_finite: OnNonFinite,
    /// Go on with the run in this folder, with its flags, tokenizer and data; --steps and --epochs may grow
    #[arg(long, value_name = "DIR", conflicts_with = "run")]
    #[serde(skip)]
    pub resume: Option<PathBuf>,
    /// What may differ where a run is resumed: exact (nothing that changes the result), rounding (another machine, BLAS or
    /// number of workers) or anything (other data as well)
    #[arg(long, default_value = "exact", value_parser = recorded::accept, requires = "resume")]
    #[serde(skip)]
    pub accept: Accept,
    /// Print one line of JSON at the end
    #[arg(long)]
    #[serde(skip)]
    pub json: bool,
}

#[derive(Clone, Copy, ValueEnum, Serialize, Deserialize)]
pub enum Format {
    Tsv,
    Jsonl,
}

impl From<Format> for PairFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Tsv => Self::Tsv,
            Format::Jsonl => Self::JsonLines,
        }
    }
}

impl Flags {
    /// With the defaults that depend on other flags, and paths that say the same wherever the program runs.
    pub fn completed(mut self) -> std::io::Result<Self> {
        self.epochs = self.config().epochs;
        for path in self.data.iter_mut().chain(&mut self.out) {
            *path = std::path::absolute(&*path)?;
        }
        Ok(self)
    }

    /// Fails at the first value outside its domain.
    pub fn check(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.held_out) {
            return Err(format!("--held-out {}: a share below 1", self.held_out).into());
        }
        let source = self.tokenizer_source()?;
        if self.out.is_some() && matches!(source, TokenizerSource::Byte | TokenizerSource::Character) {
            let what = "sentence-transformers, which --out writes for, needs byte pairs, words or a tokenizer.json";
            return Err(format!("--tokenizer {}: {what}", self.tokenizer).into());
        }
        Ok(self.config().validate()?)
    }

    pub fn tokenizer_source(&self) -> Result<TokenizerSource> {
        let source = if self.tokenizer == "words" { "words:30000" } else { &self.tokenizer };
        Ok(source.parse()?)
    }

    /// The encoder's shape, for a tokenizer of `vocabulary_size` tokens.
    pub fn encoder(&self, vocabulary_size: usize) -> PairEncoderConfig {
        PairEncoderConfig { vocabulary_size, dim: self.dim, token_weights: self.token_weights }
    }

    pub fn config(&self) -> PairTrainingConfig {
        PairTrainingConfig {
            batch_size: self.batch,
            hard_negatives: self.hard_negatives,
            max_tokens: self.max_tokens,
            max_steps: self.steps,
            epochs: self.epochs.or(if self.steps.is_none() { Some(10) } else { None }),
            temperature: self.temperature,
            symmetric: self.symmetric,
            matryoshka: self.matryoshka.clone(),
            learning_rate: self.learning_rate,
            minimum_learning_rate: self.learning_rate / 100.0,
            weight_decay: self.weight_decay,
            save_interval: (self.save_every > 0).then_some(self.save_every),
            keep_checkpoints: (self.keep > 0).then_some(self.keep),
            on_non_finite: self.on_non_finite,
            seed: self.seed,
            workers: self.workers,
            ..Default::default()
        }
    }
}

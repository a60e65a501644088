//! The command line of `train_lm`, and the configurations it stands for.

use std::path::PathBuf;

use clap::Parser;
use cllm::checkpoint::Accept;
use cllm::data::{BatchOrder, TokenizerSource};
use cllm::{OnNonFinite, Optimizer, Preset, Result, Schedule, TrainingConfig, TransformerConfig};
use serde::{Deserialize, Serialize};

use crate::recorded::{self, word};

/// Trains a language model on text.
///
/// Without any flag: a small model, for about two minutes, on Rust sources that Cargo has downloaded.
///
/// An interrupted run (Ctrl-C, SIGTERM) finishes its step, saves and exits with code 75; --resume goes on with it. A second
/// signal ends it at once.
#[derive(Clone, Parser, Serialize, Deserialize)]
// A flag given twice means its last value, so that scripts can add to a command line.
#[command(args_override_self = true, allow_negative_numbers = true)]
pub struct Flags {
    /// Text files, or folders of them [default: Rust sources in the Cargo registry]
    #[arg(long, num_args = 1.., value_name = "PATH")]
    pub data: Vec<PathBuf>,
    /// Read at most this many bytes of the data
    #[arg(long, value_name = "N")]
    pub max_bytes: Option<u64>,
    /// Text files to validate on, instead of the end of the data
    #[arg(long, num_args = 1.., value_name = "PATH")]
    pub validation: Vec<PathBuf>,
    /// Share of the data, at its end, that is held out for validation; 0 holds out nothing
    #[arg(long, default_value_t = 0.1, value_name = "SHARE")]
    pub validation_fraction: f64,
    /// byte, char, bpe:N, or a tokenizer.json; bpe alone has the preset's vocabulary
    #[arg(long, default_value = if cfg!(feature = "tokenizers") { "bpe" } else { "byte" })]
    pub tokenizer: String,

    /// Shape and batch: seed, nano, small or gpt2
    #[arg(long, default_value = "nano", value_parser = word::<Preset>)]
    pub preset: Preset,
    /// Transformer blocks [default: the preset's, as for the following]
    #[arg(long)]
    pub layers: Option<usize>,
    /// Attention heads
    #[arg(long)]
    pub heads: Option<usize>,
    /// Width of the model
    #[arg(long)]
    pub dim: Option<usize>,
    /// Width of the feed-forward's hidden layer; 4·dim if only dim is given
    #[arg(long)]
    pub ff: Option<usize>,
    /// Tokens in a sequence, and the longest the model can see
    #[arg(long)]
    pub context: Option<usize>,
    /// Sequences in a forward and backward pass
    #[arg(long)]
    pub batch: Option<usize>,
    /// Batches accumulated into one update
    #[arg(long, default_value_t = 1)]
    pub accumulate: usize,
    /// Probability of dropping embedded inputs, attention weights and residuals
    #[arg(long, default_value_t = 0.0)]
    pub dropout: f32,

    /// Updates [default: 4000, unless --epochs is given]
    #[arg(long)]
    pub steps: Option<u64>,
    /// Passes over the data; with --steps, whichever ends first
    #[arg(long)]
    pub epochs: Option<u64>,
    /// adamw or sgd
    #[arg(long, default_value = "adamw", value_parser = word::<Optimizer>)]
    pub optimizer: Optimizer,
    /// Peak learning rate
    #[arg(long, default_value_t = 1e-3)]
    pub learning_rate: f64,
    /// Learning rate at the end [default: a tenth of the peak]
    #[arg(long)]
    pub min_learning_rate: Option<f64>,
    /// constant, linear, cosine or warmup-stable-decay
    #[arg(long, default_value = "cosine", value_parser = word::<Schedule>)]
    pub schedule: Schedule,
    /// Updates over which the learning rate rises
    #[arg(long, default_value_t = 100)]
    pub warmup: u64,
    /// Decay of matrices, per unit of learning rate
    #[arg(long, default_value_t = 0.01)]
    pub weight_decay: f64,
    /// Decay rate of AdamW's first moment; below the usual 0.9, since the presets' batches are small
    #[arg(long, default_value_t = 0.8)]
    pub beta1: f64,
    /// Decay rate of AdamW's second moment
    #[arg(long, default_value_t = 0.99)]
    pub beta2: f64,
    /// Momentum of SGD
    #[arg(long, default_value_t = 0.9)]
    pub momentum: f64,
    /// Largest norm of the gradient; 0 does not clip
    #[arg(long, default_value_t = 1.0)]
    pub clip: f64,
    /// Share of the target's probability that is spread over the vocabulary
    #[arg(long, default_value_t = 0.0)]
    pub label_smoothing: f64,
    /// Decay of a moving average of the weights, which is then evaluated and saved
    #[arg(long, value_name = "DECAY")]
    pub average: Option<f64>,
    /// Order of the sequences: random, sequential or shuffled
    #[arg(long, default_value = "shuffled", value_parser = word::<BatchOrder>)]
    pub order: BatchOrder,
    /// Seed of initial weights, order, dropout and the sample
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Worker threads [default: one a core]
    #[arg(long)]
    pub workers: Option<usize>,

    /// Updates between evaluations; 0 evaluates only at the end
    #[arg(long, default_value_t = 250)]
    pub eval_every: u64,
    /// Batches in an evaluation during the run; the last one takes the whole validation data
    #[arg(long, default_value_t = 50)]
    pub eval_batches: usize,
    /// Updates between checkpoints; 0 writes one only at the end, or when interrupted
    #[arg(long, default_value_t = 1000, value_name = "N")]
    pub save_every: u64,
    /// Checkpoints that are kept, the last ones; 0 keeps all
    #[arg(long, default_value_t = 3, value_name = "K")]
    pub keep: usize,
    /// What to do when the loss or the gradient is not finite: stop, skip or roll-back
    #[arg(long, default_value = "stop", value_parser = word::<OnNonFinite>, value_name = "POLICY")]
    pub on_non_finite: OnNonFinite,
    /// Updates between lines of metrics.jsonl
    #[arg(long, default_value_t = 10)]
    pub log_every: u64,
    /// Folder for model, tokenizer, configuration and metrics; new or empty [default: runs/lm-N]
    #[arg(long, value_name = "DIR")]
    #[serde(skip)]
    pub out: Option<PathBuf>,
    /// Go on with the run in this folder, with its flags, tokenizer and data; --steps and --epochs may grow
    #[arg(long, value_name = "DIR", conflicts_with = "out")]
    #[serde(skip)]
    pub resume: Option<PathBuf>,
    /// What may differ where a run is resumed: exact (nothing that changes the result), rounding (another machine, BLAS or
    /// number of workers) or anything (other data as well)
    #[arg(long, default_value = "exact", value_parser = recorded::accept, requires = "resume")]
    #[serde(skip)]
    pub accept: Accept,
    /// Tokens in the sample that is printed at the end
    #[arg(long, default_value_t = 300)]
    pub sample: usize,
    /// Print a JSON object as the last line
    #[arg(long)]
    #[serde(skip)]
    pub json: bool,
}

/// Updates if neither --steps nor --epochs is given.
const DEFAULT_STEPS: u64 = 4000;

impl Flags {
    /// With everything filled in that follows from other flags, from the machine or from where the program runs: so they
    /// say the same wherever and whenever they are read again.
    pub fn completed(mut self) -> std::io::Result<Self> {
        let (model, training) = (self.model(1), self.training());
        (self.layers, self.heads, self.dim) = (Some(model.layers), Some(model.heads), Some(model.dim));
        (self.ff, self.context) = (Some(model.feed_forward), Some(model.context));
        (self.batch, self.workers) = (Some(training.batch_size), Some(training.workers));
        (self.steps, self.min_learning_rate) = (training.max_steps, Some(training.minimum_learning_rate));
        for path in self.data.iter_mut().chain(&mut self.validation) {
            *path = std::path::absolute(&*path)?;
        }
        Ok(self)
    }

    pub fn tokenizer_source(&self) -> Result<TokenizerSource> {
        match self.tokenizer.as_str() {
            "bpe" => Ok(TokenizerSource::BytePair { vocabulary_size: self.preset.model().vocabulary_size }),
            source => source.parse(),
        }
    }

    /// The model's shape, for a tokenizer of `vocabulary_size` tokens.
    pub fn model(&self, vocabulary_size: usize) -> TransformerConfig {
        let preset = self.preset.model();
        TransformerConfig {
            vocabulary_size,
            context: self.context.unwrap_or(preset.context),
            dim: self.dim.unwrap_or(preset.dim),
            heads: self.heads.unwrap_or(preset.heads),
            layers: self.layers.unwrap_or(preset.layers),
            feed_forward: self.ff.unwrap_or(self.dim.map_or(preset.feed_forward, |dim| 4 * dim)),
            embedding_dropout: self.dropout,
            attention_dropout: self.dropout,
            residual_dropout: self.dropout,
            ..preset
        }
    }

    pub fn training(&self) -> TrainingConfig {
        let default = TrainingConfig::default();
        TrainingConfig {
            batch_size: self.batch.unwrap_or(self.preset.batch_size()),
            sequence_length: self.context.unwrap_or(self.preset.sequence_length()),
            accumulation_steps: self.accumulate,
            max_steps: self.steps.or(if self.epochs.is_none() { Some(DEFAULT_STEPS) } else { None }),
            epochs: self.epochs,
            optimizer: self.optimizer,
            learning_rate: self.learning_rate,
            minimum_learning_rate: self.min_learning_rate.unwrap_or(self.learning_rate / 10.0),
            warmup_steps: self.warmup,
            schedule: self.schedule,
            weight_decay: self.weight_decay,
            beta1: self.beta1,
            beta2: self.beta2,
            momentum: self.momentum,
            gradient_clip: if self.clip == 0.0 { None } else { Some(self.clip) },
            label_smoothing: self.label_smoothing,
            moving_average_decay: self.average,
            evaluation_interval: (self.eval_every > 0).then_some(self.eval_every),
            evaluation_batches: Some(self.eval_batches),
            save_interval: (self.save_every > 0).then_some(self.save_every),
            keep_checkpoints: (self.keep > 0).then_some(self.keep),
            on_non_finite: self.on_non_finite,
            batch_order: self.order,
            seed: self.seed,
            workers: self.workers.unwrap_or(default.workers),
            ..default
        }
    }
}

//! A training run that takes a fraction of a second.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use cllm::data::{BatchOrder, SequenceSource, TokenStore};
use cllm::train::RunSummary;
use cllm::{Result, Trainer, TrainingConfig, Transformer, TransformerConfig};

pub const VOCABULARY: usize = 11;

pub fn model_config() -> TransformerConfig {
    TransformerConfig {
        vocabulary_size: VOCABULARY,
        context: 8,
        dim: 8,
        heads: 2,
        layers: 1,
        feed_forward: 16,
        ..TransformerConfig::default()
    }
}

pub fn training_config() -> TrainingConfig {
    TrainingConfig {
        batch_size: 3,
        sequence_length: 8,
        max_steps: Some(14),
        warmup_steps: 2,
        learning_rate: 1e-2,
        workers: 1,
        seed: 5,
        ..TrainingConfig::default()
    }
}

/// 18 windows of 8 tokens: with 3 sequences in a batch, 6 steps an epoch.
pub fn tokens() -> TokenStore {
    let tokens: Vec<u32> = (0..150).map(|i: u32| i * i % VOCABULARY as u32).collect();
    TokenStore::from_tokens(&tokens, VOCABULARY).unwrap()
}

pub fn source(config: &TrainingConfig) -> SequenceSource {
    source_of(tokens(), config)
}

pub fn source_of(tokens: TokenStore, config: &TrainingConfig) -> SequenceSource {
    let sequences = config.batch_size * config.accumulation_steps;
    SequenceSource::new(tokens, config.batch_order, sequences, config.sequence_length, config.seed).unwrap()
}

pub fn trainer(config: &TrainingConfig) -> Trainer {
    Trainer::new(Transformer::new(model_config(), 1).unwrap(), config.clone()).unwrap()
}

/// Runs until `step` steps are made, or to the end.
pub fn run_to(trainer: &mut Trainer, source: &SequenceSource, step: u64) -> Result<RunSummary> {
    trainer.run(source, None, |progress| {
        if progress.report.step >= step { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
}

/// The files of a folder, by name.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
        })
        .collect()
}

pub const ORDERS: [BatchOrder; 3] = [BatchOrder::Random, BatchOrder::Sequential, BatchOrder::Shuffled];

/// The checkpoints in the run folder `run`, in the order of their names.
pub fn checkpoints(run: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

//! Trains a language model on text, from files to a saved model: `cargo run --release --example train_lm`.
//!
//! The run leaves a folder with `model.safetensors`, `config.json`, `tokenizer.json`, `metrics.jsonl` and `loss.svg`.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use clap::Parser;
use cllm::data::{self, BatchOrder, SequenceSource, TokenStore, Tokenizer};
use cllm::rng::{Purpose, Stream};
use cllm::train::{Evaluation, Progress, RunSummary};
use cllm::{Trainer, TrainingConfig, Transformer};
use ndarray::{Array2, s};
use serde_json::json;

#[path = "common/chart.rs"]
mod chart;
#[path = "common/corpus.rs"]
mod corpus;
#[path = "train_lm/flags.rs"]
mod flags;
#[path = "common/memory.rs"]
mod memory;
#[path = "common/progress.rs"]
mod progress;
#[path = "common/run_folder.rs"]
mod run_folder;

use chart::Curve;
use flags::Flags;
use progress::ProgressDisplay;
use run_folder::{MetricsLog, RunFolder};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    match train(&Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn train(flags: &Flags) -> Result<()> {
    let start = Instant::now();
    let config = flags.training();
    // Before the corpus is read, which may take a while; the vocabulary is not known yet, and any will do.
    config.validate()?;
    flags.model(1).validate()?;
    let tokenizer = flags.tokenizer_source()?;
    let corpus = corpus::collect(&flags.data, flags.max_bytes)?;
    let folder = match &flags.out {
        Some(path) => RunFolder::create(path.clone())?,
        None => RunFolder::create_numbered("lm")?,
    };

    let tokenizer = tokenizer.build(&corpus)?;
    let tokens = data::tokenize(&corpus, &tokenizer, folder.file("tokens.bin"))?;
    let (training, validation) = split(flags, tokens, &tokenizer, &folder.file("validation.bin"))?;
    let model = Transformer::new(flags.model(tokenizer.vocabulary_size()), config.seed)?;
    let parameters = model.layout().parameter_count();
    println!(
        "{} MB of text in {} files, {} training tokens, vocabulary {}, {parameters} parameters, {} workers → {}",
        corpus.total_bytes() / 1_000_000,
        corpus.paths().len(),
        training.len(),
        tokenizer.vocabulary_size(),
        config.workers,
        folder.path().display()
    );
    let prompt = prompt(validation.as_ref().unwrap_or(&training));
    let (training, validation) = sources(training, validation, &config)?;
    let mut trainer = Trainer::new(model, config.clone())?;

    tokenizer.save(folder.path())?;
    let description = json!({
        "model": trainer.model().config(),
        "training": config,
        "data": {
            "files": corpus.paths().collect::<Vec<_>>(),
            "training_tokens": training.tokens().len(),
            "validation_tokens": validation.as_ref().map_or(0, |source| source.tokens().len()),
        },
    });
    folder.write_json("config.json", &description)?;
    let mut record = Record::new(folder.metrics()?, flags.log_every);
    let summary = run(&mut trainer, &training, validation.as_ref(), &folder, &mut record)?;

    let model = trainer.averaged_model().unwrap_or_else(|| trainer.model().clone());
    model.save_parameters(&folder.file("model.safetensors"))?;
    let evaluation = validation.map(|validation| trainer.evaluate(&validation)).transpose()?;
    if let Some(evaluation) = &evaluation {
        record.evaluation(summary.steps, evaluation)?;
        println!("validation loss {:.4}, perplexity {:.2}", evaluation.loss, evaluation.perplexity());
    }
    record.draw(&folder.file("loss.svg"))?;
    if flags.sample > 0 {
        println!("\n{}\n", sample(&model, &tokenizer, prompt, flags.sample, config.seed)?);
    }
    if flags.json {
        let last_line = json!({
            "steps": summary.steps,
            "train_loss": record.recent_loss(),
            "val_loss": evaluation.map(|evaluation| evaluation.loss),
            "tokens_per_s": summary.tokens_per_second(),
            "seconds": start.elapsed().as_secs_f64(),
            "parameters": parameters,
            "workers": config.workers,
            "peak_rss_mb": memory::peak_rss_mb(),
        });
        println!("{last_line}");
    }
    Ok(())
}

/// Training and validation tokens.
fn split(
    flags: &Flags,
    tokens: TokenStore,
    tokenizer: &Tokenizer,
    token_file: &Path,
) -> Result<(TokenStore, Option<TokenStore>)> {
    if !flags.validation.is_empty() {
        let corpus = corpus::collect(&flags.validation, None)?;
        return Ok((tokens, Some(data::tokenize(&corpus, tokenizer, token_file)?)));
    }
    if flags.validation_fraction == 0.0 {
        return Ok((tokens, None));
    }
    let (training, validation) = tokens.split_validation(flags.validation_fraction)?;
    Ok((training, Some(validation)))
}

fn sources(
    training: TokenStore,
    validation: Option<TokenStore>,
    config: &TrainingConfig,
) -> Result<(SequenceSource, Option<SequenceSource>)> {
    let &TrainingConfig { batch_size, sequence_length, accumulation_steps, batch_order, seed, .. } = config;
    let sequences = batch_size * accumulation_steps;
    let training = SequenceSource::new(training, batch_order, sequences, sequence_length, seed)?;
    let validation = validation
        .map(|tokens| SequenceSource::new(tokens, BatchOrder::Sequential, batch_size, sequence_length, seed))
        .transpose()?;
    Ok((training, validation))
}

/// Trains to the end, or until the user interrupts.
fn run(
    trainer: &mut Trainer,
    training: &SequenceSource,
    validation: Option<&SequenceSource>,
    folder: &RunFolder,
    record: &mut Record,
) -> Result<RunSummary> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    // The second interrupt is for those who do not want to wait for the end.
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })?;
    let mut display = ProgressDisplay::new();
    let mut failure = None;
    let summary = trainer.run(training, validation, |progress| {
        if let Err(error) = report(progress, folder, record, &mut display) {
            failure = Some(error.to_string());
        }
        let stop = failure.is_some() || interrupted.load(Ordering::Relaxed);
        if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    display.finish();
    failure.map_or(Ok(summary?), |failure| Err(failure.into()))
}

fn report(
    progress: &Progress<'_>,
    folder: &RunFolder,
    record: &mut Record,
    display: &mut ProgressDisplay,
) -> Result<()> {
    record.step(progress)?;
    let report = &progress.report;
    display.update(
        report.step,
        progress.last_step,
        format_args!(
            "loss {:.4} | learning rate {:.2e} | {:.0} tokens/s",
            report.loss, report.learning_rate, progress.tokens_per_second
        ),
    );
    if let Some(evaluation) = &progress.evaluation {
        record.evaluation(report.step, evaluation)?;
        display.line(&format!("step {}: validation loss {:.4}", report.step, evaluation.loss));
    }
    if progress.save_due {
        progress.model.save_parameters(&folder.file("model.safetensors"))?;
    }
    Ok(())
}

/// Losses of a run, in memory and in `metrics.jsonl`.
struct Record {
    log: MetricsLog,
    log_every: u64,
    recent: Vec<f64>,
    training: Vec<(f64, f64)>,
    validation: Vec<(f64, f64)>,
}

impl Record {
    fn new(log: MetricsLog, log_every: u64) -> Self {
        Self { log, log_every: log_every.max(1), recent: Vec::new(), training: Vec::new(), validation: Vec::new() }
    }

    fn step(&mut self, progress: &Progress<'_>) -> Result<()> {
        let report = &progress.report;
        // A ring of the last losses.
        match self.recent.get_mut((report.step as usize - 1) % 100) {
            Some(loss) => *loss = report.loss,
            None => self.recent.push(report.loss),
        }
        if report.step != 1 && report.step != progress.last_step && !report.step.is_multiple_of(self.log_every) {
            return Ok(());
        }
        self.training.push((report.step as f64, report.loss));
        self.log.write(&json!({
            "step": report.step,
            "loss": report.loss,
            "learning_rate": report.learning_rate,
            "gradient_norm": report.gradient_norm,
            "tokens_per_s": progress.tokens_per_second,
        }))
    }

    fn evaluation(&mut self, step: u64, evaluation: &Evaluation) -> Result<()> {
        // The last evaluation, over the whole validation data, replaces one of the same step.
        self.validation.pop_if(|point| point.0 == step as f64);
        self.validation.push((step as f64, evaluation.loss));
        self.log.write(&json!({
            "step": step,
            "validation_loss": evaluation.loss,
            "validation_perplexity": evaluation.perplexity(),
            "validation_accuracy": evaluation.accuracy,
            "validation_top_k_accuracy": evaluation.top_k_accuracy,
            "validation_targets": evaluation.targets,
        }))
    }

    /// Mean loss of the last 100 steps, or of all if there were fewer.
    fn recent_loss(&self) -> f64 {
        self.recent.iter().sum::<f64>() / self.recent.len() as f64
    }

    fn draw(&self, path: &Path) -> Result<()> {
        let curves = [
            Curve { name: "training", points: &self.training },
            Curve { name: "validation", points: &self.validation },
        ];
        chart::draw_loss(path, "Loss", &curves)
    }
}

/// The first tokens of `tokens`.
fn prompt(tokens: &TokenStore) -> Vec<u32> {
    let mut prompt = vec![0; tokens.len().min(16)];
    tokens.copy_to(0, &mut prompt);
    prompt
}

/// Continues `tokens` by `count` tokens drawn at temperature 0.8.
fn sample(model: &Transformer, tokenizer: &Tokenizer, mut tokens: Vec<u32>, count: usize, seed: u64) -> Result<String> {
    let draws = Stream::new(seed, Purpose::Sampling, 0);
    for index in 0..count {
        let seen = &tokens[tokens.len().saturating_sub(model.config().context)..];
        let logits = model.logits(Array2::from_shape_vec((1, seen.len()), seen.to_vec())?.view())?;
        let last = logits.slice(s![0, -1, ..]);
        let largest = last.fold(f32::NEG_INFINITY, |largest, &score| largest.max(score));
        let weights = last.mapv(|score| ((score - largest) / 0.8).exp());
        let mut rest = draws.uniform(index as u64) * weights.sum();
        let drawn = weights.iter().position(|weight| {
            rest -= weight;
            rest < 0.0
        });
        tokens.push(drawn.unwrap_or(weights.len() - 1) as u32);
    }
    Ok(tokenizer.decode(&tokens))
}

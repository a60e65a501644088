//! How time and memory of a training step grow, as Markdown tables.
//!
//! `cargo run --release --example growth`, or `-- sequence width` for some of the tables.

#[path = "common/random_batch.rs"]
mod random_batch;

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use cllm::data::Batch;
use cllm::{MemoryPlan, Result, Sharding, Trainer, TrainingConfig, Transformer, TransformerConfig};
use random_batch::random_batch;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Table {
    Batch,
    Sequence,
    Vocabulary,
    Width,
    Workers,
    /// Whole sequences to each worker against operations split over all, at several sizes of model.
    Crossover,
}

/// Measures how time and memory of a training step grow with one size, the others as in the preset nano.
#[derive(Parser)]
struct Arguments {
    /// The tables to make; all without.
    #[arg(value_enum)]
    tables: Vec<Table>,
    /// Worker threads; all cores by default.
    #[arg(long)]
    workers: Option<usize>,
    /// Seconds that each line is measured for, at least three steps.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let training = TrainingConfig { batch_size: 12, sequence_length: 64, ..Default::default() };
    let training = TrainingConfig { workers: arguments.workers.unwrap_or(training.workers), ..training };
    let model = TransformerConfig { vocabulary_size: 1024, ..Default::default() };
    let wanted = |table| arguments.tables.is_empty() || arguments.tables.contains(&table);
    let with =
        |name: &str, values: &[usize], apply: fn(&mut TransformerConfig, &mut TrainingConfig, usize)| -> Result<()> {
            header(name);
            for &value in values {
                let (mut model, mut training) = (model.clone(), training.clone());
                apply(&mut model, &mut training, value);
                line(value, model, training, arguments.seconds)?;
            }
            println!();
            Ok(())
        };
    if wanted(Table::Batch) {
        with("sequences a batch", &[1, 2, 4, 8, 16, 32, 64], |_, training, size| training.batch_size = size)?;
    }
    if wanted(Table::Sequence) {
        // The same number of tokens in every batch.
        with("tokens a sequence, 4096 a batch", &[256, 512, 1024, 2048], |model, training, length| {
            (model.context, training.sequence_length, training.batch_size) = (length, length, 4096 / length);
        })?;
    }
    if wanted(Table::Vocabulary) {
        with("vocabulary", &[1_000, 3_000, 10_000, 30_000, 100_000], |model, _, size| model.vocabulary_size = size)?;
    }
    if wanted(Table::Width) {
        with("width", &[64, 128, 256, 512, 1024], |model, _, width| {
            (model.dim, model.feed_forward, model.heads) = (width, 4 * width, width / 32);
        })?;
    }
    if wanted(Table::Workers) {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<usize> = [1, 2, 4, 8, 16, 32].into_iter().filter(|&workers| workers <= cores).collect();
        with("workers", &workers, |_, training, workers| training.workers = workers)?;
    }
    if wanted(Table::Crossover) {
        crossover(training.workers, arguments.seconds)?;
    }
    Ok(())
}

fn header(name: &str) {
    println!("| {name} | parameters | tokens/s | ms a step | planned MiB | of them activations | scratch |");
    println!("|---|---|---|---|---|---|---|");
}

fn line(value: usize, model: TransformerConfig, training: TrainingConfig, seconds: f64) -> Result<()> {
    let plan = MemoryPlan::of(&model, &training)?;
    let mut subject = Subject::new(model, training)?;
    let start = Instant::now();
    while subject.times.len() < 3 || start.elapsed().as_secs_f64() < seconds {
        subject.step()?;
    }
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    println!(
        "| {value} | {} | {:.0} | {:.2} | {:.0} | {:.0} | {:.0} |",
        subject.trainer.model().layout().parameter_count(),
        subject.tokens() / subject.median(),
        subject.median() * 1e3,
        mib(plan.total()),
        mib(plan.activations),
        mib(plan.scratch),
    );
    Ok(())
}

/// A trainer that takes the time of its steps.
struct Subject {
    trainer: Trainer,
    batch: Batch,
    times: Vec<f64>,
}

impl Subject {
    /// After a step to warm up.
    fn new(model: TransformerConfig, training: TrainingConfig) -> Result<Self> {
        let batch = random_batch(training.batch_size, training.sequence_length, model.vocabulary_size, 0);
        let mut trainer = Trainer::new(Transformer::new(model, 1)?, training)?;
        trainer.step(&batch)?;
        Ok(Self { trainer, batch, times: Vec::new() })
    }

    fn step(&mut self) -> Result<()> {
        let start = Instant::now();
        self.trainer.step(&self.batch)?;
        self.times.push(start.elapsed().as_secs_f64());
        Ok(())
    }

    /// Seconds a step.
    fn median(&self) -> f64 {
        let mut times = self.times.clone();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }

    fn tokens(&self) -> f64 {
        self.batch.inputs().len() as f64
    }
}

/// Steps of both ways to share a batch, in turn.
fn crossover(workers: usize, seconds: f64) -> Result<()> {
    println!(
        "| layers × width, vocabulary, batch | parameters | by sequences, tokens/s | by operations | ratio | rule |"
    );
    println!("|---|---|---|---|---|---|");
    let sizes = [
        (2, 128, 1000, 4, 32),
        (4, 128, 1024, 12, 64),
        (6, 256, 4096, 8, 128),
        (6, 384, 8192, 4, 64),
        (6, 384, 8192, 8, 128),
        (8, 512, 8192, 4, 64),
        (8, 512, 8192, 8, 128),
        (12, 768, 8192, 4, 64),
        (12, 768, 8192, 8, 128),
    ];
    for (layers, dim, vocabulary_size, batch_size, length) in sizes {
        let model = TransformerConfig {
            vocabulary_size,
            context: length,
            dim,
            heads: dim / 32,
            layers,
            feed_forward: 4 * dim,
            ..Default::default()
        };
        let by = |sharding| {
            let training =
                TrainingConfig { batch_size, sequence_length: length, workers, sharding, ..Default::default() };
            Subject::new(model.clone(), training)
        };
        let mut subjects = [by(Sharding::Sequences)?, by(Sharding::Operations)?];
        let start = Instant::now();
        while subjects[0].times.len() < 3 || start.elapsed().as_secs_f64() < 2.0 * seconds {
            for subject in &mut subjects {
                subject.step()?;
            }
        }
        let parameters = subjects[0].trainer.model().layout().parameter_count();
        let rule = TrainingConfig { batch_size, workers, ..Default::default() }.effective_sharding(parameters);
        let [sequences, operations] = subjects.map(|subject| subject.tokens() / subject.median());
        println!(
            "| {layers} × {dim}, {vocabulary_size}, {batch_size} × {length} | {parameters} | {sequences:.0} \
            | {operations:.0} | {:.2} | {rule:?} |",
            sequences / operations,
        );
    }
    println!();
    Ok(())
}

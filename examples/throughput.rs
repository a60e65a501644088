//! Training throughput on random tokens: a step, of a run, is forward, backward, clip and AdamW.
//!
//! `cargo run --release --example throughput -- --workload W2 --workers 2 --json`

use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use cllm::data::{SequenceSource, TokenStore};
use cllm::linalg::threads::blas_core_name;
use cllm::linalg::{Write, gemm, profile};
use cllm::parallel::{Parallelism, for_each_indexed};
use cllm::{Preset, Sharding, Trainer, TrainingConfig, Transformer, TransformerConfig};
use ndarray::Array2;
use random_tokens::random_tokens;

#[path = "throughput/pairs.rs"]
mod pairs;
#[path = "common/random_tokens.rs"]
mod random_tokens;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Workload {
    /// Preset seed.
    #[value(name = "W1")]
    W1,
    /// Preset nano with a vocabulary of 65.
    #[value(name = "W2")]
    W2,
    /// Preset small.
    #[value(name = "W3")]
    W3,
    /// Preset gpt2.
    #[value(name = "W4")]
    W4,
    /// Text pairs: a vocabulary of 30,000, 2048 pairs a batch, 16 words a side, width 256.
    Pairs,
}

/// Measures training steps on random tokens.
#[derive(Parser)]
struct Arguments {
    #[arg(long, value_enum, ignore_case = true, default_value = "W2")]
    workload: Workload,
    /// Worker threads; all cores by default.
    #[arg(long)]
    workers: Option<usize>,
    /// Timed steps; by default as many as take about ten seconds.
    #[arg(long)]
    steps: Option<usize>,
    #[arg(long)]
    layers: Option<usize>,
    #[arg(long)]
    heads: Option<usize>,
    #[arg(long)]
    dim: Option<usize>,
    #[arg(long)]
    ff: Option<usize>,
    #[arg(long)]
    vocab: Option<usize>,
    #[arg(long)]
    batch: Option<usize>,
    #[arg(long)]
    sequence: Option<usize>,
    /// Splits batches by `sequences` or by `operations` instead of by the library's rule.
    #[arg(long)]
    sharding: Option<String>,
    /// Has every step tokenize the texts of its pairs.
    #[arg(long)]
    text: bool,
    /// Prints one JSON object instead of a sentence.
    #[arg(long)]
    json: bool,
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

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let (preset, vocabulary) = match arguments.workload {
        Workload::W1 => (Preset::Seed, 1000),
        Workload::W2 => (Preset::Nano, 65),
        Workload::W3 => (Preset::Small, 4096),
        Workload::W4 => (Preset::Gpt2, 50257),
        Workload::Pairs => return pairs::run(arguments),
    };
    let base = preset.model();
    let dim = arguments.dim.unwrap_or(base.dim);
    let sequence_length = arguments.sequence.unwrap_or(preset.sequence_length());
    let batch_size = arguments.batch.unwrap_or(preset.batch_size());
    let model = TransformerConfig {
        vocabulary_size: arguments.vocab.unwrap_or(vocabulary),
        context: sequence_length,
        dim,
        heads: arguments.heads.unwrap_or(base.heads),
        layers: arguments.layers.unwrap_or(base.layers),
        feed_forward: arguments.ff.unwrap_or(4 * dim),
        ..base
    };
    let mut config = TrainingConfig {
        batch_size,
        sequence_length,
        weight_decay: 0.01,
        max_steps: Some(u64::MAX),
        ..Default::default()
    };
    config.workers = arguments.workers.unwrap_or(config.workers);
    if let Some(sharding) = &arguments.sharding {
        config.sharding = match sharding.as_str() {
            "sequences" => Sharding::Sequences,
            "operations" => Sharding::Operations,
            other => return Err(format!("--sharding {other}: sequences or operations").into()),
        };
    }

    let flops_per_token = model.training_flops_per_token(sequence_length);
    let workers = config.workers;
    let mut trainer = Trainer::new(Transformer::new(model.clone(), 1)?, config)?;
    let parameters = trainer.model().layout().parameter_count();
    let tokens = (batch_size * sequence_length) as f64;

    let random = random_tokens(100_000.max(2 * sequence_length as u64), model.vocabulary_size);
    let random = TokenStore::from_tokens(&random, model.vocabulary_size)?;
    let source = SequenceSource::for_training(random, trainer.config())?;

    let estimate = time_steps(&mut trainer, &source, 1)?.0[0];
    let steps = arguments.steps.unwrap_or(((10.0 / estimate) as usize).clamp(5, 2000));
    time_steps(&mut trainer, &source, steps.div_ceil(8))?;
    // Before the reference's own matrices.
    let peak_rss_mb = peak_rss_mb();
    // The reference is measured before, between and after the steps: the machine's speed changes while it runs.
    let mut references = vec![sgemm_gflops(workers)];
    let (mut times, mut in_products) = (Vec::with_capacity(steps), Duration::ZERO);
    for steps in [steps.div_ceil(2), steps / 2].into_iter().filter(|&steps| steps > 0) {
        let (seconds, products) = time_steps(&mut trainer, &source, steps)?;
        times.extend(seconds);
        in_products += products;
        references.push(sgemm_gflops(workers));
    }

    let total: f64 = times.iter().sum();
    let seconds = median(&mut times);
    let gflops = tokens * flops_per_token / seconds / 1e9;
    let sgemm_gflops = median(&mut references);
    let report = serde_json::json!({
        "workload": format!("{:?}", arguments.workload),
        "workers": workers,
        "tokens_per_s": (tokens / seconds).round(),
        "ms_per_step": (seconds * 1e6).round() / 1e3,
        "gflops": gflops.round(),
        "sgemm_gflops": sgemm_gflops.round(),
        "mfu": (gflops / sgemm_gflops * 1e3).round() / 1e3,
        "gemm_share": (in_products.as_secs_f64() / total / workers as f64 * 1e3).round() / 1e3,
        "peak_rss_mb": peak_rss_mb,
        "blas_core": blas_core_name(),
        "steps": steps,
        "parameters": parameters,
        "sharding": format!("{:?}", trainer.config().effective_sharding(parameters)),
    });
    if arguments.json {
        println!("{report}");
    } else {
        println!(
            "{} tokens/s, {} ms a step, {} GFLOP/s, {} % of sgemm's {} GFLOP/s ({}), {} % of the time in products",
            report["tokens_per_s"],
            report["ms_per_step"],
            report["gflops"],
            (gflops / sgemm_gflops * 100.0).round(),
            report["sgemm_gflops"],
            blas_core_name(),
            (in_products.as_secs_f64() / total / workers as f64 * 100.0).round(),
        );
    }
    Ok(())
}

/// Makes `steps` steps of a run after a first one; the seconds from one step to the next, in which the update that was
/// left is made, and the time in products.
fn time_steps(trainer: &mut Trainer, source: &SequenceSource, steps: usize) -> cllm::Result<(Vec<f64>, Duration)> {
    let mut times = Vec::with_capacity(steps);
    let mut start = None;
    trainer.run(source, None, |_| {
        match start {
            None => profile::enable(true),
            Some(start) => times.push(Instant::elapsed(&start).as_secs_f64()),
        }
        start = Some(Instant::now());
        if times.len() < steps { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    let in_products = profile::time_in_products();
    profile::enable(false);
    Ok((times, in_products))
}

/// What BLAS reaches on square products of 1024, one at a time on each worker.
fn sgemm_gflops(workers: usize) -> f64 {
    const SIZE: usize = 1024;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(workers).build().expect("worker threads");
    let matrix = || Array2::from_elem((SIZE, SIZE), 0.5f32);
    let mut operands: Vec<_> = (0..workers).map(|_| (matrix(), matrix(), matrix())).collect();
    let mut times: Vec<f64> = (0..12)
        .map(|_| {
            let start = Instant::now();
            pool.install(|| {
                for_each_indexed(&mut operands, &|_, (a, b, c)| {
                    gemm(1.0, a.view(), b.view(), Write::Replace, c.view_mut(), Parallelism::SEQUENTIAL);
                });
            });
            start.elapsed().as_secs_f64()
        })
        .collect();
    2.0 * (SIZE as f64).powi(3) * workers as f64 / median(&mut times) / 1e9
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The largest resident size of this process so far, where the system tells.
fn peak_rss_mb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
}

//! Trains a static text encoder on pairs; without arguments, on the documentation of functions and their signatures in
//! the Rust sources of the local cargo registry: `cargo run --release --example train_pairs`.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use cllm::config::{PairEncoderConfig, PairTrainingConfig};
use cllm::data::{PairFormat, PairSource, PairStore, TokenRows, Tokenizer, TokenizerSource};
use cllm::export::sentence_transformers;
use cllm::train::PairTrainer;

#[allow(dead_code)] // Without checkpoints, no run is resumed.
#[path = "common/corpus.rs"]
mod corpus;
#[path = "common/memory.rs"]
mod memory;
#[path = "train_pairs/pairs.rs"]
mod pairs;
#[path = "common/progress.rs"]
mod progress;

use pairs::Pairs;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Trains a static text encoder on pairs of texts
#[derive(Parser)]
#[command(args_override_self = true)]
struct Arguments {
    /// Files of pairs [default: functions of the Rust sources in the local cargo registry]
    #[arg(long, num_args = 1.., value_name = "PATH")]
    data: Vec<PathBuf>,
    /// tsv or jsonl [default: what a file's ending says]
    #[arg(long, value_parser = format)]
    format: Option<PairFormat>,
    /// Hard negatives of each pair
    #[arg(long, default_value_t = 0)]
    hard_negatives: usize,
    /// bpe:N, words:N (words alone has 30000), byte, char, or a tokenizer.json
    #[arg(long, default_value = if cfg!(feature = "tokenizers") { "bpe:8192" } else { "byte" })]
    tokenizer: String,
    /// Tokens of a text that are kept
    #[arg(long, default_value_t = 128)]
    max_tokens: usize,
    /// Share of the pairs, at their end, that is held out
    #[arg(long, default_value_t = 0.1)]
    held_out: f64,

    /// Width of a vector
    #[arg(long, default_value_t = 256)]
    dim: usize,
    /// Learn a weight for every token
    #[arg(long)]
    token_weights: bool,
    /// Pairs in a batch
    #[arg(long, default_value_t = 512)]
    batch: usize,
    #[arg(long, default_value_t = 0.05)]
    temperature: f64,
    /// Let documents look for their queries too
    #[arg(long)]
    symmetric: bool,
    /// Widths of prefixes that are trained as vectors of their own, such as 64,128
    #[arg(long, value_delimiter = ',', value_name = "WIDTH")]
    matryoshka: Vec<usize>,
    /// Passes over the pairs [default: 10, unless --steps is given]
    #[arg(long)]
    epochs: Option<u64>,
    /// Updates; with --epochs, whichever ends first
    #[arg(long)]
    steps: Option<u64>,
    /// Peak learning rate
    #[arg(long, default_value_t = 0.1)]
    learning_rate: f64,
    #[arg(long, default_value_t = 0.0)]
    weight_decay: f64,
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, |count| count.get()))]
    workers: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write the encoder there, as sentence-transformers reads it
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print one line of JSON at the end
    #[arg(long)]
    json: bool,
}

fn format(text: &str) -> std::result::Result<PairFormat, String> {
    match text {
        "tsv" => Ok(PairFormat::Tsv),
        "jsonl" => Ok(PairFormat::JsonLines),
        _ => Err("tsv or jsonl".into()),
    }
}

impl Arguments {
    fn config(&self) -> PairTrainingConfig {
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
            seed: self.seed,
            workers: self.workers,
            ..Default::default()
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if !(0.0..1.0).contains(&arguments.held_out) {
        return Err(format!("--held-out {}: a share below 1", arguments.held_out).into());
    }
    let config = arguments.config();
    config.validate()?;
    if let Some(folder) = &arguments.out
        && folder.read_dir().is_ok_and(|mut entries| entries.next().is_some())
    {
        return Err(format!("{}: the folder holds something", folder.display()).into());
    }
    let mut display = progress::ProgressDisplay::new();
    let start = Instant::now();
    let pairs = match &arguments.data[..] {
        [] => Pairs::of_rust_sources()?,
        paths => {
            Pairs::Files { paths: paths.to_vec(), format: arguments.format, hard_negatives: arguments.hard_negatives }
        }
    };
    let source = if arguments.tokenizer == "words" { "words:30000" } else { &arguments.tokenizer };
    let tokenizer = pairs.tokenizer(&source.parse::<TokenizerSource>()?)?;
    let store = pairs.tokenize(&tokenizer, arguments.max_tokens)?;
    drop(pairs);
    let held_out = (store.len() as f64 * arguments.held_out) as usize;
    let (training, held_out) = store.split_at(store.len() - held_out);
    let preparation = start.elapsed();
    display.line(&format!(
        "{} pairs, {} held out, vocabulary {}, {:.1} s to read them",
        training.len(),
        held_out.len(),
        tokenizer.vocabulary_size(),
        preparation.as_secs_f64()
    ));

    let source = PairSource::new(training, config.batch_size, config.seed)?;
    let encoder = PairEncoderConfig {
        vocabulary_size: tokenizer.vocabulary_size(),
        dim: arguments.dim,
        token_weights: arguments.token_weights,
    };
    let mut trainer = PairTrainer::new(encoder, config)?;
    let untrained = trainer.recall(&held_out, &[1, 10])?;
    let summary = trainer.run(&source, |progress| {
        let (report, rate) = (&progress.report, progress.pairs_per_second);
        let message = format_args!("loss {:.4}, accuracy {:.3}, {rate:.0} pairs/s", report.loss, report.accuracy);
        display.update(report.step, progress.last_step, message);
        ControlFlow::Continue(())
    })?;
    display.finish();
    let recall = trainer.recall(&held_out, &[1, 10])?;

    show(&trainer, &tokenizer, &held_out)?;
    if let Some(folder) = &arguments.out {
        sentence_transformers::write(folder, trainer.encoder(), &tokenizer)?;
    }
    let seconds = summary.training_time.as_secs_f64();
    if arguments.json {
        let line = serde_json::json!({
            "pairs": summary.pairs, "steps": summary.steps, "vocabulary": tokenizer.vocabulary_size(),
            "seconds": seconds, "preparation_seconds": preparation.as_secs_f64(),
            "pairs_per_s": summary.pairs_per_second().round(), "loss": summary.last.map(|report| report.loss),
            "held_out": held_out.len(), "recall_at_1": recall[0], "recall_at_10": recall[1],
            "untrained_recall_at_1": untrained[0], "untrained_recall_at_10": untrained[1],
            "workers": arguments.workers, "peak_rss_mb": memory::peak_rss_mb(),
        });
        println!("{line}");
    } else {
        println!(
            "{} pairs in {seconds:.1} s, {:.0} pairs/s; of {} held out, {:.1} % find their document first and {:.1} % \
            among ten (untrained {:.1} and {:.1})",
            summary.pairs,
            summary.pairs_per_second(),
            held_out.len(),
            100.0 * recall[0],
            100.0 * recall[1],
            100.0 * untrained[0],
            100.0 * untrained[1]
        );
    }
    Ok(())
}

/// Prints what the first held-out queries find among all held-out documents.
fn show(trainer: &PairTrainer, tokenizer: &Tokenizer, pairs: &PairStore) -> Result<()> {
    let texts = |count: usize, text: usize| -> cllm::Result<TokenRows> {
        Ok((0..count).map(|pair| pairs.text(pair, text)).collect::<cllm::Result<Vec<_>>>()?.into_iter().collect())
    };
    let (documents, queries) = (texts(pairs.len(), 1)?, texts(pairs.len().min(5), 0)?);
    let (documents, queries) = (trainer.encoder().encode(&documents)?, trainer.encoder().encode(&queries)?);
    for (pair, query) in queries.rows().into_iter().enumerate() {
        let scores = documents.dot(&query);
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        println!("{}", short(&tokenizer.decode(&pairs.text(pair, 0)?)));
        for &found in order.iter().take(3) {
            let mark = if found == pair { '*' } else { ' ' };
            println!("  {mark} {:.3} {}", scores[found], short(&tokenizer.decode(&pairs.text(found, 1)?)));
        }
    }
    Ok(())
}

fn short(text: &str) -> String {
    let text = text.replace('\n', " ");
    match text.char_indices().nth(100) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

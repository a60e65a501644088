//! Trains a static text encoder on pairs; without arguments, on the documentation of functions and their signatures in
//! the Rust sources of the local cargo registry: `cargo run --release --example train_pairs`.

use std::error::Error;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Instant;

use clap::{ArgMatches, CommandFactory, FromArgMatches};
use cllm::data::{PairStore, TokenRows, Tokenizer};
use cllm::export::sentence_transformers;
use cllm::models::pair_encoder::PairEncoder;
use cllm::parallel::Parallelism;
use cllm::train::{PairSummary, PairTrainer, StepOutcome};

#[path = "common/corpus.rs"]
mod corpus;
#[path = "train_pairs/flags.rs"]
mod flags;
#[path = "common/interrupt.rs"]
mod interrupt;
#[path = "common/memory.rs"]
mod memory;
#[path = "train_pairs/pairs.rs"]
mod pairs;
#[path = "common/progress.rs"]
mod progress;
#[path = "common/recorded.rs"]
mod recorded;
#[path = "common/run_folder.rs"]
#[allow(dead_code)] // text encoders have no metrics
mod run_folder;
#[path = "train_pairs/setup.rs"]
mod setup;

use flags::Flags;
use interrupt::Interrupt;
use setup::Setup;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The recalls that are reported: of the first document, and of ten.
const RANKS: [usize; 2] = [1, 10];

fn main() -> ExitCode {
    let matches = Flags::command().get_matches();
    let flags = Flags::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    train(flags, &matches).unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

fn train(given: Flags, matches: &ArgMatches) -> Result<ExitCode> {
    let mut display = progress::ProgressDisplay::new();
    let start = Instant::now();
    let setup = Setup::of(given, matches)?;
    let preparation_seconds = start.elapsed().as_secs_f64();
    let Setup { flags, folder, tokenizer, training, held_out, .. } = &setup;
    display.line(&format!(
        "{} pairs, {} held out, vocabulary {}, {preparation_seconds:.1} s to read them",
        training.store().len(),
        held_out.len(),
        tokenizer.vocabulary_size(),
    ));
    let mut trainer = setup.trainer()?;
    if flags.resume.is_some() {
        display.line(&format!("resumed at step {}", trainer.steps()));
    }
    // Without a folder to save to, a signal ends the process as it always does.
    let interrupt = folder.as_ref().map(|_| Interrupt::watch()).transpose()?;
    let summary = trainer.run(training, |progress| {
        let (report, rate) = (&progress.report, progress.pairs_per_second);
        let message = format_args!("loss {:.4}, accuracy {:.3}, {rate:.0} pairs/s", report.loss, report.accuracy);
        display.update(report.step, progress.last_step, message);
        if report.outcome != StepOutcome::Updated {
            display.line(&format!("step {}: {:?}, since numbers were not finite", report.step, report.outcome));
        }
        let stop = interrupt.as_ref().is_some_and(Interrupt::is_set);
        if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    display.finish();
    let summary = summary.map_err(recorded::explained)?;
    if let Some(folder) = folder {
        if summary.pairs > 0 {
            trainer.save(folder.path())?;
        }
        if summary.stopped {
            let path = folder.path().display();
            eprintln!("interrupted at step {}, which is saved; --resume {path} goes on", summary.steps);
            return Ok(ExitCode::from(interrupt::SAVED));
        }
    }

    // Fails if the last update made an encoder that is of no use.
    let recall = trainer.recall(held_out, &RANKS)?;
    if let Some(folder) = &flags.out {
        sentence_transformers::write(folder, trainer.encoder(), tokenizer)?;
    }
    show(&trainer, tokenizer, held_out)?;
    report(&setup, &trainer, &summary, &recall, preparation_seconds)?;
    Ok(ExitCode::SUCCESS)
}

fn report(
    setup: &Setup,
    trainer: &PairTrainer,
    summary: &PairSummary,
    recall: &[f64],
    preparation_seconds: f64,
) -> Result<()> {
    let Setup { flags, tokenizer, held_out, .. } = setup;
    let untrained = PairEncoder::new(trainer.encoder().config().clone(), flags.seed)?;
    let untrained = untrained.recall(held_out, &RANKS, Parallelism::workers(flags.workers))?;
    let seconds = summary.training_time.as_secs_f64();
    if flags.json {
        let line = serde_json::json!({
            "pairs": summary.pairs, "steps": summary.steps, "vocabulary": tokenizer.vocabulary_size(),
            "seconds": seconds, "preparation_seconds": preparation_seconds,
            "pairs_per_s": summary.pairs_per_second().round(), "loss": summary.last.map(|report| report.loss),
            "held_out": held_out.len(), "recall_at_1": recall[0], "recall_at_10": recall[1],
            "untrained_recall_at_1": untrained[0], "untrained_recall_at_10": untrained[1],
            "workers": flags.workers, "peak_rss_mb": memory::peak_rss_mb(),
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

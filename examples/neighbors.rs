//! Uses word vectors: neighbours, analogies, similarities, and the usual evaluations.
//!
//! `cargo run --release --example neighbors -- vectors.txt --words king --analogy man king woman`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use cllm::evaluation::{holds_analogies, word_analogies, word_pairs};
use cllm::export::{self, VectorFormat};
use cllm::parallel::Parallelism;
use cllm::similarity::{Neighbour, UnitVectors};
use cllm::{Error, WordVectors};
use serde_json::{Value, json};

/// Print neighbours, analogies and similarities of word vectors, and evaluate them.
#[derive(Parser)]
struct Arguments {
    /// A file of word vectors
    vectors: PathBuf,
    /// Its format, if the ending does not tell: npy, safetensors, bin for word2vec-bin, any other for word2vec
    #[arg(long)]
    format: Option<Format>,
    /// Print the nearest words of each
    #[arg(long, num_args = 1.., value_name = "WORD")]
    words: Vec<String>,
    /// Answer "A is to B as C is to"; may be repeated
    #[arg(long, num_args = 3, value_names = ["A", "B", "C"])]
    analogy: Vec<String>,
    /// Print the cosine of two words; may be repeated
    #[arg(long, num_args = 2, value_names = ["A", "B"])]
    similarity: Vec<String>,
    /// Score files of judged pairs (WordSim-353, SimLex-999) and of analogies (questions-words.txt)
    #[arg(long, num_args = 1.., value_name = "FILE")]
    evaluate: Vec<PathBuf>,
    /// Project to this many principal directions first
    #[arg(long, value_name = "N", conflicts_with = "remove_top")]
    project: Option<usize>,
    /// Take away the mean and this many principal directions first
    #[arg(long, value_name = "N")]
    remove_top: Option<usize>,
    /// Print how alike the vectors of the words of another file are, before and after an orthogonal alignment
    #[arg(long, value_name = "FILE")]
    align: Option<PathBuf>,
    /// How many words to print
    #[arg(long, default_value_t = 10)]
    top: usize,
    /// Search and evaluate only this many words, from the beginning of the file
    #[arg(long, value_name = "N")]
    first: Option<usize>,
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, |count| count.get()))]
    workers: usize,
    /// Print a line of JSON for each result
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Word2vec,
    Word2vecBin,
    Npy,
    Safetensors,
}

impl From<Format> for VectorFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Word2vec => Self::Word2vecText,
            Format::Word2vecBin => Self::Word2vecBinary,
            Format::Npy => Self::Npy,
            Format::Safetensors => Self::Safetensors,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let vectors = export::read(&arguments.vectors, arguments.format.map(Into::into))?;
    eprintln!("{} words, {} values each", vectors.len(), vectors.dim());
    let vectors = spectral(arguments, vectors)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(arguments.workers).build()?;
    pool.install(|| search(arguments, &vectors))?;
    Ok(())
}

#[cfg(feature = "lapack")]
fn spectral(arguments: &Arguments, vectors: WordVectors) -> Result<WordVectors, Error> {
    if let Some(path) = &arguments.align {
        let target = export::read(path, arguments.format.map(Into::into))?;
        let (before, after) = (vectors.mean_cosine(&target)?, vectors.aligned_to(&target)?.mean_cosine(&target)?);
        let line = format!("mean cosine with {}: {before:.4}, aligned {after:.4}", path.display());
        say(arguments, json!({ "align": path, "before": before, "after": after }), &line);
    }
    if let Some(count) = arguments.project.or(arguments.remove_top) {
        let explained: f32 = vectors.spectrum()?.explained_variance().iter().take(count).sum();
        eprintln!("the first {count} directions have {:.1} % of the variance", 100.0 * explained);
    }
    match (arguments.project, arguments.remove_top) {
        (Some(count), _) => vectors.projected(count),
        (None, Some(count)) => vectors.without_top(count),
        (None, None) => Ok(vectors),
    }
}

#[cfg(not(feature = "lapack"))]
fn spectral(arguments: &Arguments, vectors: WordVectors) -> Result<WordVectors, Error> {
    match arguments.align.is_some() || arguments.project.or(arguments.remove_top).is_some() {
        true => Err(Error::MissingFeature {
            what: "what --project, --remove-top and --align do".into(),
            feature: "openblas",
        }),
        false => Ok(vectors),
    }
}

fn search(arguments: &Arguments, vectors: &WordVectors) -> Result<(), Error> {
    let parallelism = Parallelism::workers(arguments.workers);
    if !arguments.words.is_empty() || !arguments.analogy.is_empty() {
        let search = UnitVectors::new(vectors.vectors(), parallelism);
        for word in &arguments.words {
            let id = vectors.require(word)?;
            let found = search.similar(id, arguments.top, arguments.first, parallelism);
            print(arguments, json!({ "word": word }), word, vectors, &found);
        }
        for [a, b, c] in arguments.analogy.as_chunks().0 {
            let question = [vectors.require(a)?, vectors.require(b)?, vectors.require(c)?];
            let found = search.analogies(&[question], arguments.top, arguments.first, parallelism).remove(0);
            let title = format!("{a} is to {b} as {c} is to");
            print(arguments, json!({ "analogy": [a, b, c] }), &title, vectors, &found);
        }
    }
    for [a, b] in arguments.similarity.as_chunks().0 {
        let cosine = vectors.similarity(a, b)?;
        say(arguments, json!({ "similarity": [a, b], "cosine": cosine }), &format!("{a}, {b}: {cosine:.4}"));
    }
    for path in &arguments.evaluate {
        evaluate(arguments, vectors, path, parallelism)?;
    }
    Ok(())
}

fn evaluate(arguments: &Arguments, vectors: &WordVectors, path: &Path, parallelism: Parallelism) -> Result<(), Error> {
    if holds_analogies(path)? {
        evaluate_analogies(arguments, vectors, path, parallelism)
    } else {
        evaluate_pairs(arguments, vectors, path)
    }
}

fn evaluate_pairs(arguments: &Arguments, vectors: &WordVectors, path: &Path) -> Result<(), Error> {
    let report = word_pairs(vectors, path, arguments.first)?;
    let (name, missing, skipped) = (path.display().to_string(), report.missing, report.skipped);
    if report.spearman.is_nan() {
        return Err(unscored(
            path,
            format!(
                "no correlation over {} pairs; {missing} more have a word without a vector, and {skipped} lines are not two \
             words and a number, separated by tabs (a file of analogies begins with the head of a section, \": name\")",
                report.pairs
            ),
        ));
    }
    let line = format!(
        "{name}: Spearman {:.4} over {} pairs, {missing} more have a word without a vector, {skipped} lines skipped",
        report.spearman, report.pairs
    );
    let object = json!({ "pairs": name, "spearman": report.spearman, "scored": report.pairs, "missing": missing,
        "missing_percent": 100.0 * report.missing_share(), "skipped": skipped });
    say(arguments, object, &line);
    Ok(())
}

fn evaluate_analogies(
    arguments: &Arguments,
    vectors: &WordVectors,
    path: &Path,
    parallelism: Parallelism,
) -> Result<(), Error> {
    let report = word_analogies(vectors, path, arguments.first, parallelism)?;
    let (name, missing, skipped) = (path.display().to_string(), report.missing(), report.skipped);
    if report.asked() == 0 {
        return Err(unscored(
            path,
            format!(
                "no analogy could be asked; {missing} have a word without a vector, and {skipped} lines are not four words"
            ),
        ));
    }
    for section in &report.sections {
        let line =
            format!("  {}: {} of {}, {} left out", section.name, section.correct, section.asked, section.missing);
        let object = json!({ "section": section.name, "correct": section.correct, "asked": section.asked,
            "missing": section.missing });
        say(arguments, object, &line);
    }
    let line = format!(
        "{name}: {:.4} of {} analogies, {missing} more have a word without a vector, {skipped} lines skipped",
        report.accuracy(),
        report.asked()
    );
    let object = json!({ "analogies": name, "accuracy": report.accuracy(), "asked": report.asked(),
        "missing": missing, "skipped": skipped });
    say(arguments, object, &line);
    Ok(())
}

fn unscored(path: &Path, problem: String) -> Error {
    Error::InvalidFile { path: path.to_path_buf(), problem }
}

fn print(arguments: &Arguments, mut object: Value, title: &str, vectors: &WordVectors, found: &[Neighbour]) {
    let list: Vec<String> =
        found.iter().map(|neighbour| format!("{} {:.3}", vectors.word(neighbour.id), neighbour.cosine)).collect();
    object["neighbours"] = found
        .iter()
        .map(|neighbour| json!({ "word": vectors.word(neighbour.id), "cosine": neighbour.cosine }))
        .collect();
    say(arguments, object, &format!("{title}: {}", list.join(", ")));
}

fn say(arguments: &Arguments, object: Value, line: &str) {
    if arguments.json {
        println!("{object}");
    } else {
        println!("{line}");
    }
}

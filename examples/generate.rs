//! Continues a prompt with a trained model: `cargo run --release --example generate -- --run DIR --prompt TEXT`.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use cllm::data::Tokenizer;
use cllm::generate::{Generator, Sampling, TextStream};
use cllm::{Transformer, TransformerConfig};
use serde::Deserialize;

type Failure = Box<dyn std::error::Error>;

/// Continues a prompt with a model that train_lm has trained.
#[derive(Parser)]
struct Arguments {
    /// The run's folder, with model.safetensors, config.json and tokenizer.json.
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// The text to continue.
    #[arg(long, value_name = "TEXT", default_value = "\n")]
    prompt: String,
    /// How many tokens to add.
    #[arg(long, value_name = "N", default_value_t = 300)]
    tokens: usize,
    /// Below 1 sharpens, above 1 flattens; 0 always takes the most probable token.
    #[arg(long, default_value_t = 0.8)]
    temperature: f32,
    /// Draw only from this many of the most probable tokens.
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draw only from the most probable tokens that together have this probability.
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// The same seed gives the same text.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// The part of a run's config.json that describes the model.
#[derive(Deserialize)]
struct RunConfig {
    model: TransformerConfig,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads the text, such as `head`, has enough.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let sampling = Sampling {
        temperature: arguments.temperature,
        top_k: arguments.top_k,
        top_p: arguments.top_p,
        seed: arguments.seed,
    };
    sampling.validate()?;
    let config = read_config(&arguments.run.join("config.json"))?;
    let tokenizer = Tokenizer::load(&arguments.run)?;
    let model = Transformer::load_parameters(config.model, &arguments.run.join("model.safetensors"))?;
    let mut prompt = Vec::new();
    tokenizer.encode(&arguments.prompt, &mut prompt)?;

    let mut generator = Generator::new(&model);
    generator.prompt(&prompt)?;
    let mut text = TextStream::new(&tokenizer);
    let mut out = io::stdout().lock();
    for token in prompt.into_iter().map(Ok).chain(generator.tokens(sampling).take(arguments.tokens)) {
        out.write_all(text.push(token?).as_bytes())?;
        out.flush()?;
    }
    writeln!(out, "{}", text.finish())?;
    Ok(())
}

fn read_config(path: &Path) -> Result<RunConfig, Failure> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()).into())
}

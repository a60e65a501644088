//! Training steps on pairs of ready-made token ids, or on pairs of texts that every step tokenizes.

use std::time::{Duration, Instant};

use cllm::config::{PairEncoderConfig, PairTrainingConfig};
use cllm::data::{PairBatch, TokenRows, Tokenizer, TokenizerSource};
use cllm::linalg::profile;
use cllm::linalg::threads::blas_core_name;
use cllm::rng::{Purpose, Stream};
use cllm::train::PairTrainer;

use crate::{Arguments, median, peak_rss_mb, sgemm_gflops};

/// Batches that the steps go round, so that making them is not measured.
const BATCHES: u64 = 4;

pub fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let vocabulary_size = arguments.vocab.unwrap_or(30_000);
    let dim = arguments.dim.unwrap_or(256);
    let words = arguments.sequence.unwrap_or(16);
    let batch_size = arguments.batch.unwrap_or(2048);
    let mut config = PairTrainingConfig { batch_size, max_tokens: words, learning_rate: 0.01, ..Default::default() };
    config.workers = arguments.workers.unwrap_or(config.workers);
    let workers = config.workers;
    let encoder = PairEncoderConfig { vocabulary_size, dim, token_weights: false };
    let batches: Vec<PairBatch> = (0..BATCHES)
        .map(|index| random_batch(batch_size, words, vocabulary_size, index))
        .collect::<cllm::Result<_>>()?;
    let texts = arguments.text.then(|| Texts::of(&batches, vocabulary_size, workers)).transpose()?;
    let mut trainer = PairTrainer::new(encoder, config)?;
    let parameters = trainer.encoder().layout().parameter_count();
    let mut next = 0;
    let mut step = |trainer: &mut PairTrainer| -> cllm::Result<f64> {
        let index = next % batches.len();
        next += 1;
        let start = Instant::now();
        match &texts {
            None => trainer.step(&batches[index])?,
            Some(texts) => trainer.step(&texts.tokenize(index, words)?)?,
        };
        Ok(start.elapsed().as_secs_f64())
    };
    step(&mut trainer)?;
    let estimate = step(&mut trainer)?;
    let steps = arguments.steps.unwrap_or(((10.0 / estimate) as usize).clamp(5, 2000));
    for _ in 0..steps.div_ceil(8) {
        step(&mut trainer)?;
    }
    // Before the reference products, whose matrices are no part of training.
    let peak_rss_mb = peak_rss_mb();
    let mut references = vec![sgemm_gflops(workers)];
    let mut times = Vec::with_capacity(steps);
    let mut in_products = Duration::ZERO;
    profile::enable(true);
    for index in 0..steps {
        times.push(step(&mut trainer)?);
        if index == steps / 2 {
            in_products += profile::time_in_products();
            profile::enable(false);
            references.push(sgemm_gflops(workers));
            profile::enable(true);
        }
    }
    in_products += profile::time_in_products();
    profile::enable(false);
    references.push(sgemm_gflops(workers));

    let total: f64 = times.iter().sum();
    let seconds = median(&mut times);
    // Scores, and the gradients of both sides.
    let gflops = 6.0 * (batch_size as f64).powi(2) * dim as f64 / seconds / 1e9;
    let sgemm_gflops = median(&mut references);
    let pairs_per_second = batch_size as f64 / seconds;
    let gemm_share = in_products.as_secs_f64() / total / workers as f64;
    if arguments.json {
        let report = serde_json::json!({
            "workload": "pairs",
            "from": if arguments.text { "text" } else { "ids" },
            "workers": workers,
            "dim": dim,
            "batch": batch_size,
            "pairs_per_s": pairs_per_second.round(),
            "ms_per_step": (seconds * 1e6).round() / 1e3,
            "gflops": gflops.round(),
            "sgemm_gflops": sgemm_gflops.round(),
            "mfu": (gflops / sgemm_gflops * 1e3).round() / 1e3,
            "gemm_share": (gemm_share * 1e3).round() / 1e3,
            "peak_rss_mb": peak_rss_mb,
            "blas_core": blas_core_name(),
            "steps": steps,
            "parameters": parameters,
        });
        println!("{report}");
    } else {
        println!(
            "{:.0} pairs/s, {:.2} ms a step, {:.0} % of sgemm's {:.0} GFLOP/s ({}), {:.0} % of the time in products",
            pairs_per_second,
            seconds * 1e3,
            gflops / sgemm_gflops * 100.0,
            sgemm_gflops,
            blas_core_name(),
            gemm_share * 100.0,
        );
    }
    Ok(())
}

fn random_batch(pairs: usize, words: usize, vocabulary: usize, step: u64) -> cllm::Result<PairBatch> {
    let stream = Stream::new(7, Purpose::Caller, step);
    let rows: TokenRows = (0..2 * pairs * words)
        .map(|place| stream.below(place as u64, vocabulary as u64) as u32)
        .collect::<Vec<_>>()
        .chunks_exact(words)
        .collect();
    PairBatch::new(rows, 0)
}

/// Batches as texts, of a word for each token.
struct Texts {
    tokenizer: Tokenizer,
    pool: rayon::ThreadPool,
    batches: Vec<Vec<Vec<String>>>,
}

impl Texts {
    fn of(batches: &[PairBatch], vocabulary_size: usize, workers: usize) -> Result<Self, Box<dyn std::error::Error>> {
        let all: String = (0..vocabulary_size as u32 - 1).map(word).collect();
        let tokenizer = TokenizerSource::Words { vocabulary_size }.train(&[all])?;
        let text = |ids: &[u32]| ids.iter().copied().map(word).collect::<String>();
        let pair =
            |batch: &PairBatch, pair| [pair, batch.pairs() + pair].map(|row| text(batch.rows().row(row))).to_vec();
        let batches =
            batches.iter().map(|batch| (0..batch.pairs()).map(|index| pair(batch, index)).collect()).collect();
        Ok(Self { tokenizer, pool: rayon::ThreadPoolBuilder::new().num_threads(workers).build()?, batches })
    }

    /// The batch of that number, from its texts.
    fn tokenize(&self, index: usize, words: usize) -> cllm::Result<PairBatch> {
        self.pool.install(|| PairBatch::from_texts(&self.batches[index], &self.tokenizer, words))
    }
}

/// A blank and six letters.
fn word(id: u32) -> String {
    (0..6).fold(" ".to_owned(), |word, place| {
        word + &char::from(b'a' + (id / 26u32.pow(5 - place) % 26) as u8).to_string()
    })
}

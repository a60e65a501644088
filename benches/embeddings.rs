//! Throughput of the embedding objectives on one core, and its share of what the core allows:
//! `cargo bench --bench embeddings`.
//!
//! The bounds are measured in the same process: a matrix product of 1024³, and a copy of 64 MiB, counting bytes read and
//! written. Work is counted by the formula: the multiplications and additions of scores and of both gradients, and every
//! row that must be read or written, once for each time it is. What stays in the caches moves faster than a copy does.
#![allow(missing_docs)]

use std::cell::RefCell;
use std::collections::HashSet;
use std::hint::black_box;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use cllm::config::{PairEncoderConfig, PairTrainingConfig, SimilarityConfig, WordObjective, WordTrainingConfig};
use cllm::data::{PairBatch, TextFiles, TextOptions, TokenRows, WordSplit, WordVocabulary};
use cllm::gather::{GatherCache, RowSparseGradient};
use cllm::linalg::{Write, gemm};
use cllm::models::similarity::SimilarityModel;
use cllm::parallel::Parallelism;
use cllm::rng::{Purpose, Stream};
use cllm::similarity::UnitVectors;
use cllm::train::{PairTrainer, WordTrainer};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use ndarray::Array2;

const ONE: Parallelism = Parallelism::SEQUENTIAL;

/// What one core does in a second, at best.
struct Bounds {
    flops: f64,
    bytes: f64,
}

/// What an iteration has to do.
struct Work {
    elements: usize,
    flops: f64,
    bytes: f64,
}

impl Bounds {
    fn measure() -> Self {
        #[cfg(feature = "blas")]
        let _blas = cllm::linalg::threads::SingleThreadedBlas::acquire();
        let matrix = || Array2::from_elem((1024, 1024), 0.5f32);
        let (a, b, mut c) = (matrix(), matrix(), matrix());
        let product = fastest(|| gemm(1.0, a.view(), b.view(), Write::Replace, c.view_mut(), ONE));
        let (from, mut to) = (vec![1.0f32; 1 << 24], vec![0.0f32; 1 << 24]);
        let copy = fastest(|| to.copy_from_slice(black_box(&from)));
        black_box(to);
        let bounds = Self { flops: 2.0 * 1024f64.powi(3) / product, bytes: 8.0 * f64::from(1 << 24) / copy };
        println!("one core: products {:.0} GFLOP/s, copy {:.1} GB/s\n", bounds.flops / 1e9, bounds.bytes / 1e9);
        bounds
    }

    /// Benches `run`, which returns the time that counts, and prints the shares that it reaches.
    fn bench(&self, group: &mut BenchmarkGroup<'_, WallTime>, name: &str, work: &Work, run: impl FnMut() -> Duration) {
        let (run, times) = (RefCell::new(run), RefCell::new(Vec::new()));
        group.throughput(Throughput::Elements(work.elements as u64));
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let total: Duration = (0..iterations).map(|_| run.borrow_mut()()).sum();
                times.borrow_mut().push(total.as_secs_f64() / iterations as f64);
                total
            });
        });
        let mut times = times.into_inner();
        times.sort_by(f64::total_cmp);
        if let Some(&seconds) = times.get(times.len() / 2) {
            let copy = format!("{:.0} % of a copy", 100.0 * work.bytes / seconds / self.bytes);
            match work.flops {
                0.0 => println!("{:24}bounds: {copy}\n", ""),
                flops => {
                    println!("{:24}bounds: {:.0} % of products, {copy}\n", "", 100.0 * flops / seconds / self.flops)
                }
            }
        }
    }
}

fn fastest(mut run: impl FnMut()) -> f64 {
    (0..10).map(|_| timed(&mut run).as_secs_f64()).fold(f64::INFINITY, f64::min)
}

fn timed(run: impl FnOnce()) -> Duration {
    let start = Instant::now();
    run();
    start.elapsed()
}

/// `count` ids below `bound`, whose frequencies fall with their number: id i about as 1/(i + 1).
fn zipf(count: usize, bound: usize, step: u64) -> Vec<u32> {
    let stream = Stream::new(3, Purpose::Caller, step);
    (0..count as u64)
        .map(|index| ((bound as f32).powf(stream.uniform(index)) as usize - 1).min(bound - 1) as u32)
        .collect()
}

fn words(criterion: &mut Criterion, bounds: &Bounds) {
    const WORDS: usize = 400_000;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("words.txt");
    let ids = zipf(WORDS, 30_000, 0);
    let line = |ids: &[u32]| ids.iter().map(|id| format!("w{id} ")).collect::<String>() + "\n";
    std::fs::write(&path, ids.chunks(40).map(line).collect::<String>()).expect("the text is written");
    let corpus = TextFiles::collect(&[path], &TextOptions::default()).expect("the text is there");
    let vocabulary = WordVocabulary::build(&corpus, WordSplit::Blanks, 5).expect("the text has words");

    let mut group = criterion.benchmark_group("words");
    group.sample_size(10).sampling_mode(SamplingMode::Flat).warm_up_time(Duration::from_secs(1));
    for (name, objective) in [("skip-gram", WordObjective::SkipGram), ("CBOW", WordObjective::Cbow)] {
        for dim in [100, 300] {
            let config = WordTrainingConfig { objective, dim, epochs: 1, ..Default::default() };
            let kept = vocabulary.keep_probabilities(config.sample).into_iter().zip(vocabulary.counts());
            let kept: f64 = kept.map(|(share, &count)| f64::from(share) * count as f64).sum();
            // A word in the centre of a window meets window + 1 others on average, and the negatives of its block.
            let (others, negatives) = ((config.window + 1) as f64, config.shared_negatives as f64);
            let (row, block) = (dim as f64, config.block as f64);
            let flops = match objective {
                WordObjective::SkipGram => 6.0 * row * (others + negatives),
                WordObjective::Cbow => row * (2.0 * others + 6.0 * (1.0 + negatives)),
            };
            // The rows of a block's words in both tables, its windows' beyond it, and its negatives.
            let rows = 2.0 + (2 * config.window) as f64 / block + negatives / block;
            let work = Work { elements: WORDS, flops: kept * flops, bytes: kept * rows * 8.0 * row };
            bounds.bench(&mut group, &format!("{name}, dim {dim}"), &work, || {
                let mut trainer = WordTrainer::new(vocabulary.clone(), config.clone()).expect("the settings are valid");
                trainer.run(&corpus, |_| ControlFlow::Continue(())).expect("the text can be read").training_time
            });
        }
    }
}

fn pairs(criterion: &mut Criterion, bounds: &Bounds) {
    const VOCABULARY: usize = 30_000;
    const PAIRS: usize = 2048;
    const WORDS: usize = 16;
    let ids = zipf(2 * PAIRS * WORDS, VOCABULARY, 1);
    let distinct = distinct(&ids);
    let batch = PairBatch::new(ids.chunks(WORDS).collect::<TokenRows>(), 0).expect("the rows are pairs");
    let mut group = criterion.benchmark_group("text pairs");
    group.sample_size(10).sampling_mode(SamplingMode::Flat).warm_up_time(Duration::from_secs(1));
    for dim in [256, 1024] {
        let encoder = PairEncoderConfig { vocabulary_size: VOCABULARY, dim, token_weights: false };
        let config = PairTrainingConfig { batch_size: PAIRS, max_tokens: WORDS, workers: 1, ..Default::default() };
        let row = 4.0 * dim as f64;
        // Rows are read to make the vectors, gradients of the vectors to make those of the rows; values and two moments of
        // a row are read and written.
        let bytes = row * (2 * ids.len() + 6 * distinct) as f64;
        let work = Work { elements: PAIRS, flops: 6.0 * (PAIRS * PAIRS * dim) as f64, bytes };
        let mut trainer = None;
        bounds.bench(&mut group, &format!("dim {dim}"), &work, || {
            let new = || PairTrainer::new(encoder.clone(), config.clone()).expect("the settings are valid");
            let trainer = trainer.get_or_insert_with(new);
            timed(|| {
                trainer.step(&batch).expect("the batch is valid");
            })
        });
    }
}

fn similarity(criterion: &mut Criterion, bounds: &Bounds) {
    let (vocabulary_size, dim, sequences, length) = (10_000, 128, 64, 64);
    let config =
        SimilarityConfig { vocabulary_size, dim, batch_size: sequences, sequence_length: length, ..Default::default() };
    let ids = |step| {
        Array2::from_shape_vec((sequences, length), zipf(sequences * length, vocabulary_size, step)).expect("the shape")
    };
    let (inputs, targets) = (ids(2), ids(3));
    let pairs = sequences * length;
    // The update is of all rows of both tables: 7 values a parameter. A pair's rows are gathered, and their gradient
    // written and scattered.
    let bytes = 4.0 * dim as f64 * (7 * 2 * vocabulary_size + 2 * 5 * pairs) as f64;
    let work = Work { elements: pairs, flops: 6.0 * (pairs * dim) as f64, bytes };
    let mut group = criterion.benchmark_group("similarity objective");
    group.sample_size(20);
    let mut model = None;
    bounds.bench(&mut group, &format!("dim {dim}"), &work, || {
        let model = model.get_or_insert_with(|| SimilarityModel::new(config.clone()).expect("the settings are valid"));
        timed(|| {
            model.step(inputs.view(), targets.view()).expect("the batch is valid");
        })
    });
}

fn gather(criterion: &mut Criterion, bounds: &Bounds) {
    const PLACES: usize = 16_384;
    let mut group = criterion.benchmark_group("gather");
    group.sample_size(20);
    for (rows, dim) in [(30_000, 256), (1000, 128)] {
        let ids = zipf(PLACES, rows, 4);
        let distinct = distinct(&ids);
        let table = Array2::from_elem((rows, dim), 0.5f32);
        let mut cache = GatherCache::new(PLACES, table.dim());
        let row = 4.0 * dim as f64;
        let work = Work { elements: PLACES, flops: 0.0, bytes: 2.0 * row * PLACES as f64 };
        bounds.bench(&mut group, &format!("rows of {rows} × {dim}"), &work, || {
            timed(|| cache.gather(black_box(table.view()), &ids, ONE))
        });
        cache.gather(table.view(), &ids, ONE);
        let d_rows = Array2::from_elem((PLACES, dim), 0.1f32);
        let mut gradient = RowSparseGradient::new(PLACES, table.dim());
        let work = Work { elements: PLACES, flops: (PLACES * dim) as f64, bytes: row * (PLACES + distinct) as f64 };
        bounds.bench(&mut group, &format!("segment sum to {rows} × {dim}"), &work, || {
            // Distinct ids are found anew for every batch.
            cache.gather(table.view(), &ids, ONE);
            timed(|| cache.scatter_sparse(black_box(d_rows.view()), &mut gradient, ONE))
        });
    }
}

fn neighbours(criterion: &mut Criterion, bounds: &Bounds) {
    const ROWS: usize = 50_000;
    const QUERIES: usize = 256;
    let mut group = criterion.benchmark_group("nearest neighbours");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    for dim in [100, 300] {
        let mut values = vec![0.0; ROWS * dim];
        Stream::new(3, Purpose::Caller, 5).fill_normal(&mut values, 1.0);
        let table = Array2::from_shape_vec((ROWS, dim), values).expect("the shape");
        let search = UnitVectors::new(table.view(), ONE);
        let queries = table.slice(ndarray::s![..QUERIES, ..]);
        // 128 queries are compared with the table at a time.
        let bytes = 4.0 * (ROWS * dim * QUERIES / 128) as f64;
        let work = Work { elements: QUERIES, flops: 2.0 * (QUERIES * ROWS * dim) as f64, bytes };
        bounds.bench(&mut group, &format!("10 of {ROWS} × {dim}"), &work, || {
            timed(|| {
                black_box(search.nearest(queries, 10, None, ONE));
            })
        });
    }
}

fn distinct(ids: &[u32]) -> usize {
    ids.iter().collect::<HashSet<_>>().len()
}

fn all(criterion: &mut Criterion) {
    let bounds = Bounds::measure();
    words(criterion, &bounds);
    pairs(criterion, &bounds);
    similarity(criterion, &bounds);
    gather(criterion, &bounds);
    neighbours(criterion, &bounds);
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    targets = all
}
criterion_main!(benches);

//! A warm training step allocates nothing on the heap, on any thread.
//!
//! A binary of its own, since it counts every allocation of the process: one test function, no other threads.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use cllm::config::{
    PairEncoderConfig, PairTrainingConfig, SimilarityConfig, SubwordConfig, WordObjective, WordTrainingConfig,
    WorkerMode,
};
use cllm::data::{
    Batch, BatchOrder, PairSource, PairStoreBuilder, SequenceSource, TextFiles, TextOptions, TokenStore, TokenWriter,
    WordSplit, WordVocabulary,
};
use cllm::models::similarity::SimilarityModel;
use cllm::train::{PairTrainer, WordTrainer};
use cllm::{Optimizer, Sharding, Trainer, TrainingConfig, Transformer, TransformerConfig};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// Without BLAS, ndarray's product allocates an aligned packing buffer a call. That is the one exception, so there an
/// allocation with a vector register's alignment does not count; nothing else in a step asks for one.
fn counts(layout: Layout) -> bool {
    cfg!(feature = "blas") || layout.align() < 32
}

#[allow(unsafe_code)]
// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(u64::from(counts(layout)), Relaxed);
        // SAFETY: the caller's promise is the one that is needed.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(u64::from(counts(layout)), Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const WARM: u64 = 20;
const MEASURED: u64 = 100;

/// A thread of the pool allocates when it first has a part in a step, and on a busy machine that may be long after the
/// others. What a step allocates is found in each of several stretches, such a first time in one.
const STRETCHES: u64 = 3;

/// Counts the allocations of each stretch of `MEASURED` steps after the first `WARM`.
#[derive(Default)]
struct Stretches {
    start: u64,
    fewest: Option<u64>,
    seen: u64,
}

impl Stretches {
    /// Steps of a run that has them all.
    const STEPS: u64 = WARM + STRETCHES * MEASURED;

    fn after(&mut self, step: u64) {
        if step >= WARM && (step - WARM).is_multiple_of(MEASURED) {
            let now = ALLOCATIONS.load(Relaxed);
            if step > WARM {
                let found = now - self.start;
                self.fewest = Some(self.fewest.map_or(found, |fewest| fewest.min(found)));
                self.seen += 1;
            }
            self.start = now;
        }
    }

    fn fewest(&self) -> u64 {
        assert!(self.start > 0, "building a trainer allocates: the counter does not count");
        assert_eq!(self.seen, STRETCHES, "the run has not reached its end");
        self.fewest.unwrap()
    }
}

fn shape(dropout: f32) -> TransformerConfig {
    TransformerConfig {
        vocabulary_size: 50,
        context: 70,
        dim: 24,
        heads: 2,
        layers: 2,
        feed_forward: 40,
        embedding_dropout: dropout,
        attention_dropout: dropout,
        residual_dropout: dropout,
        ..Default::default()
    }
}

fn tokens() -> TokenStore {
    let tokens: Vec<u32> = (0..5000).map(|i| i * i % 47).collect();
    TokenStore::from_tokens(&tokens, 50).unwrap()
}

/// The same tokens, read from a file.
fn token_file() -> TokenStore {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = TokenWriter::create(folder.path().join("tokens"), 50).unwrap();
    let mut ids = vec![0; tokens().len()];
    tokens().copy_to(0, &mut ids).unwrap();
    writer.write(&ids).unwrap();
    // The open file outlives its name.
    writer.finish().unwrap()
}

/// Runs `measure` and waits for the threads of the trainer that it has dropped: a thread pool does not wait for them, and
/// they allocate as they end, which the next measurement must not count.
fn alone(measure: impl FnOnce() -> u64) -> u64 {
    let threads = || std::fs::read_dir("/proc/self/task").map(Iterator::count).ok();
    let before = threads();
    let allocations = measure();
    let start = Instant::now();
    // Where the system does not tell, a second must do.
    while before.map_or(start.elapsed() < Duration::from_secs(1), |_| threads() > before) {
        assert!(start.elapsed() < Duration::from_secs(60), "threads of a dropped trainer do not end");
        std::thread::sleep(Duration::from_millis(1));
    }
    allocations
}

/// Allocations in warm steps of a run, evaluations included.
fn in_a_run(config: TrainingConfig, dropout: f32) -> u64 {
    let sequences = config.batch_size * config.accumulation_steps;
    let source = SequenceSource::new(token_file(), config.batch_order, sequences, 70, 3).unwrap();
    let validation = SequenceSource::new(tokens().slice(0..1500), BatchOrder::Sequential, 1, 70, 0).unwrap();
    let config = TrainingConfig {
        sequence_length: 70,
        max_steps: Some(Stretches::STEPS),
        evaluation_interval: Some(10),
        ..config
    };
    let mut trainer = Trainer::new(Transformer::new(shape(dropout), 1).unwrap(), config).unwrap();
    let mut stretches = Stretches::default();
    let watch = |progress: &cllm::train::Progress<'_>| {
        stretches.after(progress.report.step);
        ControlFlow::Continue(())
    };
    trainer.run(&source, Some(&validation), watch).unwrap();
    stretches.fewest()
}

/// Allocations between the first and the last report of a run of word embeddings, which begins several epochs.
fn in_words(corpus: &TextFiles, config: WordTrainingConfig) -> u64 {
    let vocabulary = WordVocabulary::build(corpus, WordSplit::Blanks, 1).unwrap();
    let mut trainer = WordTrainer::new(vocabulary, WordTrainingConfig { dim: 24, epochs: 4, ..config }).unwrap();
    let (mut start, mut end, mut reports) = (0, 0, 0);
    let watch = |_: &_| {
        end = ALLOCATIONS.load(Relaxed);
        reports += 1;
        if reports == 1 {
            start = end;
        }
        ControlFlow::Continue(())
    };
    trainer.run(corpus, watch).unwrap();
    assert!(reports > 3, "{reports} reports");
    end - start
}

/// Allocations in `MEASURED` warm steps of the similarity objective. They are so short that it takes many until every
/// worker has had a part in one.
fn in_similarity(config: SimilarityConfig) -> u64 {
    let mut model = SimilarityModel::new(config).unwrap();
    let ids = |step: u64, side: u64| {
        let rows = 1 + (step % 4) as usize;
        ndarray::Array2::from_shape_fn((rows, 9), |(row, column)| (step + side * 7 + (row * column) as u64) as u32 % 50)
    };
    let warm = 200 * WARM;
    let batches: Vec<_> = (0..MEASURED).map(|step| (ids(step, 0), ids(step, 1))).collect();
    model.in_workers(|model| {
        let mut start = 0;
        for (step, (inputs, targets)) in (0..warm + MEASURED).zip(batches.iter().cycle()) {
            if step == warm {
                start = ALLOCATIONS.load(Relaxed);
            }
            model.step(inputs.view(), targets.view()).unwrap();
        }
        ALLOCATIONS.load(Relaxed) - start
    })
}

/// Allocations in warm steps of a run on pairs, of texts of many lengths and several epochs.
fn in_pairs(config: PairTrainingConfig, token_weights: bool) -> u64 {
    let mut pairs = PairStoreBuilder::new(50, config.hard_negatives).unwrap();
    for pair in 0..300u32 {
        let text = |number: u32| -> Vec<u32> {
            let length = (pair * pair + number) % 12;
            (0..length).map(|word| (pair * 7 + word * word) % 50).collect()
        };
        let texts: Vec<Vec<u32>> = (0..2 + config.hard_negatives as u32).map(text).collect();
        pairs.push(&texts).unwrap();
    }
    let source = PairSource::new(pairs.finish(), 30, 1).unwrap();
    let config = PairTrainingConfig { batch_size: 30, max_steps: Some(Stretches::STEPS), epochs: None, ..config };
    let encoder = PairEncoderConfig { vocabulary_size: 50, dim: 24, token_weights };
    let mut trainer = PairTrainer::new(encoder, config).unwrap();
    let mut stretches = Stretches::default();
    let watch = |progress: &cllm::train::PairProgress<'_>| {
        stretches.after(progress.report.step);
        ControlFlow::Continue(())
    };
    trainer.run(&source, watch).unwrap();
    stretches.fewest()
}

#[test]
fn warm_steps_allocate_nothing() {
    let base = TrainingConfig { batch_size: 4, ..Default::default() };
    for workers in [1, 2, 3] {
        for sharding in [Sharding::Sequences, Sharding::Operations] {
            let config = TrainingConfig { workers, sharding, ..base.clone() };
            let plain = alone(|| in_a_run(config.clone(), 0.0));
            assert_eq!(plain, 0, "{workers} workers by {sharding:?}");
            let everything = TrainingConfig {
                accumulation_steps: 2,
                optimizer: Optimizer::Sgd,
                moving_average_decay: Some(0.99),
                label_smoothing: 0.1,
                ignore_id: Some(3),
                batch_order: BatchOrder::Shuffled,
                scores_budget: 1,
                ..config
            };
            assert_eq!(alone(|| in_a_run(everything, 0.1)), 0, "{workers} workers by {sharding:?}, every option");
        }
    }

    // From outside the pool, a step costs a block of the pool's queue now and then: at most one in 30 steps.
    let config = TrainingConfig { sequence_length: 70, workers: 2, ..base };
    let mut trainer = Trainer::new(Transformer::new(shape(0.0), 1).unwrap(), config).unwrap();
    let source = SequenceSource::new(tokens(), BatchOrder::Random, 4, 70, 3).unwrap();
    let mut batch = Batch::zeros(4, 70);
    let mut start = 0;
    for step in 0..WARM + MEASURED {
        if step == WARM {
            start = ALLOCATIONS.load(Relaxed);
        }
        source.fill(step, &mut batch).unwrap();
        trainer.step(&batch).unwrap();
    }
    let outside = ALLOCATIONS.load(Relaxed) - start;
    assert!(outside <= MEASURED / 30 + 1, "{outside} allocations in {MEASURED} steps called from outside");

    for workers in [1, 2] {
        for (layers, unit_norm) in [(0, false), (0, true), (2, true)] {
            let config = SimilarityConfig {
                vocabulary_size: 50,
                dim: 24,
                heads: 2,
                batch_size: 4,
                sequence_length: 9,
                layers,
                unit_norm,
                workers,
                ..Default::default()
            };
            assert_eq!(alone(|| in_similarity(config)), 0, "similarity, {layers} layers, {workers} workers");
        }
    }

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("words");
    let line = (0..100).map(|i| format!("w{} ", i * i % 37)).collect::<String>() + "\n";
    std::fs::write(&path, line.repeat(3000)).unwrap();
    let corpus = TextFiles::collect(&[path], &TextOptions::default()).unwrap();
    for objective in [WordObjective::SkipGram, WordObjective::Cbow] {
        for (mode, workers) in [(WorkerMode::Deterministic, 1), (WorkerMode::Deterministic, 2), (WorkerMode::Async, 2)]
        {
            for subwords in [None, Some(SubwordConfig { buckets: 100, ..Default::default() })] {
                let config = WordTrainingConfig { objective, mode, workers, subwords, ..Default::default() };
                let what = format!("{objective:?}, {mode:?}, {workers} workers, {subwords:?}");
                assert_eq!(alone(|| in_words(&corpus, config)), 0, "{what}");
            }
        }
    }

    for workers in [1, 2, 3] {
        let config = PairTrainingConfig { workers, ..Default::default() };
        assert_eq!(alone(|| in_pairs(config.clone(), false)), 0, "pairs, {workers} workers");
        let everything = PairTrainingConfig { symmetric: true, hard_negatives: 2, matryoshka: vec![4, 16], ..config };
        assert_eq!(alone(|| in_pairs(everything, true)), 0, "pairs, {workers} workers, every option");
    }
}

//! Rounds of deterministic word embedding training.
//!
//! In a round every worker trains on a block. It is known beforehand which rows that reads and updates: a row that one
//! worker alone has is updated by it at once, while it has the row and the gradient at hand. What is to be added to a row
//! that several workers have is left pending until all have read it, and then one of them adds it for all, in the order of
//! the workers. So each row is read and takes its updates in an order that does not depend on who is faster, and no two
//! threads write to one row.
//!
//! Each worker runs all its rounds in one piece, and waits for the others at two places: before it makes pending updates,
//! until all have computed theirs, and before its next block, until all are made. What needs no other worker is done
//! between arriving and waiting: the text of the next block is read before the first, its windows are drawn before the
//! second. So the faster worker waits only where it is ahead by more than that. Waiting is a loop that looks at a counter:
//! a round takes some 20 µs, too little for a thread to sleep.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use super::word_watch::Standing;
use super::word_worker::{NO_PANIC, WordWorker};
use crate::models::skip_gram::row_set::{RowCount, RowSet, TableName};
use crate::models::skip_gram::rows::Racing;
use crate::models::skip_gram::update::Updates;
use crate::parallel::pause;

/// What the workers of a run of rounds know of each other.
struct Meeting<'a> {
    updates: Vec<Arc<RwLock<Updates<'a>>>>,
    /// What each worker shows of itself before its next block, in even and in odd rounds: a worker may be one round ahead of
    /// another that still looks at the present one.
    shown: Vec<[RwLock<Shown>; 2]>,
    /// Workers that have come so far, in all rounds.
    trained: AtomicU64,
    prepared: AtomicU64,
    updated: AtomicU64,
    /// Workers that have no block left.
    ended: AtomicU64,
    /// The first round that is not begun any more.
    end: AtomicU64,
    /// Whether a worker has panicked, so that waiting for it is in vain.
    is_broken: AtomicBool,
}

/// The rows of a worker's next block, and how far the worker is.
#[derive(Default)]
struct Shown {
    rows: RowSet,
    standing: Standing,
}

impl Meeting<'_> {
    /// Waits until `count` workers have arrived; returns whether they have.
    fn wait(&self, arrived: &AtomicU64, count: u64) -> bool {
        let mut looks = 0;
        while arrived.load(Ordering::Acquire) < count {
            if self.is_broken.load(Ordering::Relaxed) {
                return false;
            }
            pause(&mut looks);
        }
        true
    }

    /// Ends the run before `round`, which nobody has begun.
    fn end_before(&self, round: u64) {
        self.end.fetch_min(round, Ordering::Relaxed);
    }

    fn is_over(&self, round: u64) -> bool {
        round >= self.end.load(Ordering::Relaxed)
    }

    /// The number of workers.
    fn count(&self) -> u64 {
        self.updates.len() as u64
    }

    /// Shows the others the rows of the worker's block of `round`.
    fn show(&self, index: usize, worker: &WordWorker<'_>, round: u64, has_ended: &mut bool) {
        let mut shown = self.shown[index][round as usize % 2].write().expect(NO_PANIC);
        worker.show_rows(&mut shown.rows);
        shown.standing = worker.standing();
        drop(shown);
        if !worker.is_ready() && !std::mem::replace(has_ended, true) {
            let ended = 1 + self.ended.fetch_add(1, Ordering::Relaxed);
            if ended == self.count() {
                self.end_before(round);
            }
        }
        self.prepared.fetch_add(1, Ordering::Release);
    }

    /// The rows that several workers have in `round`, and how far all were before it.
    fn seen(&self, round: u64) -> (RowSet, Standing) {
        let (mut rows, mut standing) = (RowCount::default(), Standing::default());
        for shown in &self.shown {
            let shown = shown[round as usize % 2].read().expect(NO_PANIC);
            rows.add(&shown.rows);
            standing = standing + shown.standing;
        }
        (rows.in_several(), standing)
    }

    /// Makes the pending updates that are worker `index`'s to make.
    fn update(&self, index: usize, contested: &RowSet, [input, output]: [Racing<'_>; 2]) {
        for updates in &self.updates {
            updates.read().expect(NO_PANIC).for_each_pending(contested, |table, row, factor, gradient| {
                if row as usize % self.updates.len() == index {
                    let table = if table == TableName::Input { input } else { output };
                    table.add(row, factor, gradient);
                }
            });
        }
    }
}

/// Tells the others if the worker panics.
pub(super) struct Attendance<'m>(pub &'m AtomicBool);

impl Drop for Attendance<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Trains every worker on its blocks, until none has any left, one fails, or `look`, which is told in each round how far
/// all were before it, says that there is a reason to pause; every worker is then between two blocks.
///
/// Runs on the rayon pool it is called in, which must have a thread for every worker.
pub(super) fn deterministic_rounds<P: Send>(
    workers: &mut [WordWorker<'_>],
    tables: [Racing<'_>; 2],
    look: impl FnMut(Standing) -> Option<P> + Send,
) -> Option<P> {
    let meeting = Meeting {
        updates: workers.iter().map(|worker| worker.updates.clone()).collect(),
        shown: workers.iter().map(|_| Default::default()).collect(),
        trained: AtomicU64::new(0),
        prepared: AtomicU64::new(0),
        updated: AtomicU64::new(0),
        ended: AtomicU64::new(0),
        end: AtomicU64::new(if workers.iter().any(WordWorker::failed) { 0 } else { u64::MAX }),
        is_broken: AtomicBool::new(false),
    };
    let watch = Mutex::new((look, None));
    let seats: Vec<_> = workers.iter_mut().map(Mutex::new).collect();
    rayon::broadcast(|thread| {
        let index = thread.index();
        let Some(seat) = seats.get(index) else { return };
        let _attendance = Attendance(&meeting.is_broken);
        let mut watch = (index == 0).then(|| watch.lock().expect(NO_PANIC));
        attend(&meeting, index, &mut seat.lock().expect(NO_PANIC), tables, |standing| {
            let Some((look, pause)) = watch.as_deref_mut() else { return false };
            *pause = look(standing);
            pause.is_some()
        });
    });
    watch.into_inner().expect(NO_PANIC).1
}

/// All rounds of one worker.
fn attend(
    meeting: &Meeting<'_>,
    index: usize,
    worker: &mut WordWorker<'_>,
    tables: [Racing<'_>; 2],
    mut look: impl FnMut(Standing) -> bool,
) {
    let mut has_ended = false;
    meeting.show(index, worker, 0, &mut has_ended);
    for round in 0.. {
        let (before, after) = (round * meeting.count(), (round + 1) * meeting.count());
        worker.draw_windows();
        if !(meeting.wait(&meeting.updated, before) && meeting.wait(&meeting.prepared, after)) || meeting.is_over(round)
        {
            return;
        }
        let (contested, standing) = meeting.seen(round);
        worker.train(Some(&contested), tables);
        meeting.trained.fetch_add(1, Ordering::Release);
        worker.prepare();
        if look(standing) || worker.failed() {
            meeting.end_before(round + 1);
        }
        meeting.show(index, worker, round + 1, &mut has_ended);
        if !meeting.wait(&meeting.trained, after) {
            return;
        }
        meeting.update(index, &contested, tables);
        meeting.updated.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{SubwordConfig, WordObjective, WordTrainingConfig};
    use crate::data::{TextFiles, TextOptions, WordSplit, WordVocabulary};
    use crate::models::skip_gram::SkipGram;
    use crate::params::as_atomics;
    use crate::train::word_shared::Shared;

    const WORKERS: usize = 3;

    /// Words that all workers meet and words that one of them meets.
    fn corpus() -> (tempfile::NamedTempFile, TextFiles) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let word = |at: usize| format!("w{}{}", at * at % 61, if at.is_multiple_of(9) { "\n" } else { " " });
        std::fs::write(file.path(), (0..6000).map(word).collect::<String>()).unwrap();
        let corpus = TextFiles::collect(&[file.path()], &TextOptions::default()).unwrap();
        (file, corpus)
    }

    fn config(objective: WordObjective, subwords: Option<SubwordConfig>) -> WordTrainingConfig {
        WordTrainingConfig {
            objective,
            subwords,
            workers: WORKERS,
            dim: 20,
            block: 4,
            shared_negatives: 16,
            sample: 0.0,
            epochs: 2,
            ..Default::default()
        }
    }

    fn pool() -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(WORKERS).build().unwrap()
    }

    fn prepared<'a>(shared: &'a Shared<'a>) -> Vec<WordWorker<'a>> {
        let mut workers: Vec<_> = (0..WORKERS).map(|worker| WordWorker::new(shared, worker)).collect();
        workers.iter_mut().for_each(WordWorker::prepare);
        workers
    }

    /// One after the other: what each worker has alone at once, then, worker by worker, what was left. Returns how many
    /// updates that were, and the words read before each round.
    fn rounds_in_turn(workers: &mut [WordWorker<'_>], tables: [Racing<'_>; 2], rounds: usize) -> (usize, Vec<u64>) {
        let (mut contested_updates, mut words) = (0, Vec::new());
        while words.len() < rounds && workers.iter().any(WordWorker::is_ready) {
            words.push(workers.iter().map(WordWorker::words).sum());
            let mut sets = vec![RowSet::EMPTY; WORKERS];
            sets.iter_mut().zip(&*workers).for_each(|(set, worker)| worker.show_rows(set));
            let mut count = RowCount::default();
            sets.iter().for_each(|set| count.add(set));
            let contested = count.in_several();
            for worker in &mut *workers {
                worker.draw_windows();
                worker.train(Some(&contested), tables);
                worker.prepare();
            }
            for worker in &*workers {
                worker.updates.read().unwrap().for_each_pending(&contested, |table, row, factor, gradient| {
                    tables[usize::from(table == TableName::Output)].add(row, factor, gradient);
                    contested_updates += 1;
                });
            }
        }
        (contested_updates, words)
    }

    #[test]
    fn rounds_are_as_if_workers_took_turns() {
        let (_file, corpus) = corpus();
        let vocabulary = WordVocabulary::build(&corpus, WordSplit::Blanks, 1).unwrap();
        let few = SubwordConfig { min_length: 2, max_length: 3, buckets: 40 };
        for (objective, subwords) in [
            (WordObjective::SkipGram, None),
            (WordObjective::Cbow, None),
            (WordObjective::SkipGram, Some(few)),
            (WordObjective::Cbow, Some(few)),
        ] {
            let config = config(objective, subwords);
            let mut models = [0, 1].map(|_| SkipGram::new(&vocabulary, &config).unwrap());
            for rounds in [1, 7, usize::MAX] {
                let [(shared, racing), (other_shared, in_turn)] = models.each_mut().map(|model| {
                    let shared = Shared::new(&vocabulary, &config, model.subwords(), &corpus);
                    (shared, tables(model, config.dim))
                });
                let mut workers = prepared(&shared);
                let mut seen = Vec::new();
                let pause = pool().install(|| {
                    deterministic_rounds(&mut workers, racing, |standing| {
                        seen.push(standing.words);
                        (seen.len() == rounds).then_some("pause")
                    })
                });
                let mut others = prepared(&other_shared);
                let (contested, words) = rounds_in_turn(&mut others, in_turn, rounds);
                assert_eq!(pause, (rounds < usize::MAX).then_some("pause"));
                assert_eq!(seen, words);
                let done = words.len();
                assert!(contested > 10 && (rounds < usize::MAX || done > 500), "{contested} in {done} rounds");
                for (worker, other) in workers.iter().zip(&others) {
                    assert!(worker.place() == other.place(), "{objective:?}, {rounds} rounds");
                }
                let [found, expected] = models.each_mut().map(|model| {
                    let (input, output) = model.tables_mut();
                    [input.to_vec(), output.to_vec()]
                });
                assert!(found == expected, "{objective:?}, {subwords:?}, {rounds} rounds");
            }
        }
    }

    /// The tables of `model` as workers see them.
    fn tables(model: &mut SkipGram, dim: usize) -> [Racing<'_>; 2] {
        let (input, output) = model.tables_mut();
        [input, output].map(|table| Racing { values: as_atomics(table), dim })
    }

    #[test]
    fn what_is_left_pending_are_the_updates_of_contested_rows() {
        let (_file, corpus) = corpus();
        let vocabulary = WordVocabulary::build(&corpus, WordSplit::Blanks, 1).unwrap();
        let few = SubwordConfig { min_length: 2, max_length: 3, buckets: 40 };
        for subwords in [None, Some(few)] {
            let config = config(WordObjective::SkipGram, subwords);
            let [mut whole, mut split] = [0, 1].map(|_| SkipGram::new(&vocabulary, &config).unwrap());
            for model in [&mut whole, &mut split] {
                model.tables_mut().1.fill(0.1);
            }
            let shared = Shared::new(&vocabulary, &config, whole.subwords(), &corpus);
            let [mut worker, mut other] = [0, 0].map(|index| WordWorker::new(&shared, index));
            for worker in [&mut worker, &mut other] {
                // Away from the start, where a block has no word but itself.
                (0..6).for_each(|_| worker.prepare());
                worker.draw_windows();
            }
            let mut contested = RowSet::EMPTY;
            for row in (0..200).step_by(2) {
                contested.insert(TableName::Input, row);
                contested.insert(TableName::Output, row + 1);
            }
            let values = |model: &mut SkipGram| {
                let (input, output) = model.tables_mut();
                [input.to_vec(), output.to_vec()]
            };
            let before = values(&mut whole);
            worker.train(None, tables(&mut whole, config.dim));
            other.train(Some(&contested), tables(&mut split, config.dim));
            let (after, halfway) = (values(&mut whole), values(&mut split));
            let (mut waiting, mut made) = (0, 0);
            for (name, table) in [(TableName::Input, 0), (TableName::Output, 1)] {
                let rows = |values: &[Vec<f32>; 2]| -> Vec<Vec<f32>> {
                    values[table].chunks(config.dim).map(<[f32]>::to_vec).collect()
                };
                for (row, ((before, halfway), after)) in
                    rows(&before).into_iter().zip(rows(&halfway)).zip(rows(&after)).enumerate()
                {
                    let waits = contested.may_contain(name, row as u32);
                    assert_eq!(halfway, if waits { before.clone() } else { after.clone() }, "{name:?}, row {row}");
                    *(if waits { &mut waiting } else { &mut made }) += usize::from(after != before);
                }
            }
            assert!(waiting > 5 && made > 5, "{waiting}, {made}");
            let [input, output] = tables(&mut split, config.dim);
            other.updates.read().unwrap().for_each_pending(&contested, |table, row, factor, gradient| {
                (if table == TableName::Input { input } else { output }).add(row, factor, gradient);
            });
            assert!(values(&mut split) == after);
        }
    }

    #[test]
    fn a_panic_ends_the_rounds_of_all_workers() {
        let (_file, corpus) = corpus();
        let vocabulary = WordVocabulary::build(&corpus, WordSplit::Blanks, 1).unwrap();
        let config = config(WordObjective::SkipGram, None);
        let mut model = SkipGram::new(&vocabulary, &config).unwrap();
        let shared = Shared::new(&vocabulary, &config, None, &corpus);
        let tables = tables(&mut model, config.dim);
        let mut workers = prepared(&shared);
        let mut seen = 0;
        let run = std::panic::AssertUnwindSafe(|| {
            pool().install(|| {
                deterministic_rounds(&mut workers, tables, |_| -> Option<()> {
                    seen += 1;
                    assert!(seen < 5, "the fifth look");
                    None
                })
            })
        });
        let panic = std::panic::catch_unwind(run).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"the fifth look"));
        assert_eq!(seen, 5);
    }
}

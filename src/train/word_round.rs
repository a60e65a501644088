//! Rounds of deterministic word embedding training.
//!
//! In a round every worker computes the gradients of a few blocks at the same tables, then all updates are made. A row that
//! one worker alone has is updated by that worker, which has it and its gradient at hand in its cache. A row that several
//! workers have is updated by one of them, for all, in the order of the workers. So each row takes its updates in an order
//! that does not depend on who is faster, and no two threads write to one row.

use std::ops::Range;

use super::word_worker::WordWorker;
use crate::models::skip_gram::row_set::{RowSet, TableName};
use crate::models::skip_gram::rows::Racing;
use crate::parallel::for_each_indexed;
use crate::params::as_atomics;

/// Computes the blocks of a round on every worker, then makes all their updates.
pub(super) fn deterministic_round(workers: &mut [WordWorker<'_>], input: &mut [f32], output: &mut [f32], dim: usize) {
    for_each_indexed(workers, &|_, worker| worker.compute(input, output));
    let tables = [input, output].map(|table| Racing { values: as_atomics(table), dim });
    update(workers, 0..workers.len(), tables);
}

/// The updates of the round that the workers in `part` make.
fn update(workers: &[WordWorker<'_>], part: Range<usize>, tables: [Racing<'_>; 2]) {
    if part.len() > 1 {
        let middle = part.start + part.len() / 2;
        rayon::join(|| update(workers, part.start..middle, tables), || update(workers, middle..part.end, tables));
        return;
    }
    update_of(workers, part.start, tables);
}

/// The updates of the round that worker `index` makes.
fn update_of(workers: &[WordWorker<'_>], index: usize, [input, output]: [Racing<'_>; 2]) {
    let contested = RowSet::in_several(workers.iter().map(|worker| &worker.rows));
    for (owner, worker) in workers.iter().enumerate() {
        worker.for_each_update(|table, row, factor, gradient| {
            let by = if contested.may_contain(table, row) { row as usize % workers.len() } else { owner };
            if by == index {
                match table {
                    TableName::Input => input.add(row, factor, gradient),
                    TableName::Output => output.add(row, factor, gradient),
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{WordObjective, WordTrainingConfig};
    use crate::data::{TextFiles, TextOptions, WordSplit, WordVocabulary};
    use crate::models::skip_gram::SkipGram;
    use crate::train::word_shared::Shared;

    /// Words that all workers meet and words that one of them meets.
    fn text() -> String {
        (0..6000).map(|at| format!("w{}{}", at * at % 61, if at % 9 == 0 { "\n" } else { " " })).collect()
    }

    #[test]
    fn every_update_is_made_once_and_in_the_order_of_the_workers() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text()).unwrap();
        let corpus = TextFiles::collect(&[file.path()], &TextOptions::default()).unwrap();
        let vocabulary = WordVocabulary::build(&corpus, WordSplit::Blanks, 1).unwrap();
        for objective in [WordObjective::SkipGram, WordObjective::Cbow] {
            let config = WordTrainingConfig {
                objective,
                workers: 3,
                dim: 20,
                block: 4,
                shared_negatives: 16,
                sample: 0.0,
                ..Default::default()
            };
            let mut model = SkipGram::new(&vocabulary, &config).unwrap();
            let shared = Shared::new(&vocabulary, &config, None, &corpus);
            assert_eq!(shared.blocks, 2);
            let (input, output) = model.tables_mut();
            let mut workers: Vec<_> = (0..3).map(|worker| WordWorker::new(&shared, worker)).collect();
            let (mut contested, mut alone) = (0, 0);
            for round in 0..20 {
                let mut expected = [input.to_vec(), output.to_vec()];
                if round % 2 == 0 {
                    deterministic_round(&mut workers, input, output, config.dim);
                } else {
                    // The last worker is the first to come.
                    workers.iter_mut().for_each(|worker| worker.compute(input, output));
                    let racing = |table| Racing { values: as_atomics(table), dim: config.dim };
                    let tables = [racing(&mut *input), racing(&mut *output)];
                    (0..3).rev().for_each(|index| update_of(&workers, index, tables));
                }
                let several = RowSet::in_several(workers.iter().map(|worker| &worker.rows));
                for worker in &workers {
                    worker.for_each_update(|table, row, factor, gradient| {
                        let table_values = &mut expected[usize::from(table == TableName::Output)];
                        let row_values = &mut table_values[row as usize * config.dim..][..config.dim];
                        crate::kernels::elementwise::axpy(row_values, factor, gradient);
                        *(if several.may_contain(table, row) { &mut contested } else { &mut alone }) += 1;
                    });
                }
                assert!(input == expected[0] && output == expected[1], "{objective:?}, round {round}");
            }
            assert!(contested > 1000 && alone > 100, "{objective:?}: {contested} contested, {alone} not");
        }
    }

    #[test]
    fn a_round_has_the_updates_of_two_blocks_at_the_same_tables() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text()).unwrap();
        let corpus = TextFiles::collect(&[file.path()], &TextOptions::default()).unwrap();
        let vocabulary = WordVocabulary::build(&corpus, WordSplit::Blanks, 1).unwrap();
        let config = WordTrainingConfig { workers: 2, dim: 20, block: 4, epochs: 1, sample: 0.0, ..Default::default() };
        let mut model = SkipGram::new(&vocabulary, &config).unwrap();
        let (input, output) = model.tables_mut();
        output.fill(0.1);
        let two = Shared::new(&vocabulary, &config, None, &corpus);
        let one = Shared { blocks: 1, ..Shared::new(&vocabulary, &config, None, &corpus) };
        assert_eq!(two.blocks, 2);
        let (mut by_two, mut by_one) = (WordWorker::new(&two, 1), WordWorker::new(&one, 1));
        let add = |updates: &mut Vec<(TableName, u32, f32, Vec<f32>)>, worker: &WordWorker<'_>| {
            worker
                .for_each_update(|table, row, factor, gradient| updates.push((table, row, factor, gradient.to_vec())));
        };
        let mut rounds = 0;
        while !by_one.finished() {
            let (mut found, mut expected) = (Vec::new(), Vec::new());
            by_two.compute(input, output);
            add(&mut found, &by_two);
            for _ in 0..2 {
                by_one.compute(input, output);
                add(&mut expected, &by_one);
            }
            assert!(found == expected, "round {rounds}");
            rounds += 1;
        }
        by_two.compute(input, output);
        by_two.for_each_update(|_, row, _, _| panic!("an update of row {row} after the end"));
        assert!(by_two.finished() && rounds > 100, "{rounds}");
    }
}

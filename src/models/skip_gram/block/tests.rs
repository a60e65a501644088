//! The block against the plain formula.

use super::*;
use crate::config::SubwordConfig;
use crate::data::{AliasTable, TextFiles, TextOptions, WordSplit, WordStream, WordVocabulary};
use crate::kernels::dispatch::under_every_instruction_set;
use crate::models::skip_gram::row_set::TableName;
use crate::models::skip_gram::rows::Frozen;
use crate::models::skip_gram::subwords::rows_of;
use crate::models::skip_gram::windows::BlockNumber;
use crate::rng::{Purpose, Stream};

const NUMBER: BlockNumber = BlockNumber { seed: 3, worker: 1, epoch: 2, block: 0 };

fn config(objective: WordObjective) -> WordTrainingConfig {
    WordTrainingConfig { objective, dim: 7, window: 2, block: 29, shared_negatives: 16, ..Default::default() }
}

/// A text of 26 words in lines of 1 to 11.
fn text() -> (tempfile::TempDir, TextFiles, WordVocabulary) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text");
    std::fs::write(&path, "a b c a d\nb\n\ne f g a b a a b c h\nc d e\nf a b c h g a\n").unwrap();
    let corpus = TextFiles::collect(&[path], &TextOptions::default()).unwrap();
    let vocabulary = WordVocabulary::build(&corpus, WordSplit::Blanks, 1).unwrap();
    (folder, corpus, vocabulary)
}

/// A block on the text: its last places hold no word.
fn block<'a>(config: &WordTrainingConfig, subwords: Option<&'a Subwords>) -> (Block<'a>, usize) {
    let (_folder, corpus, vocabulary) = text();
    let keep = vec![1.0; vocabulary.len()];
    let mut stream = WordStream::new(&corpus, &vocabulary, &keep, 0..u64::MAX, 1);
    stream.restart(0).unwrap();
    let table = AliasTable::new(&vec![1.0; vocabulary.len()]);
    let mut block = Block::new(config, subwords);
    block.windows.start(&mut stream, &table, NUMBER).unwrap();
    block.windows.advance(&mut stream, &table).unwrap();
    assert!(block.windows.has_words());
    block.draw_windows();
    (block, vocabulary.len())
}

/// The loss of one centre, by the plain formula.
fn centre_loss(block: &Block<'_>, objective: WordObjective, centre: usize, input: &[f64], output: &[f64]) -> f64 {
    let dim = block.shape.dim;
    let row = |table: &[f64], word: u32| table[word as usize * dim..][..dim].to_vec();
    let cost = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>().exp().ln_1p();
    let negated = |x: Vec<f64>| x.into_iter().map(|x| -x).collect::<Vec<f64>>();
    let words = block.windows.contexts();
    let first = centre / block.shape.tile * block.shape.tile;
    let weights = &block.weights[centre * block.shape.band..][..block.shape.band];
    let pairs: Vec<(u32, f64)> = (0..weights.len())
        .filter(|&at| weights[at] > 0.0)
        .map(|at| (words[first + at], f64::from(weights[at])))
        .collect();
    if pairs.is_empty() {
        return 0.0;
    }
    let word = block.windows.centres()[centre];
    let (query, targets) = match objective {
        WordObjective::SkipGram => (row(input, word), pairs),
        WordObjective::Cbow => {
            let sum = |at: usize| pairs.iter().map(|&(pair, weight)| weight * row(input, pair)[at]).sum::<f64>();
            let weight = pairs_of(block, centre);
            let share = f64::from(block.windows.centre_shares()[centre]);
            ((0..dim).map(|at| sum(at) / weight).collect(), vec![(word, share)])
        }
    };
    let attraction: f64 =
        targets.iter().map(|&(target, weight)| weight * cost(&query, &negated(row(output, target)))).sum();
    let negatives = block.windows.negatives();
    let repulsion: f64 = negatives.iter().map(|&negative| cost(&query, &row(output, negative))).sum();
    let weight: f64 = targets.iter().map(|&(_, weight)| weight).sum();
    attraction + weight * 5.0 / negatives.len() as f64 * repulsion
}

fn pairs_of(block: &Block<'_>, centre: usize) -> f64 {
    block.weights[centre * block.shape.band..][..block.shape.band].iter().map(|&weight| f64::from(weight)).sum()
}

#[test]
fn loss_and_gradients_agree_with_the_plain_formula() {
    for objective in [WordObjective::SkipGram, WordObjective::Cbow] {
        let config = config(objective);
        let (mut block, words) = block(&config, None);
        let mut tables = vec![0.0; 2 * words * config.dim];
        Stream::new(8, Purpose::Caller, 0).fill_normal(&mut tables, 0.5);
        let (input, output) = tables.split_at(words * config.dim);
        under_every_instruction_set(|set| {
            let frozen = |values| Frozen { values, dim: config.dim };
            let mut rows = block.new_gradient();
            let found = block.compute(frozen(input), frozen(output), &mut rows);
            let mut gradient = vec![0.0; tables.len()];
            block.for_each_word(|table, row, place| {
                let offset = if table == TableName::Input { 0 } else { input.len() };
                let into = &mut gradient[offset + row as usize * config.dim..][..config.dim];
                into.iter_mut().zip(rows.row(place)).for_each(|(into, value)| *into += f64::from(*value));
            });

            let wide: Vec<f64> = tables.iter().map(|&value| value.into()).collect();
            let loss = |values: &[f64], centre| {
                centre_loss(&block, objective, centre, &values[..input.len()], &values[input.len()..])
            };
            let centres = 0..config.block;
            let expected: f64 = centres.clone().map(|centre| loss(&wide, centre)).sum();
            assert!((found.loss - expected).abs() < 1e-5 * expected, "{set:?}: {found:?} for {expected}");
            let pairs = centres.clone().map(|centre| (pairs_of(&block, centre), centre));
            let share = |centre: usize| f64::from(block.windows.centre_shares()[centre]);
            let pairs: f64 = match objective {
                WordObjective::SkipGram => pairs.map(|(pairs, _)| pairs).sum(),
                WordObjective::Cbow => pairs.filter(|&(pairs, _)| pairs > 0.0).map(|(_, centre)| share(centre)).sum(),
            };
            assert!((found.pairs - pairs).abs() < 1e-4, "{found:?} for {pairs}");
            assert!(pairs >= 15.0 && centres.clone().any(|centre| share(centre) < 1.0), "{pairs}");
            for at in 0..wide.len() {
                let slope = |centre: usize| {
                    let moved = |by: f64| {
                        let mut wide = wide.clone();
                        wide[at] += by;
                        loss(&wide, centre)
                    };
                    // word2vec.c does not divide what the words of a window take by their number.
                    let factor = if objective == WordObjective::Cbow && at < input.len() {
                        pairs_of(&block, centre)
                    } else {
                        1.0
                    };
                    factor * (moved(1e-5) - moved(-1e-5)) / 2e-5
                };
                let expected: f64 = centres.clone().map(slope).sum();
                let found = gradient[at];
                assert!(
                    (found - expected).abs() < 1e-4,
                    "{objective:?}, {set:?}, element {at}: {found} for {expected}"
                );
            }
        });
    }
}

#[test]
fn pairs_lie_within_a_line_and_within_the_window() {
    let config = config(WordObjective::SkipGram);
    let (mut block, words) = block(&config, None);
    let table = vec![0.0; words * config.dim];
    let frozen = Frozen { values: &table, dim: 7 };
    block.compute(frozen, frozen, &mut block.new_gradient());
    // The number of each word's line, by the places of the text; empty lines count.
    let lines: Vec<usize> =
        [(0, 5), (1, 1), (3, 10), (4, 3), (5, 7)].iter().flat_map(|&(line, words)| vec![line; words]).collect();
    for centre in 0..config.block {
        let weights = &block.weights[centre * block.shape.band..][..block.shape.band];
        let first = (centre / block.shape.tile * block.shape.tile) as isize - config.window as isize;
        let mut widest = 0;
        for (at, &weight) in weights.iter().enumerate() {
            let distance = (first + at as isize - centre as isize).unsigned_abs();
            let other = usize::try_from(first + at as isize).ok().and_then(|place| lines.get(place));
            let possible = distance > 0 && distance <= config.window && other.is_some() && other == lines.get(centre);
            // Of the words of this text, "a" stands at 7 places and "b" at 5, where 4 count.
            let (a, b) = (4.0 / 7.0, 4.0 / 5.0);
            let counts = [0.0, 1.0, a, b, a * a, a * b, b * b];
            let known = counts.iter().any(|count: &f32| (weight - count).abs() < 1e-6);
            assert!(known && (weight == 0.0 || possible), "centre {centre}, column {at}: {weight}");
            widest = widest.max(if weight > 0.0 { distance } else { 0 });
        }
        let alone = lines.get(centre).is_none_or(|line| lines.iter().filter(|&other| other == line).count() == 1);
        assert_eq!(widest == 0, alone, "centre {centre}: neighbours are always within the window");
    }
}

/// Against central differences of the plain formula by the vectors that the plain means of the rows are: as in fastText,
/// each row takes the whole gradient of a vector as often as it is part of it.
#[test]
fn rows_of_subwords_take_the_gradients_of_their_words() {
    // So few buckets that words share them, and meet some of them twice.
    let subwords = SubwordConfig { min_length: 1, max_length: 3, buckets: 5 };
    let subwords = Subwords::new(&text().2, subwords);
    for objective in [WordObjective::SkipGram, WordObjective::Cbow] {
        let config = config(objective);
        let (dim, rows) = (config.dim, subwords.row_count());
        let (mut block, words) = block(&config, Some(&subwords));
        assert!((0..words as u32).any(|word| {
            let rows = subwords.of_word(word);
            rows.iter().enumerate().any(|(at, row)| rows[..at].contains(row))
        }));
        let mut tables = vec![0.0; (rows + words) * dim];
        Stream::new(9, Purpose::Caller, 0).fill_normal(&mut tables, 0.5);
        let (input, output) = tables.split_at(rows * dim);
        let mut vectors = vec![0.0; words * dim];
        for (word, vector) in vectors.chunks_mut(dim).enumerate() {
            let rows = subwords.of_word(word as u32);
            for (at, value) in vector.iter_mut().enumerate() {
                let values = rows.iter().map(|&row| f64::from(input[row as usize * dim + at]));
                *value = values.sum::<f64>() / rows.len() as f64;
            }
        }
        let output_wide: Vec<f64> = output.iter().map(|&value| value.into()).collect();
        under_every_instruction_set(|set| {
            let mut update = block.new_gradient();
            let frozen = |values| Frozen { values, dim };
            let found = block.compute(frozen(input), frozen(output), &mut update);
            let loss = |vectors: &[f64]| -> f64 {
                (0..config.block).map(|centre| centre_loss(&block, objective, centre, vectors, &output_wide)).sum()
            };
            let whole = loss(&vectors);
            assert!(whole > 10.0 && (found.loss - whole).abs() < 1e-5 * whole, "{set:?}: {found:?} for {whole}");
            let mut expected = vec![0.0; input.len()];
            for at in 0..vectors.len() {
                let slope = |centre: usize| {
                    let moved = |by: f64| {
                        let mut vectors = vectors.clone();
                        vectors[at] += by;
                        centre_loss(&block, objective, centre, &vectors, &output_wide)
                    };
                    let factor = if objective == WordObjective::Cbow { pairs_of(&block, centre) } else { 1.0 };
                    factor * (moved(1e-5) - moved(-1e-5)) / 2e-5
                };
                let slope: f64 = (0..config.block).map(slope).sum();
                for &row in subwords.of_word((at / dim) as u32) {
                    expected[row as usize * dim + at % dim] += slope;
                }
            }
            let mut gradient = vec![0.0; input.len()];
            block.for_each_word(|table, word, place| {
                for &row in rows_of(Some(&subwords), table, &word).iter().filter(|_| table == TableName::Input) {
                    let into = &mut gradient[row as usize * dim..][..dim];
                    into.iter_mut().zip(update.row(place)).for_each(|(into, value)| *into += f64::from(*value));
                }
            });
            for (at, (found, expected)) in gradient.iter().zip(&expected).enumerate() {
                let what = format!("{objective:?}, {set:?}, element {at}: {found} for {expected}");
                assert!((found - expected).abs() < 2e-4, "{what}");
            }
        });
    }
}

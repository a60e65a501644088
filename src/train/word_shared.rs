//! What the workers of word embedding training share: settings, probabilities, and who updates which rows.

use std::sync::Arc;

use crate::config::{WordObjective, WordTrainingConfig};
use crate::data::{AliasTable, TextFiles, WordVocabulary};
use crate::models::skip_gram::subwords::Subwords;

/// What all workers look at.
#[derive(Debug)]
pub(super) struct Shared<'a> {
    pub corpus: &'a TextFiles,
    pub vocabulary: &'a WordVocabulary,
    pub subwords: Option<Arc<Subwords>>,
    /// The settings, with the block that [`stable_block`] allows.
    pub config: WordTrainingConfig,
    /// What the learning rate is multiplied by.
    pub learning_rate_factor: f64,
    pub keep: Vec<f32>,
    pub negatives: AliasTable,
    /// For each worker and each table, the end of the rows it updates: even shares of the expected updates.
    pub input_ends: Vec<u32>,
    pub output_ends: Vec<u32>,
}

impl<'a> Shared<'a> {
    pub fn new(
        vocabulary: &'a WordVocabulary,
        config: &'a WordTrainingConfig,
        subwords: Option<Arc<Subwords>>,
        corpus: &'a TextFiles,
    ) -> Self {
        let keep = vocabulary.keep_probabilities(config.sample);
        let kept: Vec<f64> =
            vocabulary.counts().iter().zip(&keep).map(|(&count, &keep)| count as f64 * f64::from(keep)).collect();
        let drawn: Vec<f64> =
            vocabulary.counts().iter().map(|&count| (count as f64).powf(config.negative_power)).collect();
        let (all_kept, all_drawn): (f64, f64) = (kept.iter().sum(), drawn.iter().sum());
        let config = WordTrainingConfig { block: stable_block(config, &kept, subwords.as_deref()), ..config.clone() };
        let reach = (config.block + 2 * config.window) as f64;
        let (positive_input, positive_output) = match config.objective {
            WordObjective::SkipGram => (config.block as f64, reach),
            WordObjective::Cbow => (reach, config.block as f64),
        };
        let rate =
            |id: usize, positive: f64, negative: f64| positive * kept[id] / all_kept + negative * drawn[id] / all_drawn;
        let (workers, rows) = (config.workers, vocabulary.len());
        let input_ends = match &subwords {
            None => ends_of_shares(workers, rows, |id| rate(id, positive_input, 0.0)),
            Some(subwords) => {
                let uses = subwords.row_weights(|word| kept[word]);
                ends_of_shares(workers, uses.len(), |row| uses[row])
            }
        };
        let shared_negatives = config.shared_negatives as f64;
        let output_ends = ends_of_shares(workers, rows, |id| rate(id, positive_output, shared_negatives));
        let negatives = AliasTable::new(&drawn);
        let learning_rate_factor = 1.0;
        Self { corpus, vocabulary, subwords, config, learning_rate_factor, negatives, input_ends, output_ends, keep }
    }
}

/// The block size, lowered where few words make up the text.
///
/// The updates of a round, a block a worker, are made at tables that do not know of each other. With Σ p² the probability
/// that two words of the text are the same, a word meets block·workers·Σ p² further updates of its own row; from about 2
/// on they overshoot, and training diverges. On English text with subsampling, Σ p² is about 1/700.
///
/// With subwords, an update of word v moves word w by the share of w's rows that are v's too, and the expected share takes
/// the place of Σ p².
fn stable_block(config: &WordTrainingConfig, kept: &[f64], subwords: Option<&Subwords>) -> usize {
    let total: f64 = kept.iter().sum();
    let repetition: f64 = match subwords {
        None => kept.iter().map(|count| (count / total).powi(2)).sum(),
        Some(subwords) => {
            let uses = subwords.row_weights(|word| kept[word] / total);
            let shared = |word: usize| {
                let rows = subwords.of_word(word as u32);
                rows.iter().map(|&row| uses[row as usize]).sum::<f64>() / rows.len() as f64
            };
            kept.iter().enumerate().map(|(word, count)| count / total * shared(word)).sum()
        }
    };
    let most = 1.0 / (repetition * config.workers as f64);
    config.block.min(most as usize).max(1)
}

/// Cuts `0..rows` into contiguous shares of about the same sum of weights; returns their ends.
fn ends_of_shares(shares: usize, rows: usize, weight: impl Fn(usize) -> f64) -> Vec<u32> {
    let total: f64 = (0..rows).map(&weight).sum();
    let (mut ends, mut sum) = (Vec::with_capacity(shares), 0.0);
    for row in 0..rows {
        sum += weight(row);
        while ends.len() + 1 < shares && sum >= total * (ends.len() + 1) as f64 / shares as f64 {
            ends.push(row as u32 + 1);
        }
    }
    ends.resize(shares, rows as u32);
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_the_rows_with_about_the_same_weight() {
        assert_eq!(ends_of_shares(3, 6, |_| 1.0), [2, 4, 6]);
        assert_eq!(ends_of_shares(2, 4, |row| [8.0, 1.0, 1.0, 1.0][row]), [1, 4]);
        assert_eq!(ends_of_shares(4, 2, |row| [9.0, 1.0][row]), [1, 1, 1, 2]);
        assert_eq!(ends_of_shares(3, 1, |_| 1.0), [1, 1, 1]);
    }

    #[test]
    fn blocks_are_small_where_words_are_few() {
        let block =
            |workers, kept: &[f64]| stable_block(&WordTrainingConfig { workers, ..Default::default() }, kept, None);
        assert_eq!(block(1, &[5.0]), 1);
        assert_eq!(block(4, &[5.0]), 1);
        assert_eq!(block(1, &[1.0; 30]), 30);
        assert_eq!(block(2, &[1.0; 30]), 15);
        assert_eq!(block(2, &[1.0; 1000]), 48);
    }

    /// Words that have nearly all rows in common are nearly one word.
    #[test]
    fn blocks_are_small_where_words_share_their_subwords() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let words = |stem: fn(usize) -> String| (0..100).map(stem).collect::<Vec<_>>().join(" ");
        let alike = words(|number| format!("a_long_common_stem_{}", char::from(b'!' + (number % 90) as u8)));
        let unlike = words(|number| char::from_u32(0x4e00 + 7 * number as u32).unwrap().to_string());
        let block = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            let corpus = TextFiles::collect(&[file.path()], &crate::data::TextOptions::default()).unwrap();
            let vocabulary = WordVocabulary::build(&corpus, crate::data::WordSplit::Blanks, 1).unwrap();
            let kept: Vec<f64> = vocabulary.counts().iter().map(|&count| count as f64).collect();
            let subwords = Subwords::new(&vocabulary, crate::config::SubwordConfig::default());
            stable_block(&WordTrainingConfig::default(), &kept, Some(&subwords))
        };
        // Of the 75 rows of a word with the stem, every other has 66; nobody else has any of the two rows of the others.
        let (alike, unlike) = (block(&alike), block(&unlike));
        assert_eq!((alike, unlike), (1, 48));
    }
}

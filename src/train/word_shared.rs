//! What the workers of word embedding training share: settings and probabilities.

use std::sync::Arc;

use crate::config::WordTrainingConfig;
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
}

impl<'a> Shared<'a> {
    pub fn new(
        vocabulary: &'a WordVocabulary,
        config: &'a WordTrainingConfig,
        subwords: Option<Arc<Subwords>>,
        corpus: &'a TextFiles,
    ) -> Self {
        let keep = vocabulary.keep_probabilities(config.sample);
        let drawn: Vec<f64> =
            vocabulary.counts().iter().map(|&count| (count as f64).powf(config.negative_power)).collect();
        let block = block_of(vocabulary, config, subwords.as_deref());
        let config = WordTrainingConfig { block, ..config.clone() };
        let (negatives, learning_rate_factor) = (AliasTable::new(&drawn), 1.0);
        Self { corpus, vocabulary, subwords, config, learning_rate_factor, negatives, keep }
    }
}

/// The centre words of a block (see [`stable_block`]).
pub(super) fn block_of(vocabulary: &WordVocabulary, config: &WordTrainingConfig, subwords: Option<&Subwords>) -> usize {
    let keep = vocabulary.keep_probabilities(config.sample);
    let kept: Vec<f64> =
        vocabulary.counts().iter().zip(keep).map(|(&count, keep)| count as f64 * f64::from(keep)).collect();
    stable_block(config, &kept, subwords)
}

/// The block size, lowered where few words make up the text.
///
/// The updates of all workers' blocks are made at tables that do not know of each other. With Σ p² the probability that two
/// words of the text are the same and B the words of a block, a word meets B·workers·Σ p² further updates of its own row;
/// from about 2 on they overshoot, and training diverges. On English text with subsampling, Σ p² is about 1/700.
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
    let most = (1.0 / (repetition * config.workers as f64)) as usize;
    config.block.min(most).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn negatives_are_drawn_by_the_power_of_their_counts() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "a ".repeat(16 * 81) + &"b ".repeat(81) + &"c ".repeat(16)).unwrap();
        let corpus = TextFiles::collect(&[file.path()], &crate::data::TextOptions::default()).unwrap();
        let vocabulary = WordVocabulary::build(&corpus, crate::data::WordSplit::Blanks, 1).unwrap();
        assert_eq!(vocabulary.counts(), [1296, 81, 16]);
        const DRAWS: u32 = 100_000;
        // By the default power of 3/4, and in proportion to the counts.
        for (negative_power, weights) in [(None, [216.0, 27.0, 8.0]), (Some(1.0), [1296.0, 81.0, 16.0])] {
            let mut config = WordTrainingConfig::default();
            config.negative_power = negative_power.unwrap_or(config.negative_power);
            let shared = Shared::new(&vocabulary, &config, None, &corpus);
            let stream = crate::rng::Stream::new(1, crate::rng::Purpose::Caller, 0);
            let mut drawn = [0.0; 3];
            for words in (0..DRAWS).map(|draw| stream.block(draw)) {
                drawn[shared.negatives.draw(words[0], words[1]) as usize] += 1.0;
            }
            for (drawn, weight) in drawn.into_iter().zip(weights) {
                let expected = f64::from(DRAWS) * weight / weights.iter().sum::<f64>();
                assert!(
                    (drawn - expected).abs() < 4.0 * f64::sqrt(expected),
                    "{negative_power:?}: {drawn} for {expected}"
                );
            }
        }
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

//! The words of a block, their windows, and the negatives they share.

use super::rows::NO_ROW;
use super::subwords::Subwords;
use crate::Result;
use crate::data::{AliasTable, WordStream};
use crate::rng::{Purpose, Stream};

/// Names one block: no two have the same random numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockNumber {
    pub seed: u64,
    pub worker: usize,
    pub epoch: u64,
    /// Of the worker, in this epoch.
    pub block: u64,
}

impl BlockNumber {
    fn stream(self, purpose: Purpose) -> Stream {
        Stream::with_lane(self.seed, purpose, self.worker as u16, self.epoch << 40 | self.block)
    }

    pub fn next(self) -> Self {
        Self { block: self.block + 1, ..self }
    }
}

/// A word that stands at more places of a block than this counts as if it stood at so many.
///
/// A block's updates are made together, at tables that do not know of each other. Where a text repeats a word, as tables
/// of numbers in sources do, those of that word would add up until they overshoot, and training would diverge.
///
/// With subwords, whose updates move other words too, a word counts at a place by the share of its rows that it has in
/// common with the word there. What all places of the block add up to bounds how far an update of all overshoots.
const MOST_PLACES: usize = 4;

/// Words that pass by a block: those before its centres that windows reach, the centres, those behind them that windows
/// reach, and as many as the next block has centres. Beyond the ends of the text there is [`NO_ROW`].
#[derive(Debug)]
pub(crate) struct Windows {
    words: Vec<u32>,
    /// The line of each word; `u32::MAX` where there is no word.
    lines: Vec<u32>,
    /// For each word that windows reach, the share that its place counts: [`MOST_PLACES`] over its number of places.
    shares: Vec<f32>,
    /// With subwords, how often each row of the input table is used; 0 between two blocks.
    uses: Vec<u32>,
    centres: usize,
    window: usize,
    negatives: Vec<u32>,
    next_negatives: Vec<u32>,
    number: BlockNumber,
    next_number: BlockNumber,
}

impl Windows {
    /// `subword_rows` is the number of rows of the input table, or 0 without subwords.
    pub fn new(centres: usize, window: usize, negatives: usize, subword_rows: usize) -> Self {
        let length = 2 * (centres + window);
        let number = BlockNumber { seed: 0, worker: 0, epoch: 0, block: 0 };
        Self {
            words: vec![NO_ROW; length],
            lines: vec![u32::MAX; length],
            shares: vec![1.0; centres + 2 * window],
            uses: vec![0; subword_rows],
            centres,
            window,
            negatives: vec![NO_ROW; negatives],
            next_negatives: vec![NO_ROW; negatives],
            number,
            next_number: number,
        }
    }

    /// Before the first block of `stream`, which is `number`.
    pub fn start(&mut self, stream: &mut WordStream<'_>, table: &AliasTable, number: BlockNumber) -> Result<()> {
        self.words.fill(NO_ROW);
        self.lines.fill(u32::MAX);
        self.next_number = number;
        draw(table, number, &mut self.next_negatives);
        self.fill(stream, self.centres + self.window)
    }

    /// The words in sight, their lines, and the number of the block.
    pub fn place(&self) -> (&[u32], &[u32], BlockNumber) {
        (&self.words, &self.lines, self.number)
    }

    /// Goes to a place where windows of the same size were.
    ///
    /// # Panics
    /// If they had another size.
    pub fn restore(&mut self, (words, lines, number): (&[u32], &[u32], BlockNumber), table: &AliasTable) {
        self.words.copy_from_slice(words);
        self.lines.copy_from_slice(lines);
        (self.number, self.next_number) = (number, number.next());
        draw(table, self.number, &mut self.negatives);
        draw(table, self.next_number, &mut self.next_negatives);
    }

    /// On to the next block.
    pub fn advance(&mut self, stream: &mut WordStream<'_>, table: &AliasTable) -> Result<()> {
        self.words.copy_within(self.centres.., 0);
        self.lines.copy_within(self.centres.., 0);
        self.fill(stream, self.words.len() - self.centres)?;
        std::mem::swap(&mut self.negatives, &mut self.next_negatives);
        (self.number, self.next_number) = (self.next_number, self.next_number.next());
        draw(table, self.next_number, &mut self.next_negatives);
        Ok(())
    }

    /// Whether the block has a word.
    pub fn has_words(&self) -> bool {
        self.words[self.window] != NO_ROW
    }

    /// Whether this block or the next has a word in sight.
    pub fn sees_words(&self) -> bool {
        self.words[self.window..].iter().any(|&word| word != NO_ROW)
    }

    fn fill(&mut self, stream: &mut WordStream<'_>, from: usize) -> Result<()> {
        for (word, line) in self.words[from..].iter_mut().zip(&mut self.lines[from..]) {
            (*word, *line) = stream.next()?.unwrap_or((NO_ROW, u32::MAX));
        }
        Ok(())
    }

    /// The centre words.
    pub fn centres(&self) -> &[u32] {
        &self.words[self.window..][..self.centres]
    }

    /// All words that windows reach, the centres in their midst.
    pub fn contexts(&self) -> &[u32] {
        &self.words[..self.centres + 2 * self.window]
    }

    /// The centres of the next block.
    pub fn next_centres(&self) -> &[u32] {
        &self.words[self.window + self.centres..][..self.centres]
    }

    /// The words that windows of the next block reach, and none of this block does.
    pub fn next_contexts(&self) -> &[u32] {
        &self.words[self.words.len() - self.centres..]
    }

    /// The words that serve as negatives.
    pub fn negatives(&self) -> &[u32] {
        &self.negatives
    }

    /// The negatives of the next block.
    pub fn next_negatives(&self) -> &[u32] {
        &self.next_negatives
    }

    /// The share that each centre counts, 1 unless its word is repeated.
    pub fn centre_shares(&self) -> &[f32] {
        &self.shares[self.window..][..self.centres]
    }

    fn find_shares(&mut self) {
        let words = &self.words[..self.shares.len()];
        for (share, word) in self.shares.iter_mut().zip(words) {
            let places = words.iter().map(|other| u32::from(other == word)).sum::<u32>() as f32;
            *share = (MOST_PLACES as f32 / places).min(1.0);
        }
    }

    fn find_shares_of_subwords(&mut self, subwords: &Subwords) {
        let words = &self.words[..self.shares.len()];
        let rows = || words.iter().filter(|&&word| word != NO_ROW).flat_map(|&word| subwords.of_word(word));
        rows().for_each(|&row| self.uses[row as usize] += 1);
        for (share, &word) in self.shares.iter_mut().zip(words).filter(|(_, word)| **word != NO_ROW) {
            let rows = subwords.of_word(word);
            let uses: u64 = rows.iter().map(|&row| u64::from(self.uses[row as usize])).sum();
            *share = ((MOST_PLACES * rows.len()) as f32 / uses as f32).min(1.0);
        }
        rows().for_each(|&row| self.uses[row as usize] = 0);
    }

    /// Draws the windows of the block: row i of `weights` has the share of a context where it counts as a pair of
    /// centre i, else 0. Its `band` columns are the contexts from the first that any of the `tile` centres around i may
    /// reach.
    pub fn pairs(&mut self, subwords: Option<&Subwords>, weights: &mut [f32], band: usize, tile: usize) {
        match subwords {
            None => self.find_shares(),
            Some(subwords) => self.find_shares_of_subwords(subwords),
        }
        let stream = self.number.stream(Purpose::Windows);
        let mut words = [0; 4];
        for (centre, weights) in weights.chunks_exact_mut(band).enumerate() {
            if centre % 4 == 0 {
                words = stream.block((centre / 4) as u32);
            }
            let width = 1 + ((u64::from(words[centre % 4]) * self.window as u64) >> 32) as usize;
            let first = centre / tile * tile;
            let position = centre + self.window;
            weights.fill(0.0);
            let line = self.lines[position];
            if line == u32::MAX {
                continue;
            }
            let reach = position - width..position + width + 1;
            let others = self.lines[reach.clone()].iter().zip(&self.shares[reach.clone()]);
            for (weight, (&other, &share)) in weights[reach.start - first..].iter_mut().zip(others) {
                *weight = if other == line { share } else { 0.0 };
            }
            weights[position - first] = 0.0;
        }
    }
}

fn draw(table: &AliasTable, number: BlockNumber, negatives: &mut [u32]) {
    let stream = number.stream(Purpose::Negatives);
    for (block, negatives) in negatives.chunks_mut(2).enumerate() {
        let words = stream.block(block as u32);
        for (negative, words) in negatives.iter_mut().zip(words.chunks(2)) {
            *negative = table.draw(words[0], words[1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SubwordConfig;
    use crate::data::{TextFiles, TextOptions, WordSplit, WordVocabulary};

    #[test]
    fn windows_of_all_widths_are_drawn_as_often() {
        const BLOCKS: u64 = 3000;
        let (centres, window, band) = (8, 5, 32);
        let mut windows = Windows::new(centres, window, 2, 0);
        let words: Vec<u32> = (0..2 * (centres + window) as u32).collect();
        let table = AliasTable::new(&vec![1.0; words.len()]);
        let mut drawn = [0u32; 6];
        let mut weights = vec![0.0; centres * band];
        for block in 0..BLOCKS {
            let number = BlockNumber { seed: 1, worker: 0, epoch: 0, block };
            windows.restore((&words, &vec![0; words.len()], number), &table);
            windows.pairs(None, &mut weights, band, 12);
            for (centre, weights) in weights.chunks_exact(band).enumerate() {
                let width = weights[centre + window + 1..].iter().take_while(|&&weight| weight == 1.0).count();
                let expected = |context: usize| (1..=width).contains(&context.abs_diff(centre + window));
                let found = weights.iter().enumerate().all(|(at, &weight)| weight == f32::from(u8::from(expected(at))));
                assert!(found, "{centre} of block {block}: {weights:?}");
                drawn[width] += 1;
            }
        }
        let share = BLOCKS as f64 * centres as f64 / window as f64;
        // Four standard deviations are 0.052 of it.
        let even = |&drawn: &u32| (f64::from(drawn) / share - 1.0).abs() < 0.06;
        assert!(drawn[0] == 0 && drawn[1..].iter().all(even), "{drawn:?}");
    }

    /// Of n places, a word counts at each as min(1, 4/Σ over the places of the share of its rows that it has in common).
    #[test]
    fn with_subwords_a_place_counts_by_the_rows_that_words_share() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "prefix_1 prefix_2 prefix_3 prefix_4 prefix_5 prefix_6 other aaaaaaaaaaaa")
            .unwrap();
        let corpus = TextFiles::collect(&[file.path()], &TextOptions::default()).unwrap();
        let vocabulary = WordVocabulary::build(&corpus, WordSplit::Blanks, 1).unwrap();
        let subwords = Subwords::new(&vocabulary, SubwordConfig::default());
        let (centres, window) = (10, 2);
        let mut windows = Windows::new(centres, window, 2, subwords.row_count());
        let id = |word: &str| vocabulary.id(word).unwrap();
        let mut words: Vec<u32> = (1..=6).map(|number| id(&format!("prefix_{number}"))).collect();
        words.extend([id("prefix_1"), NO_ROW, id("other"), id("other"), id("aaaaaaaaaaaa"), id("prefix_2"), NO_ROW]);
        words.resize(2 * (centres + window), NO_ROW);
        let number = BlockNumber { seed: 1, worker: 0, epoch: 0, block: 0 };
        let table = AliasTable::new(&vec![1.0; vocabulary.len()]);
        windows.restore((&words, &vec![0; words.len()], number), &table);
        // Twice: the counts of one block must not reach the next.
        for _ in 0..2 {
            windows.pairs(Some(&subwords), &mut vec![0.0; centres * 16], 16, 12);
            let places = &words[..centres + 2 * window];
            let mut capped = 0;
            for (place, &word) in places.iter().enumerate().filter(|&(_, &word)| word != NO_ROW) {
                let rows = subwords.of_word(word);
                let others = places.iter().filter(|&&other| other != NO_ROW);
                let pairs = others
                    .flat_map(|&other| subwords.of_word(other))
                    .map(|row| rows.iter().filter(|&own| own == row).count() as f64 / rows.len() as f64);
                let expected = (4.0 / pairs.sum::<f64>()).min(1.0);
                let found = f64::from(windows.shares[place]);
                assert!((found - expected).abs() < 1e-6, "{}: {found} for {expected}", vocabulary.word(word));
                capped += u32::from(expected < 1.0);
                let name = vocabulary.word(word);
                assert_eq!(expected < 1.0, name != "other", "{name}: {expected}");
            }
            assert_eq!(capped, 9);
        }
    }
}

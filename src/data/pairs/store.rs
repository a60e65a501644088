//! Pairs at rest, as token ids.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::{PairReader, TokenRows, check_hard_negatives};
use crate::checkpoint::{Checksum, Hasher};
use crate::data::token_store::TokenBuffer;
use crate::data::{TokenStore, Tokenizer};
use crate::{Error, Result};

/// Pairs that are tokenized together.
const CHUNK: usize = 1 << 13;
/// Pairs that a worker tokenizes at a time.
const PART: usize = 64;

/// Text pairs as token ids in memory, two or four bytes a token and eight a text; clones and parts share them.
#[derive(Clone, Debug)]
pub struct PairStore {
    tokens: TokenStore,
    /// Where the texts of all pairs end.
    ends: Arc<[u64]>,
    pairs: Range<usize>,
    hard_negatives: usize,
    longest: usize,
}

/// Collects the pairs of a [`PairStore`].
#[derive(Debug)]
pub struct PairStoreBuilder {
    tokens: TokenBuffer,
    ends: Vec<u64>,
    hard_negatives: usize,
    longest: usize,
}

impl PairStoreBuilder {
    /// No pairs yet, of ids below `vocabulary_size` and with `hard_negatives` hard negatives each.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for a vocabulary that is empty or has more than 2³² tokens, and for more than
    /// [`MAXIMUM_HARD_NEGATIVES`](super::MAXIMUM_HARD_NEGATIVES).
    pub fn new(vocabulary_size: usize, hard_negatives: usize) -> Result<Self> {
        check_hard_negatives(hard_negatives)?;
        let tokens = TokenBuffer::new("pairs", vocabulary_size)?;
        Ok(Self { tokens, ends: Vec::new(), hard_negatives, longest: 0 })
    }

    /// Appends a pair: its query, its document, its hard negatives.
    ///
    /// # Errors
    /// [`Error::Shape`] if these are not 2 + `hard_negatives` texts; [`Error::TokenOutOfRange`]. No pair may be appended
    /// after an error.
    pub fn push(&mut self, texts: &[impl AsRef<[u32]>]) -> Result<()> {
        if texts.len() != 2 + self.hard_negatives {
            let (expected, found) = (vec![2 + self.hard_negatives], vec![texts.len()]);
            return Err(Error::Shape { what: "texts of a pair".into(), expected, found });
        }
        for text in texts {
            let text = text.as_ref();
            self.tokens.push(text)?;
            self.ends.push(self.ends.last().unwrap_or(&0) + text.len() as u64);
            self.longest = self.longest.max(text.len());
        }
        Ok(())
    }

    /// Appends pairs of texts, of each of which the first `max_tokens` tokens are kept.
    ///
    /// They are tokenized in parallel on the rayon pool this is called in; the result does not depend on the number of
    /// threads.
    ///
    /// # Errors
    /// Those of [`push`](Self::push) and of [`Tokenizer::encode`].
    pub fn push_texts(&mut self, pairs: &[Vec<String>], tokenizer: &Tokenizer, max_tokens: usize) -> Result<()> {
        for (pairs, part) in pairs.chunks(PART).zip(tokenize(pairs, tokenizer, max_tokens)) {
            let part = part?;
            let mut index = 0;
            for pair in pairs {
                let texts: Vec<&[u32]> = (index..index + pair.len()).map(|index| part.row(index)).collect();
                self.push(&texts)?;
                index += pair.len();
            }
        }
        Ok(())
    }

    /// Appends all pairs of `reader`, as [`push_texts`](Self::push_texts) does. The file is never in memory as a whole.
    ///
    /// The pairs before a row that cannot be read are appended before its error is returned: called again, this goes on
    /// with the row after it.
    ///
    /// # Errors
    /// Those of [`PairReader::read`] and of [`push_texts`](Self::push_texts).
    pub fn read(&mut self, reader: &mut PairReader, tokenizer: &Tokenizer, max_tokens: usize) -> Result<()> {
        let mut chunk: Vec<Vec<String>> = vec![Vec::new(); CHUNK];
        loop {
            let mut filled = 0;
            let mut more = Ok(true);
            while filled < CHUNK && matches!(more, Ok(true)) {
                more = reader.read(&mut chunk[filled]);
                filled += usize::from(matches!(more, Ok(true)));
            }
            self.push_texts(&chunk[..filled], tokenizer, max_tokens)?;
            if !more? {
                return Ok(());
            }
        }
    }

    /// The pairs.
    #[must_use]
    pub fn finish(self) -> PairStore {
        PairStore {
            tokens: self.tokens.finish(),
            pairs: 0..self.ends.len() / (2 + self.hard_negatives),
            ends: self.ends.into(),
            hard_negatives: self.hard_negatives,
            longest: self.longest,
        }
    }
}

/// The tokens of all texts of each [`PART`] of `pairs`, text by text.
pub(super) fn tokenize(pairs: &[Vec<String>], tokenizer: &Tokenizer, max_tokens: usize) -> Vec<Result<TokenRows>> {
    let encode = |pairs: &[Vec<String>]| {
        let texts = || pairs.iter().flatten();
        let (count, bytes) = (texts().count(), texts().map(String::len).sum::<usize>());
        // About four bytes make a token.
        let mut rows = TokenRows::with_capacity(count, (bytes / 4).min(count.saturating_mul(max_tokens)));
        texts().try_for_each(|text| rows.push_text(text, tokenizer, max_tokens))?;
        Ok(rows)
    };
    pairs.par_chunks(PART).map(encode).collect()
}

impl PairStore {
    /// The number of pairs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there is no pair.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Hard negatives of each pair.
    #[must_use]
    pub fn hard_negatives(&self) -> usize {
        self.hard_negatives
    }

    /// A query, a document, and the hard negatives.
    #[must_use]
    pub fn texts_per_pair(&self) -> usize {
        2 + self.hard_negatives
    }

    /// Tokens of the longest text.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// The ids of all texts one after the other.
    #[must_use]
    pub fn tokens(&self) -> &TokenStore {
        &self.tokens
    }

    /// The ids of a text.
    ///
    /// # Errors
    /// Those of [`TokenStore::copy_to`](crate::data::TokenStore::copy_to).
    ///
    /// # Panics
    /// As [`range`](Self::range).
    pub fn text(&self, pair: usize, text: usize) -> Result<Vec<u32>> {
        let range = self.range(pair, text);
        let mut ids = vec![0; range.len()];
        self.tokens().copy_to(range.start, &mut ids)?;
        Ok(ids)
    }

    /// Where in [`tokens`](Self::tokens) text `text` of pair `pair` lies: 0 is the query, 1 the document, hard negatives
    /// follow.
    ///
    /// # Panics
    /// If there is no such pair or text.
    #[must_use]
    #[track_caller]
    pub fn range(&self, pair: usize, text: usize) -> Range<usize> {
        assert!(pair < self.len() && text < self.texts_per_pair(), "text {text} of pair {pair} of {}", self.len());
        let index = (self.pairs.start + pair) * self.texts_per_pair() + text;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        start as usize..self.ends[index] as usize
    }

    /// A sum over all pairs, the size of the vocabulary and the number of hard negatives: the same pairs have the same
    /// sum, whether they are all of a store or part of it. Reads all of them.
    ///
    /// # Errors
    /// Those of [`TokenStore::copy_to`](crate::data::TokenStore::copy_to).
    pub fn fingerprint(&self) -> Result<Checksum> {
        let ends = &self.ends[self.pairs.start * self.texts_per_pair()..self.pairs.end * self.texts_per_pair()];
        let start = (self.pairs.start * self.texts_per_pair()).checked_sub(1).map_or(0, |before| self.ends[before]);
        let end = *ends.last().unwrap_or(&start);
        let (tokens, _) = self.tokens.split_at(end as usize);
        let (_, tokens) = tokens.split_at(start as usize);
        let mut hasher = Hasher::default();
        hasher.update(&tokens.fingerprint()?.0.to_le_bytes());
        hasher.update(&(self.hard_negatives as u64).to_le_bytes());
        ends.iter().for_each(|end| hasher.update(&(end - start).to_le_bytes()));
        Ok(hasher.finish())
    }

    /// The first `at` pairs, and the others.
    ///
    /// # Panics
    /// If there are fewer.
    #[must_use]
    #[track_caller]
    pub fn split_at(&self, at: usize) -> (Self, Self) {
        assert!(at <= self.len(), "{} pairs split at {at}", self.len());
        let middle = self.pairs.start + at;
        (
            Self { pairs: self.pairs.start..middle, ..self.clone() },
            Self { pairs: middle..self.pairs.end, ..self.clone() },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::PairFormat;

    #[test]
    fn files_are_tokenized_and_texts_cut() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines: String = (0..CHUNK + 3).map(|line| format!("q{line}\tdocument\n")).collect();
        std::fs::write(file.path(), lines).unwrap();
        let mut builder = PairStoreBuilder::new(256, 0).unwrap();
        let mut reader = PairReader::open(file.path(), PairFormat::Tsv, 0).unwrap();
        builder.read(&mut reader, &Tokenizer::byte(), 5).unwrap();
        let store = builder.finish();
        assert_eq!((store.len(), store.longest()), (CHUNK + 3, 5));
        let text = |pair, text| {
            let range = store.range(pair, text);
            let mut ids = vec![0; range.len()];
            store.tokens().copy_to(range.start, &mut ids).unwrap();
            Tokenizer::byte().decode(&ids)
        };
        assert_eq!((text(0, 0), text(0, 1)), ("q0".into(), "docum".into()));
        assert_eq!(text(CHUNK + 2, 0), format!("q{}", CHUNK + 2));
    }

    #[test]
    fn a_bad_row_costs_no_other() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bad = [3, CHUNK + 5, CHUNK + 6];
        let line = |line| if bad.contains(&line) { format!("q{line}\n") } else { format!("q{line}\td\n") };
        std::fs::write(file.path(), (1..CHUNK + 9).map(line).collect::<String>()).unwrap();
        let mut builder = PairStoreBuilder::new(256, 0).unwrap();
        let mut reader = PairReader::open(file.path(), PairFormat::Tsv, 0).unwrap();
        for row in bad {
            let error = builder.read(&mut reader, &Tokenizer::byte(), 9).unwrap_err();
            assert!(matches!(error, Error::InvalidPair { row: at, .. } if at == row as u64), "{error}");
        }
        builder.read(&mut reader, &Tokenizer::byte(), 9).unwrap();
        let store = builder.finish();
        let queries = (0..store.len()).map(|pair| Tokenizer::byte().decode(&store.text(pair, 0).unwrap()));
        let expected = (1..CHUNK + 9).filter(|line| !bad.contains(line)).map(|line| format!("q{line}"));
        assert!(queries.eq(expected), "{} pairs", store.len());
    }

    #[test]
    fn texts_are_cut_one_by_one_or_not_at_all() {
        let tokenizer = Tokenizer::byte();
        let pairs: Vec<Vec<String>> = (0..PART + 2).map(|pair| vec![format!("q{pair}"), "document".into()]).collect();
        for max_tokens in [0, 2, usize::MAX] {
            let mut builder = PairStoreBuilder::new(256, 0).unwrap();
            builder.push_texts(&pairs, &tokenizer, max_tokens).unwrap();
            let store = builder.finish();
            for (pair, texts) in pairs.iter().enumerate() {
                for (number, text) in texts.iter().enumerate() {
                    let found = tokenizer.decode(&store.text(pair, number).unwrap());
                    assert_eq!(found, text[..max_tokens.min(text.len())]);
                }
            }
        }
        let mut builder = PairStoreBuilder::new(256, 1).unwrap();
        assert!(matches!(builder.push_texts(&pairs, &tokenizer, 5), Err(Error::Shape { .. })));
    }

    #[test]
    fn parts_keep_their_texts() {
        let mut builder = PairStoreBuilder::new(100, 0).unwrap();
        builder.push(&[vec![1, 2], vec![3]]).unwrap();
        builder.push(&[vec![], vec![4, 5, 6]]).unwrap();
        assert!(matches!(builder.push(&[vec![1]]), Err(Error::Shape { .. })));
        assert!(matches!(builder.push(&[vec![1], vec![100]]), Err(Error::TokenOutOfRange { id: 100, .. })));
        let mut builder = PairStoreBuilder::new(100, 0).unwrap();
        builder.push(&[vec![1, 2], vec![3]]).unwrap();
        builder.push(&[vec![], vec![4, 5, 6]]).unwrap();
        let store = builder.finish();
        let (first, second) = store.split_at(1);
        assert_eq!((first.len(), second.len(), store.longest()), (1, 1, 3));
        assert_eq!((first.range(0, 0), first.range(0, 1)), (0..2, 2..3));
        assert_eq!((second.range(0, 0), second.range(0, 1)), (3..3, 3..6));
        let mut ids = [0; 3];
        second.tokens().copy_to(3, &mut ids).unwrap();
        assert_eq!(ids, [4, 5, 6]);
    }

    #[test]
    fn a_fingerprint_tells_pairs_apart_and_not_where_they_lie() {
        let store = |vocabulary: usize, hard_negatives: usize, pairs: &[&[&[u32]]]| {
            let mut builder = PairStoreBuilder::new(vocabulary, hard_negatives).unwrap();
            pairs.iter().for_each(|texts| builder.push(texts).unwrap());
            builder.finish()
        };
        let of = |store: &PairStore| store.fingerprint().unwrap();
        let (a, b): (&[&[u32]], &[&[u32]]) = (&[&[1, 2], &[3]], &[&[4], &[5, 6]]);
        let all = store(9, 0, &[a, b, a, b]);
        let (first, second) = all.split_at(2);
        assert_eq!(of(&first), of(&second));
        assert_eq!(of(&second.split_at(1).1), of(&store(9, 0, &[b])));
        let others = [
            all,
            store(9, 0, &[]),
            store(9, 0, &[b, a]),
            store(9, 0, &[&[&[1], &[2, 3]], b]),
            store(9, 0, &[a, &[&[4, 5], &[6]]]),
            store(9, 0, &[&[&[1, 2], &[7]], b]),
            store(10, 0, &[a, b]),
            store(9, 2, &[&[&[1, 2], &[3], &[4], &[5, 6]]]),
        ];
        others.iter().for_each(|other| assert_ne!(of(other), of(&first), "{other:?}"));
    }
}

//! Similarity of pairs of words, against human judgments.

use std::path::Path;

use super::{for_each_line, spearman, upper_case};
use crate::parallel::Parallelism;
use crate::similarity::UnitVectors;
use crate::{Result, WordVectors};

/// How well cosines agree with human judgments of similarity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairReport {
    /// Spearman's correlation of cosine and judgment; not a number if fewer than two pairs were scored, or if all their
    /// cosines or all their judgments are equal.
    pub spearman: f64,
    /// Pairs that were scored.
    pub pairs: usize,
    /// Pairs with a word that has no vector.
    pub missing: usize,
    /// Lines that are neither a pair nor a comment.
    pub skipped: usize,
}

impl PairReport {
    /// The share of pairs with a word that has no vector; 0 if there is no pair.
    #[must_use]
    pub fn missing_share(&self) -> f64 {
        self.missing as f64 / (self.pairs + self.missing).max(1) as f64
    }
}

/// Scores the pairs of a file such as WordSim-353 or SimLex-999: lines of two words and a finite number, separated by
/// tabs; lines that begin with `#` are comments. Only the `first` words are looked up (gensim's default: 300,000).
///
/// # Errors
/// [`Error::Io`](crate::Error::Io), [`Error::InvalidRow`](crate::Error::InvalidRow) for a line that is not UTF-8 or has
/// 64 KiB.
pub fn word_pairs(vectors: &WordVectors, path: impl AsRef<Path>, first: Option<usize>) -> Result<PairReport> {
    let (rows, search) = (upper_case(vectors, first), UnitVectors::new(vectors.vectors(), Parallelism::SEQUENTIAL));
    let (mut cosines, mut judgments, mut missing, mut skipped) = (Vec::new(), Vec::new(), 0, 0);
    for_each_line(path.as_ref(), |_, line| {
        if line.starts_with('#') {
            return Ok(());
        }
        let fields: Vec<&str> = line.split('\t').collect();
        let judgment =
            fields.get(2).and_then(|field| field.trim().parse().ok()).filter(|value: &f64| value.is_finite());
        match (&fields[..], judgment) {
            ([a, b, _], Some(judgment)) => match (rows.get(&a.to_uppercase()), rows.get(&b.to_uppercase())) {
                (Some(&a), Some(&b)) => {
                    cosines.push(f64::from(search.cosine(a, b)));
                    judgments.push(judgment);
                }
                _ => missing += 1,
            },
            _ => skipped += 1,
        }
        Ok(())
    })?;
    Ok(PairReport { spearman: spearman(&cosines, &judgments), pairs: cosines.len(), missing, skipped })
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn pairs_are_looked_up_whatever_their_case() {
        let table = array![[1.0, 0.0], [1.0, 0.2], [0.0, 1.0], [0.3, 0.9], [0.0, -1.0]];
        let vectors = WordVectors::new(["tiger", "Cat", "love", "cat", "sex"], table).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pairs");
        let text = "# comment\tof\t1\nTiger\tcat\t7.5\r\nlove\tSEX\t 2\nno\tpair\ntiger\tlove\tmuch\n\ntiger\tcat\tnan\n\
            tiger\tunknown\t3\ntiger\tlove\t4";
        std::fs::write(&path, text).unwrap();
        let report = word_pairs(&vectors, &path, None).unwrap();
        // "cat" is the first word of that name, "Cat".
        assert_eq!((report.pairs, report.missing, report.skipped), (3, 1, 4));
        assert!((report.spearman - 1.0).abs() < 1e-12);
        assert_eq!(report.missing_share(), 0.25);
        let report = word_pairs(&vectors, &path, Some(2)).unwrap();
        assert_eq!((report.pairs, report.missing), (1, 3));
        assert!(report.spearman.is_nan());
        // A byte order mark is no part of the first word.
        std::fs::write(&path, format!("\u{feff}tiger\tcat\t7\n{text}")).unwrap();
        assert_eq!(word_pairs(&vectors, &path, None).unwrap().pairs, 4);
        // The other formats of the two sets, of which no line can be scored.
        std::fs::write(&path, "Word 1,Word 2,Human (mean)\ntiger,cat,7.35\ntiger\tcat\tN\t7.35\n").unwrap();
        let report = word_pairs(&vectors, &path, None).unwrap();
        assert_eq!((report.pairs, report.missing, report.skipped, report.missing_share()), (0, 0, 3, 0.0));
        assert!(report.spearman.is_nan());
    }
}

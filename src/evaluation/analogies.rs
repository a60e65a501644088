//! Analogies: a is to b as c is to what?

use std::path::Path;

use super::{for_each_line, is_blank_or_comment, section_name, upper_case};
use crate::parallel::Parallelism;
use crate::similarity::UnitVectors;
use crate::{Error, Result, WordVectors};

/// Nearest words in which the answer is looked for; those that are a word of the question in other letters do not count.
const CANDIDATES: usize = 5;

/// The questions of one kind, and how many were answered.
#[derive(Clone, Debug, PartialEq)]
pub struct AnalogySection {
    /// What the file calls them.
    pub name: String,
    /// Questions that were answered rightly.
    pub correct: usize,
    /// Questions that were asked: all four words have vectors.
    pub asked: usize,
    /// Questions with a word that has none.
    pub missing: usize,
}

/// How many analogies hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AnalogyReport {
    /// The sections, in the order of the file.
    pub sections: Vec<AnalogySection>,
    /// Lines that are neither a question nor the head of a section.
    pub skipped: usize,
}

impl AnalogyReport {
    /// Questions that were answered rightly.
    #[must_use]
    pub fn correct(&self) -> usize {
        self.sections.iter().map(|section| section.correct).sum()
    }

    /// Questions that were asked.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.sections.iter().map(|section| section.asked).sum()
    }

    /// Questions with a word that has no vector.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.sections.iter().map(|section| section.missing).sum()
    }

    /// The share of the questions asked that were answered rightly; 0 if none was asked.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        self.correct() as f64 / self.asked().max(1) as f64
    }
}

/// Asks the questions of a file in the format of word2vec's `questions-words.txt`: lines of four words a b c d, of which
/// d is to be found as in [`UnitVectors::analogies`]; a line `: name` begins a section, and only blank lines and comments
/// (`#`) may stand before the first. Only the `first` words are asked
/// about and answered with (gensim's default: 300,000).
///
/// # Errors
/// [`Error::Io`]; [`Error::InvalidRow`] for another line before the first section, a line that is not UTF-8 or has 64 KiB.
pub fn word_analogies(
    vectors: &WordVectors,
    path: impl AsRef<Path>,
    first: Option<usize>,
    parallelism: Parallelism,
) -> Result<AnalogyReport> {
    let path = path.as_ref();
    let rows = upper_case(vectors, first);
    let mut report = AnalogyReport::default();
    let (mut questions, mut expected) = (Vec::new(), Vec::new());
    for_each_line(path, |number, line| {
        if let Some(name) = section_name(line) {
            let name = name.into();
            report.sections.push(AnalogySection { name, correct: 0, asked: 0, missing: 0 });
            return Ok(());
        }
        let section = report.sections.len();
        let Some(current) = report.sections.last_mut() else {
            if is_blank_or_comment(line) {
                report.skipped += 1;
                return Ok(());
            }
            return Err(Error::row(path, number, "a section must begin before the first question, by \": name\""));
        };
        let words: Vec<&str> = line.split_whitespace().collect();
        let [a, b, c, d] = words[..] else {
            report.skipped += 1;
            return Ok(());
        };
        match [a, b, c, d].map(|word| rows.get(&word.to_uppercase()).copied()) {
            [Some(a), Some(b), Some(c), Some(d)] => {
                current.asked += 1;
                questions.push([a, b, c]);
                expected.push((section - 1, d));
            }
            _ => current.missing += 1,
        }
        Ok(())
    })?;
    let search = UnitVectors::new(vectors.vectors(), parallelism);
    let upper = |id: u32| vectors.word(id).to_uppercase();
    let found = search.analogies(&questions, CANDIDATES, first, parallelism);
    for ((found, question), (section, expected)) in found.iter().zip(&questions).zip(expected) {
        let asked = question.map(upper);
        let answer = found.iter().map(|neighbour| upper(neighbour.id)).find(|word| !asked.contains(word));
        if answer.is_some_and(|answer| answer == upper(expected)) {
            report.sections[section].correct += 1;
        }
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn sections_are_counted_and_words_of_the_question_do_not_answer() {
        let words = ["man", "woman", "king", "queen", "KING", "pear"];
        let table = array![
            [1.0, 0.0, 0.1],
            [1.0, 1.0, 0.1],
            [0.1, 0.0, 1.0],
            [0.1, 1.0, 1.0],
            [0.1, 1.1, 1.2],
            [-1.0, 0.0, 0.0]
        ];
        let vectors = WordVectors::new(words, table).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("questions");
        let text =
            ": family\nMan woman king queen\nman woman king pear\nman woman king\nman woman king prince\n: none\r\n";
        std::fs::write(&path, text).unwrap();
        let ask = |first| word_analogies(&vectors, &path, first, Parallelism::SEQUENTIAL).unwrap();
        let report = ask(None);
        let section =
            |name: &str, correct, asked, missing| AnalogySection { name: name.into(), correct, asked, missing };
        assert_eq!(report.sections, [section("family", 1, 2, 1), section("none", 0, 0, 0)]);
        assert_eq!((report.skipped, report.correct(), report.asked(), report.missing()), (1, 1, 2, 1));
        assert_eq!(report.accuracy(), 0.5);
        let report = ask(Some(3));
        assert_eq!((report.asked(), report.missing(), report.accuracy()), (0, 3, 0.0));

        // Neither a byte order mark nor what may stand before the first section changes the figures.
        std::fs::write(&path, format!("\u{feff}# a comment here\n\n{text}")).unwrap();
        let report = ask(None);
        assert_eq!((report.skipped, report.correct(), report.asked(), report.missing()), (3, 1, 2, 1));

        std::fs::write(&path, "man woman king queen\n: late").unwrap();
        let error = word_analogies(&vectors, &path, None, Parallelism::SEQUENTIAL).unwrap_err();
        assert!(matches!(error, Error::InvalidRow { row: 1, .. }), "{error}");
    }
}

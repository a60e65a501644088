//! Reading text pairs from files, a line at a time.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::check_hard_negatives;
use crate::{Error, Result};

/// The longest line that is read, unless [`PairReader::with_maximum_line`] says otherwise.
pub const MAXIMUM_LINE_BYTES: usize = 1 << 20;

/// What some programs put before the text of a file: U+FEFF in UTF-8.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Characters of what serde_json says is wrong with a line.
const LONGEST_MESSAGE: usize = 200;

/// How a file of pairs is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairFormat {
    /// A pair a line: query, document and any hard negatives, separated by tabs. There is no header and no quoting: a
    /// text holds neither tabs nor line ends.
    Tsv,
    /// A JSON object a line: `query` (or `anchor`) and `document` (or `positive`) are strings, `negatives` a list of
    /// strings. Other fields are passed over.
    JsonLines,
}

impl PairFormat {
    /// The format that a file's ending tells: `tsv` or `txt`, `jsonl`, `ndjson` or `json`, in any case.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for another ending.
    pub fn of(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
        match ending.as_str() {
            "tsv" | "txt" => Ok(Self::Tsv),
            "jsonl" | "ndjson" | "json" => Ok(Self::JsonLines),
            _ => Err(Error::config("format", path.display(), "tsv or jsonl, as the file's ending or by name")),
        }
    }
}

/// What is wrong with a row of a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RowProblem {
    /// The row has a byte that is not UTF-8.
    #[error("invalid UTF-8: byte 0x{value:02x} at offset {offset} of the line")]
    InvalidUtf8 {
        /// Offset of the byte in the line.
        offset: usize,
        /// The byte.
        value: u8,
    },
    /// The line is too long to be read.
    #[error("more than {maximum} bytes in a line")]
    TooLong {
        /// Bytes that a line may have.
        maximum: usize,
    },
    /// The row of a TSV file has too few texts.
    #[error("{found} texts, but {expected} are needed")]
    TooFewTexts {
        /// A query, a document, and the hard negatives asked for.
        expected: usize,
        /// The texts it has.
        found: usize,
    },
    /// The row of a JSON lines file has too few hard negatives.
    #[error("{found} texts in the field `negatives`, but {expected} are needed")]
    TooFewNegatives {
        /// The hard negatives asked for.
        expected: usize,
        /// The texts it has in its field `negatives`, 0 without one.
        found: usize,
    },
    /// A text is empty.
    #[error("text {text} is empty")]
    Empty {
        /// Which text, counted from 1: the query is 1.
        text: usize,
    },
    /// The line is not the JSON object it should be.
    #[error("{0}")]
    Json(String),
}

#[derive(Deserialize)]
struct JsonPair<'a> {
    #[serde(borrow, alias = "anchor")]
    query: Cow<'a, str>,
    #[serde(borrow, alias = "positive")]
    document: Cow<'a, str>,
    #[serde(borrow, default)]
    negatives: Vec<Cow<'a, str>>,
}

/// Streams the pairs of a file.
///
/// A line ends with LF or CRLF, the last also with the file. A byte order mark at the start of the file is passed over; it
/// is no part of the first line, neither of its length nor of an offset in it. Lines of nothing but blanks are passed over; they count in
/// the numbers of rows that errors name, which begin at 1. Nothing else is changed about a text: blanks around it stay.
/// A pair with more hard negatives than asked for loses the last ones.
///
/// Beside the texts, memory is taken for one line and what it holds, however long the file: at most 32 bytes for each byte
/// that a line may have, and a buffer of 64 KiB.
///
/// ```
/// use cllm::data::{PairFormat, PairReader};
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("pairs.tsv");
/// # std::fs::write(&path, "how to sort\tsort orders a list\r\n\nq\td\n").unwrap();
/// let mut reader = PairReader::open(&path, PairFormat::of(&path)?, 0)?;
/// let mut texts = Vec::new();
/// assert!(reader.read(&mut texts)?);
/// assert_eq!(texts, ["how to sort", "sort orders a list"]);
/// # assert!(reader.read(&mut texts)? && !reader.read(&mut texts)?);
/// # Ok::<(), cllm::Error>(())
/// ```
#[derive(Debug)]
pub struct PairReader {
    path: PathBuf,
    reader: BufReader<File>,
    format: PairFormat,
    hard_negatives: usize,
    maximum: usize,
    line: Vec<u8>,
    row: u64,
    /// Whether the last line was too long, and its end was not read.
    cut: bool,
}

impl PairReader {
    /// Opens a file of pairs, of which each shall have `hard_negatives` hard negatives.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for more than [`MAXIMUM_HARD_NEGATIVES`](super::MAXIMUM_HARD_NEGATIVES); [`Error::Io`] if
    /// the file cannot be opened.
    pub fn open(path: impl AsRef<Path>, format: PairFormat, hard_negatives: usize) -> Result<Self> {
        check_hard_negatives(hard_negatives)?;
        let path = path.as_ref().to_path_buf();
        let file = File::open(&path).map_err(Error::io(&path))?;
        let reader = BufReader::with_capacity(1 << 16, file);
        let (line, row, cut) = (Vec::new(), 0, false);
        Ok(Self { path, reader, format, hard_negatives, maximum: MAXIMUM_LINE_BYTES, line, row, cut })
    }

    /// Refuses lines of more than `bytes` bytes, the line's end not counted.
    #[must_use]
    pub fn with_maximum_line(self, bytes: usize) -> Self {
        Self { maximum: bytes, ..self }
    }

    /// Hard negatives of each pair.
    #[must_use]
    pub fn hard_negatives(&self) -> usize {
        self.hard_negatives
    }

    /// Overwrites `texts` with the query, the document and the hard negatives of the next pair; `false` at the end of the
    /// file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InvalidPair`] with the file, the row and what is wrong with it. Reading can go on after
    /// that with the next row.
    pub fn read(&mut self, texts: &mut Vec<String>) -> Result<bool> {
        while self.next_line()? {
            let line = std::str::from_utf8(&self.line).map_err(|error| {
                let offset = error.valid_up_to();
                self.invalid(RowProblem::InvalidUtf8 { offset, value: self.line[offset] })
            })?;
            if line.trim().is_empty() {
                continue;
            }
            let count = 2 + self.hard_negatives;
            texts.resize_with(count, String::new);
            let found = match self.format {
                PairFormat::Tsv => copy(line.split('\t'), texts),
                PairFormat::JsonLines => {
                    let pair = parse_json(line).map_err(|problem| self.invalid(RowProblem::Json(problem)))?;
                    let negatives = pair.negatives.iter().map(AsRef::as_ref);
                    copy([&*pair.query, &*pair.document].into_iter().chain(negatives), texts)
                }
            };
            if found < count {
                return Err(self.invalid(match self.format {
                    PairFormat::Tsv => RowProblem::TooFewTexts { expected: count, found },
                    PairFormat::JsonLines => RowProblem::TooFewNegatives { expected: count - 2, found: found - 2 },
                }));
            }
            if let Some(index) = texts.iter().position(|text| text.trim().is_empty()) {
                return Err(self.invalid(RowProblem::Empty { text: index + 1 }));
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// Reads the next line without its end; `false` if there is none.
    fn next_line(&mut self) -> Result<bool> {
        self.line.clear();
        if std::mem::take(&mut self.cut) {
            self.reader.skip_until(b'\n').map_err(Error::io(&self.path))?;
        }
        // Room for the line's end, and a byte to see that it is too long.
        let mark = if self.row == 0 { BYTE_ORDER_MARK } else { &[] };
        let limit = self.maximum.saturating_add(mark.len() + 3) as u64;
        let read = self.reader.by_ref().take(limit).read_until(b'\n', &mut self.line).map_err(Error::io(&self.path))?;
        if read == 0 {
            return Ok(false);
        }
        self.row += 1;
        if self.line.starts_with(mark) {
            self.line.drain(..mark.len());
        }
        let ended = self.line.ends_with(b"\n");
        if ended {
            self.line.pop();
        }
        if self.line.ends_with(b"\r") {
            self.line.pop();
        }
        if self.line.len() > self.maximum {
            self.cut = !ended;
            return Err(self.invalid(RowProblem::TooLong { maximum: self.maximum }));
        }
        Ok(true)
    }

    fn invalid(&self, problem: RowProblem) -> Error {
        Error::InvalidPair { path: self.path.clone(), row: self.row, problem }
    }
}

/// Parses an object, or says what is wrong with it.
fn parse_json(line: &str) -> std::result::Result<JsonPair<'_>, String> {
    // An array of texts would do as well otherwise.
    if !line.trim_start().starts_with('{') {
        return Err("not a JSON object".into());
    }
    serde_json::from_str(line).map_err(|error| {
        // It may quote a text of any length.
        let (message, column) = (error.to_string(), error.column());
        match message.char_indices().nth(LONGEST_MESSAGE) {
            Some((end, _)) => format!("{}… at column {column}", &message[..end]),
            None => message,
        }
    })
}

/// Overwrites `into` with as many texts as it has; returns how many there were, up to that.
fn copy<'a>(texts: impl Iterator<Item = &'a str>, into: &mut [String]) -> usize {
    let mut count = 0;
    for (into, text) in into.iter_mut().zip(texts) {
        into.clear();
        into.push_str(text);
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Found {
        pairs: Vec<Vec<String>>,
        problems: Vec<(u64, RowProblem)>,
    }

    /// Reads everything, and goes on after errors.
    fn read(content: &[u8], format: PairFormat, hard_negatives: usize) -> Found {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        let mut reader = PairReader::open(file.path(), format, hard_negatives).unwrap().with_maximum_line(100);
        let (mut found, mut texts) = (Found { pairs: Vec::new(), problems: Vec::new() }, Vec::new());
        for _ in 0..100 {
            match reader.read(&mut texts) {
                Ok(true) => found.pairs.push(texts.clone()),
                Ok(false) => return found,
                Err(Error::InvalidPair { path, row, problem }) => {
                    assert_eq!(path, file.path());
                    found.problems.push((row, problem));
                }
                Err(other) => panic!("{other}"),
            }
        }
        panic!("no end")
    }

    #[test]
    fn lines_are_read_as_documented() {
        let found = read(b"a b\tc\r\n\n \t \r\nq\t d \tn1\tn2\nx\ty", PairFormat::Tsv, 0);
        assert_eq!(found.pairs, [["a b", "c"], ["q", " d "], ["x", "y"]]);
        assert!(found.problems.is_empty());
        let found = read(b"q\td\tn1\tn2\tn3\n", PairFormat::Tsv, 2);
        assert_eq!(found.pairs, [["q", "d", "n1", "n2"]]);
        let json = br#"{"query": "a\tb \u00e9", "document": "c", "id": 7}

            {"anchor": "q", "positive": "d", "negatives": ["n1", "n2"]}
        "#;
        assert_eq!(read(json, PairFormat::JsonLines, 0).pairs, [["a\tb é", "c"], ["q", "d"]]);
        let found = read(b"", PairFormat::JsonLines, 0);
        assert!(found.pairs.is_empty() && found.problems.is_empty());
    }

    #[test]
    fn a_byte_order_mark_is_passed_over_at_the_start_alone() {
        let (tsv, json) = ("q\td\n", "{\"query\": \"q\", \"document\": \"d\"}\n");
        for (format, line) in [(PairFormat::Tsv, tsv), (PairFormat::JsonLines, json)] {
            for start in ["\u{feff}", "\u{feff}\n", "\u{feff}\r\n"] {
                let found = read(format!("{start}{line}{line}").as_bytes(), format, 0);
                assert_eq!(found.pairs, [["q", "d"]; 2], "{format:?}, {start:?}");
                assert!(found.problems.is_empty(), "{format:?}, {start:?}");
            }
            let found = read("\u{feff}".as_bytes(), format, 0);
            assert!(found.pairs.is_empty() && found.problems.is_empty(), "{format:?}");
            let found = read(b"\xef\xbb\xbfab\xff\n", format, 0);
            assert_eq!(found.problems, [(1, RowProblem::InvalidUtf8 { offset: 2, value: 0xff })], "{format:?}");
        }
        // A second one, and that of a later line, are text.
        let found = read("\u{feff}\u{feff}q\td\n\u{feff}x\ty\n".as_bytes(), PairFormat::Tsv, 0);
        assert_eq!(found.pairs, [["\u{feff}q", "d"], ["\u{feff}x", "y"]]);
        // A line of 100 bytes fits behind it, with either end; one of 101 does not.
        for (length, pairs) in [(98, 2), (99, 1)] {
            for end in ["\n", "\r\n"] {
                let content = format!("\u{feff}q\t{}{end}a\tb\n", "d".repeat(length));
                let found = read(content.as_bytes(), PairFormat::Tsv, 0);
                assert_eq!((found.pairs.len(), found.problems.len()), (pairs, 2 - pairs), "{length}, {end:?}");
            }
        }
    }

    #[test]
    fn bad_rows_are_named_and_the_next_can_be_read() {
        let found = read(b"a\tb\nonly\n\nq\t\nq\td\xff\nq\td\n", PairFormat::Tsv, 0);
        let expected = [
            (2, RowProblem::TooFewTexts { expected: 2, found: 1 }),
            (4, RowProblem::Empty { text: 2 }),
            (5, RowProblem::InvalidUtf8 { offset: 3, value: 0xff }),
        ];
        assert_eq!(found.problems, expected);
        assert_eq!(found.pairs, [["a", "b"], ["q", "d"]]);

        let found = read(b"{\"query\":\"q\"}\n[1]\n{\"query\":\"q\",\"document\":\"d\"}", PairFormat::JsonLines, 0);
        assert!(matches!(&found.problems[..], [(1, RowProblem::Json(first)), (2, RowProblem::Json(_))]
            if first.contains("document")));
        assert_eq!(found.pairs.len(), 1);
        let found = read(b"{\"query\":\"q\",\"document\":\"d\",\"negatives\":[\"n\"]}", PairFormat::JsonLines, 2);
        assert_eq!(found.problems, [(1, RowProblem::TooFewNegatives { expected: 2, found: 1 })]);
        let found = read(b"{\"query\":\"q\",\"document\":\"d\",\"negative\":\"n\"}", PairFormat::JsonLines, 1);
        assert_eq!(found.problems, [(1, RowProblem::TooFewNegatives { expected: 1, found: 0 })]);
        assert!(found.problems[0].1.to_string().contains("`negatives`"), "{}", found.problems[0].1);
        let found = read(b" [\"q\",\"d\"]\n", PairFormat::JsonLines, 0);
        assert_eq!(found.problems, [(1, RowProblem::Json("not a JSON object".into()))]);
    }

    #[test]
    fn a_line_is_too_long_from_one_byte_on() {
        for (length, ending) in [(98, "\n"), (98, "\r\n"), (98, "")] {
            let line = format!("q\t{}{ending}", "d".repeat(length));
            assert_eq!(read(line.as_bytes(), PairFormat::Tsv, 0).pairs.len(), 1);
            if !ending.is_empty() {
                let found = read(format!("{line}bad").as_bytes(), PairFormat::Tsv, 0);
                assert_eq!(found.problems, [(2, RowProblem::TooFewTexts { expected: 2, found: 1 })], "{ending:?}");
            }
            for more in [1, 2, 3, 4, 500] {
                let line = format!("a\tb\nq\t{}{ending}", "d".repeat(length + more));
                let next = if ending.is_empty() { "" } else { "c\td\n" };
                let found = read(format!("{line}{next}").as_bytes(), PairFormat::Tsv, 0);
                assert_eq!(found.problems, [(2, RowProblem::TooLong { maximum: 100 })], "{more}, {ending:?}");
                assert_eq!(found.pairs.len(), 1 + usize::from(!next.is_empty()), "{more}, {ending:?}");
            }
        }
    }

    #[test]
    fn the_ending_tells_the_format() {
        assert_eq!(PairFormat::of("a/b.TSV").unwrap(), PairFormat::Tsv);
        assert_eq!(PairFormat::of("a.jsonl").unwrap(), PairFormat::JsonLines);
        assert!(matches!(PairFormat::of("a.csv"), Err(Error::InvalidConfig { name: "format", .. })));
    }
}

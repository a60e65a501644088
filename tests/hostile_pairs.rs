//! Damaged and lying files of text pairs: a row is a pair or a typed error that names it and what is wrong, no row spoils
//! another, and no more memory is taken than a stated bound, however long the file.

#[path = "support/counting.rs"]
mod counting;

use std::fs;

use cllm::data::{MAXIMUM_LINE_BYTES, PairFormat, PairReader, RowProblem};
use cllm::{Error, Result};
use counting::peak_of;

const FORMATS: [PairFormat; 2] = [PairFormat::Tsv, PairFormat::JsonLines];

/// What a reader may take for each byte of the longest line, and beside that, as its documentation says.
const FACTOR: usize = 32;
const BUFFER: usize = 1 << 16;

/// A pair with one hard negative, or the number of a row and what is wrong with it.
type Row = std::result::Result<Vec<String>, (u64, RowProblem)>;

/// Reads all rows of a file of this content, the bad ones too, and holds the reader to its bound.
fn read(format: PairFormat, content: &[u8], longest: usize) -> Vec<Row> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), content).unwrap();
    let open = || PairReader::open(file.path(), format, 1).unwrap().with_maximum_line(longest);
    // Every text is forgotten, and the most that any reading took is compared.
    let (rows, peak) = peak_of(|| {
        let (mut reader, mut texts, mut rows) = (open(), Vec::new(), 0);
        loop {
            rows += 1;
            if let Ok(false) = reader.read(&mut texts) {
                return rows - 1;
            }
            assert!(rows <= content.len(), "{format:?}: more rows than bytes");
        }
    });
    let bound = FACTOR * longest + BUFFER + 4096;
    assert!(peak <= bound, "{format:?}: {peak} bytes were taken, {bound} are allowed");

    let (mut reader, mut texts) = (open(), Vec::new());
    let row = |result: Result<bool>, texts: &[String]| match result {
        Ok(more) => more.then(|| Ok(texts.to_vec())),
        Err(Error::InvalidPair { path, row, problem }) => {
            assert_eq!(path, file.path());
            Some(Err((row, problem)))
        }
        Err(other) => panic!("{format:?}: {other:?}"),
    };
    let all: Vec<Row> = std::iter::from_fn(|| row(reader.read(&mut texts), &texts)).collect();
    assert_eq!(all.len(), rows);
    all
}

/// Five pairs, and their lines with their ends.
fn sample(format: PairFormat) -> (Vec<Vec<String>>, Vec<Vec<u8>>) {
    let pairs =
        [["how", "so", "no"], ["größe", "日本 🦀", "-"], ["a\"b\\", "{}", "[1]"], ["q", "d", "n"], ["1", "2", "3"]];
    let line = |[query, document, negative]: [&str; 3], end| match format {
        PairFormat::Tsv => format!("{query}\t{document}\t{negative}{end}"),
        PairFormat::JsonLines => {
            format!("{{\"query\":{query:?},\"document\":{document:?}, \"id\":7,\"negatives\":[{negative:?}]}}{end}")
        }
    };
    let lines = pairs.iter().enumerate().map(|(row, pair)| line(*pair, ["\n", "\r\n"][row % 2]).into_bytes());
    (pairs.map(|pair| pair.map(String::from).to_vec()).to_vec(), lines.collect())
}

#[test]
fn a_cut_file_loses_the_rows_behind_the_cut() {
    for format in FORMATS {
        let (pairs, lines) = sample(format);
        let content = lines.concat();
        let mut begin = 0;
        for (row, line) in lines.iter().enumerate() {
            for length in 0..line.len() {
                let rows = read(format, &content[..begin + length], 200);
                let case = format!("{format:?}, row {row} cut to {length}: {rows:?}");
                assert!(rows.len() == row + usize::from(length > 0), "{case}");
                assert!(rows.iter().zip(&pairs[..row]).all(|(found, pair)| found.as_ref() == Ok(pair)), "{case}");
                match (rows.get(row), format) {
                    // Nothing tells the last text from a shorter one.
                    (Some(Ok(texts)), PairFormat::Tsv) => {
                        assert!(line.starts_with(texts.join("\t").as_bytes()), "{case}")
                    }
                    (Some(Ok(texts)), PairFormat::JsonLines) => {
                        assert!(line[length - 1..].trim_ascii_end().len() <= 1 && *texts == pairs[row], "{case}");
                    }
                    (Some(Err((number, _))), _) => assert_eq!(*number, row as u64 + 1, "{case}"),
                    (None, _) => assert_eq!(length, 0, "{case}"),
                }
            }
            begin += line.len();
        }
        assert!(read(format, &content, 200).into_iter().eq(pairs.into_iter().map(Ok)), "{format:?}");
    }
}

#[test]
fn a_flipped_bit_spoils_no_other_row() {
    for format in FORMATS {
        let (pairs, lines) = sample(format);
        let mut content = lines.concat();
        let mut end = 0;
        for (row, line) in lines.iter().enumerate() {
            for at in end..end + line.len() {
                for bit in 0..8 {
                    content[at] ^= 1 << bit;
                    let rows = read(format, &content, 200);
                    let case = format!("{format:?}, bit {bit} of byte {at}, in row {row}: {rows:?}");
                    assert!(rows[..row].iter().zip(&pairs).all(|(found, pair)| found.as_ref() == Ok(pair)), "{case}");
                    // Without its end, a row has the next one's bytes too; a new end makes two of it.
                    let joined = at + 1 == end + line.len();
                    let behind = &pairs[(row + 1 + usize::from(joined)).min(pairs.len())..];
                    let last = rows.len() - behind.len();
                    assert!(rows[last..].iter().zip(behind).all(|(found, pair)| found.as_ref() == Ok(pair)), "{case}");
                    assert!((row..=row + 2).contains(&last), "{case}");
                    let named = |number: u64| (row as u64 + 1..=row as u64 + 2).contains(&number);
                    let spoilt = &rows[row..last];
                    assert!(
                        spoilt.iter().all(|found| found.as_ref().map_or_else(|error| named(error.0), |_| true)),
                        "{case}"
                    );
                    content[at] ^= 1 << bit;
                }
            }
            end += line.len();
        }
    }
}

/// Lines that are as long as they may be, and lines that do not end, among good ones.
#[test]
fn huge_lines_take_no_more_than_the_bound() {
    let longest = MAXIMUM_LINE_BYTES;
    let json = |text: &str| format!("{{\"query\":\"q\",\"document\":\"d\",{text}").into_bytes();
    let many = |item: &str, length: usize| item.repeat(length / item.len());
    // All that fits a line, and what is not cut anywhere but at its end.
    let fits = longest - 100;
    let cases = [
        ("one text", many("a", fits).into_bytes()),
        ("tabs", format!("a{}", many("\t", fits)).into_bytes()),
        ("texts", many("a\t", fits).into_bytes()),
        ("two long texts", format!("{0}\t{0}\tn", many("a", fits / 2)).into_bytes()),
        ("NUL", many("\0", fits).into_bytes()),
        ("no UTF-8", vec![0xff; fits]),
        ("nesting", many("[", fits).into_bytes()),
        ("nested objects", many("{\"a\":", fits).into_bytes()),
        ("nesting in an unknown field", json(&format!("\"x\":{}", many("[", fits)))),
        ("empty negatives", json(&format!("\"negatives\":[{}\"n\"]}}", many("\"\",", fits)))),
        ("short negatives", json(&format!("\"negatives\":[{}\"n\"]}}", many("\"a\",", fits)))),
        ("escapes", json(&format!("\"negatives\":[\"{}\"]}}", many("\\u00e4", fits)))),
        ("a text for a list", json(&format!("\"negatives\":\"{}\"}}", many("\u{7f}", fits)))),
        ("an unknown field", json(&format!("\"negatives\":[\"n\"],\"x\":\"{}\"}}", many("\\n", fits)))),
        ("many fields", json(&format!("\"negatives\":[\"n\"]{}}}", many(",\"x\":1", fits)))),
        ("a long number", json(&format!("\"negatives\":[\"n\"],\"x\":{}}}", many("1", fits)))),
    ];
    for format in FORMATS {
        let good = sample(format).1[0].clone();
        let pair = sample(format).0.remove(0);
        for (case, line) in &cases {
            assert!(line.len() <= longest, "{case}");
            let content = [&good[..], line, b"\n", &good].concat();
            let rows = read(format, &content, longest);
            assert_eq!(rows.len(), 3, "{format:?}, {case}");
            assert!([0, 2].iter().all(|&row| rows[row].as_ref() == Ok(&pair)), "{format:?}, {case}");
            if let Err((row, problem)) = &rows[1] {
                assert_eq!(*row, 2, "{format:?}, {case}");
                assert!(!matches!(problem, RowProblem::TooLong { .. }), "{format:?}, {case}: {problem}");
                assert!(problem.to_string().len() < 2000, "{format:?}, {case}: a long message");
            }
            // The same without an end for 8 MiB.
            let endless = line.repeat(8);
            let rows = read(format, &[&good[..], &endless, b"\n", &good].concat(), longest);
            let expected = [Ok(pair.clone()), Err((2, RowProblem::TooLong { maximum: longest })), Ok(pair.clone())];
            assert!(rows == expected, "{format:?}, {case}: {:?}", rows.get(1).map(|row| row.as_ref().err()));
        }
    }
}

#[test]
fn what_is_no_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for format in FORMATS {
        assert!(matches!(PairReader::open(folder.path().join("absent"), format, 0), Err(Error::Io { .. })));
        // Some systems open a folder, none reads it.
        let result = PairReader::open(folder.path(), format, 0).and_then(|mut reader| reader.read(&mut Vec::new()));
        assert!(matches!(result, Err(Error::Io { .. })), "{result:?}");
    }
}

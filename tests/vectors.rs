//! Files of word vectors: what is written is read again; damaged and lying files give a typed error that names the row,
//! without a panic, without more memory than the file and a stated bound, and with nothing half-loaded.

#[path = "support/counting.rs"]
mod counting;

use std::fs;
use std::path::Path;

use cllm::export::{self, VectorFormat, npy, safetensors, word2vec};
use cllm::{Error, Result, WordVectors};
use counting::peak_of;
use ndarray::{Array2, array};

/// What a reader may take beside twice the size of its file; its words are few here.
const BOUND: usize = 1 << 18;

const FORMATS: [VectorFormat; 4] =
    [VectorFormat::Word2vecText, VectorFormat::Word2vecBinary, VectorFormat::Npy, VectorFormat::Safetensors];

fn sample() -> WordVectors {
    let table = array![[1.5, -2.25e-8, 3.0], [f32::MAX, f32::MIN_POSITIVE, -0.0], [0.1, 1e-45, 7.0], [0.3, 0.2, 0.1]];
    WordVectors::new(["the", "naïve", "日本", "x_1"], table).unwrap()
}

/// The bytes of a file of `vectors`; for arrays, those of the words beside it too.
fn bytes_of(format: VectorFormat, vectors: &WordVectors) -> (Vec<u8>, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vectors.npy");
    export::write(&path, format, vectors.words(), vectors.vectors()).unwrap();
    (fs::read(&path).unwrap(), fs::read(npy::words_path(&path)).unwrap_or_default())
}

/// Reads a file's content, and holds the reader to its bound and to typed errors.
fn parse(format: VectorFormat, bytes: &[u8], words: &[u8], case: &str) -> Result<WordVectors> {
    let (result, peak) = peak_of(|| match format {
        VectorFormat::Word2vecText => word2vec::parse_text(bytes),
        VectorFormat::Word2vecBinary => word2vec::parse_binary(bytes),
        VectorFormat::Npy => npy::parse(bytes, words),
        VectorFormat::Safetensors => safetensors::parse(bytes),
    });
    let bound = 2 * (bytes.len() + words.len()) + BOUND;
    assert!(peak <= bound, "{format:?}, {case}: {peak} bytes were taken, {bound} are allowed");
    if let Err(error) = &result {
        let typed =
            matches!(error, Error::InvalidFile { .. } | Error::EmptyFile { .. } | Error::InvalidRow { row: 1.., .. });
        assert!(typed, "{format:?}, {case}: {error:?}");
    }
    result
}

fn refuses(format: VectorFormat, bytes: &[u8], words: &[u8], case: &str) -> String {
    match parse(format, bytes, words, case) {
        Ok(_) => panic!("{format:?}: {case} was accepted"),
        Err(error) => error.to_string(),
    }
}

/// Refuses, and names the row and what is wrong there.
fn names(format: VectorFormat, bytes: &[u8], words: &[u8], row: u64, problem: &str) {
    let message = refuses(format, bytes, words, problem);
    assert!(message.contains(&format!("row {row}: ")) && message.contains(problem), "{format:?}: {message}");
}

#[test]
fn every_format_keeps_words_and_bits() {
    let vectors = sample();
    let bits = |vectors: &WordVectors| vectors.vectors().iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let folder = tempfile::tempdir().unwrap();
    for (format, name) in FORMATS.into_iter().zip(["a.txt", "a.bin", "a.npy", "a.safetensors"]) {
        let path = folder.path().join(name);
        assert_eq!(VectorFormat::of_path(&path), format);
        export::write(&path, format, vectors.words(), vectors.vectors()).unwrap();
        let read = export::read(&path, None).unwrap();
        assert_eq!(read.words().collect::<Vec<_>>(), vectors.words().collect::<Vec<_>>(), "{format:?}");
        assert_eq!(bits(&read), bits(&vectors), "{format:?}");
        let (bytes, words) = bytes_of(format, &vectors);
        assert_eq!(bits(&parse(format, &bytes, &words, "whole").unwrap()), bits(&vectors), "{format:?}");
        assert!(matches!(export::read(folder.path(), Some(format)), Err(Error::InvalidFile { .. })));
        assert!(matches!(export::read(folder.path().join("absent"), Some(format)), Err(Error::Io { .. })));
    }
    assert!(matches!(word2vec::parse_text(b""), Err(Error::EmptyFile { .. })));
    // More than a buffer of every kind.
    let many: Vec<String> = (0..3000).map(|id| format!("word{id}")).collect();
    let table = Array2::from_shape_fn((3000, 40), |(row, column)| (row * 40 + column) as f32 / 7.0);
    let large = WordVectors::new(many.iter().map(String::as_str), table).unwrap();
    for format in FORMATS {
        let (bytes, words) = bytes_of(format, &large);
        assert_eq!(parse(format, &bytes, &words, "large").unwrap(), large, "{format:?}");
    }
}

#[test]
fn every_cut_is_noticed() {
    for format in FORMATS {
        let (bytes, words) = bytes_of(format, &sample());
        // Gensim does not write the line end behind the last row of the binary format.
        let whole = bytes.len() - usize::from(format == VectorFormat::Word2vecBinary);
        for length in 0..whole {
            refuses(format, &bytes[..length], &words, &format!("cut to {length}"));
        }
        for length in 0..words.len() {
            refuses(format, &bytes, &words[..length], &format!("words cut to {length}"));
        }
        for more in [&b"x"[..], b"\0", b"x 1 2 3\n"] {
            refuses(format, &[&bytes, more].concat(), &words, "more at the end");
        }
    }
}

#[test]
fn flipped_bits_do_no_harm() {
    for format in FORMATS {
        let (good, words) = bytes_of(format, &sample());
        for (flip_words, length) in [(false, good.len()), (true, words.len())] {
            for bit in 0..8 * length {
                let (mut bytes, mut words) = (good.clone(), words.clone());
                (if flip_words { &mut words } else { &mut bytes })[bit / 8] ^= 1 << (bit % 8);
                if let Ok(read) = parse(format, &bytes, &words, &format!("bit {bit}")) {
                    // What is accepted is whole: as many rows, all values finite, words found again.
                    assert_eq!(read.len(), read.words().len());
                    assert!(read.vectors().iter().all(|value| value.is_finite()));
                    assert!(read.words().enumerate().all(|(id, word)| read.id(word) == Some(id as u32)));
                }
            }
        }
    }
}

#[test]
fn lying_headers_take_no_memory() {
    let counts = ["0", "1", "5", "1000000000", "18446744073709551615", "18446744073709551616", "-1", "4.0", ""];
    for format in [VectorFormat::Word2vecText, VectorFormat::Word2vecBinary] {
        let (bytes, _) = bytes_of(format, &sample());
        let body = &bytes[4..];
        for count in counts {
            for header in [format!("{count} 3\n"), format!("4 {count}\n"), format!("{count} {count}\n")] {
                refuses(format, &[header.as_bytes(), body].concat(), b"", &header);
            }
        }
        for header in ["4\n", "4 3 3\n", "4 3", "\n", "x y\n", "\u{ff}\n"] {
            refuses(format, &[header.as_bytes(), body].concat(), b"", header);
        }
        refuses(format, &b"4".repeat(1 << 20), b"", "an endless header");
    }

    let (array, words) = bytes_of(VectorFormat::Npy, &sample());
    let begin = 10 + usize::from(array[8]);
    let header = String::from_utf8(array[10..begin].to_vec()).unwrap();
    let file = |version: u8, length: &[u8], header: &str| {
        [b"\x93NUMPY", &[version, 0][..], length, header.as_bytes(), &array[begin..]].concat()
    };
    let short = |header: &str| file(1, &(header.len() as u16).to_le_bytes(), header);
    for version in [0, 3, 255] {
        refuses(VectorFormat::Npy, &file(version, &array[8..10], &header), &words, "version");
    }
    let second = file(2, &(header.len() as u32).to_le_bytes(), &header);
    assert_eq!(parse(VectorFormat::Npy, &second, &words, "version 2").unwrap(), sample());
    refuses(VectorFormat::Npy, &file(2, &u32::MAX.to_le_bytes(), &header), &words, "a long header");
    refuses(VectorFormat::Npy, &file(1, &u16::MAX.to_le_bytes(), &header), &words, "a long header");
    for (old, new) in [
        ("(4, 3)", "(18446744073709551615, 3)"),
        ("(4, 3)", "(4294967296, 4294967296)"),
        ("(4, 3)", "(4611686018427387904, 1)"),
        ("(4, 3)", "(0, 3)"),
        ("(4, 3)", "(4, 0)"),
        ("(4, 3)", "(12,)"),
        ("(4, 3)", "(4, 3, 1)"),
        ("(4, 3)", "(-4, -3)"),
        ("(4, 3)", "(3, 4)"),
        ("(4, 3)", "(4, 3"),
        ("<f4", ">f4"),
        ("<f4", "<f8"),
        ("False", "True"),
        ("'descr'", "'desc'"),
        ("'descr'", "'shape'"),
        ("'descr': '<f4', ", ""),
        ("}", ""),
        ("{", "{'shape': (4, 3), "),
        ("}", "} + exit()"),
    ] {
        let lie = header.replacen(old, new, 1);
        assert_ne!(lie, header, "{old}");
        refuses(VectorFormat::Npy, &short(&lie), &words, &format!("{old} → {new}"));
    }
    let other_order = "{'shape':(4,3),'fortran_order': False , 'descr' :'<f4'}";
    refuses(VectorFormat::Npy, &short(other_order), &words, "a space before a colon");
    let other_order = "{'shape':(4,3),'fortran_order': False , 'descr':'<f4'}\n";
    assert_eq!(parse(VectorFormat::Npy, &short(other_order), &words, "another order").unwrap(), sample());

    let (bytes, _) = bytes_of(VectorFormat::Safetensors, &sample());
    let begin = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json = String::from_utf8(bytes[8..begin].to_vec()).unwrap();
    let file = |json: &str| [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &bytes[begin..]].concat();
    for length in [0, 1, begin as u64 - 9, begin as u64, 1 << 40, 1 << 63, u64::MAX - 7, u64::MAX] {
        let lie = [&length.to_le_bytes(), &bytes[8..]].concat();
        refuses(VectorFormat::Safetensors, &lie, b"", &format!("a header of {length} bytes"));
    }
    for (old, new) in [
        ("[4,3]", "[18446744073709551615,3]"),
        ("[4,3]", "[4294967296,4294967296]"),
        ("[4,3]", "[0,3]"),
        ("[4,3]", "[12]"),
        ("[4,3]", "[3,4]"),
        ("[0,48]", "[0,18446744073709551615]"),
        ("[0,48]", "[48,0]"),
        ("[0,48]", "[1,49]"),
        ("F32", "F16"),
        ("U8", "I8"),
        ("\"words\"", "\"vectors\""),
        ("\"words\"", "\"names\""),
        ("{\"vectors\"", "{\"extra\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},\"vectors\""),
    ] {
        let lie = json.replacen(old, new, 1);
        assert_ne!(lie, json, "{old}");
        refuses(VectorFormat::Safetensors, &file(&lie), b"", &format!("{old} → {new}"));
    }
    refuses(VectorFormat::Safetensors, &file(&"[".repeat(60_000)), b"", "nesting");
    refuses(VectorFormat::Safetensors, &file(&format!("{}{json}", " ".repeat(1 << 20))), b"", "a header of spaces");
    let metadata = json.replacen('{', "{\"__metadata__\":{\"format\":\"pt\"},", 1);
    assert_eq!(parse(VectorFormat::Safetensors, &file(&metadata), b"", "metadata").unwrap(), sample());

    // The other library writes the words first if asked to.
    let reference = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (vectors, words) = (reference.tensor("vectors").unwrap(), reference.tensor("words").unwrap());
    assert_eq!((vectors.shape(), words.shape()), (&[4, 3][..], &[words.data().len()][..]));
    let length = words.data().len();
    let swapped = format!(
        r#"{{"words":{{"dtype":"U8","shape":[{length}],"data_offsets":[0,{length}]}},"vectors":{{"dtype":"F32","shape":[4,3],"data_offsets":[{length},{}]}}}}"#,
        length + 48
    );
    let swapped = [&(swapped.len() as u64).to_le_bytes(), swapped.as_bytes(), words.data(), vectors.data()].concat();
    assert_eq!(parse(VectorFormat::Safetensors, &swapped, b"", "words first").unwrap(), sample());
}

#[test]
fn a_bad_row_is_named() {
    let text = VectorFormat::Word2vecText;
    for (row, problem) in [
        ("b 1 x", "value 2 is not a number"),
        ("new york 1 2", "value 1 is not a number: \"york\"; a word cannot hold a space"),
        ("b 1", "1 values where 2 are announced"),
        ("b", "0 values"),
        ("b 1 2 3", "more than the 2 values"),
        ("b 1 2  ", "more than the 2 values"),
        ("b 1 nan", "value 2 is NaN"),
        ("b -inf 1", "value 1 is -inf"),
        ("b 1e999 1", "value 1 is inf"),
        (" 1 2", "the word is empty"),
        ("a 1 2", "the word \"a\" stands in row 1 too"),
    ] {
        names(text, format!("3 2\na 1 2\n{row}\nc 1.0000 2.0000\n").as_bytes(), b"", 2, problem);
    }
    names(text, b"2 2\na 1 2\n\xff\xfe 1 2\n", b"", 2, "not UTF-8: byte 0xff at 0");
    names(text, format!("2 2\na 1 2\nb 1 {}\n", "0".repeat(1000)).as_bytes(), b"", 2, "value 2 does not end");
    names(text, format!("2 2\na 1 2\n{} 1 2\n", "b".repeat(1 << 17)).as_bytes(), b"", 2, "the word does not end");
    let tolerated = parse(text, b"2 2\r\na 1 2\r\nb 3 -4.5e-1 \r\n", b"", "blanks at the ends of lines").unwrap();
    assert_eq!(tolerated.vectors(), array![[1.0, 2.0], [3.0, -0.45]]);

    let binary = VectorFormat::Word2vecBinary;
    let row = |word: &[u8], value: f32| [word, b" ", &value.to_le_bytes(), &1f32.to_le_bytes()].concat();
    let file = |word: &[u8], value: f32| [b"2 2\n", &row(b"a", 1.0)[..], &row(word, value), b"\n"].concat();
    assert_eq!(parse(binary, &file(b"b", 5.0), b"", "no line end between rows").unwrap().word(1), "b");
    names(binary, &file(b"b", f32::NAN), b"", 2, "value 1 is NaN");
    names(binary, &file(b"b", f32::INFINITY), b"", 2, "value 1 is inf");
    names(binary, &file(b"", 1.0), b"", 2, "the word is empty");
    names(binary, &file(b"a", 1.0), b"", 2, "stands in row 1 too");
    names(binary, &file(b"b\xc3", 1.0), b"", 2, "not UTF-8: byte 0xc3 at 1");
    names(binary, &file(b"b\nc", 1.0), b"", 2, "holds the byte 0x0a");

    let (array, _) = bytes_of(VectorFormat::Npy, &sample());
    for (words, row, problem) in [
        (&b"a\nb\nc\n"[..], 4, "no word for this row"),
        (b"a\n\nc\nd\n", 2, "the word is empty"),
        (b"a\nb\nb\nd\n", 3, "stands in row 2 too"),
        (b"a\nb\n\x80\nd\n", 3, "not UTF-8"),
    ] {
        names(VectorFormat::Npy, &array, words, row, problem);
    }
    refuses(VectorFormat::Npy, &array, b"a\nb\nc\nd\ne\n", "a word too many");
    assert_eq!(parse(VectorFormat::Npy, &array, b"a\r\nb c\r\nd\r\ne\r\n", "CRLF").unwrap().word(1), "b c");
    let mut broken = array.clone();
    let at = broken.len() - 16;
    broken[at..at + 4].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes());
    names(VectorFormat::Npy, &broken, b"a\nb\nc\nd\n", 3, "value 3 is -inf");
}

#[test]
fn what_could_not_be_read_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vectors.npy");
    let table = array![[1.0], [2.0]];
    let write = |format, words: [&str; 2], table: &Array2<f32>| {
        let error = export::write(&path, format, words.into_iter(), table.view()).unwrap_err();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{format:?}: a file was left");
        error
    };
    for format in FORMATS {
        let error = write(format, ["a", "b\nc"], &table);
        assert!(matches!(error, Error::InvalidRow { row: 2, .. }), "{error}");
        assert!(matches!(write(format, ["", "b"], &table), Error::InvalidRow { row: 1, .. }));
        assert!(matches!(write(format, ["a", "b"], &array![[1.0], [f32::NAN]]), Error::InvalidRow { row: 2, .. }));
        assert!(matches!(write(format, ["a", "b"], &array![[1.0]]), Error::Shape { .. }));
        let error = write(format, ["a", "a"], &table);
        assert!(
            matches!(error, Error::InvalidRow { row: 2, .. }) && error.to_string().contains("row 1 too"),
            "{error}"
        );
        let long = "b".repeat((1 << 16) + 1);
        assert!(matches!(write(format, ["a", &long], &table), Error::InvalidRow { row: 2, .. }), "{format:?}");
    }
    for format in [VectorFormat::Word2vecText, VectorFormat::Word2vecBinary] {
        assert!(matches!(write(format, ["a", "new york"], &table), Error::InvalidRow { row: 2, .. }));
    }
    // The others keep spaces.
    for format in [VectorFormat::Npy, VectorFormat::Safetensors] {
        export::write(&path, format, ["a", "new york"].into_iter(), table.view()).unwrap();
        assert_eq!(export::read(&path, Some(format)).unwrap().word(1), "new york");
    }
    // The longest word, and in word2vec's formats all that gensim keeps within words.
    for format in FORMATS {
        let long = "b".repeat(1 << 16);
        export::write(&path, format, ["a", &long].into_iter(), table.view()).unwrap();
        assert_eq!(export::read(&path, Some(format)).unwrap().word(1), long, "{format:?}");
    }
    for format in [VectorFormat::Word2vecText, VectorFormat::Word2vecBinary] {
        let words = ["\tb\u{b}\u{c}\u{a0}c", "\rd\r"];
        export::write(&path, format, words.into_iter(), table.view()).unwrap();
        assert_eq!(export::read(&path, Some(format)).unwrap().words().collect::<Vec<_>>(), words, "{format:?}");
    }
    let error = npy::write(Path::new("vectors.words"), ["a", "b"].into_iter(), table.view()).unwrap_err();
    assert!(matches!(error, Error::InvalidFile { .. }));
}

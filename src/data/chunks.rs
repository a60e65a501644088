//! Reading a text file in bounded memory, cut where no token is.

use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::str;

use super::text::{InvalidUtf8, TextFile};
use crate::{Error, Result};

/// Bytes in memory at a time: enough pieces for many workers.
const CHUNK_BYTES: usize = 1 << 22;

/// Hands the file's bytes over, with the offset of each chunk.
pub(super) fn for_each_bytes(file: &TextFile, mut each: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    for_each_chunk(file, CHUNK_BYTES, &mut each)
}

/// Hands the file's text over, with the offset in bytes of each chunk.
pub(super) fn for_each_text(
    file: &TextFile,
    policy: InvalidUtf8,
    mut each: impl FnMut(u64, &str) -> Result<()>,
) -> Result<()> {
    for_each_chunk(file, CHUNK_BYTES, |offset, bytes| each(offset, &to_text(file, offset, bytes, policy)?))
}

/// The text in `range` of the file, less the partial words at ends that are not the file's.
pub(super) fn read_words(file: &TextFile, range: Range<u64>, policy: InvalidUtf8) -> Result<String> {
    let mut bytes = Vec::new();
    File::open(&file.path)
        .and_then(|mut opened| {
            opened.seek(SeekFrom::Start(range.start))?;
            opened.take(range.end - range.start).read_to_end(&mut bytes)
        })
        .map_err(Error::io(&file.path))?;
    let end = if range.end < file.bytes && !bytes.is_empty() { split_before(&bytes) } else { bytes.len() };
    let continues = |byte: &u8| byte & 0xc0 == 0x80;
    let start = match range.start {
        0 => 0,
        _ => (1..end)
            .find(|&at| bytes[at - 1].is_ascii_alphanumeric() && is_space(bytes[at]))
            .unwrap_or_else(|| bytes.iter().take(3).take_while(|byte| continues(byte)).count().min(end)),
    };
    Ok(to_text(file, range.start + start as u64, &bytes[start..end], policy)?.into_owned())
}

/// Calls `each(offset, bytes)` for the file in chunks of at most `chunk_bytes`.
fn for_each_chunk(file: &TextFile, chunk_bytes: usize, mut each: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let opened = File::open(&file.path).map_err(Error::io(&file.path))?;
    let mut reader = opened.take(file.bytes);
    let mut buffer = Vec::with_capacity(chunk_bytes.min(file.bytes as usize));
    let mut offset = 0;
    loop {
        let wanted = chunk_bytes - buffer.len();
        reader.by_ref().take(wanted as u64).read_to_end(&mut buffer).map_err(Error::io(&file.path))?;
        let last = buffer.len() < chunk_bytes || reader.limit() == 0;
        let end = if last { buffer.len() } else { split_before(&buffer) };
        if end > 0 {
            each(offset, &buffer[..end])?;
        }
        if last {
            return Ok(());
        }
        offset += end as u64;
        buffer.drain(..end);
    }
}

fn to_text<'a>(file: &TextFile, offset: u64, bytes: &'a [u8], policy: InvalidUtf8) -> Result<Cow<'a, str>> {
    match (str::from_utf8(bytes), policy) {
        (Ok(text), _) => Ok(Cow::Borrowed(text)),
        (Err(_), InvalidUtf8::Replace) => Ok(String::from_utf8_lossy(bytes)),
        (Err(error), InvalidUtf8::Refuse) => Err(Error::InvalidUtf8 {
            path: file.path.clone(),
            offset: offset + error.valid_up_to() as u64,
            value: bytes[error.valid_up_to()],
        }),
    }
}

/// Where to cut the bytes of a text that goes on, so that tokenizing the parts gives the tokens of the whole: before a
/// space or line end that follows a word.
///
/// GPT-2's pre-tokens, and those of its successors, begin there: none of them crosses from a letter or digit to white
/// space. Where the second half has no such place, a space or line end after any other visible character serves, which
/// is as good for GPT-2; where it has neither, the text is cut between any two characters. These bytes are ASCII, so
/// the cut is between characters, and the same in text that is not valid UTF-8.
pub(super) fn split_before(bytes: &[u8]) -> usize {
    let last_after = |ends_word: fn(u8) -> bool| {
        (bytes.len() / 2 + 1..bytes.len()).rev().find(|&at| is_space(bytes[at]) && ends_word(bytes[at - 1]))
    };
    last_after(|byte| byte.is_ascii_alphanumeric()).or_else(|| last_after(|byte| byte > b' ')).unwrap_or_else(|| {
        match whole_characters(bytes) {
            0 => bytes.len(),
            end => end,
        }
    })
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n')
}

/// How many of the file's bytes are left without the first bytes of a character that is cut off at their end.
pub(super) fn whole_characters_of(file: &TextFile) -> Result<u64> {
    let start = file.bytes.saturating_sub(3);
    let mut last = Vec::new();
    File::open(&file.path)
        .and_then(|mut opened| {
            opened.seek(SeekFrom::Start(start))?;
            opened.take(file.bytes - start).read_to_end(&mut last)
        })
        .map_err(Error::io(&file.path))?;
    Ok(start + whole_characters(&last) as u64)
}

/// How many of the bytes are left without the first bytes of a character that is cut off at the end.
fn whole_characters(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let start = bytes.len() - back;
        let length = match bytes[start] {
            0x80..=0xbf => continue,
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xff => 4,
            _ => 1,
        };
        return if length > back { start } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of(content: &[u8]) -> (tempfile::NamedTempFile, TextFile) {
        let named = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(named.path(), content).unwrap();
        let file = TextFile { path: named.path().to_path_buf(), bytes: content.len() as u64 };
        (named, file)
    }

    #[test]
    fn chunks_join_to_the_file_and_are_cut_before_spaces() {
        let text = "one two-three, four\n\nfive  six é è seven 8\u{1f600}9 ten";
        let (_named, file) = file_of(text.as_bytes());
        for chunk_bytes in 16..80 {
            let mut joined: Vec<u8> = Vec::new();
            for_each_chunk(&file, chunk_bytes, |offset, bytes| {
                assert_eq!(offset, joined.len() as u64);
                assert!(bytes.len() <= chunk_bytes && str::from_utf8(bytes).is_ok());
                joined.extend(bytes);
                let is_last = joined.len() == text.len();
                assert!(is_last || (b" \n".contains(&text.as_bytes()[joined.len()]) && !bytes.ends_with(b" ")));
                Ok(())
            })
            .unwrap();
            assert_eq!(joined, text.as_bytes(), "chunks of {chunk_bytes}");
        }
    }

    #[test]
    fn text_without_words_is_cut_between_characters() {
        for (text, end) in [("ééé", 6), ("x\u{1f600}y", 6), ("    ", 4), ("....", 4), ("..,\n.", 3)] {
            assert_eq!(split_before(text.as_bytes()), end, "{text:?}");
        }
        let smile = "x\u{1f600}".as_bytes();
        let ends: Vec<_> = (1..=5).map(|length| whole_characters(&smile[..length])).collect();
        assert_eq!(ends, [1, 1, 1, 1, 5]);
        assert_eq!(whole_characters(&[0x80; 5]), 5);
    }

    #[test]
    fn the_first_invalid_byte_is_named_wherever_the_chunks_end() {
        let mut content = b"word ".repeat(CHUNK_BYTES / 4);
        for at in [0, 7, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 3, content.len() - 1] {
            let valid = std::mem::replace(&mut content[at], 0xff);
            let (_named, file) = file_of(&content);
            content[at] = valid;
            let error = for_each_text(&file, InvalidUtf8::Refuse, |_, _| Ok(())).unwrap_err();
            let expected = matches!(&error, Error::InvalidUtf8 { path, offset, value: 0xff }
                if *path == file.path && *offset == at as u64);
            assert!(expected, "{error}");
        }
    }

    #[test]
    fn an_unfinished_character_is_invalid() {
        let (_named, file) = file_of(b"abc\xc3");
        let error = for_each_text(&file, InvalidUtf8::Refuse, |_, _| Ok(())).unwrap_err();
        assert!(matches!(error, Error::InvalidUtf8 { offset: 3, value: 0xc3, .. }), "{error}");
        let mut text = String::new();
        let read = for_each_text(&file, InvalidUtf8::Replace, |_, part| {
            text.push_str(part);
            Ok(())
        });
        assert!(read.is_ok() && text == "abc\u{fffd}", "{text}");
    }

    #[test]
    fn words_at_the_ends_of_a_range_are_left_out() {
        let (_named, file) = file_of("first second third fourth fifth".as_bytes());
        let read = |range| read_words(&file, range, InvalidUtf8::Refuse).unwrap();
        assert_eq!(read(0..31), "first second third fourth fifth");
        assert_eq!(read(0..14), "first second");
        assert_eq!(read(2..27), " second third fourth");
        assert_eq!(read(20..31), " fifth");
        let (_named, file) = file_of("é".repeat(10).as_bytes());
        assert_eq!(read_words(&file, 3..9, InvalidUtf8::Refuse).unwrap(), "éé");
    }
}

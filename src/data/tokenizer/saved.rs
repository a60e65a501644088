//! Tokenizers on disk: `tokenizer.json`.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::{CharacterTokenizer, Tokenizer};
use crate::checkpoint::atomic::AtomicFile;
use crate::{Error, Result};

/// The name of the file in a folder.
const FILE_NAME: &str = "tokenizer.json";

/// Ten times the largest tokenizer in use; a longer file is not read.
const MAXIMUM_FILE_BYTES: u64 = 1 << 28;

/// The file's form where it is not Hugging Face's.
#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
enum Saved {
    Byte {},
    Character { characters: String },
}

/// What tells the two forms apart: ours has a `type`, Hugging Face's a `model`.
#[derive(Deserialize)]
struct Form {
    r#type: Option<IgnoredAny>,
    model: Option<IgnoredAny>,
}

impl Tokenizer {
    /// Writes `tokenizer.json` to `folder`, which is made if need be. The file appears whole or not at all.
    ///
    /// A byte-pair tokenizer is saved in the form of Hugging Face's `tokenizers`, the others as
    /// `{"type":"byte"}` and `{"type":"character","characters":"…"}`.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk refuses it.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        let own = |saved| Ok::<_, Error>(serde_json::to_string(&saved).expect("strings are JSON"));
        let mut json = match self {
            Self::Byte => own(Saved::Byte {})?,
            Self::Character(characters) => {
                own(Saved::Character { characters: characters.characters().iter().collect() })?
            }
            #[cfg(feature = "tokenizers")]
            Self::BytePair(byte_pair) => byte_pair.to_json()?,
        };
        json.push('\n');
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let mut file = AtomicFile::create(&folder.join(FILE_NAME))?;
        file.write_all(json.as_bytes())?;
        file.commit()
    }

    /// Reads a tokenizer that [`save`](Self::save) wrote, or any Hugging Face `tokenizer.json`, from that file or from
    /// the folder that holds it.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no such file, [`Error::EmptyFile`] if it is empty, [`Error::InvalidFile`] if it is no
    /// tokenizer, [`Error::MissingFeature`] if it is Hugging Face's and the feature `tokenizers` is off.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir() {
            return Self::load(path.join(FILE_NAME));
        }
        let mut json = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAXIMUM_FILE_BYTES + 1).read_to_end(&mut json))
            .map_err(Error::io(path))?;
        if json.is_empty() {
            return Err(Error::EmptyFile { path: path.to_path_buf() });
        }
        if json.len() as u64 > MAXIMUM_FILE_BYTES {
            return Err(Error::invalid_file(path, format!("a tokenizer of more than {MAXIMUM_FILE_BYTES} bytes")));
        }
        let invalid = |error: serde_json::Error| Error::invalid_file(path, error);
        match serde_json::from_slice(&json).map_err(invalid)? {
            Form { r#type: Some(_), .. } => match serde_json::from_slice(&json).map_err(invalid)? {
                Saved::Byte {} => Ok(Self::Byte),
                Saved::Character { characters } => CharacterTokenizer::parse(&characters)
                    .map(Self::Character)
                    .map_err(|problem| Error::invalid_file(path, problem)),
            },
            Form { model: Some(_), .. } => hugging_face(path, &json),
            Form { .. } => Err(Error::invalid_file(path, "not a tokenizer: it has neither `type` nor `model`")),
        }
    }
}

#[cfg(feature = "tokenizers")]
fn hugging_face(path: &Path, json: &[u8]) -> Result<Tokenizer> {
    super::BytePairTokenizer::from_json(json)
        .map(|byte_pair| Tokenizer::BytePair(Box::new(byte_pair)))
        .map_err(|problem| Error::invalid_file(path, problem))
}

#[cfg(not(feature = "tokenizers"))]
fn hugging_face(path: &Path, _json: &[u8]) -> Result<Tokenizer> {
    Err(Error::MissingFeature { what: format!("{}: a Hugging Face tokenizer", path.display()), feature: "tokenizers" })
}

//! The manifest of a checkpoint: everything but the tensors, as JSON.
//!
//! The last member is the checksum of the bytes before it, so that any change of the file is found. A manifest is
//! therefore not edited by hand; settings are changed where the run is resumed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::checksum::Checksum;
use super::difference::Machine;
use super::tensors::TensorChecksums;
use crate::data::{BatchOrder, SequenceSource};
use crate::{Error, Result};

/// The version of the format that this crate writes, and the only one it reads.
pub const FORMAT_VERSION: u32 = 1;

/// A longer manifest is not read.
const LONGEST: u64 = 64 << 20;

/// Between the content and its checksum.
const SEAL: &str = ",\n  \"checksum\": \"";

/// What a checkpoint says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// What was trained, such as `transformer`.
    pub kind: String,
    /// What the run's arithmetic depends on beside its settings.
    pub machine: Machine,
    /// Updates made.
    pub step: u64,
    /// The number of updates over which the learning rate's schedule runs.
    pub schedule_steps: u64,
    /// What the schedule's learning rate is multiplied by: below 1 after a roll-back.
    pub learning_rate_factor: f64,
    /// Seed of all random streams, which are functions of it and the step.
    pub seed: u64,
    /// What is known of the training data, if the trainer drew its batches itself: a [`DataRecord`], for instance.
    pub data: Option<Map<String, Value>>,
    /// Configurations by name, such as `model` and `training`.
    pub settings: Map<String, Value>,
    /// What else the trainer goes on from, by name, such as the places in the text that its workers have reached.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub state: Map<String, Value>,
    /// The sum of each file that holds no tensors, by name. Filled when the checkpoint is written.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, Checksum>,
    /// The sum of each tensor, by file and name. Filled when the checkpoint is written.
    pub tensors: BTreeMap<String, TensorChecksums>,
}

impl Manifest {
    /// That of a checkpoint at `step` of a trainer without a schedule, whose data and settings are to be filled in.
    pub(crate) fn new(kind: &str, step: u64, workers: usize, seed: u64) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            kind: kind.into(),
            machine: Machine::current(workers),
            step,
            schedule_steps: u64::MAX,
            learning_rate_factor: 1.0,
            seed,
            data: None,
            settings: Map::new(),
            state: Map::new(),
            files: BTreeMap::new(),
            tensors: BTreeMap::new(),
        }
    }

    /// The configuration `name`; `path` is the manifest's, for errors.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] if it is missing or not of this type.
    pub fn setting<T: DeserializeOwned>(&self, path: &Path, name: &str) -> Result<T> {
        member(&self.settings, path, "setting", name)
    }

    /// The part `name` of the state; `path` is the manifest's, for errors.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] if it is missing or not of this type.
    pub fn state<T: DeserializeOwned>(&self, path: &Path, name: &str) -> Result<T> {
        member(&self.state, path, "state", name)
    }

    /// The file's content.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let json = serde_json::to_string_pretty(self).expect("a manifest has only string keys");
        let mut content = json.strip_suffix("\n}").expect("a manifest is an object").to_owned();
        let checksum = Checksum::of(content.as_bytes());
        content.push_str(SEAL);
        content.push_str(&format!("{checksum}\"\n}}\n"));
        content.into_bytes()
    }

    /// Reads the file's content, or says what is wrong with it.
    pub(crate) fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|error| format!("not a manifest: {error}"))?;
        let (content, seal) = text.rsplit_once(SEAL).ok_or("not a manifest: it does not end with a checksum")?;
        let found = Checksum::of(content.as_bytes());
        if seal != format!("{found}\"\n}}\n") {
            return Err(format!("the content has the checksum {found}, but {:?} is recorded", seal.trim_end()));
        }
        let json = format!("{content}\n}}");
        let invalid = |error: serde_json::Error| error.to_string();
        let Version { format_version } = serde_json::from_str(&json).map_err(invalid)?;
        if format_version != FORMAT_VERSION {
            return Err(format!("format version {format_version} is not {FORMAT_VERSION}"));
        }
        let manifest: Self = serde_json::from_str(&json).map_err(invalid)?;
        if manifest.step > u64::MAX / 2 {
            return Err(format!("a step of {}, which is too many to go on from", manifest.step));
        }
        let factor = manifest.learning_rate_factor;
        if !(factor > 0.0 && factor <= 1.0) {
            return Err(format!("a learning rate factor of {factor}"));
        }
        Ok(manifest)
    }

    pub(crate) fn read(path: &Path) -> Result<Self> {
        let metadata = fs::metadata(path).map_err(Error::io(path))?;
        if !metadata.is_file() || metadata.len() > LONGEST {
            return Err(Error::invalid_file(path, format!("not a file of at most {LONGEST} bytes")));
        }
        let bytes = fs::read(path).map_err(Error::io(path))?;
        Self::parse(&bytes).map_err(|problem| Error::invalid_file(path, problem))
    }
}

fn member<T: DeserializeOwned>(values: &Map<String, Value>, path: &Path, what: &str, name: &str) -> Result<T> {
    let value = values.get(name).ok_or_else(|| Error::invalid_file(path, format!("no {what} `{name}`")))?;
    T::deserialize(value).map_err(|error| Error::invalid_file(path, format!("{what} `{name}`: {error}")))
}

/// `record` as a member of a manifest.
///
/// # Panics
/// If it is no struct or map with string keys.
pub(crate) fn to_map(record: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(record) {
        Ok(Value::Object(map)) => map,
        other => panic!("not a record: {other:?}"),
    }
}

/// What is read before anything else, since the rest depends on it.
#[derive(Deserialize)]
struct Version {
    format_version: u32,
}

/// The tokens that a run trains on, and how they are drawn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataRecord {
    /// Number of tokens.
    pub tokens: u64,
    /// Size of their vocabulary.
    pub vocabulary_size: u64,
    /// Sum over all tokens.
    pub fingerprint: Checksum,
    /// The order of the sequences.
    pub order: BatchOrder,
    /// Sequences in a batch.
    pub sequences: u64,
    /// Tokens in a sequence.
    pub sequence_length: u64,
    /// Seed of the order.
    pub seed: u64,
}

impl DataRecord {
    /// The record of `source`. Reads all its tokens once.
    ///
    /// # Errors
    /// Those of [`TokenStore::copy_to`](crate::data::TokenStore::copy_to).
    pub fn of(source: &SequenceSource) -> Result<Self> {
        Ok(Self {
            tokens: source.tokens().len() as u64,
            vocabulary_size: source.tokens().vocabulary_size() as u64,
            fingerprint: source.tokens().fingerprint()?,
            order: source.order(),
            sequences: source.sequences() as u64,
            sequence_length: source.sequence_length() as u64,
            seed: source.seed(),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn manifest() -> Manifest {
        let rate = 0.1 + 0.2;
        let mut settings = Map::new();
        settings.insert("training".into(), serde_json::json!({ "learning_rate": rate, "seed": u64::MAX }));
        Manifest { learning_rate_factor: 1.0 / 3.0, settings, ..Manifest::new("test", 7, 2, u64::MAX) }
    }

    #[test]
    fn a_manifest_comes_back_bit_by_bit() {
        let manifest = manifest();
        let bytes = manifest.to_bytes();
        assert!(serde_json::from_slice::<Value>(&bytes).unwrap()["checksum"].is_string());
        assert_eq!(Manifest::parse(&bytes).unwrap(), manifest);
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_found() {
        let mut bytes = manifest().to_bytes();
        for length in 0..bytes.len() {
            assert!(Manifest::parse(&bytes[..length]).is_err(), "cut to {length}");
        }
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Manifest::parse(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn another_version_is_named_before_anything_else_is_read() {
        let json = "{\n  \"format_version\": 2,\n  \"new\": true";
        let sealed = format!("{json}{SEAL}{}\"\n}}\n", Checksum::of(json.as_bytes()));
        assert_eq!(Manifest::parse(sealed.as_bytes()).unwrap_err(), "format version 2 is not 1");
    }

    #[test]
    fn numbers_that_no_run_goes_on_from_are_refused() {
        let most = Manifest { step: u64::MAX / 2, learning_rate_factor: f64::MIN_POSITIVE, ..manifest() };
        assert_eq!(Manifest::parse(&most.to_bytes()).unwrap(), most);
        for step in [u64::MAX / 2 + 1, u64::MAX] {
            let refused = Manifest::parse(&Manifest { step, ..manifest() }.to_bytes()).unwrap_err();
            assert_eq!(refused, format!("a step of {step}, which is too many to go on from"));
        }
        for learning_rate_factor in [0.0, -1.0, 1.0 + f64::EPSILON, f64::MAX] {
            let refused = Manifest::parse(&Manifest { learning_rate_factor, ..manifest() }.to_bytes()).unwrap_err();
            assert_eq!(refused, format!("a learning rate factor of {learning_rate_factor}"));
        }
        // JSON has no such numbers.
        for learning_rate_factor in [f64::NAN, f64::INFINITY] {
            assert!(Manifest::parse(&Manifest { learning_rate_factor, ..manifest() }.to_bytes()).is_err());
        }
    }

    #[test]
    fn settings_of_another_type_are_refused() {
        let manifest = manifest();
        let path = Path::new("manifest.json");
        assert!(manifest.setting::<Value>(path, "training").is_ok());
        for name in ["training", "model"] {
            assert!(matches!(manifest.setting::<String>(path, name), Err(Error::InvalidFile { .. })), "{name}");
        }
    }
}

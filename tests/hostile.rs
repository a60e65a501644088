//! Damaged and lying files: every reader answers with a typed error, does not panic, does not ask for more memory than
//! the file and a stated bound, and leaves nothing half-loaded.

#[path = "support/counting.rs"]
mod counting;
mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use cllm::checkpoint::Checkpoint;
use cllm::data::{TokenStore, TokenWriter, Tokenizer};
use cllm::train::ResumeOptions;
use cllm::{Error, Trainer, Transformer};
use counting::peak_of;
use support::{VOCABULARY, model_config, run_to, source, source_of, tokens, trainer, training_config};

/// What a reader may take beside the size of its file.
const SMALL: usize = 1 << 20;
/// The character tokenizer's table of code points, once and while it grows.
const CHARACTERS: usize = 16 << 20;

/// The `tokenizers` crate panics on some files, and its caller makes an error of that. What the default hook would
/// print, and take memory for, is left out.
fn silence_tokenizers() {
    static SILENCED: std::sync::Once = std::sync::Once::new();
    SILENCED.call_once(|| {
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !panic.location().is_some_and(|location| location.file().contains("/tokenizers-")) {
                default(panic);
            }
        }));
    });
}

/// A file to be damaged, and a reader of it.
struct Subject<'a> {
    path: PathBuf,
    good: Vec<u8>,
    bound: usize,
    read: &'a dyn Fn() -> Result<(), Error>,
}

impl<'a> Subject<'a> {
    fn new(path: PathBuf, bound: usize, read: &'a dyn Fn() -> Result<(), Error>) -> Self {
        read().unwrap();
        Self { good: fs::read(&path).unwrap(), path, bound, read }
    }

    /// Reads `bytes` in place of the file; the error must be one that says what is wrong with it.
    fn read(&self, bytes: &[u8], case: &str) -> Result<(), Error> {
        put(&self.path, bytes);
        let (result, peak) = peak_of(self.read);
        let bound = 2 * bytes.len().max(self.good.len()) + self.bound;
        assert!(peak <= bound, "{case}: {peak} bytes were taken, {bound} are allowed");
        if let Err(error) = &result {
            let typed = matches!(
                error,
                Error::InvalidFile { .. }
                    | Error::EmptyFile { .. }
                    | Error::MissingTensor { .. }
                    | Error::Shape { .. }
                    | Error::Checksum { .. }
                    | Error::TokenOutOfRange { .. }
                    | Error::MissingFeature { .. }
            );
            assert!(typed, "{case}: {error:?}");
        }
        result
    }

    fn refuses(&self, bytes: &[u8], case: &str) {
        assert!(self.read(bytes, case).is_err(), "{case} was accepted");
    }

    /// Every cut must be an error.
    fn cuts(&self) {
        for length in 0..self.good.len() {
            self.refuses(&self.good[..length], &format!("cut to {length} of {}", self.good.len()));
        }
        self.mend();
    }

    /// Every bit, flipped, must be an error where `sealed` says so, and must do no harm elsewhere.
    fn flips(&self, sealed: impl Fn(usize) -> bool) {
        let mut bytes = self.good.clone();
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let result = self.read(&bytes, &format!("bit {} of byte {}", bit % 8, bit / 8));
            assert!(result.is_err() || !sealed(bit / 8), "bit {} of byte {} was accepted", bit % 8, bit / 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        self.mend();
    }

    fn mend(&self) {
        put(&self.path, &self.good);
        (self.read)().unwrap();
    }
}

/// Overwrites a file in place, which some file systems do much faster than they replace it.
fn put(path: &Path, bytes: &[u8]) {
    let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
}

/// A model file of the tests' model, in a folder of its own.
fn model_file() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    Transformer::new(model_config(), 1).unwrap().save_parameters(&path).unwrap();
    (folder, path)
}

fn load_model(path: &Path) -> Result<(), Error> {
    Transformer::load_parameters(model_config(), path).map(|_| ())
}

fn header_length(bytes: &[u8]) -> usize {
    8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

#[test]
fn a_damaged_model_file_is_refused() {
    let (_folder, path) = model_file();
    let read = || load_model(&path);
    let subject = Subject::new(path.clone(), SMALL, &read);
    subject.cuts();
    // Weights have no checksum in this file: a flipped bit there is another weight.
    let header = header_length(&subject.good);
    subject.flips(|byte| byte < header);
    let longer = [&subject.good[..], &[0]].concat();
    subject.refuses(&longer, "a byte too many");
}

#[test]
fn lies_of_a_model_file_are_refused_before_memory_is_taken() {
    let (_folder, path) = model_file();
    let read = || load_model(&path);
    let subject = Subject::new(path.clone(), SMALL, &read);
    let header = header_length(&subject.good);
    let (json, data) = (String::from_utf8(subject.good[8..header].to_vec()).unwrap(), &subject.good[header..]);
    for length in [0, 1, 7, header as u64 - 9, header as u64, 1 << 31, 1 << 40, 1 << 63, u64::MAX - 7, u64::MAX] {
        let bytes = [&length.to_le_bytes(), &subject.good[8..]].concat();
        subject.refuses(&bytes, &format!("a header of {length} bytes"));
    }
    let name = "\"wte.weight\":";
    for (old, new) in [
        ("[11,8]", "[18446744073709551615,8]"),
        ("[11,8]", "[4294967296,4294967296]"),
        ("[11,8]", "[8,11]"),
        ("[11,8]", "[88]"),
        ("[11,8]", "[11,8,1]"),
        ("[11,8]", "[11.0,8]"),
        ("[11,8]", "[-11,-8]"),
        ("[0,352]", "[0,18446744073709551615]"),
        ("[0,352]", "[18446744073709551264,0]"),
        ("[0,352]", "[352,0]"),
        ("[0,352]", "[352,704]"),
        ("[0,352]", "[0,351]"),
        ("\"F32\"", "\"F64\""),
        ("\"F32\"", "\"F4\""),
        (name, "\"wte.wight\":"),
        (name, "\"\":"),
        (name, "\"__metadata__\":"),
        ("{\"wte", "{\"extra\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},\"wte"),
    ] {
        let lie = json.replacen(old, new, 1);
        assert_ne!(lie, json, "{old}");
        subject.refuses(&file(&lie, data), &format!("{old} → {new}"));
    }
    let entry = &json[json.find(name).unwrap()..=json.find('}').unwrap()];
    subject.refuses(&file(&json.replacen('{', &format!("{{{entry},"), 1), data), "a tensor that stands twice");
    subject.refuses(&file(&"[".repeat(100_000), data), "nesting");
    subject.refuses(&file(&format!("{}{json}", " ".repeat(4 << 20)), data), "a header of spaces");
    let metadata = format!("{{\"__metadata__\":{{{}}},", "\"k\":\"v\",".repeat(100_000));
    subject.refuses(&file(&json.replacen('{', &metadata, 1), data), "much metadata");

    // Metadata that other libraries write, and another order, are no lies.
    let other = json.replacen('{', "{\"__metadata__\":{\"format\":\"pt\"},", 1);
    subject.read(&file(&other, data), "metadata").unwrap();
}

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

#[test]
fn what_is_no_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(load_model(folder.path()), Err(Error::InvalidFile { .. })));
    assert!(matches!(load_model(&folder.path().join("absent")), Err(Error::Io { .. })));
    assert!(matches!(TokenStore::open(folder.path()), Err(Error::InvalidFile { .. } | Error::Io { .. })));
    assert!(matches!(Tokenizer::load(folder.path()), Err(Error::Io { .. })));
    #[cfg(unix)]
    {
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        assert!(matches!(load_model(&pipe), Err(Error::InvalidFile { .. })));
    }
}

/// A run folder with one checkpoint; its own path and the checkpoint's.
fn run_folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let config = training_config();
    let mut trainer = trainer(&config);
    run_to(&mut trainer, &source(&config), 2).unwrap();
    let checkpoint = trainer.save(folder.path()).unwrap();
    (folder, checkpoint)
}

/// Reads all of a checkpoint, as a resume does but for the worker threads.
fn read_checkpoint(run: &Path) -> Result<(), Error> {
    let checkpoint = Checkpoint::open(run)?;
    let model = Transformer::new(model_config(), 1)?;
    for name in ["model", "first_moments", "second_moments"] {
        checkpoint.load(name, model.layout())?;
    }
    Ok(())
}

#[test]
fn a_damaged_checkpoint_is_refused_whole() {
    let (run, checkpoint) = run_folder();
    let read = || read_checkpoint(run.path());
    for name in ["manifest.json", "model.safetensors", "second_moments.safetensors", "../latest"] {
        let subject = Subject::new(checkpoint.join(name), SMALL, &read);
        subject.cuts();
        subject.flips(|_| true);
    }
}

/// A damaged checkpoint gives no trainer at all.
#[test]
fn nothing_is_half_resumed() {
    let (run, checkpoint) = run_folder();
    let path = checkpoint.join("second_moments.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = Trainer::resume(run.path(), &ResumeOptions::default()).unwrap_err();
    assert!(matches!(&error, Error::Checksum { tensor, expected: Some(_), .. } if tensor == "ln_f.bias"), "{error}");
    fs::remove_file(&path).unwrap();
    assert!(matches!(Trainer::resume(run.path(), &ResumeOptions::default()), Err(Error::Io { .. })));
}

/// Pointers to elsewhere are not followed.
#[test]
fn a_pointer_names_a_checkpoint_or_is_refused() {
    let (run, checkpoint) = run_folder();
    let pointer = checkpoint.with_file_name("latest");
    for text in ["", "\n", "../..\n", "/etc\n", "step-00000002", "step-2\n", "step-00000003\n", "step-00000002\n\n"] {
        fs::write(&pointer, text).unwrap();
        let error = Checkpoint::open(run.path()).unwrap_err();
        assert!(matches!(error, Error::InvalidFile { .. }), "{text:?}: {error}");
    }
    fs::write(&pointer, [b's', 0xff, b'\n']).unwrap();
    assert!(matches!(Checkpoint::open(run.path()), Err(Error::Io { .. } | Error::InvalidFile { .. })));
    // A run that was killed before its first pointer was written.
    fs::remove_file(&pointer).unwrap();
    assert_eq!(Checkpoint::open(run.path()).unwrap().folder(), checkpoint);
}

#[test]
fn a_damaged_token_file_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens");
    for (vocabulary, tokens) in [(11, vec![3, 1, 4, 1, 5, 9, 2, 6]), (70_000, vec![69_999, 0, 1])] {
        let mut writer = TokenWriter::create(&path, vocabulary).unwrap();
        writer.write(&tokens).unwrap();
        writer.finish().unwrap();
        let read = || TokenStore::open(&path).map(|_| ());
        let subject = Subject::new(path.clone(), SMALL, &read);
        subject.cuts();
        // Of the header only the size of the vocabulary can be another one: larger, of the same width. A token is
        // another one or none of the vocabulary.
        subject.flips(|byte| byte < 16 || (24..32).contains(&byte));
    }
}

/// A corpus that another program cuts, overwrites or replaces while it is trained on.
#[test]
fn a_token_file_that_changes_during_a_run_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens");
    let write = || {
        let mut writer = TokenWriter::create(&path, VOCABULARY).unwrap();
        let mut ids = vec![0; tokens().len()];
        tokens().copy_to(0, &mut ids).unwrap();
        writer.write(&ids).unwrap();
        writer.finish().unwrap()
    };
    let config = training_config();
    let run = |spoil: &dyn Fn()| {
        let source = source_of(write(), &config);
        let mut trainer = trainer(&config);
        run_to(&mut trainer, &source, 4).unwrap();
        let good = trainer.save(folder.path().join("run")).unwrap();
        spoil();
        let result = run_to(&mut trainer, &source, u64::MAX).map(|_| ());
        if result.is_err() {
            assert_eq!(Checkpoint::open(folder.path().join("run")).unwrap().folder(), good);
            assert!(trainer.steps() >= 4);
        }
        result
    };
    let cut = |bytes| move |path: &Path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(bytes).unwrap();
    for bytes in [0, 10, 32, 60] {
        let error = run(&|| cut(bytes)(&path)).unwrap_err();
        assert!(matches!(&error, Error::InvalidFile { path: cut, .. } if *cut == path), "{error}");
    }
    let error = run(&|| put(&path, &[0xff; 332])).unwrap_err();
    assert!(matches!(error, Error::TokenOutOfRange { id: 65_535, .. }), "{error}");
    // What is replaced or removed stays as it was.
    run(&|| drop(write())).unwrap();
    run(&|| fs::remove_file(&path).unwrap()).unwrap();
}

#[test]
fn a_damaged_tokenizer_does_no_harm() {
    silence_tokenizers();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let built_in = [Tokenizer::byte(), Tokenizer::train_characters("lowest new: äöü€🦀").unwrap()];
    #[cfg(feature = "tokenizers")]
    let trained = [Tokenizer::train_byte_pair(&["low lower lowest newer newest wider"], 270).unwrap()];
    #[cfg(not(feature = "tokenizers"))]
    let trained = [];
    for tokenizer in built_in.into_iter().chain(trained) {
        tokenizer.save(folder.path()).unwrap();
        let read = || {
            let tokenizer = Tokenizer::load(&path)?;
            let mut tokens = Vec::new();
            // Unknown characters are no damage.
            let _ = tokenizer.encode("lowest newer", &mut tokens);
            assert!(tokenizer.decode(&tokens).len() <= 10_000);
            Ok(())
        };
        let subject = Subject::new(path.clone(), CHARACTERS, &read);
        let end = subject.good.trim_ascii_end().len();
        for length in 0..end {
            subject.refuses(&subject.good[..length], &format!("cut to {length}"));
        }
        subject.flips(|_| false);
    }
}

//! A checkpoint that is read.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::checksum::Checksum;
use super::manifest::Manifest;
use super::run_folder::{CHECKPOINTS, LATEST, MANIFEST, Name, file_name, names};
use super::tensors;
use crate::params::{ParameterLayout, ParameterStore};
use crate::{Error, Result};

/// A checkpoint on the disk whose manifest was read and found whole.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    manifest: Manifest,
}

impl Checkpoint {
    /// Opens a checkpoint: the one that `latest` names if `path` is a run folder, else the one at `path` itself.
    ///
    /// A run that was killed between its first checkpoint and the first `latest` has the one without the other; the
    /// checkpoint of the highest step is taken then.
    ///
    /// # Errors
    /// [`Error::NoCheckpoint`] if there is none; [`Error::InvalidFile`] if `latest` or the manifest is damaged, or
    /// `latest` names a checkpoint that is not there (earlier ones can be opened by their own path); [`Error::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let folder = if path.join(MANIFEST).is_file() { path.to_path_buf() } else { latest(path)? };
        let manifest = Manifest::read(&folder.join(MANIFEST))?;
        Ok(Self { folder, manifest })
    }

    /// As [`open`](Self::open), of a checkpoint that the trainer of `kind` wrote.
    pub(crate) fn open_kind(path: impl AsRef<Path>, kind: &str) -> Result<Self> {
        let checkpoint = Self::open(path)?;
        let found = &checkpoint.manifest.kind;
        if found != kind {
            let problem = format!("a checkpoint of the kind {found}, not of {kind}");
            return Err(Error::invalid_file(checkpoint.manifest_path(), problem));
        }
        Ok(checkpoint)
    }

    /// The checkpoint's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What it says of itself.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest's file, for errors.
    #[must_use]
    pub fn manifest_path(&self) -> PathBuf {
        self.folder.join(MANIFEST)
    }

    /// The values of `name`, which must be exactly the tensors of `layout` with the recorded checksums.
    ///
    /// # Errors
    /// [`Error::Checksum`] for a tensor that changed; [`Error::InvalidFile`], [`Error::MissingTensor`] or
    /// [`Error::Shape`] for a file that does not fit; [`Error::Io`].
    pub fn load(&self, name: &str, layout: &ParameterLayout) -> Result<ParameterStore> {
        let file = file_name(name);
        let path = self.folder.join(&file);
        let recorded = self
            .manifest
            .tensors
            .get(&file)
            .ok_or_else(|| Error::invalid_file(self.manifest_path(), format!("no checksums of {file}")))?;
        let (store, found) = tensors::load(&path, layout)?;
        for (tensor, &found) in &found {
            let expected = recorded.get(tensor).copied();
            if expected != Some(found) {
                return Err(Error::Checksum { path, tensor: tensor.clone(), expected, found });
            }
        }
        Ok(store)
    }

    /// The content of the file `name`, which holds no tensors and must have the recorded checksum.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] if the manifest does not know it or it changed; [`Error::Io`].
    pub fn file(&self, name: &str) -> Result<Vec<u8>> {
        let recorded = self.manifest.files.get(name).copied();
        let expected =
            recorded.ok_or_else(|| Error::invalid_file(self.manifest_path(), format!("no checksum of {name}")))?;
        let path = self.folder.join(name);
        if !fs::metadata(&path).map_err(Error::io(&path))?.is_file() {
            return Err(Error::invalid_file(&path, "not a file"));
        }
        let content = fs::read(&path).map_err(Error::io(&path))?;
        let found = Checksum::of(&content);
        if found != expected {
            return Err(Error::invalid_file(&path, format!("the checksum is {found}, but {expected} was saved")));
        }
        Ok(content)
    }
}

fn latest(run: &Path) -> Result<PathBuf> {
    let checkpoints = run.join(CHECKPOINTS);
    let none = || Error::NoCheckpoint { path: run.to_path_buf() };
    if !checkpoints.is_dir() {
        run.metadata().map_err(Error::io(run))?;
        return Err(none());
    }
    let pointer = checkpoints.join(LATEST);
    let mut text = Vec::new();
    let name = match File::open(&pointer).and_then(|file| file.take(64).read_to_end(&mut text)) {
        Ok(_) => {
            let text = String::from_utf8_lossy(&text);
            let name = text.strip_suffix('\n').and_then(Name::parse);
            name.ok_or_else(|| Error::invalid_file(&pointer, format!("{text:?} is not the name of a checkpoint")))?
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            names(&checkpoints)?.into_iter().max().ok_or_else(none)?
        }
        Err(error) => return Err(Error::io(&pointer)(error)),
    };
    let folder = checkpoints.join(name.to_string());
    if !folder.is_dir() {
        return Err(Error::invalid_file(&pointer, format!("it names {name}, which is not there")));
    }
    Ok(folder)
}

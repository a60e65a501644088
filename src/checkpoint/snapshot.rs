//! A trainer's state, copied so that it can be written beside training, and gone back to.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use rayon::prelude::*;

use super::manifest::Manifest;
use super::run_folder::{NamedFile, NamedStore, RunFolder};
use crate::params::{ParameterLayout, ParameterStore};
use crate::{Error, Result};

/// Floats that one worker copies at a time.
const CHUNK: usize = 1 << 16;

/// A copy of named stores, all of one layout, and the files and the manifest that go with them.
#[derive(Debug)]
pub struct Snapshot {
    manifest: Manifest,
    layout: ParameterLayout,
    stores: Vec<(&'static str, ParameterStore)>,
    files: Vec<NamedFile>,
}

impl Snapshot {
    /// A copy of `stores`.
    #[must_use]
    pub fn new(manifest: Manifest, layout: &ParameterLayout, stores: &[NamedStore<'_>], files: &[NamedFile]) -> Self {
        let zeros = stores.iter().map(|&(name, _)| (name, ParameterStore::zeros(layout))).collect();
        let mut snapshot =
            Self { manifest: manifest.clone(), layout: layout.clone(), stores: zeros, files: Vec::new() };
        snapshot.update(manifest, stores, files);
        snapshot
    }

    /// Copies `stores`, which must be those of the former copy, into the memory of the former copy.
    pub fn update(&mut self, manifest: Manifest, stores: &[NamedStore<'_>], files: &[NamedFile]) {
        assert_eq!(self.stores.len(), stores.len(), "stores of a snapshot");
        for ((_, copy), (_, store)) in self.stores.iter_mut().zip(stores) {
            let values = store.values().par_chunks(CHUNK);
            copy.values_mut().par_chunks_mut(CHUNK).zip(values).for_each(|(copy, values)| copy.copy_from_slice(values));
        }
        self.files.clear();
        self.files.extend_from_slice(files);
        self.manifest = manifest;
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The copy of the store `name`.
    #[must_use]
    pub fn store(&self, name: &str) -> Option<&ParameterStore> {
        self.stores.iter().find(|(stored, _)| *stored == name).map(|(_, store)| store)
    }

    /// The values of the store `name`.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    #[track_caller]
    pub fn values(&self, name: &str) -> &[f32] {
        self.store(name).unwrap_or_else(|| panic!("a snapshot without {name}")).values()
    }

    /// The content of the file `name`.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<&[u8]> {
        self.files.iter().find(|(stored, _)| *stored == name).map(|(_, content)| &**content)
    }

    /// Writes the copy as [`RunFolder::write`] does.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, folder: &RunFolder, keep: Option<usize>) -> Result<PathBuf> {
        let stores: Vec<_> = self.stores.iter().map(|(name, store)| (*name, store)).collect();
        folder.write(self.manifest.clone(), &self.layout, &stores, &self.files, keep)
    }
}

/// Fails at the first value that is not finite, so that it is never saved over a good one.
///
/// # Errors
/// [`Error::NonFinite`] with the step, the store and the parameter.
pub fn check_finite(step: u64, layout: &ParameterLayout, stores: &[NamedStore<'_>]) -> Result<()> {
    for (name, store) in stores {
        let finite = |values: &[f32]| values.iter().fold(true, |finite, value| finite & value.is_finite());
        if store.values().par_chunks(CHUNK).all(finite) {
            continue;
        }
        for spec in layout.specs() {
            if let Some(&value) = store.slice(spec.id).iter().find(|value| !value.is_finite()) {
                let what = format!("a value of {} in {name}", spec.name);
                return Err(Error::NonFinite { step, what, value: value.into() });
            }
        }
    }
    Ok(())
}

/// Writes snapshots to a run folder on a thread of its own, one at a time.
#[derive(Debug)]
pub struct Saver {
    folder: Arc<RunFolder>,
    in_flight: Option<JoinHandle<Result<PathBuf>>>,
}

impl Saver {
    /// A saver to `folder`.
    #[must_use]
    pub fn new(folder: RunFolder) -> Self {
        Self { folder: Arc::new(folder), in_flight: None }
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &RunFolder {
        &self.folder
    }

    /// Starts to write `snapshot`, after waiting for the save before.
    ///
    /// # Errors
    /// The error of the save before, and then this one is not started; [`Error::Io`] if there can be no thread.
    pub fn start(&mut self, snapshot: Arc<Snapshot>, keep: Option<usize>) -> Result<()> {
        self.wait()?;
        let folder = Arc::clone(&self.folder);
        let thread = std::thread::Builder::new().name("cllm checkpoint".into());
        let spawned = thread.spawn(move || snapshot.write(&folder, keep));
        self.in_flight = Some(spawned.map_err(Error::io(self.folder.path()))?);
        Ok(())
    }

    /// Whether a save is being written.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.in_flight.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Waits for the save in flight; its folder, or none if there was no save.
    ///
    /// # Errors
    /// Those of [`RunFolder::write`], once.
    pub fn wait(&mut self) -> Result<Option<PathBuf>> {
        match self.in_flight.take().map(JoinHandle::join) {
            None => Ok(None),
            Some(Ok(saved)) => saved.map(Some),
            Some(Err(panic)) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        if let Some(Ok(Err(error))) = self.in_flight.take().map(JoinHandle::join) {
            tracing::error!(%error, "the last checkpoint was not written");
        }
    }
}

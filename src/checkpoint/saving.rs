//! What every trainer needs to save itself: beside training or at once, one save in flight at a time.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Manifest, NamedFile, NamedStore, RunFolder, Saver, Snapshot, check_finite};
use crate::Result;
use crate::params::ParameterLayout;

/// Names of stores that most trainers have.
pub(crate) const MODEL: &str = "model";
pub(crate) const FIRST_MOMENTS: &str = "first_moments";
pub(crate) const SECOND_MOMENTS: &str = "second_moments";

/// What goes into a checkpoint of a trainer.
pub(crate) struct State<'a> {
    pub manifest: Manifest,
    pub layout: &'a ParameterLayout,
    pub stores: Vec<NamedStore<'a>>,
    pub files: Vec<NamedFile>,
    /// Checkpoints that are kept; all without.
    pub keep: Option<usize>,
}

/// The run folder of a trainer, and what of it was saved last.
#[derive(Debug, Default)]
pub(crate) struct Saving {
    saver: Option<Saver>,
    /// The last copy of the state: what is being saved, and what a roll-back returns to.
    snapshot: Option<Arc<Snapshot>>,
    /// The step of the last save that was started or made.
    started: Option<u64>,
    /// The checkpoint of that step, once it is known to be whole.
    saved: Option<PathBuf>,
}

impl Saving {
    /// Whether there is a run folder.
    pub fn is_on(&self) -> bool {
        self.saver.is_some()
    }

    /// Makes `folder` the run folder, and holds its lock.
    pub fn save_to(&mut self, folder: &Path) -> Result<()> {
        if let Some(saver) = &self.saver
            && saver.folder().path() == folder
        {
            return Ok(());
        }
        self.finish()?;
        // Released first: it may be the same folder under another path.
        self.saver = None;
        self.saver = Some(Saver::new(RunFolder::open(folder)?));
        self.forget();
        Ok(())
    }

    /// Writes `state`, which must be finite, unless it is there already; returns where.
    pub fn save_now(&mut self, state: &State<'_>) -> Result<PathBuf> {
        self.finish()?;
        let step = state.manifest.step;
        if let (Some(started), Some(saved)) = (self.started, &self.saved)
            && started == step
        {
            return Ok(saved.clone());
        }
        check_finite(step, state.layout, &state.stores)?;
        let saver = self.saver.as_ref().expect("`save_to` was called");
        let State { manifest, layout, stores, files, keep } = state;
        let saved = saver.folder().write(manifest.clone(), layout, stores, files, *keep)?;
        (self.started, self.saved) = (Some(step), Some(saved.clone()));
        Ok(saved)
    }

    /// Copies `state`, which must be finite, and starts to write the copy if there is a run folder.
    pub fn save_beside_training(&mut self, state: State<'_>) -> Result<()> {
        let (step, keep) = (state.manifest.step, state.keep);
        let snapshot = self.take_snapshot(state)?;
        if let Some(saver) = &mut self.saver {
            saver.start(snapshot, keep)?;
            (self.started, self.saved) = (Some(step), None);
        }
        Ok(())
    }

    /// Copies `state`, which must be finite, into the memory of the former copy.
    pub fn take_snapshot(&mut self, state: State<'_>) -> Result<Arc<Snapshot>> {
        self.finish()?;
        let State { manifest, layout, stores, files, .. } = state;
        check_finite(manifest.step, layout, &stores)?;
        let snapshot = match self.snapshot.take().map(Arc::try_unwrap) {
            Some(Ok(mut snapshot)) => {
                snapshot.update(manifest, &stores, &files);
                snapshot
            }
            _ => Snapshot::new(manifest, layout, &stores, &files),
        };
        let snapshot = Arc::new(snapshot);
        self.snapshot = Some(Arc::clone(&snapshot));
        Ok(snapshot)
    }

    /// The last copy.
    pub fn snapshot(&self) -> Option<&Arc<Snapshot>> {
        self.snapshot.as_ref()
    }

    /// The state is no longer that of the last save, though its step may be.
    pub fn forget(&mut self) {
        (self.started, self.saved) = (None, None);
    }

    /// Waits for the save in flight; its error is returned once.
    pub fn finish(&mut self) -> Result<()> {
        let Some(saver) = &mut self.saver else { return Ok(()) };
        match saver.wait() {
            Ok(None) => {}
            Ok(saved) => self.saved = saved,
            Err(error) => {
                self.started = None;
                return Err(error);
            }
        }
        Ok(())
    }
}

//! Saving the state of a model and its training, and going on from it.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::SimilarityModel;
use crate::Result;
use crate::checkpoint::difference::{self, refuse};
use crate::checkpoint::saving::{FIRST_MOMENTS, MODEL, SECOND_MOMENTS, State};
use crate::checkpoint::{Accept, Checkpoint, Difference, Manifest, NamedStore, to_map};
use crate::config::SimilarityConfig;

/// The kind of checkpoint that is written.
const KIND: &str = "similarity";

impl SimilarityModel {
    /// Writes a checkpoint to the run folder `folder`, which is made if need be, and returns its path; the last
    /// [`keep_checkpoints`](SimilarityConfig::keep_checkpoints) are kept. It holds the parameters, both moments and the
    /// number of updates, but not the batch in the caches. Nothing is written if the last checkpoint there, of this model,
    /// is of this very step. The folder is locked until the model is dropped or saved elsewhere.
    ///
    /// # Errors
    /// [`Error::NonFinite`](crate::Error::NonFinite) if a parameter or a moment is not finite: nothing is written then.
    /// [`Error::Locked`](crate::Error::Locked), [`Error::Io`](crate::Error::Io): the former checkpoint is then untouched,
    /// and training can go on.
    pub fn save(&mut self, folder: impl AsRef<Path>) -> Result<PathBuf> {
        self.saving.save_to(folder.as_ref())?;
        self.in_workers(|model| {
            let Self { config, layout, parameters, optimizer, steps, saving, .. } = model;
            let manifest = Manifest {
                settings: to_map(&json!({ "training": config })),
                ..Manifest::new(KIND, *steps, config.workers, config.seed)
            };
            let mut stores: Vec<NamedStore<'_>> = vec![(MODEL, parameters), (FIRST_MOMENTS, &optimizer.first)];
            stores.extend(optimizer.second.as_ref().map(|second| (SECOND_MOMENTS, second)));
            saving.save_now(&State { manifest, layout, stores, files: Vec::new(), keep: config.keep_checkpoints })
        })
    }

    /// Takes up the training in `folder` where its last checkpoint left it, or at the checkpoint that `folder` is; with
    /// the settings `config`, or else those of the checkpoint. The caller goes on with the batch that follows
    /// [`steps`](Self::steps).
    ///
    /// Given the same batches, the model goes on as the one that wrote the checkpoint would have: bit by bit, if nothing
    /// differs. All differences found are returned; those that `accept` does not cover are an error.
    ///
    /// ```
    /// use cllm::checkpoint::Accept;
    /// use cllm::config::SimilarityConfig;
    /// use cllm::models::similarity::SimilarityModel;
    /// use ndarray::array;
    /// # fn main() -> cllm::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let folder = folder.path();
    /// let mut model = SimilarityModel::new(SimilarityConfig { vocabulary_size: 3, dim: 8, ..Default::default() })?;
    /// model.step(array![[0, 1]].view(), array![[1, 2]].view())?;
    /// model.save(folder)?;
    /// let (resumed, differences) = SimilarityModel::resume(folder, None, Accept::Exact)?;
    /// assert_eq!((resumed.steps(), differences.len()), (1, 0));
    /// assert_eq!(resumed.vectors(), model.vectors());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`] and [`Checkpoint::load`]; [`Error::Differences`](crate::Error::Differences); those of
    /// [`SimilarityModel::new`].
    pub fn resume(
        folder: impl AsRef<Path>,
        config: Option<SimilarityConfig>,
        accept: Accept,
    ) -> Result<(Self, Vec<Difference>)> {
        let checkpoint = Checkpoint::open_kind(folder, KIND)?;
        let (manifest, path) = (checkpoint.manifest(), checkpoint.manifest_path());
        let saved: SimilarityConfig = manifest.setting(&path, "training")?;
        let config = config.unwrap_or_else(|| saved.clone());
        let differences = difference::runs(manifest, &saved, &config, config.workers);
        refuse(&differences, accept)?;
        let mut model = Self::new(config)?;
        model.parameters = checkpoint.load(MODEL, &model.layout)?;
        model.optimizer.first = checkpoint.load(FIRST_MOMENTS, &model.layout)?;
        if let Some(second) = &mut model.optimizer.second {
            *second = checkpoint.load(SECOND_MOMENTS, &model.layout)?;
        }
        model.steps = manifest.step;
        Ok((model, differences))
    }
}

//! What a run works with: a new one as its flags say, one that is taken up again as its folder says.

use std::fs;
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use cllm::data::{PairSource, PairStore, Tokenizer};
use cllm::train::PairTrainer;
use serde::{Deserialize, Serialize};

use crate::flags::Flags;
use crate::pairs::Pairs;
use crate::run_folder::{CONFIG, RunFolder};
use crate::{Result, recorded};

/// What `config.json` holds.
#[derive(Serialize, Deserialize)]
struct Description {
    files: Vec<PathBuf>,
    /// The command line, completed.
    flags: Flags,
}

/// A run before its next step.
pub struct Setup {
    pub flags: Flags,
    pub folder: Option<RunFolder>,
    pub tokenizer: Tokenizer,
    pub training: PairSource,
    pub held_out: PairStore,
    files: Vec<PathBuf>,
}

impl Setup {
    /// A new run, or that of `--resume`.
    pub fn of(given: Flags, matches: &ArgMatches) -> Result<Self> {
        let given = given.completed()?;
        given.check()?;
        match given.resume.clone() {
            None => Self::new(given),
            Some(path) => Self::resumed(RunFolder::of_run(path)?, given, matches),
        }
    }

    fn new(flags: Flags) -> Result<Self> {
        let source = flags.tokenizer_source()?;
        // Before the other folder: what is begun twice is told how to go on.
        let folder = flags.run.clone().map(RunFolder::create).transpose()?;
        if let Some(folder) = &flags.out
            && check_writable(folder)?
        {
            return Err(format!("{}: the folder holds something", folder.display()).into());
        }
        let (pairs, files) = Pairs::collect(&flags)?;
        let tokenizer = pairs.tokenizer(&source)?;
        Self::with_pairs(flags, folder, pairs, files, tokenizer)
    }

    fn resumed(folder: RunFolder, given: Flags, matches: &ArgMatches) -> Result<Self> {
        let Description { files, flags } = folder.read_json(CONFIG)?;
        let flags = recorded::continued(&flags, &given, matches, &["steps", "epochs"], given.accept)?;
        let flags = Flags { resume: given.resume, accept: given.accept, json: given.json, ..flags };
        flags.check()?;
        if let Some(folder) = &flags.out {
            check_writable(folder)?;
        }
        let pairs = Pairs::collect_again(&flags, &files)?;
        let tokenizer = Tokenizer::load(folder.path())?;
        Self::with_pairs(flags, Some(folder), pairs, files, tokenizer)
    }

    fn with_pairs(
        flags: Flags,
        folder: Option<RunFolder>,
        pairs: Pairs,
        files: Vec<PathBuf>,
        tokenizer: Tokenizer,
    ) -> Result<Self> {
        let store = pairs.tokenize(&tokenizer, flags.max_tokens)?;
        let held_out = (store.len() as f64 * flags.held_out) as usize;
        let (training, held_out) = store.split_at(store.len() - held_out);
        let training = PairSource::new(training, flags.batch, flags.seed)?;
        Ok(Self { flags, folder, tokenizer, training, held_out, files })
    }

    /// The trainer at the run's last checkpoint, or at its beginning if there is none; it holds the folder.
    pub fn trainer(&self) -> Result<PairTrainer> {
        let (flags, config) = (&self.flags, self.flags.config());
        let new = || PairTrainer::new(flags.encoder(self.tokenizer.vocabulary_size()), config.clone());
        let Some(folder) = &self.folder else { return Ok(new()?) };
        let mut trainer = match &flags.resume {
            None => new()?,
            Some(path) => match PairTrainer::resume(path, Some(config.clone()), flags.accept) {
                Err(cllm::Error::NoCheckpoint { .. }) => new()?,
                resumed => recorded::taken_up(resumed)?,
            },
        };
        // Held before it is changed: the run may still be going on.
        trainer.save_to(folder.path())?;
        if flags.resume.is_none() {
            self.tokenizer.save(folder.path())?;
        }
        folder.write_json(CONFIG, &Description { files: self.files.clone(), flags: flags.clone() })?;
        Ok(trainer)
    }
}

/// Fails if no files can be written to `folder`, or where it would be made; returns whether it holds something.
fn check_writable(folder: &Path) -> Result<bool> {
    let there = folder.ancestors().find(|path| path.symlink_metadata().is_ok()).unwrap_or(folder);
    let named = |error| format!("{}: {error}", there.display());
    let holds = fs::read_dir(there).map_err(named)?.next().is_some();
    // Whether it may be written to, only writing tells.
    tempfile::tempdir_in(there).map_err(named)?;
    Ok(holds && there == folder)
}

//! What a run works with: a new one as its flags say, one that is taken up again as its folder says.

use std::path::{Path, PathBuf};

use clap::{ArgMatches, CommandFactory, FromArgMatches};
use cllm::data::{self, BatchOrder, SequenceSource, TextFiles, TokenStore, Tokenizer};
use cllm::train::ResumeOptions;
use cllm::{Trainer, TrainingConfig, Transformer, TransformerConfig};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::flags::Flags;
use crate::run_folder::{CONFIG, RunFolder};
use crate::{corpus, recorded};

/// What `config.json` holds.
#[derive(Serialize, Deserialize)]
struct Description {
    model: TransformerConfig,
    training: TrainingConfig,
    data: DataDescription,
    /// The command line, completed.
    flags: Flags,
}

#[derive(Serialize, Deserialize)]
struct DataDescription {
    files: Vec<PathBuf>,
    training_tokens: usize,
    validation_tokens: usize,
}

/// The command line, and which of its flags were given.
pub struct CommandLine {
    flags: Flags,
    matches: ArgMatches,
}

impl CommandLine {
    pub fn read() -> Self {
        let matches = Flags::command().get_matches();
        match Flags::from_arg_matches(&matches) {
            Ok(flags) => Self { flags, matches },
            Err(error) => error.exit(),
        }
    }
}

/// A run before its next step.
pub struct Setup {
    pub flags: Flags,
    pub folder: RunFolder,
    pub corpus: TextFiles,
    pub tokenizer: Tokenizer,
    pub training: SequenceSource,
    pub validation: Option<SequenceSource>,
}

impl Setup {
    /// A new run, or that of `--resume`.
    pub fn of(command: CommandLine) -> Result<Self> {
        match command.flags.resume.clone() {
            None => Self::new(command.flags),
            Some(path) => Self::resumed(RunFolder::of_run(path)?, command),
        }
    }

    fn new(flags: Flags) -> Result<Self> {
        // Before the corpus is read, which may take a while; the vocabulary is not known yet, and any will do.
        flags.training().validate()?;
        flags.model(1).validate()?;
        let tokenizer = flags.tokenizer_source()?;
        let flags = flags.completed()?;
        let corpus = corpus::collect(&flags.data, flags.max_bytes)?;
        let folder = match &flags.out {
            Some(path) => RunFolder::create(path.clone())?,
            None => RunFolder::create_numbered("lm")?,
        };
        let tokenizer = tokenizer.build(&corpus)?;
        Self::with_tokens(flags, folder, corpus, tokenizer)
    }

    fn resumed(folder: RunFolder, command: CommandLine) -> Result<Self> {
        let run: Description = folder.read_json(CONFIG)?;
        let CommandLine { flags: given, matches } = command;
        let (json, resume, accept) = (given.json, given.resume.clone(), given.accept);
        let flags = recorded::continued(&run.flags, &given.completed()?, &matches, &["steps", "epochs"], accept)?;
        let flags = Flags { json, resume, accept, ..flags };
        flags.training().validate()?;
        let corpus = corpus::collect_again(&run.data.files, flags.data.is_empty(), flags.max_bytes)?;
        let tokenizer = Tokenizer::load(folder.path())?;
        Self::with_tokens(flags, folder, corpus, tokenizer)
    }

    fn with_tokens(flags: Flags, folder: RunFolder, corpus: TextFiles, tokenizer: Tokenizer) -> Result<Self> {
        let tokens = tokens(&corpus, &tokenizer, &folder.file("tokens.bin"))?;
        let (training, validation) = if !flags.validation.is_empty() {
            let corpus = corpus::collect(&flags.validation, None)?;
            (tokens, Some(self::tokens(&corpus, &tokenizer, &folder.file("validation.bin"))?))
        } else if flags.validation_fraction == 0.0 {
            (tokens, None)
        } else {
            let (training, validation) = tokens.split_validation(flags.validation_fraction)?;
            (training, Some(validation))
        };
        let config = flags.training();
        let TrainingConfig { batch_size, sequence_length, seed, .. } = config;
        let training = SequenceSource::for_training(training, &config)?;
        let validation = validation
            .map(|tokens| SequenceSource::new(tokens, BatchOrder::Sequential, batch_size, sequence_length, seed))
            .transpose()?;
        Ok(Self { flags, folder, corpus, tokenizer, training, validation })
    }

    /// The trainer at the run's last checkpoint, or at its beginning if there is none; it holds the folder.
    pub fn trainer(&self) -> Result<Trainer> {
        let (config, folder) = (self.flags.training(), self.folder.path());
        let new = || {
            let model = Transformer::new(self.flags.model(self.tokenizer.vocabulary_size()), config.seed)?;
            Trainer::new(model, config.clone())
        };
        if self.flags.resume.is_none() {
            let mut trainer = new()?;
            self.tokenizer.save(folder)?;
            self.describe(&trainer)?;
            trainer.save_to(folder)?;
            return Ok(trainer);
        }
        let accept = self.flags.accept;
        let options = ResumeOptions { config: Some(config.clone()), data: Some(&self.training), accept };
        let mut trainer = match Trainer::resume(folder, &options) {
            Err(cllm::Error::NoCheckpoint { .. }) => new()?,
            resumed => recorded::taken_up(resumed)?,
        };
        // Held before it is changed: the run may still be going on.
        trainer.save_to(folder)?;
        self.describe(&trainer)?;
        Ok(trainer)
    }

    /// Writes `config.json`.
    fn describe(&self, trainer: &Trainer) -> Result<()> {
        let description = Description {
            model: trainer.model().config().clone(),
            training: trainer.config().clone(),
            data: DataDescription {
                files: self.corpus.paths().map(Path::to_path_buf).collect(),
                training_tokens: self.training.tokens().len(),
                validation_tokens: self.validation.as_ref().map_or(0, |source| source.tokens().len()),
            },
            flags: self.flags.clone(),
        };
        self.folder.write_json(CONFIG, &description)
    }
}

/// The tokens of `corpus`; those of a large one are in `file`, and are not made again where it is there.
fn tokens(corpus: &TextFiles, tokenizer: &Tokenizer, file: &Path) -> Result<TokenStore> {
    if file.exists() { Ok(TokenStore::open(file)?) } else { Ok(data::tokenize(corpus, tokenizer, file)?) }
}

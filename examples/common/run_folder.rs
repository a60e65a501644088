//! The folder that holds what a run leaves behind.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use cllm::checkpoint::atomic;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What a run was told; the last of the files that its beginning writes.
pub const CONFIG: &str = "config.json";

/// A run's folder. A new one is removed again if the run fails before it has written anything there.
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// The folder `path`, which must be empty or not exist yet.
    pub fn create(path: PathBuf) -> Result<Self> {
        let named = |error| format!("{}: {error}", path.display());
        fs::create_dir_all(&path).map_err(named)?;
        if path.join(CONFIG).exists() {
            let path = path.display();
            return Err(format!(
                "{path}: the folder holds a run already, and no run is overwritten; --resume {path} goes on with it"
            )
            .into());
        }
        if fs::read_dir(&path).map_err(named)?.next().is_some() {
            return Err(format!("{}: the folder holds something, and no run is overwritten", path.display()).into());
        }
        Ok(Self { path })
    }

    /// The first of `runs/NAME-1`, `runs/NAME-2`, … that does not exist yet.
    pub fn create_numbered(name: &str) -> Result<Self> {
        let runs = Path::new("runs");
        fs::create_dir_all(runs).map_err(|error| format!("runs: {error}"))?;
        for number in 1.. {
            let path = runs.join(format!("{name}-{number}"));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(format!("{}: {error}", path.display()).into()),
            }
        }
        unreachable!("one of all numbers is free")
    }

    /// The folder `path` of a run that was begun.
    pub fn of_run(path: PathBuf) -> Result<Self> {
        if path.join(CONFIG).is_file() {
            return Ok(Self { path });
        }
        fs::metadata(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Err(format!("{}: the folder holds no run, since {CONFIG} is missing; --out begins one", path.display()).into())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes `value` as the JSON file `name`, whole or not at all.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let json = serde_json::to_string_pretty(value)? + "\n";
        Ok(atomic::write(&self.file(name), |file| file.write_all(json.as_bytes()))?)
    }

    /// Reads the JSON file `name`.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let path = self.file(name);
        let text = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))?)
    }

    /// Opens `metrics.jsonl` for a run that is at `step`: its lines to that step, and the log to go on with. Lines of
    /// later steps, which the run will make again, are dropped, and so is what a crash left of a line.
    pub fn metrics(&self, step: u64) -> Result<(Vec<Value>, MetricsLog)> {
        let path = self.file("metrics.jsonl");
        let named = |error| format!("{}: {error}", path.display());
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            text => text.map_err(named)?,
        };
        let (mut lines, mut kept) = (Vec::new(), String::new());
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            if let Ok(value) = serde_json::from_str::<Value>(line)
                && value["step"].as_u64().is_some_and(|of| of <= step)
            {
                lines.push(value);
                kept.push_str(line);
            }
        }
        atomic::write(&path, |file| file.write_all(kept.as_bytes()))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(named)?;
        Ok((lines, MetricsLog { file, path }))
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        // Fails, as it should, on a folder that has something in it.
        let _ = fs::remove_dir(&self.path);
    }
}

/// A file with a JSON object a line.
pub struct MetricsLog {
    file: File,
    path: PathBuf,
}

impl MetricsLog {
    /// Appends a line, in one write, so that a reader sees whole lines.
    pub fn write(&mut self, line: &impl Serialize) -> Result<()> {
        let json = serde_json::to_string(line)? + "\n";
        Ok(self.file.write_all(json.as_bytes()).map_err(|error| format!("{}: {error}", self.path.display()))?)
    }
}

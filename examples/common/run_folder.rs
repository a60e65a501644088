//! The folder that holds what a run leaves behind.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use cllm::checkpoint::atomic;
use serde::Serialize;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A run's folder. It was empty when the run took it, and it is removed again if the run fails before it has written
/// anything there.
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// The folder `path`, which must be empty or not exist yet.
    pub fn create(path: PathBuf) -> Result<Self> {
        let named = |error| format!("{}: {error}", path.display());
        fs::create_dir_all(&path).map_err(named)?;
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

    /// Opens `metrics.jsonl`.
    pub fn metrics(&self) -> Result<MetricsLog> {
        let path = self.file("metrics.jsonl");
        let file = OpenOptions::new().create_new(true).append(true).open(&path);
        Ok(MetricsLog { file: file.map_err(|error| format!("{}: {error}", path.display()))?, path })
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

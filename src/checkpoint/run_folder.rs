//! The folder of a run: its checkpoints, the pointer to the last one, and the lock that keeps a second writer out.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::atomic::{self, AtomicFolder, PARTIAL};
use super::checksum::Checksum;
use super::manifest::Manifest;
use super::tensors::{self, TensorChecksums};
use crate::params::{ParameterLayout, ParameterStore};
use crate::{Error, Result};

pub(super) const CHECKPOINTS: &str = "checkpoints";
pub(super) const LATEST: &str = "latest";
pub(super) const MANIFEST: &str = "manifest.json";
const LOCK: &str = "lock";

/// Values under the name of their file, `name.safetensors`.
pub type NamedStore<'a> = (&'static str, &'a ParameterStore);

/// A file without tensors, such as a vocabulary: its name and its content.
pub type NamedFile = (&'static str, Arc<[u8]>);

/// A run's folder, open for writing checkpoints.
///
/// While it lives it holds a lock on the file `lock`, which the operating system releases with the process however
/// that ends: a lock file that a killed process left behind stops nobody.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    _lock: File,
}

impl RunFolder {
    /// Opens the run folder at `path`, made if need be, and removes what a killed writer left half-written.
    ///
    /// # Errors
    /// [`Error::Locked`] if another trainer, of this process or another, writes to it; [`Error::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let checkpoints = path.join(CHECKPOINTS);
        fs::create_dir_all(&checkpoints).map_err(Error::io(&checkpoints))?;
        let lock = lock(&path.join(LOCK))?;
        for entry in entries(&checkpoints)? {
            if entry.starts_with('.') && entry.ends_with(PARTIAL) {
                let left = checkpoints.join(entry);
                let removed = if left.is_dir() { fs::remove_dir_all(&left) } else { fs::remove_file(&left) };
                removed.map_err(Error::io(&left))?;
            }
        }
        Ok(Self { path, _lock: lock })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a checkpoint of `stores`, all of `layout`, and of `files`, points `latest` to it, and removes all but the last `keep`.
    ///
    /// The files go to a temporary folder and are flushed; the folder gets its name by a rename; then `latest` is
    /// replaced; then old checkpoints are removed. A crash at any moment leaves `latest` at a whole checkpoint.
    ///
    /// # Errors
    /// [`Error::Io`]; what was in the run folder before is then still there.
    pub fn write(
        &self,
        mut manifest: Manifest,
        layout: &ParameterLayout,
        stores: &[NamedStore<'_>],
        files: &[NamedFile],
        keep: Option<usize>,
    ) -> Result<PathBuf> {
        let checkpoints = self.path.join(CHECKPOINTS);
        let mut name = Name { step: manifest.step, revision: 1 };
        let taken = |name: &Name| checkpoints.join(name.to_string()).symlink_metadata().is_ok();
        while taken(&name) {
            name.revision += 1;
        }
        let target = checkpoints.join(name.to_string());
        let folder = AtomicFolder::create(&target)?;
        manifest.tensors.clear();
        for (store_name, store) in stores {
            let file = file_name(store_name);
            let sums: TensorChecksums = folder.write(&file, |out| tensors::write_to(out, layout, store))?;
            manifest.tensors.insert(file, sums);
        }
        manifest.files.clear();
        for (name, content) in files {
            folder.write(name, |out| out.write_all(content))?;
            manifest.files.insert((*name).to_owned(), Checksum::of(content));
        }
        folder.write(MANIFEST, |out| out.write_all(&manifest.to_bytes()))?;
        folder.commit()?;
        atomic::write(&checkpoints.join(LATEST), |out| writeln!(out, "{name}"))?;
        if let Some(keep) = keep {
            prune(&checkpoints, name, keep)?;
        }
        Ok(target)
    }
}

pub(super) fn file_name(store: &str) -> String {
    format!("{store}.safetensors")
}

/// Removes all but the `keep` newest checkpoints, `last` being the newest. Those of later steps belong to a course that
/// the run has left, and go first.
fn prune(checkpoints: &Path, last: Name, keep: usize) -> Result<()> {
    let mut names = names(checkpoints)?;
    names.sort_by_key(|name| (name.step <= last.step, *name));
    let surplus = names.len().saturating_sub(keep.max(1));
    for name in names.into_iter().filter(|&name| name != last).take(surplus) {
        // Under a temporary name first, so that no crash leaves half of it under its own.
        let folder = checkpoints.join(name.to_string());
        let doomed = checkpoints.join(format!(".{name}{PARTIAL}"));
        fs::rename(&folder, &doomed).and_then(|()| fs::remove_dir_all(&doomed)).map_err(Error::io(&folder))?;
    }
    Ok(())
}

/// The name of a checkpoint's folder: `step-00001000`, or `step-00001000.2` where that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub step: u64,
    pub revision: u32,
}

impl Name {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix("step-")?;
        let (step, revision) = text.split_once('.').unwrap_or((text, "1"));
        let name = Self { step: step.parse().ok()?, revision: revision.parse().ok()? };
        // Only the one way to write it.
        (name.to_string().strip_prefix("step-") == Some(text)).then_some(name)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.revision {
            1 => write!(formatter, "step-{:08}", self.step),
            revision => write!(formatter, "step-{:08}.{revision}", self.step),
        }
    }
}

/// The checkpoints below `checkpoints`, in no order.
pub(super) fn names(checkpoints: &Path) -> Result<Vec<Name>> {
    Ok(entries(checkpoints)?.iter().filter_map(|entry| Name::parse(entry)).collect())
}

/// Names in a folder; those that are not UTF-8 are none of ours.
fn entries(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        names.extend(entry.map_err(Error::io(folder))?.file_name().into_string());
    }
    Ok(names)
}

/// Takes the lock, and writes the process id into its file for whoever is refused.
fn lock(path: &Path) -> Result<File> {
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let mut file = open.map_err(Error::io(path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::Error(error)) => return Err(Error::io(path)(error)),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let read = file.take(20).read_to_string(&mut holder);
            let holder = read.ok().and_then(|_| holder.trim().parse().ok());
            return Err(Error::Locked { path: path.to_path_buf(), process: holder });
        }
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(Error::io(path))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::manifest::tests::manifest;
    use crate::params::Initialisation;

    fn write(folder: &RunFolder, step: u64, keep: Option<usize>) -> PathBuf {
        let mut layout = ParameterLayout::default();
        layout.vector("a", 3, Initialisation::Zeros);
        let manifest = Manifest { step, ..manifest() };
        folder.write(manifest, &layout, &[("model", &ParameterStore::zeros(&layout))], &[], keep).unwrap()
    }

    fn found(folder: &RunFolder) -> Vec<String> {
        let mut names = entries(&folder.path().join(CHECKPOINTS)).unwrap();
        names.sort();
        names
    }

    #[test]
    fn a_second_writer_is_refused_and_a_left_lock_file_is_not_in_the_way() {
        let temporary = tempfile::tempdir().unwrap();
        let first = RunFolder::open(temporary.path()).unwrap();
        let error = RunFolder::open(temporary.path()).unwrap_err();
        assert!(matches!(error, Error::Locked { process: Some(id), .. } if id == std::process::id()), "{error}");
        drop(first);
        fs::write(temporary.path().join(LOCK), "1\n").unwrap();
        RunFolder::open(temporary.path()).unwrap();
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in ["step-00000000", "step-00001000.2", "step-123456789012"] {
            assert_eq!(Name::parse(name).unwrap().to_string(), name);
        }
        for wrong in
            ["step-1", "step-00001000.1", "step-+0001000", "step-", "latest", "step-00001000.", ".step-00001000"]
        {
            assert_eq!(Name::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_last_checkpoints_are_kept_and_those_of_a_left_course_go_first() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(temporary.path()).unwrap();
        for step in [100, 200, 300, 300] {
            write(&folder, step, None);
        }
        assert_eq!(found(&folder), ["latest", "step-00000100", "step-00000200", "step-00000300", "step-00000300.2"]);
        write(&folder, 250, Some(2));
        assert_eq!(found(&folder), ["latest", "step-00000200", "step-00000250"]);
        write(&folder, 260, Some(0));
        assert_eq!(found(&folder), ["latest", "step-00000260"]);
    }

    #[test]
    fn what_a_killed_writer_left_is_removed_by_the_next() {
        let temporary = tempfile::tempdir().unwrap();
        let checkpoints = temporary.path().join(CHECKPOINTS);
        fs::create_dir_all(checkpoints.join(".step-00000100.7-0.partial")).unwrap();
        fs::write(checkpoints.join(".latest.7-1.partial"), "step-").unwrap();
        fs::write(checkpoints.join("notes"), "kept").unwrap();
        let folder = RunFolder::open(temporary.path()).unwrap();
        assert_eq!(found(&folder), ["notes"]);
    }

    #[test]
    fn a_vanished_folder_is_an_error_and_is_not_made_again() {
        let temporary = tempfile::tempdir().unwrap();
        let run = temporary.path().join("run");
        let folder = RunFolder::open(&run).unwrap();
        fs::remove_dir_all(&run).unwrap();
        let layout = ParameterLayout::default();
        assert!(matches!(folder.write(manifest(), &layout, &[], &[], None), Err(Error::Io { .. })));
        assert!(!run.exists());
    }
}

//! A file that appears whole under its name or not at all.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// A file being written beside its target: [`commit`](Self::commit) moves it there, dropping it removes it.
#[derive(Debug)]
pub(crate) struct AtomicFile {
    writer: Option<BufWriter<File>>,
    temporary: PathBuf,
    target: PathBuf,
}

impl AtomicFile {
    /// Starts a file that will be called `target`; its folder must exist. Whatever `target` is stays until `commit`.
    pub(crate) fn create(target: &Path) -> Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let mut name = OsString::from(".");
        name.push(target.file_name().ok_or_else(|| Error::invalid_file(target, "the path names no file"))?);
        name.push(format!(".{}-{}.partial", process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
        let temporary = target.with_file_name(name);
        let file = File::create_new(&temporary).map_err(Error::io(target))?;
        Ok(Self { writer: Some(BufWriter::new(file)), temporary, target: target.to_path_buf() })
    }

    /// The file's future path, for error messages.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    pub(crate) fn writer(&mut self) -> &mut BufWriter<File> {
        self.writer.as_mut().expect("the writer is taken only by commit")
    }

    pub(crate) fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer().write_all(bytes).map_err(Error::io(&self.target))
    }

    /// Flushes the file to the disk and moves it to its target, replacing what was there.
    pub(crate) fn commit(mut self) -> Result<()> {
        let writer = self.writer.take().expect("the writer is taken only here");
        let moved = writer
            .into_inner()
            .map_err(|error| error.into_error())
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(&self.temporary, &self.target));
        if moved.is_err() {
            let _ = fs::remove_file(&self.temporary);
        }
        moved.and_then(|()| sync_folder_of(&self.target)).map_err(Error::io(&self.target))
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        // The writer is gone once `commit` has moved or removed the file.
        if let Some(writer) = self.writer.take() {
            drop(writer.into_parts());
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Makes the new name itself survive a power cut, where folders can be opened like files.
fn sync_folder_of(path: &Path) -> std::io::Result<()> {
    if cfg!(unix) {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<OsString> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn a_file_appears_when_committed_and_not_before() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("name");
        fs::write(&target, "old").unwrap();
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(b"new").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"old");
        file.commit().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["name"]);
    }

    #[test]
    fn a_dropped_file_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = AtomicFile::create(&folder.path().join("name")).unwrap();
        file.write_all(b"half").unwrap();
        assert_eq!(names(folder.path()).len(), 1);
        drop(file);
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_failed_move_leaves_nothing_and_names_the_target() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("name");
        fs::create_dir_all(target.join("occupied")).unwrap();
        let error = AtomicFile::create(&target).unwrap().commit().unwrap_err();
        assert!(matches!(&error, Error::Io { path, .. } if *path == target), "{error}");
        assert_eq!(names(folder.path()), ["name"]);
        let absent = folder.path().join("absent").join("name");
        let error = AtomicFile::create(&absent).unwrap_err();
        assert!(matches!(&error, Error::Io { path, .. } if *path == absent), "{error}");
    }
}

//! Files and folders that appear whole under their name or not at all.
//!
//! The content goes to a temporary name in the same folder, is flushed to the disk, and takes its own name by a
//! rename, after which the folder is flushed too. A reader, or a crash at any moment, sees what was there before or the
//! whole of the new; what a crash leaves under a temporary name ends in `.partial` and belongs to nobody.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// The ending of temporary names.
pub(crate) const PARTIAL: &str = ".partial";

const BUFFER_BYTES: usize = 1 << 16;

/// Replaces the file at `path`, in a folder that exists, by what `write` writes.
///
/// # Errors
/// [`Error::Io`]; the former file, or none, is then at `path`, and nothing else is left.
pub fn write(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    write(file.writer()).map_err(Error::io(path))?;
    file.commit()
}

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
        let temporary = temporary_path(target)?;
        let file = File::create_new(&temporary).map_err(Error::io(target))?;
        let writer = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(Self { writer: Some(writer), temporary, target: target.to_path_buf() })
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
        let moved = sync(writer).and_then(|()| fs::rename(&self.temporary, &self.target));
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

/// A folder of files being written beside its target, as [`AtomicFile`] is for one file.
#[derive(Debug)]
pub(crate) struct AtomicFolder {
    temporary: PathBuf,
    target: PathBuf,
    committed: bool,
}

impl AtomicFolder {
    /// Starts a folder that will be called `target`; the folder it lies in must exist.
    pub(crate) fn create(target: &Path) -> Result<Self> {
        let temporary = temporary_path(target)?;
        fs::create_dir(&temporary).map_err(Error::io(target))?;
        Ok(Self { temporary, target: target.to_path_buf(), committed: false })
    }

    /// Writes a file of the folder and flushes it to the disk.
    pub(crate) fn write<R>(&self, name: &str, write: impl FnOnce(&mut dyn Write) -> std::io::Result<R>) -> Result<R> {
        let written = File::create_new(self.temporary.join(name)).and_then(|file| {
            let mut writer = BufWriter::with_capacity(BUFFER_BYTES, file);
            let written = write(&mut writer)?;
            sync(writer)?;
            Ok(written)
        });
        written.map_err(Error::io(self.target.join(name)))
    }

    /// Flushes the folder and moves it to its target, which must not exist.
    pub(crate) fn commit(mut self) -> Result<()> {
        let target = &self.target;
        let exists = target.symlink_metadata().is_ok();
        if exists {
            // A rename would silently replace an empty folder.
            return Err(Error::io(target)(std::io::ErrorKind::AlreadyExists.into()));
        }
        sync_folder(&self.temporary)
            .and_then(|()| fs::rename(&self.temporary, target))
            .and_then(|()| sync_folder_of(target))
            .map_err(Error::io(target))?;
        self.committed = true;
        Ok(())
    }
}

impl Drop for AtomicFolder {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

/// A name of its own beside `target`: `.name.process-count.partial`.
fn temporary_path(target: &Path) -> Result<PathBuf> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let mut name = OsString::from(".");
    name.push(target.file_name().ok_or_else(|| Error::invalid_file(target, "the path names no file"))?);
    name.push(format!(".{}-{}{PARTIAL}", process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
    Ok(target.with_file_name(name))
}

fn sync(writer: BufWriter<File>) -> std::io::Result<()> {
    writer.into_inner().map_err(|error| error.into_error())?.sync_all()
}

/// Makes the names in a folder survive a power cut, where folders can be opened like files.
fn sync_folder(folder: &Path) -> std::io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

pub(crate) fn sync_folder_of(path: &Path) -> std::io::Result<()> {
    sync_folder(path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")))
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
    fn a_failed_write_leaves_the_former_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&path, |file| file.write_all(b"old")).unwrap();
        let failed = write(&path, |file| {
            file.write_all(b"half of the n")?;
            Err(std::io::Error::other("disk full"))
        });
        assert!(matches!(failed, Err(Error::Io { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["file"]);
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

    #[test]
    fn a_folder_appears_with_all_its_files_or_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("folder");
        let folder = AtomicFolder::create(&target).unwrap();
        folder.write("file", |file| file.write_all(b"content")).unwrap();
        assert!(!target.exists());
        folder.commit().unwrap();
        assert_eq!(fs::read(target.join("file")).unwrap(), b"content");

        let folder = AtomicFolder::create(&target).unwrap();
        folder.write("file", |file| file.write_all(b"other")).unwrap();
        let error = folder.commit().unwrap_err();
        assert!(matches!(&error, Error::Io { path, .. } if *path == target), "{error}");
        assert_eq!(fs::read(target.join("file")).unwrap(), b"content");
        assert_eq!(names(parent.path()), ["folder"]);
    }
}

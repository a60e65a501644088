//! Files that are written whole or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Replaces the file at `path` by what `write` writes.
///
/// The content goes to a temporary file in the same folder, is flushed to the disk, and takes the name `path` by a
/// rename, so that a reader (or a crash) sees the former file or the new one, never a part. The temporary file is
/// removed when anything fails.
///
/// # Errors
/// [`Error::Io`] with the path that could not be written.
pub fn write(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let temporary = temporary_path(path);
    let result = write_and_rename(&temporary, path, write);
    if result.is_err() {
        // The error of the write is the one to report.
        let _ = fs::remove_file(&temporary);
    }
    result
}

fn write_and_rename(
    temporary: &Path,
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    let mut file = File::create(temporary).map_err(Error::io(temporary))?;
    let mut buffered = std::io::BufWriter::with_capacity(1 << 16, &mut file);
    write(&mut buffered).and_then(|()| buffered.flush()).map_err(Error::io(temporary))?;
    drop(buffered);
    file.sync_all().map_err(Error::io(temporary))?;
    fs::rename(temporary, path).map_err(Error::io(path))?;
    sync_folder(path)
}

fn temporary_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    path.with_file_name(name)
}

/// A rename is on the disk only when its folder is.
fn sync_folder(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if cfg!(unix) {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io(folder))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        write(&path, |file| file.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

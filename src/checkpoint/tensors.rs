//! Parameters as a safetensors file: f32, named and shaped as the layout says, readable by any safetensors library.
//!
//! Values pass through a buffer of 64 KiB in both directions: neither a write nor a read holds the file in memory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::atomic;
use super::checksum::{Checksum, Hasher};
use super::header::{self, Problem};
use crate::params::{ParameterLayout, ParameterStore};
use crate::{Error, Result};

/// The sum of each tensor's bytes, by name.
pub type TensorChecksums = BTreeMap<String, Checksum>;

/// Floats that are converted at a time.
const CHUNK: usize = 1 << 14;

/// Bytes of the header's length.
const LENGTH_BYTES: u64 = 8;

/// Writes every parameter of `store`. The file holds nothing but the tensors: equal values give equal bytes.
///
/// # Errors
/// [`Error::Io`].
pub fn write(path: &Path, layout: &ParameterLayout, store: &ParameterStore) -> Result<()> {
    atomic::write(path, |out| write_to(out, layout, store).map(|_| ()))
}

/// Writes the file's bytes to `out`.
pub(crate) fn write_to(
    out: &mut dyn Write,
    layout: &ParameterLayout,
    store: &ParameterStore,
) -> std::io::Result<TensorChecksums> {
    let header = header::format(layout);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    let mut bytes = Vec::with_capacity(CHUNK * size_of::<f32>());
    let mut checksums = TensorChecksums::new();
    for spec in layout.specs() {
        let mut hasher = Hasher::default();
        for values in store.slice(spec.id).chunks(CHUNK) {
            bytes.clear();
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            hasher.update(&bytes);
            out.write_all(&bytes)?;
        }
        checksums.insert(spec.name.clone(), hasher.finish());
    }
    Ok(checksums)
}

/// Fills `store` from a file that must hold exactly the layout's tensors, in f32.
///
/// # Errors
/// [`Error::Io`], [`Error::InvalidFile`] (not a safetensors file, another number format, a tensor too many),
/// [`Error::MissingTensor`], [`Error::Shape`]. The store is unchanged then.
pub fn read(path: &Path, layout: &ParameterLayout, store: &mut ParameterStore) -> Result<()> {
    load(path, layout).map(|(loaded, _)| *store = loaded)
}

/// The content of a file that must hold exactly the layout's tensors, and their sums.
///
/// Memory for the values is taken only when the header was found to fit the layout and the file's length; the header
/// itself may take four times what the layout's own needs, and 1 MiB.
pub(crate) fn load(path: &Path, layout: &ParameterLayout) -> Result<(ParameterStore, TensorChecksums)> {
    let (mut file, length) = open(path)?;
    let mut word = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut word).map_err(Error::io(path))?;
    let header_length = u64::from_le_bytes(word);
    let rest = length - LENGTH_BYTES;
    if header_length > rest {
        let problem = format!("a header of {header_length} bytes is announced, but {rest} follow");
        return Err(Error::invalid_file(path, problem));
    }
    if header_length > header::longest(layout) {
        let problem = format!("a header of {header_length} bytes is too long for these tensors");
        return Err(Error::invalid_file(path, problem));
    }
    let mut json = vec![0; header_length as usize];
    file.read_exact(&mut json).map_err(Error::io(path))?;
    let ranges = header::parse(&json, layout, rest - header_length).map_err(|problem| match problem {
        Problem::Invalid(problem) => Error::invalid_file(path, problem),
        Problem::Missing(name) => Error::MissingTensor { path: path.to_path_buf(), name },
        Problem::Shape { name, expected, found } => {
            Error::Shape { what: format!("{}: tensor {name}", path.display()), expected, found }
        }
    })?;

    let mut store = ParameterStore::zeros(layout);
    let mut checksums = TensorChecksums::new();
    let mut bytes = vec![0; CHUNK * size_of::<f32>()];
    for (spec, range) in layout.specs().iter().zip(ranges) {
        let begin = LENGTH_BYTES + header_length + range.start;
        file.seek(SeekFrom::Start(begin)).map_err(Error::io(path))?;
        let mut hasher = Hasher::default();
        for values in store.slice_mut(spec.id).chunks_mut(CHUNK) {
            let bytes = &mut bytes[..size_of_val(values)];
            file.read_exact(bytes).map_err(Error::io(path))?;
            hasher.update(bytes);
            for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
        checksums.insert(spec.name.clone(), hasher.finish());
    }
    Ok((store, checksums))
}

/// Opens a regular file that is long enough for a header's length.
fn open(path: &Path) -> Result<(File, u64)> {
    // Asked before the file is opened, since opening a pipe would wait for its other end.
    if !fs::metadata(path).map_err(Error::io(path))?.is_file() {
        return Err(Error::invalid_file(path, "not a file"));
    }
    let file = File::open(path).map_err(Error::io(path))?;
    match file.metadata().map_err(Error::io(path))?.len() {
        0 => Err(Error::EmptyFile { path: path.to_path_buf() }),
        length if length < LENGTH_BYTES => {
            Err(Error::invalid_file(path, format!("{length} bytes are too few for a safetensors file")))
        }
        length => Ok((file, length)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use safetensors::{Dtype, SafeTensors};

    use super::*;
    use crate::params::Initialisation;

    fn layout(sizes: &[(usize, usize)]) -> ParameterLayout {
        let mut layout = ParameterLayout::default();
        for (index, &(rows, columns)) in sizes.iter().enumerate() {
            match rows {
                0 => layout.vector(format!("vector.{index}"), columns, Initialisation::Zeros),
                _ => layout.matrix(format!("matrix.{index}"), rows, columns, Initialisation::Zeros),
            };
        }
        layout
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_bit_by_bit(
            sizes in prop::collection::vec((0..5usize, 1..40usize), 1..6),
            bits in prop::collection::vec(any::<u32>(), 64),
        ) {
            let layout = layout(&sizes);
            let mut store = ParameterStore::zeros(&layout);
            for spec in layout.specs() {
                for (value, bits) in store.slice_mut(spec.id).iter_mut().zip(bits.iter().cycle()) {
                    *value = f32::from_bits(*bits);
                }
            }
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("tensors");
            write(&path, &layout, &store).unwrap();
            let (loaded, sums) = load(&path, &layout).unwrap();
            let bits = |store: &ParameterStore| store.values().iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&loaded), bits(&store));

            // The reference implementation sees the same.
            let bytes = fs::read(&path).unwrap();
            let reference = SafeTensors::deserialize(&bytes).unwrap();
            prop_assert_eq!(reference.len(), layout.specs().len());
            for spec in layout.specs() {
                let tensor = reference.tensor(&spec.name).unwrap();
                prop_assert_eq!(tensor.dtype(), Dtype::F32);
                prop_assert_eq!(tensor.shape(), &spec.shape[..]);
                prop_assert_eq!(Checksum::of(tensor.data()), sums[&spec.name]);
            }
        }
    }

    #[test]
    fn a_tensor_longer_than_the_buffer_is_whole() {
        let layout = layout(&[(3, CHUNK), (0, CHUNK + 1)]);
        let mut store = ParameterStore::zeros(&layout);
        store.values_mut().iter_mut().enumerate().for_each(|(index, value)| *value = index as f32);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tensors");
        write(&path, &layout, &store).unwrap();
        let loaded = load(&path, &layout).unwrap().0;
        for spec in layout.specs() {
            assert_eq!(loaded.slice(spec.id), store.slice(spec.id), "{}", spec.name);
        }
    }
}

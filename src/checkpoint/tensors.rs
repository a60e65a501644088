//! Parameters as a safetensors file: f32, named and shaped as the layout says, readable by any safetensors library.

use std::fs::File;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};

use super::atomic;
use crate::params::{ParameterLayout, ParameterStore};
use crate::{Error, Result};

/// Writes every parameter of `store`. The file holds nothing but the tensors: equal values give equal bytes.
///
/// # Errors
/// [`Error::Io`].
pub fn write(path: &Path, layout: &ParameterLayout, store: &ParameterStore) -> Result<()> {
    let bytes: Vec<Vec<u8>> = layout
        .specs()
        .iter()
        .map(|spec| store.slice(spec.id).iter().flat_map(|value| value.to_le_bytes()).collect())
        .collect();
    let views = layout.specs().iter().zip(&bytes).map(|(spec, bytes)| {
        let view = TensorView::new(Dtype::F32, spec.shape.clone(), bytes).expect("the bytes fit the shape");
        (spec.name.as_str(), view)
    });
    let file = serialize(views, None).map_err(|problem| Error::invalid_file(path, problem))?;
    atomic::write(path, |out| out.write_all(&file))
}

/// Fills `store` from a file that must hold exactly the layout's tensors, in f32.
///
/// # Errors
/// [`Error::Io`], [`Error::InvalidFile`] (not a safetensors file, another number format, a tensor too many),
/// [`Error::MissingTensor`], [`Error::Shape`]. The store is unchanged then.
pub fn read(path: &Path, layout: &ParameterLayout, store: &mut ParameterStore) -> Result<()> {
    let bytes = read_file(path)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|problem| Error::invalid_file(path, problem))?;
    let mut filled = ParameterStore::zeros(layout);
    for spec in layout.specs() {
        let missing = || Error::MissingTensor { path: path.to_path_buf(), name: spec.name.clone() };
        let tensor = file.tensor(&spec.name).map_err(|_| missing())?;
        if tensor.dtype() != Dtype::F32 {
            let problem = format!("tensor {} is {:?}, not F32", spec.name, tensor.dtype());
            return Err(Error::invalid_file(path, problem));
        }
        if tensor.shape() != spec.shape {
            return Err(Error::Shape {
                what: format!("{}: tensor {}", path.display(), spec.name),
                expected: spec.shape.clone(),
                found: tensor.shape().to_vec(),
            });
        }
        for (value, bytes) in filled.slice_mut(spec.id).iter_mut().zip(tensor.data().chunks_exact(4)) {
            *value = f32::from_le_bytes(bytes.try_into().expect("chunks of 4 bytes"));
        }
    }
    if let Some(name) = file.names().into_iter().find(|name| layout.find(name).is_none()) {
        return Err(Error::invalid_file(path, format!("tensor {name} is not a parameter of this model")));
    }
    *store = filled;
    Ok(())
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Error::io(path))?;
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::BufReader::new(file), &mut bytes).map_err(Error::io(path))?;
    Ok(bytes)
}

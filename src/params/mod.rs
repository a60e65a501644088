//! Parameters: one table says what they are, one aligned buffer per role holds them.

mod aligned;
mod chunk_norms;
mod layout;
mod store;

pub use aligned::AlignedBuffer;
pub(crate) use aligned::as_atomics;
pub(crate) use chunk_norms::{CHUNK, ChunkNorms};
pub use layout::{Initialisation, ParameterId, ParameterLayout, ParameterSpec};
pub use store::ParameterStore;

//! Parameters: one table says what they are, one aligned buffer per role holds them.

mod aligned;
mod gradient_norms;
mod layout;
mod store;

pub use aligned::AlignedBuffer;
pub(crate) use aligned::as_atomics;
pub(crate) use gradient_norms::{CHUNK, GradientNorms};
pub use layout::{Initialisation, ParameterId, ParameterLayout, ParameterSpec};
pub use store::ParameterStore;
pub(crate) use store::ParameterView;

//! Parameters: one table says what they are, one aligned buffer per role holds them.

mod aligned;
mod layout;
mod store;

pub use aligned::AlignedBuffer;
pub(crate) use aligned::as_atomics;
pub use layout::{Initialisation, ParameterId, ParameterLayout, ParameterSpec};
pub use store::ParameterStore;

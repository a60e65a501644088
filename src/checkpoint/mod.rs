//! Checkpoints: what a run needs to go on as if it had never stopped, and files that are never half-written.
//!
//! ```text
//! run/
//!   lock                            held by the one writer
//!   checkpoints/
//!     step-00001000/
//!       model.safetensors           the weights
//!       first_moments.safetensors   AdamW's, or SGD's momentum
//!       second_moments.safetensors  AdamW's
//!       average.safetensors         the moving average of the weights, if one is kept
//!       row_updates.u32             how often each row was updated, in the training of text encoders
//!       manifest.json               step, schedule, seed, settings, data, machine, and a checksum of each tensor
//!     latest                        the name of the last checkpoint
//! ```
//!
//! The order of writing is given at [`RunFolder::write`]. There is no hidden state: batches, dropout and every other
//! draw are functions of the seed and the step.
//!
//! A trainer gives its values as [`NamedStore`]s of one layout, [`NamedFile`]s and a [`Manifest`]; it writes them at once with
//! [`RunFolder::write`], or copies them to a [`Snapshot`] that a [`Saver`] writes beside training; [`Checkpoint`] reads
//! them. Checksums find accidents; they do not make a checkpoint from an untrusted source trustworthy: its settings can
//! ask for any amount of memory, as a configuration file can.

pub mod atomic;
mod checksum;
pub(crate) mod difference;
pub(crate) mod header;
mod manifest;
mod reader;
mod run_folder;
pub(crate) mod saving;
mod snapshot;
pub mod tensors;

pub use checksum::{Checksum, Hasher};
pub use difference::{Accept, Difference, DifferenceKind, Machine};
pub(crate) use manifest::to_map;
pub use manifest::{DataRecord, FORMAT_VERSION, Manifest};
pub use reader::Checkpoint;
pub use run_folder::{NamedFile, NamedStore, RunFolder};
pub use snapshot::{Saver, Snapshot, check_finite};

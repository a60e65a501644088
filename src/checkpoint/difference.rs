//! What differs between the run that wrote a checkpoint and the one that takes it up.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::manifest::{Manifest, to_map};
use crate::kernels::dispatch::instruction_set;
use crate::linalg::threads::blas_core_name;
use crate::{Error, Result};

/// What the arithmetic of a run depends on beside its settings and data: a run is exact where all of it is the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Version of this crate.
    pub crate_version: String,
    /// Processor architecture and operating system.
    pub platform: String,
    /// Instruction set of the crate's kernels.
    pub kernels: String,
    /// The kernels that BLAS chose.
    pub blas_core: String,
    /// Worker threads.
    pub workers: usize,
}

impl Machine {
    /// This machine, with `workers` workers.
    #[must_use]
    pub fn current(workers: usize) -> Self {
        Self {
            crate_version: env!("CARGO_PKG_VERSION").into(),
            platform: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            kernels: format!("{:?}", instruction_set()).to_lowercase(),
            blas_core: blas_core_name(),
            workers,
        }
    }
}

/// What kind of thing a [`Difference`] is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DifferenceKind {
    /// The crate's version.
    CrateVersion,
    /// Processor architecture or operating system.
    Platform,
    /// Instruction set of the crate's kernels.
    Kernels,
    /// BLAS's kernels.
    BlasCore,
    /// The number of worker threads.
    Workers,
    /// The training data, or the way it is drawn.
    Data,
    /// A setting that changes what is computed.
    Setting,
    /// A setting that says only when to stop, to evaluate or to save.
    Interval,
}

/// One thing that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What kind of thing.
    pub kind: DifferenceKind,
    /// Its name.
    pub name: String,
    /// As the checkpoint has it.
    pub saved: String,
    /// As it is now.
    pub found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {} in the checkpoint, {} now", self.name, self.saved, self.found)
    }
}

/// Which differences a resumed run may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accept {
    /// None that changes a bit of the result. Intervals may differ, and `max_steps` and `epochs` may grow.
    #[default]
    Exact,
    /// Those that change the rounding as well: crate version, platform, kernels, BLAS, workers.
    Rounding,
    /// All.
    Anything,
}

impl Accept {
    /// Whether the difference is accepted.
    #[must_use]
    pub fn accepts(self, difference: &Difference) -> bool {
        match difference.kind {
            DifferenceKind::Interval => true,
            DifferenceKind::Data | DifferenceKind::Setting => self == Self::Anything,
            _ => self != Self::Exact,
        }
    }
}

/// Differences between two machines.
pub(crate) fn machines(saved: &Machine, found: &Machine) -> Vec<Difference> {
    use DifferenceKind::{BlasCore, CrateVersion, Kernels, Platform, Workers};
    let (saved_workers, found_workers) = (saved.workers.to_string(), found.workers.to_string());
    [
        (CrateVersion, "crate version", &saved.crate_version, &found.crate_version),
        (Platform, "platform", &saved.platform, &found.platform),
        (Kernels, "kernels", &saved.kernels, &found.kernels),
        (BlasCore, "BLAS core", &saved.blas_core, &found.blas_core),
        (Workers, "workers", &saved_workers, &found_workers),
    ]
    .into_iter()
    .filter(|(_, _, saved, found)| saved != found)
    .map(|(kind, name, saved, found)| difference(kind, name, saved, found))
    .collect()
}

/// Differences between two records of training data.
pub(crate) fn data(saved: &Map<String, Value>, found: &Map<String, Value>) -> Vec<Difference> {
    values(saved, found, |_, _, _| DifferenceKind::Data)
}

/// Differences between the run of `manifest`, with the settings `saved`, and one on this machine with those `found`.
pub(crate) fn runs<T: Serialize>(manifest: &Manifest, saved: &T, found: &T, workers: usize) -> Vec<Difference> {
    let mut differences = machines(&manifest.machine, &Machine::current(workers));
    let settings = values(&to_map(saved), &to_map(found), setting_kind);
    // Workers are listed with the machine.
    differences.extend(settings.into_iter().filter(|difference| difference.name != "workers"));
    differences
}

fn setting_kind(name: &str, saved: &Value, found: &Value) -> DifferenceKind {
    let grown = |saved: &Value, found: &Value| saved.as_u64().is_some_and(|saved| found.as_u64() > Some(saved));
    match name {
        "evaluation_interval" | "evaluation_batches" | "top_k" | "save_interval" | "keep_checkpoints" => {
            DifferenceKind::Interval
        }
        "max_steps" | "epochs" if grown(saved, found) => DifferenceKind::Interval,
        _ => DifferenceKind::Setting,
    }
}

fn values(
    saved: &Map<String, Value>,
    found: &Map<String, Value>,
    kind: impl Fn(&str, &Value, &Value) -> DifferenceKind,
) -> Vec<Difference> {
    let none = Value::Null;
    found
        .iter()
        .map(|(name, found)| (name, saved.get(name).unwrap_or(&none), found))
        .filter(|(_, saved, found)| saved != found)
        .map(|(name, saved, found)| difference(kind(name, saved, found), name, saved, found))
        .collect()
}

/// Fails unless `accept` covers all of `differences`.
///
/// # Errors
/// [`Error::Differences`].
pub(crate) fn refuse(differences: &[Difference], accept: Accept) -> Result<()> {
    if differences.iter().all(|difference| accept.accepts(difference)) {
        Ok(())
    } else {
        Err(Error::Differences { differences: differences.to_vec() })
    }
}

fn difference(kind: DifferenceKind, name: &str, saved: impl fmt::Display, found: impl fmt::Display) -> Difference {
    Difference { kind, name: name.to_owned(), saved: saved.to_string(), found: found.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_machine_is_compared() {
        let saved = Machine::current(2);
        assert_eq!(machines(&saved, &saved), []);
        let other = |text: &str| format!("{text}?");
        let found = Machine {
            crate_version: other(&saved.crate_version),
            platform: other(&saved.platform),
            kernels: other(&saved.kernels),
            blas_core: other(&saved.blas_core),
            workers: 3,
        };
        let differences = machines(&saved, &found);
        assert_eq!(differences.len(), 5);
        assert_eq!(differences[4].to_string(), "workers: 2 in the checkpoint, 3 now");
        assert!(differences.iter().all(|difference| Accept::Rounding.accepts(difference)));
        assert!(!differences.iter().any(|difference| Accept::Exact.accepts(difference)));
    }

    #[test]
    fn data_and_settings_are_accepted_only_with_anything() {
        for kind in [DifferenceKind::Data, DifferenceKind::Setting] {
            let difference = difference(kind, "seed", 1, 2);
            let accepted = [Accept::Exact, Accept::Rounding, Accept::Anything].map(|a| a.accepts(&difference));
            assert_eq!(accepted, [false, false, true]);
        }
    }
}

//! The data of a trainer's run, and what its checkpoints say of it.

use serde_json::{Map, Value};

use crate::Result;
use crate::checkpoint::Accept;
use crate::checkpoint::difference::{self, refuse};

/// Data that a resumed run can be held to.
pub(super) trait Recorded: Clone {
    /// What a checkpoint says of it. Reads all of it.
    fn record(&self) -> Result<Map<String, Value>>;
}

/// The data of a run.
#[derive(Debug)]
pub(super) struct RunData<S> {
    /// The source of the last run, and its record once it is needed.
    source: Option<S>,
    record: Option<Map<String, Value>>,
    /// The data that a resumed run must find, and how strict to be.
    expected: Option<(Map<String, Value>, Accept)>,
}

impl<S> Default for RunData<S> {
    fn default() -> Self {
        Self { source: None, record: None, expected: None }
    }
}

impl<S: Recorded> RunData<S> {
    /// The next run must find what was `saved`, as far as `accept` says.
    pub fn expect(&mut self, saved: Option<Map<String, Value>>, accept: Accept) {
        self.expected = saved.map(|saved| (saved, accept));
    }

    /// Takes note of the `source` of a run, after comparing it with what a checkpoint says. What would hold up a save is
    /// done now if the run `saves`.
    pub fn begin(&mut self, source: &S, saves: bool) -> Result<()> {
        let mut record = None;
        if let Some((expected, accept)) = &self.expected {
            let found = source.record()?;
            refuse(&difference::data(expected, &found), *accept)?;
            record = Some(found);
        }
        *self = Self { source: Some(source.clone()), record, expected: None };
        if saves { self.prepare() } else { Ok(()) }
    }

    /// Makes the record, if there is data and it is not made yet.
    pub fn prepare(&mut self) -> Result<()> {
        if let (None, Some(source)) = (&self.record, &self.source) {
            self.record = Some(source.record()?);
        }
        Ok(())
    }

    /// What a checkpoint is to say of the data: what was found, or else what is still expected.
    pub fn recorded(&self) -> Option<Map<String, Value>> {
        self.record.as_ref().or(self.expected.as_ref().map(|(expected, _)| expected)).cloned()
    }
}

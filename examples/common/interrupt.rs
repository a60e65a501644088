//! Ending a run by a signal (interrupt, termination, hang-up): the first asks it to finish its step and save, the second
//! ends the process at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit code of a run that was interrupted and has saved its state: `EX_TEMPFAIL` of sysexits.h, "try again".
pub const SAVED: u8 = 75;

/// Exit code of a process that was not given the time to save.
const AT_ONCE: i32 = 130;

/// Whether the run was asked to end.
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes the signals over from here on.
    pub fn watch() -> Result<Self, ctrlc::Error> {
        let asked = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&asked);
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::Relaxed) {
                std::process::exit(AT_ONCE);
            }
        })?;
        Ok(Self(asked))
    }

    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

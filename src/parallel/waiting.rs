//! Waiting for another thread by looking again and again: operations of a step take microseconds, too little for a thread
//! to sleep and be woken.

use std::time::Duration;

/// Looks in vain after which a waiting thread lets others have its processor between two looks.
const SPINS: u32 = 300;

/// Looks after which it sleeps between two: somebody is kept from working, by other programs or by a callback.
const YIELDS: u32 = 30_000;

/// Passes the time between two looks; `looks` counts those that were in vain.
pub(crate) fn pause(looks: &mut u32) {
    *looks = looks.saturating_add(1);
    match *looks {
        ..SPINS => std::hint::spin_loop(),
        SPINS..YIELDS => std::thread::yield_now(),
        YIELDS.. => std::thread::sleep(Duration::from_micros(100)),
    }
}

//! How much time goes into matrix products: a switch, off by default, for throughput reports.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

static ENABLED: AtomicBool = AtomicBool::new(false);
static NANOSECONDS: AtomicU64 = AtomicU64::new(0);

/// Starts (at zero) or stops counting, for the whole process.
pub fn enable(on: bool) {
    NANOSECONDS.store(0, Relaxed);
    ENABLED.store(on, Relaxed);
}

/// Time that all threads together spent in products since counting began.
#[must_use]
pub fn time_in_products() -> Duration {
    Duration::from_nanos(NANOSECONDS.load(Relaxed))
}

/// Counts the time of `product` if counting is on.
#[inline]
pub(super) fn counted<R>(product: impl FnOnce() -> R) -> R {
    if !ENABLED.load(Relaxed) {
        return product();
    }
    let start = Instant::now();
    let result = product();
    NANOSECONDS.fetch_add(start.elapsed().as_nanos() as u64, Relaxed);
    result
}

//! Workers that stay awake while a step is made.
//!
//! A rayon thread that finds no work for some microseconds goes to sleep, and to wake it takes some tens of them. Where
//! workers share hundreds of operations in a step, and others that are not shared lie between them, that adds up. So while
//! [`awake`] runs a step, the pool's other threads look for work all the time (see [`pause`]), and [`join`] awaits them in
//! the same way.
//!
//! A thread that looks for work does not return before the step ends. It must therefore begin with nothing beneath it
//! that the step may wait for: all begin before the step does, and one that comes late leaves at once. They take
//! whatever job of the pool comes first, one that a callback has left there too, and the step ends no sooner than that.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rayon::Yield;

use super::waiting::pause;

/// How long a step waits for threads to wake before it begins without them.
const PATIENCE: Duration = Duration::from_micros(200);

/// Looks for the other half of a [`join`] before the wait is left to rayon.
const LOOKS: u32 = 2_000;

/// Bit of [`Watch::state`] that is set when the step begins; the others count the threads that have come.
const BEGUN: usize = 1 << (usize::BITS - 1);

/// What the threads of a pool know of a step.
#[derive(Default)]
struct Watch {
    state: AtomicUsize,
    has_ended: AtomicBool,
}

impl Watch {
    /// Begins the step once `others` threads have come, or not much later.
    fn begin(&self, others: usize) {
        let (start, mut looks) = (Instant::now(), 0);
        while self.state.load(Ordering::Relaxed) < others && start.elapsed() < PATIENCE {
            pause(&mut looks);
        }
        self.state.fetch_or(BEGUN, Ordering::AcqRel);
    }

    /// Has `count` threads keep watch, each that takes one of these calls.
    fn keep(&self, count: usize) {
        if count > 1 {
            join(|| self.keep(count / 2), || self.keep(count - count / 2));
        } else if self.state.fetch_add(1, Ordering::AcqRel) & BEGUN == 0 {
            self.look_for_work();
        }
    }

    fn look_for_work(&self) {
        let mut looks = 0;
        while self.state.load(Ordering::Acquire) & BEGUN == 0 {
            pause(&mut looks);
        }
        #[cfg(test)]
        tests::WATCHES.set(true);
        while !self.has_ended.load(Ordering::Acquire) {
            match rayon::yield_now() {
                Some(Yield::Executed) => looks = 0,
                _ => pause(&mut looks),
            }
        }
        #[cfg(test)]
        tests::WATCHES.set(false);
    }
}

/// Has the others leave, whether the step returns or panics.
struct EndOnDrop<'a>(&'a Watch);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.has_ended.store(true, Ordering::Release);
    }
}

/// Whether each of `threads` can have a processor of its own. One without would take time from those that work.
fn have_processors(threads: usize) -> bool {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    threads <= *PROCESSORS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Runs `step` while the other threads of the pool it is called in stay awake, if there is a processor for each. Allocates
/// nothing once it has been called.
pub(crate) fn awake<R: Send>(step: impl FnOnce() -> R + Send) -> R {
    let others = rayon::current_thread_index().map_or(0, |_| rayon::current_num_threads() - 1);
    if others == 0 || !have_processors(others + 1) {
        return step();
    }
    let watch = Watch::default();
    let run = || {
        let _end = EndOnDrop(&watch);
        watch.begin(others);
        step()
    };
    join(run, || watch.keep(others)).0
}

/// As [`rayon::join`], but while another thread works on `right` it is awaited without sleeping, for a while. Unlike rayon's,
/// the waiting thread takes no part of the other's work meanwhile: there should be no more parts than threads.
pub(crate) fn join<A: Send, B: Send>(left: impl FnOnce() -> A + Send, right: impl FnOnce() -> B + Send) -> (A, B) {
    const TAKEN: u8 = 1;
    const DONE: u8 = 2;
    let state = AtomicU8::new(0);
    rayon::join(
        || {
            let result = left();
            let mut looks = 0;
            while state.load(Ordering::Acquire) == TAKEN && looks < LOOKS {
                pause(&mut looks);
            }
            result
        },
        || {
            state.store(TAKEN, Ordering::Relaxed);
            let result = right();
            state.store(DONE, Ordering::Release);
            result
        },
    )
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use rayon::{ThreadPool, ThreadPoolBuilder};

    use super::*;
    use crate::parallel::for_each_indexed;

    thread_local! {
        /// Whether the thread stays awake for a step.
        pub(super) static WATCHES: Cell<bool> = const { Cell::new(false) };
    }

    fn pool(threads: usize) -> ThreadPool {
        ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    /// Looks until `is_so`, for ten seconds at most; returns whether it was.
    fn comes(is_so: impl Fn() -> bool) -> bool {
        let start = Instant::now();
        while !is_so() && start.elapsed() < Duration::from_secs(10) {
            std::thread::yield_now();
        }
        is_so()
    }

    #[test]
    fn steps_one_after_another_share_their_work_and_return() {
        for threads in 1..6 {
            let pool = pool(threads);
            let mut items = vec![0_usize; 2 * threads];
            for step in 0..200 {
                let first = pool.install(|| {
                    awake(|| {
                        for _ in 0..5 {
                            for_each_indexed(&mut items, &|index, item| *item += index);
                        }
                        items[1]
                    })
                });
                assert_eq!(first, 5 * (step + 1), "{threads} threads");
            }
            assert_eq!(items, (0..2 * threads).map(|index| 1000 * index).collect::<Vec<_>>());
        }
    }

    #[test]
    fn halves_are_taken_by_a_thread_that_is_awake() {
        if !have_processors(2) {
            return;
        }
        let pool = pool(2);
        let is_taken = || {
            let begun = AtomicBool::new(false);
            let wait = || {
                comes(|| begun.load(Ordering::Acquire));
            };
            let take = || {
                begun.store(true, Ordering::Release);
                WATCHES.get()
            };
            pool.install(|| awake(|| join(wait, take).1))
        };
        assert!((0..1000).any(|_| is_taken()));
        assert!(!pool.broadcast(|_| WATCHES.get()).contains(&true));
    }

    #[test]
    fn the_others_are_there_when_a_step_begins_and_leave_when_it_ends() {
        let watch = Watch::default();
        pool(3).install(|| {
            join(
                || {
                    assert!(comes(|| watch.state.load(Ordering::Relaxed) == 2));
                    watch.begin(2);
                    assert_eq!(watch.state.load(Ordering::Relaxed), BEGUN | 2);
                    drop(EndOnDrop(&watch));
                },
                || watch.keep(2),
            )
        });
        assert!(watch.has_ended.load(Ordering::Relaxed));
    }

    /// A thread that comes across the watch in the middle of work that the step waits for.
    #[test]
    fn a_late_thread_does_not_stay() {
        let pool = pool(2);
        let [has_begun, may_look, has_looked] = [const { AtomicBool::new(false) }; 3];
        let seen = pool.in_place_scope(|scope| {
            scope.spawn(|_| {
                has_begun.store(true, Ordering::Release);
                comes(|| may_look.load(Ordering::Acquire));
                while rayon::yield_now() == Some(Yield::Executed) {}
                has_looked.store(true, Ordering::Release);
            });
            assert!(comes(|| has_begun.load(Ordering::Acquire)));
            pool.install(|| {
                awake(|| {
                    may_look.store(true, Ordering::Release);
                    comes(|| has_looked.load(Ordering::Acquire))
                })
            })
        });
        assert!(seen);
    }

    #[test]
    fn panics_pass_and_leave_the_pool_usable() {
        let pool = pool(2);
        let run = |work: &(dyn Fn() + Sync)| {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.install(|| awake(work)))).is_err()
        };
        assert!(run(&|| panic!("the step")));
        assert!(run(&|| {
            join(|| (), || panic!("the other half"));
        }));
        assert!(!run(&|| ()));
    }

    #[test]
    fn outside_of_a_pool_the_step_just_runs() {
        assert_eq!(awake(rayon::current_thread_index), None);
    }
}

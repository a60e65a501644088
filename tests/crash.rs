//! A run that is killed at any moment, or whose disk fails it, loses nothing that was saved.
//!
//! The killed process is this test program itself, started anew with only the test `child` and told by environment
//! variables what to do. `CLLM_CRASH_ROUNDS` sets the number of kills; 12 without.
#![cfg(unix)]
#![allow(unsafe_code)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

use cllm::checkpoint::Checkpoint;
use cllm::rng::{Purpose, Stream};
use cllm::train::ResumeOptions;
use cllm::{Error, Trainer, TrainingConfig};
use support::{files, run_to, source, trainer, training_config};

/// What the child is to do, and where.
const TASK: &str = "CLLM_CRASH_TASK";
const FOLDER: &str = "CLLM_CRASH_FOLDER";

/// Long enough to be killed in the middle, with a save after every step.
fn config() -> TrainingConfig {
    TrainingConfig {
        max_steps: Some(100_000),
        save_interval: Some(1),
        keep_checkpoints: Some(2),
        moving_average_decay: Some(0.9),
        ..training_config()
    }
}

fn start_child(task: &str, folder: &Path) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child", "--nocapture"])
        .env(TASK, task)
        .env(FOLDER, folder)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "started by the other tests, in a process of its own"]
fn child() {
    let folder = PathBuf::from(env::var_os(FOLDER).expect("started by another test"));
    match env::var(TASK).unwrap().as_str() {
        "train" => {
            let mut trainer = match Trainer::resume(&folder, &ResumeOptions::default()) {
                Ok((trainer, _)) => trainer,
                Err(Error::NoCheckpoint { .. } | Error::Io { .. }) => trainer(&config()),
                Err(error) => panic!("{error}"),
            };
            trainer.save_to(&folder).unwrap();
            run_to(&mut trainer, &source(&config()), u64::MAX).unwrap();
            unreachable!("the parent kills this process long before");
        }
        "full disk" => full_disk(&folder),
        other => panic!("no task {other:?}"),
    }
}

/// The step of the last checkpoint, all of whose files are whole; none before the first.
fn whole_checkpoint(folder: &Path) -> Option<u64> {
    match Trainer::resume(folder, &ResumeOptions::default()) {
        Ok((trainer, differences)) => {
            assert_eq!(differences, []);
            Some(trainer.steps())
        }
        Err(Error::NoCheckpoint { .. } | Error::Io { .. }) if !folder.join("checkpoints/latest").exists() => None,
        Err(error) => panic!("{error}"),
    }
}

/// The files of a checkpoint at `step`, of a run that was never interrupted.
struct Uninterrupted {
    trainer: Trainer,
    folder: tempfile::TempDir,
}

impl Uninterrupted {
    fn files_at(&mut self, step: u64) -> std::collections::BTreeMap<String, Vec<u8>> {
        // A run makes at least one step, also where a kill came before the next save and the step is still the last one.
        if self.trainer.steps() < step {
            run_to(&mut self.trainer, &source(&config()), step).unwrap();
        }
        files(&self.trainer.save(self.folder.path()).unwrap())
    }
}

#[test]
fn a_killed_run_is_resumed_to_the_same_bytes() {
    let rounds: u64 = env::var("CLLM_CRASH_ROUNDS").map_or(12, |rounds| rounds.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let mut uninterrupted = Uninterrupted { trainer: trainer(&config()), folder: tempfile::tempdir().unwrap() };
    let seed = env::var("CLLM_CRASH_SEED").map_or(1, |seed| seed.parse().unwrap());
    let moments = Stream::new(seed, Purpose::Caller, 0);
    let (mut last, mut kills_with_progress) = (None, 0);
    for round in 0..rounds {
        let mut child = start_child("train", folder.path());
        // The first kills come while the process starts, the others anywhere in the steps and saves that follow.
        let begun = Instant::now();
        while round >= 2 && whole_pointer(folder.path()) <= last && begun.elapsed() < Duration::from_secs(30) {
            assert!(child.try_wait().unwrap().is_none(), "the child ended");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(moments.below(round, 60_000)));
        assert!(child.try_wait().unwrap().is_none(), "the child ended");
        child.kill().unwrap();
        child.wait().unwrap();

        let step = whole_checkpoint(folder.path());
        assert!(step >= last, "round {round}: step {step:?} after {last:?}");
        kills_with_progress += u64::from(step > last);
        last = step;
        if let Some(step) = step {
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            assert_eq!(checkpoint.manifest().step, step);
            assert!(files(checkpoint.folder()) == uninterrupted.files_at(step), "round {round}: step {step}");
        }
    }
    assert!(kills_with_progress >= rounds.saturating_sub(2), "{kills_with_progress} of {rounds}");
    println!("{rounds} kills, {} steps", last.unwrap());

    // And the run goes on from there to the same end.
    let end = last.unwrap() + 25;
    let mut resumed = Trainer::resume(folder.path(), &ResumeOptions::default()).unwrap().0;
    resumed.save_to(folder.path()).unwrap();
    run_to(&mut resumed, &source(&config()), end).unwrap();
    let found = files(&resumed.save(folder.path()).unwrap());
    assert!(found == uninterrupted.files_at(end));
    // Nothing is left of half-written saves.
    let checkpoints = fs::read_dir(folder.path().join("checkpoints")).unwrap();
    let names: Vec<_> = checkpoints.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

/// The step that `latest` names, without a look at the checkpoint.
fn whole_pointer(folder: &Path) -> Option<u64> {
    let text = fs::read_to_string(folder.join("checkpoints/latest")).ok()?;
    text.trim_end().strip_prefix("step-")?.parse().ok()
}

/// Checks that `spoil` makes a save fail with an I/O error that leaves the last checkpoint as it was, that training goes
/// on, and that a save succeeds after `mend`.
fn check_failing_save(folder: &Path, spoil: impl FnOnce(), mend: impl FnOnce()) {
    let config = TrainingConfig { save_interval: None, ..config() };
    let source = source(&config);
    let mut trainer = trainer(&config);
    run_to(&mut trainer, &source, 3).unwrap();
    let good = trainer.save(folder).unwrap();
    let before = files(&good);
    run_to(&mut trainer, &source, 5).unwrap();
    spoil();
    for _ in 0..2 {
        let error = trainer.save(folder).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
    }
    run_to(&mut trainer, &source, 7).unwrap();
    mend();
    assert_eq!(Checkpoint::open(folder).unwrap().folder(), good);
    assert!(files(&good) == before);
    let left = fs::read_dir(folder.join("checkpoints")).unwrap().count();
    assert_eq!(left, 2, "the checkpoint and the pointer");
    let saved = trainer.save(folder).unwrap();
    assert_eq!(Checkpoint::open(folder).unwrap().folder(), saved);
    assert_eq!(Checkpoint::open(folder).unwrap().manifest().step, 7);
}

/// Files that cannot grow beyond some size are what a full disk is to the writer: a write that fails in the middle.
#[test]
fn a_full_disk_is_an_error_and_training_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let status = start_child("full disk", folder.path()).wait().unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(Checkpoint::open(folder.path()).unwrap().manifest().step, 7);
}

fn full_disk(folder: &Path) {
    let limit = |bytes: libc::rlim_t| {
        let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: the call reads one valid struct; without its signal a refused write is an error like any other.
        let result = unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            libc::setrlimit(libc::RLIMIT_FSIZE, &limit)
        };
        assert_eq!(result, 0);
    };
    check_failing_save(folder, || limit(1000), || limit(libc::RLIM_INFINITY));
}

/// A folder that nothing can be made in, for the superuser too: its place is taken by a file.
#[test]
fn a_folder_that_cannot_be_written_is_an_error_and_training_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoints, aside) = (folder.path().join("checkpoints"), folder.path().join("aside"));
    check_failing_save(
        folder.path(),
        || {
            fs::rename(&checkpoints, &aside).unwrap();
            fs::write(&checkpoints, "").unwrap();
        },
        || {
            fs::remove_file(&checkpoints).unwrap();
            fs::rename(&aside, &checkpoints).unwrap();
        },
    );
}

#[test]
fn a_vanished_folder_is_an_error_and_training_goes_on() {
    let parent = tempfile::tempdir().unwrap();
    let (folder, aside) = (parent.path().join("run"), parent.path().join("aside"));
    let (vanish, reappear) = (|| fs::rename(&folder, &aside).unwrap(), || fs::rename(&aside, &folder).unwrap());
    check_failing_save(&folder, vanish, reappear);
}

/// An error of a save beside training is returned by the run, which can then be continued.
#[test]
fn a_failed_save_beside_training_surfaces_once() {
    let parent = tempfile::tempdir().unwrap();
    let (folder, aside) = (parent.path().join("run"), parent.path().join("aside"));
    let config = TrainingConfig { max_steps: Some(10), save_interval: Some(2), ..training_config() };
    let source = source(&config);
    let mut trainer = trainer(&config);
    trainer.save_to(&folder).unwrap();
    run_to(&mut trainer, &source, 2).unwrap();
    fs::rename(&folder, &aside).unwrap();
    let error = run_to(&mut trainer, &source, 10).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert!(trainer.steps() >= 4, "{}", trainer.steps());
    fs::rename(&aside, &folder).unwrap();
    run_to(&mut trainer, &source, u64::MAX).unwrap();
    assert_eq!(trainer.steps(), 10);
    assert_eq!(Checkpoint::open(&folder).unwrap().manifest().step, 10);
}

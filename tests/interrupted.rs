//! The training examples, interrupted as a user or a system does it, and resumed to the same bytes.
#![cfg(unix)]
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use example::example;
use serde_json::Value;

#[path = "support/example.rs"]
mod example;

/// The exit code of a run that was interrupted and has saved its state.
const SAVED: i32 = 75;

fn corpus(folder: &Path) -> PathBuf {
    let path = folder.join("text.txt");
    if !path.exists() {
        let text: String =
            (0..400).map(|line| format!("line {line} says {} and then {}.\n", line * line % 97, line % 7)).collect();
        fs::write(&path, text).unwrap();
    }
    path
}

/// A tiny run on the corpus in `folder`, into `folder/out`, with dropout, an average and accumulation.
fn new_run(folder: &Path, out: &str, flags: &str) -> Command {
    let mut command = example("train_lm");
    command.arg("--data").arg(corpus(folder)).arg("--out").arg(folder.join(out));
    command.args("--tokenizer char --layers 1 --heads 2 --dim 16 --context 16 --batch 4 --workers 2".split(' '));
    command.args("--warmup 3 --eval-every 4 --log-every 3 --sample 0 --dropout 0.1 --average 0.9".split(' '));
    command.args("--accumulate 2 --keep 0".split(' ')).args(flags.split(' '));
    command
}

fn resume(folder: &Path, out: &str, flags: &[&str]) -> Command {
    let mut command = example("train_lm");
    // From another folder: nothing may depend on where the run was begun.
    command.current_dir(folder).arg("--resume").arg(out).args(flags);
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn succeed(mut command: Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    output
}

fn model(folder: &Path, out: &str) -> Vec<u8> {
    fs::read(folder.join(out).join("model.safetensors")).unwrap()
}

/// The lines of `metrics.jsonl`, without what the clock says.
fn metrics(folder: &Path, out: &str) -> Vec<Value> {
    let text = fs::read_to_string(folder.join(out).join("metrics.jsonl")).unwrap();
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.iter_mut().for_each(|line| drop(line.as_object_mut().unwrap().remove("tokens_per_s")));
    lines
}

/// Makes the run's folder what a crash after the checkpoint of `step` would have left.
fn forget_after(run: &Path, step: u64) {
    let checkpoints = run.join("checkpoints");
    for entry in fs::read_dir(&checkpoints).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.strip_prefix("step-").is_some_and(|of| of.parse::<u64>().unwrap() > step) {
            fs::remove_dir_all(checkpoints.join(name)).unwrap();
        }
    }
    fs::write(checkpoints.join("latest"), format!("step-{step:08}\n")).unwrap();
    fs::remove_file(run.join("model.safetensors")).unwrap();
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    fs::write(run.join("metrics.jsonl"), &metrics[..metrics.len() - 10]).unwrap();
}

#[test]
fn a_resumed_run_ends_in_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let flags = "--steps 14 --save-every 5 --schedule cosine";
    succeed(new_run(folder, "whole", flags));
    succeed(new_run(folder, "halves", flags));
    let names: BTreeSet<_> = fs::read_dir(folder.join("halves/checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, ["latest", "step-00000005", "step-00000010", "step-00000014"].map(str::to_owned).into());
    let (expected, lines) = (model(folder, "whole"), metrics(folder, "whole"));
    for step in [10, 5] {
        forget_after(&folder.join("halves"), step);
        let output = succeed(resume(folder, "halves", &["--seed", "0", "--dim", "16"]));
        assert!(String::from_utf8_lossy(&output.stdout).contains(&format!("resumed at step {step}\n")));
        assert!(model(folder, "halves") == expected, "resumed at {step}");
        assert_eq!(metrics(folder, "halves"), lines, "resumed at {step}");
    }
    // Where no checkpoint was written, the run begins anew.
    fs::remove_dir_all(folder.join("halves/checkpoints")).unwrap();
    fs::remove_file(folder.join("halves/model.safetensors")).unwrap();
    succeed(resume(folder, "halves", &[]));
    assert!(model(folder, "halves") == expected);
    assert_eq!(metrics(folder, "halves"), lines);
}

#[test]
fn only_the_length_of_a_resumed_run_may_change() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeed(new_run(folder, "whole", "--steps 12 --schedule constant"));
    succeed(new_run(folder, "halves", "--steps 7 --schedule constant"));
    let before = model(folder, "halves");
    for (flags, message) in [
        (
            vec!["--dim", "32", "--seed", "7"],
            "--dim is 16 in the run, 32 was given; --seed is 0 in the run, 7 was given",
        ),
        (vec!["--steps", "6"], "--steps is 7 in the run, 6 was given"),
        (vec!["--epochs", "1"], "--epochs is null in the run, 1 was given"),
        (vec!["--workers", "3"], "--workers is 2 in the run, 3 was given"),
        (vec!["--tokenizer", "byte"], "--tokenizer"),
        (vec!["--data", "elsewhere"], "--data"),
    ] {
        let output = resume(folder, "halves", &flags).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{flags:?}");
        assert!(stderr(&output).contains(message), "{}", stderr(&output));
    }
    assert!(model(folder, "halves") == before);
    succeed(resume(folder, "halves", &["--steps", "12"]));
    assert!(model(folder, "halves") == model(folder, "whole"));
    // The new length is the run's from now on.
    assert_eq!(resume(folder, "halves", &["--steps", "11"]).output().unwrap().status.code(), Some(1));

    let text = corpus(folder);
    fs::write(&text, fs::read_to_string(&text).unwrap().replace("line 7 ", "nile 7 ")).unwrap();
    for (accept, accepted) in [("exact", false), ("rounding", false), ("anything", true)] {
        let output = resume(folder, "halves", &["--steps", "13", "--accept", accept]).output().unwrap();
        assert_eq!(output.status.success(), accepted, "{accept}: {}", stderr(&output));
        assert!(stderr(&output).contains("fingerprint"), "{}", stderr(&output));
    }
    for (absent, message) in [("nowhere", "No such file"), (".", "the folder holds no run")] {
        let output = resume(folder, absent, &[]).output().unwrap();
        assert!(output.status.code() == Some(1) && stderr(&output).contains(message), "{}", stderr(&output));
    }
}

/// A run of word embeddings on the corpus in `folder`.
fn new_words(folder: &Path, run: &str, flags: &str) -> Command {
    let mut command = example("train_embeddings");
    command.arg("--data").arg(corpus(folder)).arg("--run").arg(folder.join(run));
    command.arg("--out").arg(folder.join(run).with_extension("vec"));
    command.args("--dim 8 --min-count 1 --workers 2 --keep 0".split(' ')).args(flags.split(' '));
    command
}

fn resume_words(folder: &Path, run: &str, flags: &[&str]) -> Command {
    let mut command = example("train_embeddings");
    command.current_dir(folder).arg("--resume").arg(run).args(flags);
    command
}

/// Removes the later half of a run's checkpoints.
fn forget_half(run: &Path) {
    let checkpoints = run.join("checkpoints");
    let names = fs::read_dir(&checkpoints).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("step-")).collect();
    names.sort();
    let middle = names.len() / 2;
    assert!(middle >= 2, "{names:?}");
    names[middle + 1..].iter().for_each(|name| fs::remove_dir_all(checkpoints.join(name)).unwrap());
    fs::write(checkpoints.join("latest"), format!("{}\n", names[middle])).unwrap();
}

#[test]
fn resumed_word_embeddings_end_in_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (model, subwords) in [("skipgram", ""), ("cbow", ""), ("skipgram", " --subwords --buckets 300")] {
        let [whole, halves] = ["whole", "halves"].map(|name| format!("{model}{}-{name}", subwords.len()));
        let flags = format!("--model {model} --epochs 4 --save-every 1000{subwords}");
        succeed(new_words(folder, &whole, &flags));
        succeed(new_words(folder, &halves, &flags));
        let out = folder.join(&halves).with_extension("vec");
        let expected = fs::read(folder.join(&whole).with_extension("vec")).unwrap();
        forget_half(&folder.join(&halves));
        fs::remove_file(&out).unwrap();
        let output = succeed(resume_words(folder, &halves, &["--model", model]));
        assert!(stderr(&output).contains("resumed at word "), "{}", stderr(&output));
        assert!(fs::read(&out).unwrap() == expected, "{model}");
        // Where no checkpoint was written, the run begins anew.
        fs::remove_dir_all(folder.join(&halves).join("checkpoints")).unwrap();
        fs::remove_file(&out).unwrap();
        succeed(resume_words(folder, &halves, &[]));
        assert!(fs::read(&out).unwrap() == expected, "{model}");
    }
    let output = new_words(folder, "cbow0-whole", "--epochs 4").output().unwrap();
    assert!(output.status.code() == Some(1) && stderr(&output).contains("--resume"), "{}", stderr(&output));
    for (flags, message) in [
        (["--dim", "16"], "--dim is 8"),
        (["--epochs", "3"], "--epochs is 4"),
        (["--on-non-finite", "skip"], "--on-non-finite is \"stop\""),
    ] {
        let output = resume_words(folder, "cbow0-whole", &flags).output().unwrap();
        assert!(output.status.code() == Some(1) && stderr(&output).contains(message), "{}", stderr(&output));
    }
    succeed(resume_words(folder, "cbow0-whole", &["--epochs", "5"]));
}

/// A run of text encoders on lines of the corpus in `folder` and what they say.
fn new_pairs(folder: &Path, run: &str, flags: &str) -> Command {
    let pairs = folder.join("pairs.tsv");
    if !pairs.exists() {
        let lines: String =
            (0..200).map(|line| format!("what does line {line} say\tit says {}\n", line * line % 97)).collect();
        fs::write(&pairs, lines).unwrap();
    }
    let mut command = example("train_pairs");
    command.arg("--data").arg(pairs).arg("--run").arg(folder.join(run));
    command.arg("--out").arg(folder.join(run).with_extension("encoder"));
    command.args("--tokenizer words:150 --dim 8 --batch 16 --workers 2 --keep 0".split(' ')).args(flags.split(' '));
    command
}

fn resume_pairs(folder: &Path, run: &str, flags: &[&str]) -> Command {
    let mut command = example("train_pairs");
    command.current_dir(folder).arg("--resume").arg(run).args(flags);
    command
}

/// What a run of text encoders wrote at its end.
fn encoder(folder: &Path, run: &str) -> PathBuf {
    folder.join(run).with_extension("encoder").join("0_StaticEmbedding/model.safetensors")
}

#[test]
#[cfg_attr(not(feature = "tokenizers"), ignore = "words as tokens need the feature `tokenizers`")]
fn resumed_text_encoders_end_in_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let flags = "--epochs 3 --save-every 5 --token-weights --matryoshka 3 --symmetric --on-non-finite stop";
    succeed(new_pairs(folder, "whole", flags));
    succeed(new_pairs(folder, "halves", flags));
    let expected = fs::read(encoder(folder, "whole")).unwrap();
    forget_half(&folder.join("halves"));
    fs::remove_file(encoder(folder, "halves")).unwrap();
    let output = succeed(resume_pairs(folder, "halves", &["--epochs", "3", "--token-weights"]));
    assert!(stderr(&output).contains("resumed at step 20\n"), "{}", stderr(&output));
    assert!(fs::read(encoder(folder, "halves")).unwrap() == expected);
    // Where no checkpoint was written, the run begins anew.
    fs::remove_dir_all(folder.join("halves/checkpoints")).unwrap();
    fs::remove_file(encoder(folder, "halves")).unwrap();
    succeed(resume_pairs(folder, "halves", &[]));
    assert!(fs::read(encoder(folder, "halves")).unwrap() == expected);

    let output = new_pairs(folder, "whole", flags).output().unwrap();
    assert!(output.status.code() == Some(1) && stderr(&output).contains("--resume"), "{}", stderr(&output));
    for (flags, message) in [
        (["--dim", "16"], "--dim is 8"),
        (["--epochs", "2"], "--epochs is 3"),
        (["--on-non-finite", "skip"], "--on-non-finite is \"stop\""),
        (["--matryoshka", "4"], "--matryoshka is [3]"),
        (["--tokenizer", "byte"], "--tokenizer is "),
    ] {
        let output = resume_pairs(folder, "whole", &flags).output().unwrap();
        assert!(output.status.code() == Some(1) && stderr(&output).contains(message), "{}", stderr(&output));
    }
    succeed(resume_pairs(folder, "whole", &["--epochs", "4"]));
    let pairs = folder.join("pairs.tsv");
    fs::write(&pairs, fs::read_to_string(&pairs).unwrap().replace("line 7 ", "nile 7 ")).unwrap();
    let output = resume_pairs(folder, "whole", &["--epochs", "5"]).output().unwrap();
    assert!(output.status.code() == Some(1) && stderr(&output).contains("fingerprint"), "{}", stderr(&output));
}

fn signal(child: &Child, signal: libc::c_int) {
    // SAFETY: sends a signal to a child that was not waited for yet, so its id is still its own.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
}

/// Starts `command`, sends the signal once `begun` says so, and waits for the end.
fn interrupt(mut command: Command, by: libc::c_int, begun: impl Fn() -> bool) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while !begun() {
        assert!(child.try_wait().unwrap().is_none() && start.elapsed() < Duration::from_secs(120), "never begun");
        std::thread::sleep(Duration::from_millis(2));
    }
    signal(&child, by);
    child.wait_with_output().unwrap()
}

fn last_step(folder: &Path, out: &str) -> u64 {
    let text = fs::read_to_string(folder.join(out).join("checkpoints/latest")).unwrap();
    text.trim_end().strip_prefix("step-").unwrap().parse().unwrap()
}

#[test]
fn an_interrupted_run_saves_says_so_and_goes_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let lines = || fs::read_to_string(folder.join("run/metrics.jsonl")).map_or(0, |text| text.lines().count());
    let output = interrupt(
        new_run(folder, "run", "--steps 100000000 --schedule constant --save-every 0"),
        libc::SIGTERM,
        || lines() > 0,
    );
    assert_eq!(output.status.code(), Some(SAVED), "{}", stderr(&output));
    let first = last_step(folder, "run");
    assert!(stderr(&output).contains(&format!("interrupted at step {first}, which is saved")), "{}", stderr(&output));
    let before = lines();
    let output = interrupt(resume(folder, "run", &[]), libc::SIGINT, || lines() > before + 1);
    assert_eq!(output.status.code(), Some(SAVED), "{}", stderr(&output));
    let second = last_step(folder, "run");
    assert!(first < second, "{first} {second}");
    succeed(new_run(folder, "whole", &format!("--steps {second} --schedule constant --save-every 0")));
    assert!(model(folder, "run") == model(folder, "whole"), "{first} and {second} steps");
}

/// Interrupts a run with `flags` after its first checkpoint, at some `unit`, and lets it go on; returns its name.
fn interrupted_and_resumed(
    folder: &Path,
    new: fn(&Path, &str, &str) -> Command,
    resume: fn(&Path, &str, &[&str]) -> Command,
    (unit, flags): (&str, &str),
) -> String {
    let saved = |name: &str| folder.join(name).join("checkpoints/latest").exists();
    // The signal follows the first checkpoint by milliseconds, and the rest of the run takes a second; should that ever be
    // too short, a longer run will do.
    for epochs in [1000, 10_000, 100_000] {
        let flags = format!("--epochs {epochs} {flags}");
        let name = format!("run-{epochs}");
        let output = interrupt(new(folder, &name, &flags), libc::SIGTERM, || saved(&name));
        if output.status.success() {
            continue;
        }
        assert_eq!(output.status.code(), Some(SAVED), "{}", stderr(&output));
        let last = last_step(folder, &name);
        let message = format!("interrupted at {unit} {last}, which is saved");
        assert!(stderr(&output).contains(&message), "{}", stderr(&output));
        succeed(resume(folder, &name, &[]));
        succeed(new(folder, "whole", &flags));
        return name;
    }
    panic!("no run was interrupted");
}

#[test]
fn interrupted_word_embeddings_go_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let run = interrupted_and_resumed(folder, new_words, resume_words, ("word", "--save-every 100000"));
    let vectors = |name: &str| fs::read(folder.join(name).with_extension("vec")).unwrap();
    assert!(vectors(&run) == vectors("whole"));
}

#[test]
#[cfg_attr(not(feature = "tokenizers"), ignore = "words as tokens need the feature `tokenizers`")]
fn interrupted_text_encoders_go_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let run = interrupted_and_resumed(folder, new_pairs, resume_pairs, ("step", "--save-every 500"));
    assert!(fs::read(encoder(folder, &run)).unwrap() == fs::read(encoder(folder, "whole")).unwrap());
}

/// A second signal does not wait for the step. A step of this model takes long enough to be met by both.
#[test]
fn a_second_signal_ends_the_process_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = new_run(folder.path(), "run", "--steps 100000000 --save-every 0");
    command.args("--context 500 --batch 64 --accumulate 1000 --log-every 1".split(' '));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while !folder.path().join("run/metrics.jsonl").exists() {
        assert!(child.try_wait().unwrap().is_none() && start.elapsed() < Duration::from_secs(120), "never begun");
        std::thread::sleep(Duration::from_millis(2));
    }
    signal(&child, libc::SIGTERM);
    // Signals that come together count as one.
    while child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(20));
        signal(&child, libc::SIGTERM);
        assert!(start.elapsed() < Duration::from_secs(120), "does not end");
    }
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(!folder.path().join("run/checkpoints/latest").exists(), "{text}");
}

//! Runs the training examples as a user does, briefly.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// Cargo builds the examples before it runs all tests, into a folder beside that of the test executables.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let path =
        test.ancestors().nth(2).unwrap().join("examples").join(name).with_extension(std::env::consts::EXE_EXTENSION);
    assert!(
        path.exists(),
        "{} is missing: `cargo test` builds it, and so does `cargo build --examples`",
        path.display()
    );
    Command::new(path)
}

fn corpus(folder: &Path) -> PathBuf {
    let path = folder.join("text.txt");
    let text: String =
        (0..400).map(|line| format!("line {line} says {} and then {}.\n", line * line % 97, line % 7)).collect();
    fs::write(&path, text).unwrap();
    path
}

/// A run of 12 tiny steps on the corpus in `folder`, into `folder/out`.
fn train_lm(folder: &Path, out: &str, flags: &[&str]) -> Output {
    let mut command = example("train_lm");
    command.arg("--data").arg(corpus(folder)).arg("--out").arg(folder.join(out));
    command.args(
        "--tokenizer byte --layers 1 --heads 2 --dim 16 --context 16 --batch 4 --steps 12 --workers 2".split(' '),
    );
    command.args("--warmup 3 --eval-every 5 --save-every 6 --log-every 4 --sample 8".split(' '));
    command.args(flags).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn files(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_run_leaves_a_whole_folder_and_prints_its_outcome() {
    let folder = tempfile::tempdir().unwrap();
    let output = train_lm(folder.path(), "runs/first", &["--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let run = folder.path().join("runs/first");
    let expected =
        ["checkpoints", "config.json", "lock", "loss.svg", "metrics.jsonl", "model.safetensors", "tokenizer.json"];
    assert_eq!(files(&run), expected.map(str::to_owned).into());

    let config = json(&run.join("config.json"));
    assert_eq!((&config["model"]["dim"], &config["model"]["feed_forward"]), (&16.into(), &64.into()));
    assert_eq!((&config["training"]["max_steps"], &config["training"]["optimizer"]), (&12.into(), &"adamw".into()));
    let model = serde_json::from_value(config["model"].clone()).unwrap();
    cllm::Transformer::load_parameters(model, &run.join("model.safetensors")).unwrap();
    assert_eq!(cllm::data::Tokenizer::load(&run).unwrap().vocabulary_size(), 256);
    let svg = fs::read_to_string(run.join("loss.svg")).unwrap();
    assert!(svg.contains("loss, nats per token") && svg.contains("validation") && svg.trim_end().ends_with("</svg>"));

    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let steps = |key: &str| -> Vec<u64> {
        lines.iter().filter(|line| line[key].is_f64()).map(|line| line["step"].as_u64().unwrap()).collect()
    };
    for key in ["loss", "learning_rate", "gradient_norm", "tokens_per_s"] {
        assert_eq!(steps(key), [1, 4, 8, 12], "{key}");
    }
    assert_eq!(steps("validation_loss"), [5, 10, 12]);

    let stdout = String::from_utf8(output.stdout).unwrap();
    let outcome: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    let keys = ["steps", "train_loss", "val_loss", "tokens_per_s", "seconds", "parameters", "workers", "peak_rss_mb"];
    assert_eq!(outcome.as_object().unwrap().keys().map(String::as_str).collect::<BTreeSet<_>>(), keys.into());
    assert_eq!((&outcome["steps"], &outcome["workers"]), (&12.into(), &2.into()));
    for key in ["train_loss", "val_loss", "tokens_per_s", "seconds"] {
        assert!(outcome[key].as_f64().unwrap() > 0.0, "{key}");
    }
    assert_eq!(outcome["val_loss"], lines.last().unwrap()["validation_loss"]);
}

#[test]
fn without_an_interval_a_run_is_evaluated_at_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let output = train_lm(folder.path(), "out", &["--eval-every", "0"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let metrics = fs::read_to_string(folder.path().join("out/metrics.jsonl")).unwrap();
    let evaluated: Vec<&str> = metrics.lines().filter(|line| line.contains("validation_loss")).collect();
    assert!(matches!(evaluated[..], [line] if line.contains("\"step\":12,")), "{evaluated:?}");
}

#[test]
fn the_same_seed_writes_the_same_bytes_and_another_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let model = |out: &str, seed: &str| {
        let output = train_lm(folder.path(), out, &["--seed", seed, "--dropout", "0.1"]);
        assert!(output.status.success(), "{}", stderr(&output));
        fs::read(folder.path().join(out).join("model.safetensors")).unwrap()
    };
    let first = model("first", "7");
    assert!(first == model("second", "7"));
    assert!(first != model("third", "8"));
}

#[test]
fn no_run_is_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    assert!(train_lm(folder.path(), "out", &[]).status.success());
    let before = fs::read(folder.path().join("out/metrics.jsonl")).unwrap();
    let output = train_lm(folder.path(), "out", &["--seed", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no run is overwritten; --resume "), "{}", stderr(&output));
    assert_eq!(fs::read(folder.path().join("out/metrics.jsonl")).unwrap(), before);
}

#[test]
fn wrong_values_are_one_line_and_leave_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    let long_context = ["--context", "100000"];
    let cases: [(&[&str], &str); 9] = [
        (&["--heads", "3"], "heads = 3: must divide dim = 16"),
        (&["--learning-rate", "nan"], "learning_rate = NaN"),
        (&["--batch", "0"], "batch_size = 0"),
        (&["--accumulate", "18446744073709551615"], "accumulation_steps = 18446744073709551615"),
        (&["--clip", "-1"], "gradient_clip = -1"),
        (&["--tokenizer", "bpe:many"], "tokenizer = bpe:many"),
        (&["--data", "no/such/file"], "no/such/file"),
        (&["--validation-fraction", "1.5"], "fraction"),
        (&long_context, "one sequence needs 100001"),
    ];
    for (flags, message) in cases {
        // Later flags overrule those before them.
        let output = train_lm(folder.path(), "out", flags);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{flags:?}: {text}");
        assert!(
            text.starts_with("error: ") && text.lines().count() == 1 && text.contains(message),
            "{flags:?}: {text}"
        );
        assert_eq!(files(folder.path()), ["text.txt".to_owned()].into(), "{flags:?}");
    }
}

#[test]
fn training_in_the_background_ends_by_itself_and_by_the_clock() {
    let folder = tempfile::tempdir().unwrap();
    let data = corpus(folder.path());
    let run = |flags: &[&str]| {
        let output = example("train_in_background").arg("--data").arg(&data).args(flags).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(run(&["--steps", "3", "--seconds", "600"]).contains("after 3 steps"));
    let stopped = run(&["--steps", "1000000000", "--seconds", "0"]);
    assert!(stopped.contains("after ") && !stopped.contains("after 1000000000 steps"), "{stopped}");
}

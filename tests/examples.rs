//! Runs the training examples as a user does, briefly.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use cllm::config::PairEncoderConfig;
use cllm::data::{PairFormat, PairReader, PairStoreBuilder, Tokenizer};
use cllm::export::VectorFormat;
use cllm::linalg::threads::SingleThreadedBlas;
use cllm::models::pair_encoder::PairEncoder;
use cllm::parallel::Parallelism;
use example::example;
use serde_json::Value;

#[path = "support/example.rs"]
mod example;

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

/// The last line of a successful run, which is one JSON object with these keys.
fn outcome(output: &Output, keys: &[&str]) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    let stdout = String::from_utf8(output.stdout.clone()).unwrap();
    let outcome: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    let found = outcome.as_object().unwrap().keys().map(String::as_str).collect::<BTreeSet<_>>();
    assert_eq!(found, keys.iter().copied().collect());
    outcome
}

#[test]
fn word_embeddings_are_written_in_every_format_and_their_outcome_is_printed() {
    let folder = tempfile::tempdir().unwrap();
    let data = corpus(folder.path());
    let run = |flags: &[&str]| {
        let mut command = example("train_embeddings");
        command.current_dir(folder.path()).arg("--data").arg(&data).args(flags);
        command.args("--dim 8 --min-count 2 --epochs 3 --workers 2".split(' ')).output().unwrap()
    };
    let keys = ["words", "vocabulary", "seconds", "words_per_s", "loss", "peak_rss_mb"];
    let text = fs::read_to_string(&data).unwrap();
    let mut tables = Vec::new();
    for format in ["word2vec", "word2vec-bin", "npy", "safetensors"] {
        let outcome = outcome(&run(&["--out", "vectors", "--format", format, "--json"]), &keys);
        assert_eq!(outcome["words"], 3 * text.split_whitespace().count());
        let [words, seconds, rate] = ["words", "seconds", "words_per_s"].map(|key| outcome[key].as_f64().unwrap());
        assert!((rate - words / seconds).abs() <= 0.5 + 1e-9 * rate, "{outcome}");
        assert!(
            outcome["loss"].as_f64().unwrap() > 0.0
                && (outcome["peak_rss_mb"].is_f64() || cfg!(not(target_os = "linux")))
        );
        let format =
            [VectorFormat::Word2vecText, VectorFormat::Word2vecBinary, VectorFormat::Npy, VectorFormat::Safetensors]
                [tables.len()];
        let table = cllm::export::read(folder.path().join("vectors"), Some(format)).unwrap();
        assert_eq!((outcome["vocabulary"].as_u64().unwrap(), table.dim()), (table.len() as u64, 8));
        tables.push(table);
    }
    assert!(tables.iter().all(|table| table == &tables[0]));
    // Nothing is trained that could not be written.
    fs::create_dir(folder.path().join("folder")).unwrap();
    for out in ["no/such/folder/vectors", "folder"] {
        let output = run(&["--out", out]);
        let text = stderr(&output);
        assert!(output.status.code() == Some(1) && text.starts_with("error: ") && text.lines().count() == 1, "{text}");
    }
}

/// Some steps on 200 pairs in `folder`.
fn train_pairs(folder: &Path, flags: &[&str]) -> Output {
    let lines = (0..200).map(|line| format!("what does line {line} say\tit says {}\n", line * line));
    fs::write(folder.join("pairs.tsv"), lines.collect::<String>()).unwrap();
    let mut command = example("train_pairs");
    command.current_dir(folder).args("--data pairs.tsv --tokenizer words:1000 --dim 8 --batch 16".split(' '));
    command.args("--steps 6 --workers 2 --seed 3 --max-tokens 6 --json".split(' ')).args(flags).output().unwrap()
}

#[test]
#[cfg_attr(not(feature = "tokenizers"), ignore = "words as tokens need the feature `tokenizers`")]
fn a_text_encoder_is_written_and_scored_on_what_was_held_out() {
    let folder = tempfile::tempdir().unwrap();
    let keys = "pairs steps vocabulary seconds preparation_seconds pairs_per_s loss held_out recall_at_1 recall_at_10 \
        untrained_recall_at_1 untrained_recall_at_10 workers peak_rss_mb";
    let keys: Vec<&str> = keys.split(' ').collect();
    let scored =
        outcome(&train_pairs(folder.path(), &["--held-out", "0.25", "--workers", "1", "--out", "encoder"]), &keys);
    let count = |key: &str| scored[key].as_u64().unwrap();
    assert_eq!(["pairs", "steps", "held_out", "workers"].map(count), [96, 6, 50, 1]);
    assert!(scored["loss"].as_f64().unwrap() > 0.0 && scored["pairs_per_s"].as_f64().unwrap() > 0.0, "{scored}");

    // What was written has the recall that was printed, on the last quarter of the pairs.
    let embedding = folder.path().join("encoder/0_StaticEmbedding");
    let tokenizer = Tokenizer::load(&embedding).unwrap();
    let vocabulary_size = tokenizer.vocabulary_size();
    assert_eq!(count("vocabulary"), vocabulary_size as u64);
    let mut pairs = PairStoreBuilder::new(vocabulary_size, 0).unwrap();
    let mut reader = PairReader::open(folder.path().join("pairs.tsv"), PairFormat::Tsv, 0).unwrap();
    pairs.read(&mut reader, &tokenizer, 6).unwrap();
    let (_, held_out) = pairs.finish().split_at(150);
    let mut encoder = PairEncoder::new(PairEncoderConfig { vocabulary_size, dim: 8, token_weights: false }, 3).unwrap();
    // Its threads would be shared out by chance.
    let _blas = SingleThreadedBlas::acquire();
    let recall = |encoder: &PairEncoder| encoder.recall(&held_out, &[1, 10], Parallelism::SEQUENTIAL).unwrap();
    let printed = |prefix: &str| ["1", "10"].map(|rank| scored[format!("{prefix}recall_at_{rank}")].as_f64().unwrap());
    assert_eq!(recall(&encoder), printed("untrained_"));
    let file = fs::read(embedding.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let vectors = tensors.tensor("embedding.weight").unwrap();
    assert_eq!(vectors.shape(), [vocabulary_size, 8]);
    let untrained = encoder.parameters().values().to_vec();
    for (value, bytes) in encoder.parameters_mut().values_mut().iter_mut().zip(vectors.data().chunks_exact(4)) {
        *value = f32::from_le_bytes(bytes.try_into().unwrap());
    }
    assert_eq!(recall(&encoder), printed(""));
    assert_ne!(encoder.parameters().values(), untrained);

    // Nine batches of the 150 pairs that are left.
    let one = ["--held-out", "0.25", "--epochs", "1", "--steps", "1000"];
    assert_eq!(outcome(&train_pairs(folder.path(), &one), &keys)["steps"], 9);
    let none = outcome(&train_pairs(folder.path(), &["--held-out", "0"]), &keys);
    assert_eq!((&none["held_out"], &none["recall_at_10"]), (&0.into(), &0.0.into()));
}

#[test]
#[cfg_attr(not(feature = "tokenizers"), ignore = "words as tokens need the feature `tokenizers`")]
fn a_text_encoder_is_not_written_where_training_failed_or_over_another() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("full")).unwrap();
    fs::write(folder.path().join("full/file"), "").unwrap();
    let mut cases: Vec<(&[&str], &str)> = vec![
        (&["--weight-decay", "1e42"], "error: step 2: "),
        // The last update, which no step comes after, with pairs held out and without.
        (&["--weight-decay", "1e42", "--steps", "1"], "documents: row 1: the vector is not finite"),
        (&["--weight-decay", "1e42", "--steps", "1", "--held-out", "0"], "a value of the token "),
        (&["--learning-rate", "1e39", "--steps", "1"], "learning_rate = 1e39: must be greater than 0 and at most 3.4"),
        (&["--temperature", "1e-10"], "temperature = 1e-10: must lie between 1e-9 and 1000000000"),
        (&["--hard-negatives", "1000"], "hard_negatives = 1000: must be at most 256"),
        (&["--batch", "4000"], "4000"),
        (&["--held-out", "1"], "--held-out 1"),
        (&["--tokenizer", "byte"], "--out"),
        (&["--out", "full"], "holds something"),
        // Before a file of pairs is looked for.
        (&["--out", "pairs.tsv", "--data", "no/such/file"], "pairs.tsv: "),
        (&["--out", "pairs.tsv/encoder", "--data", "no/such/file"], "pairs.tsv: "),
    ];
    if Path::new("/proc/self").exists() {
        // Nobody may write there, whatever rights this test has.
        cases.push((&["--out", "/proc/encoder", "--data", "no/such/file"], "/proc: "));
    }
    for (flags, message) in cases {
        let flags: Vec<&str> = ["--out", "encoder"].into_iter().chain(flags.iter().copied()).collect();
        let output = train_pairs(folder.path(), &flags);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{flags:?}: {text}");
        let last = text.lines().last().unwrap();
        assert!(last.starts_with("error: ") && last.contains(message), "{flags:?}: {text}");
        assert_eq!(files(folder.path()), ["full", "pairs.tsv"].map(str::to_owned).into(), "{flags:?}");
        assert_eq!((files(&folder.path().join("full")).len(), output.stdout.len()), (1, 0), "{flags:?}");
    }
}

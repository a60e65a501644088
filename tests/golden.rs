//! Training steps against PyTorch: every case folder below `tests/golden/`, and below the folder named by
//! `CLLM_GOLDEN_DIR` when that is set, each with one worker, and with two that share it by sequences and by operations. `tests/golden/README.md` says what a case holds.
//!
//! # Tolerances
//!
//! A value may differ from PyTorch's by `relative · max(|expected|, floor)`:
//!
//! | what | relative | floor |
//! |---|---|---|
//! | logits | 1e-4 | 1/10 of the largest logit |
//! | gradients | 1e-4 | 1/10 of the tensor's largest, 1/1000 of the largest of all gradients |
//! | loss, each step's too | 1e-5 | 1 |
//! | parameters after the steps | 1e-4 | the tensor's largest, 10 · steps · learning rate |
//!
//! A floor is needed because a small value is the rest of large ones that cancel, and keeps their rounding error.
//! PyTorch in f32 differs from PyTorch in f64 by up to 4e-7 of the largest logit and 1e-6 of a tensor's largest gradient;
//! the floors allow 1e-5. A tensor whose true gradient vanishes has no scale of its own: there the largest gradient of
//! all stands in. The key part of `c_attn.bias` is such a place inside a tensor, since softmax ignores a constant shift;
//! AdamW turns noise there into movement of learning rate · noise / ε a step, measured as up to 2e-5 of the tensor's
//! largest parameter, so parameters get the whole of it as their floor. An element moves by about steps · learning rate,
//! and a thousandth of that is allowed even in a tensor that started at zero.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use cllm::Sharding;
use ndarray::{Array2, ArrayD, Dimension, IxDyn};
use safetensors::{Dtype, SafeTensors};

/// Named tensors, under the names of `expected.safetensors`.
type Tensors = BTreeMap<String, ArrayD<f64>>;

/// What makes a folder a case.
const FILES: [&str; 4] = ["config.json", "params.safetensors", "batch.safetensors", "expected.safetensors"];

/// `config.json`: the model, the batch and the optimizer of a case.
#[derive(serde::Deserialize)]
struct Settings {
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: usize,
    layer_norm_epsilon: f32,
    batch: usize,
    sequence: usize,
    micro_batches: usize,
    ignore_index: u32,
    learning_rate: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    steps: u64,
}

/// A case folder, read but for the parameters, which the crate loads itself.
struct Case {
    folder: PathBuf,
    settings: Settings,
    inputs: Array2<u32>,
    targets: Array2<u32>,
    expected: Tensors,
}

/// The crate under test: every use of its API is in here.
mod engine {
    use cllm::data::Batch;
    use cllm::{Schedule, Sharding, Trainer, TrainingConfig, Transformer, TransformerConfig};
    use ndarray::{Array1, ArrayViewD, arr1};

    use super::{Case, Tensors};

    /// What the crate computes for a case, under the names of `expected.safetensors`.
    pub fn run(case: &Case, workers: usize, sharding: Sharding) -> cllm::Result<Tensors> {
        let s = &case.settings;
        let model = TransformerConfig {
            vocabulary_size: s.vocab_size,
            context: s.n_positions,
            dim: s.n_embd,
            heads: s.n_head,
            layers: s.n_layer,
            feed_forward: s.n_inner,
            layer_norm_epsilon: s.layer_norm_epsilon,
            embedding_dropout: 0.0,
            attention_dropout: 0.0,
            residual_dropout: 0.0,
            ..Default::default()
        };
        let training = TrainingConfig {
            batch_size: s.batch,
            sequence_length: s.sequence,
            accumulation_steps: s.micro_batches,
            learning_rate: s.learning_rate,
            minimum_learning_rate: s.learning_rate,
            warmup_steps: 0,
            schedule: Schedule::Constant,
            weight_decay: s.weight_decay,
            beta1: s.beta1,
            beta2: s.beta2,
            epsilon: s.eps,
            gradient_clip: None,
            ignore_id: Some(s.ignore_index),
            workers,
            sharding,
            max_steps: Some(s.steps),
            ..Default::default()
        };
        let model = Transformer::load_parameters(model, &case.folder.join("params.safetensors"))?;
        let mut trainer = Trainer::new(model, training)?;
        let batch = Batch::new(case.inputs.clone(), case.targets.clone())?;
        let names: Vec<String> = trainer.model().parameter_names().map(|name| name.to_string()).collect();

        let mut found = Tensors::new();
        found.insert("logits".into(), trainer.model().logits(case.inputs.view())?.mapv(f64::from).into_dyn());
        found.insert("loss".into(), arr1(&[trainer.compute_gradients(&batch)?.loss]).into_dyn());
        for name in &names {
            found.extend(trainer.gradient(name).map(|gradient| (format!("grad.{name}"), wide(gradient))));
        }
        let losses = (0..s.steps).map(|_| Ok(trainer.step(&batch)?.loss)).collect::<cllm::Result<Array1<f64>>>()?;
        found.insert("losses".into(), losses.into_dyn());
        for name in &names {
            found.extend(trainer.model().parameter(name).map(|value| (format!("param.{name}"), wide(value))));
        }
        Ok(found)
    }

    fn wide(tensor: ArrayViewD<f32>) -> ndarray::ArrayD<f64> {
        tensor.mapv(f64::from)
    }
}

/// Every case folder below `root`, in the order of their paths. A folder that holds neither files of a case nor other
/// folders is taken for a case too, one that cannot be read.
fn case_folders(root: &Path) -> Result<Vec<PathBuf>, String> {
    fn search(folder: &Path, root: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
        let mut below: Vec<PathBuf> = fs::read_dir(folder)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .filter(|path| path.is_dir() && !path.ends_with("__pycache__"))
            .collect();
        below.sort();
        let has_files = FILES.iter().any(|file| folder.join(file).exists());
        if has_files || (below.is_empty() && folder != root) {
            found.push(folder.to_path_buf());
        }
        below.iter().try_for_each(|path| search(path, root, found))
    }
    let mut found = Vec::new();
    search(root, root, &mut found).map_err(|error| format!("{}: {error}", root.display()))?;
    if found.is_empty() { Err(format!("{}: no case below this folder", root.display())) } else { Ok(found) }
}

/// The tensors of a file, each element given to `convert` as its bytes.
fn read_tensors<T>(
    path: &Path,
    dtype: Dtype,
    convert: impl Fn(&[u8]) -> Result<T, String>,
) -> Result<BTreeMap<String, ArrayD<T>>, String> {
    let wrong = |what: String| format!("{}: {what}", path.display());
    let bytes = fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| wrong(error.to_string()))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.iter() {
        if view.dtype() != dtype {
            return Err(wrong(format!("{name} is {}, not {dtype}", view.dtype())));
        }
        let values: Result<Vec<T>, String> = view.data().chunks_exact(dtype.bitsize() / 8).map(&convert).collect();
        let values = values.map_err(|problem| wrong(format!("{name}: {problem}")))?;
        let tensor = ArrayD::from_shape_vec(IxDyn(view.shape()), values).map_err(|error| wrong(error.to_string()))?;
        tensors.insert(name.to_string(), tensor);
    }
    Ok(tensors)
}

fn read_case(folder: &Path) -> Result<Case, String> {
    let path = folder.join("config.json");
    let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = fs::read_to_string(&path).map_err(|error| wrong(&error))?;
    let settings: Settings = serde_json::from_str(&text).map_err(|error| wrong(&error))?;

    let path = folder.join("batch.safetensors");
    let mut batch = read_tensors(&path, Dtype::I64, |bytes| {
        let id = i64::from_le_bytes(bytes.try_into().unwrap());
        u32::try_from(id).map_err(|_| format!("{id} is no token id"))
    })?;
    let shape = (settings.micro_batches * settings.batch, settings.sequence);
    let mut ids = |name: &str| {
        let tensor = batch.remove(name).ok_or(format!("{}: {name} is missing", path.display()))?;
        let found = tensor.shape().to_vec();
        let matching = tensor.into_dimensionality().ok().filter(|ids: &Array2<u32>| ids.dim() == shape);
        matching.ok_or(format!("{}: {name} has shape {found:?}, not {shape:?}", path.display()))
    };
    let (inputs, targets) = (ids("inputs")?, ids("targets")?);

    let expected = read_tensors(&folder.join("expected.safetensors"), Dtype::F32, |bytes| {
        Ok(f64::from(f32::from_le_bytes(bytes.try_into().unwrap())))
    })?;
    Ok(Case { folder: folder.to_path_buf(), settings, inputs, targets, expected })
}

/// The largest magnitude in a tensor; 0 when it is empty.
fn largest(tensor: &ArrayD<f64>) -> f64 {
    tensor.iter().fold(0.0, |most, value| value.abs().max(most))
}

/// The relative tolerance and the floor of the tensor called `name`, as the head of this file gives them.
fn tolerance(name: &str, expected: &Tensors, settings: &Settings) -> (f64, f64) {
    let own = largest(&expected[name]);
    if name == "loss" || name == "losses" {
        (1e-5, 1.0)
    } else if name == "logits" {
        (1e-4, own / 10.0)
    } else if name.starts_with("grad.") {
        let gradients = expected.iter().filter(|(name, _)| name.starts_with("grad."));
        let all = gradients.map(|(_, tensor)| largest(tensor)).fold(0.0, f64::max);
        (1e-4, f64::max(own / 10.0, all / 1000.0))
    } else {
        (1e-4, own.max(10.0 * settings.steps as f64 * settings.learning_rate))
    }
}

/// How far one tensor is from what is expected: the worst element's error as a fraction of what it is allowed, or what is
/// wrong with the tensor.
fn compare(found: &ArrayD<f64>, expected: &ArrayD<f64>, (relative, floor): (f64, f64)) -> Result<f64, String> {
    if found.shape() != expected.shape() {
        return Err(format!("shape {:?}, expected {:?}", found.shape(), expected.shape()));
    }
    let mut worst: Option<(f64, String)> = None;
    for ((place, &expected), &found) in expected.indexed_iter().zip(found) {
        let place = place.slice();
        let error = (found - expected).abs();
        let allowed = relative * expected.abs().max(floor);
        // 0/0, where nothing is allowed and nothing is wrong, is no fault; NaN from anywhere else is the worst one.
        let ratio = if error == 0.0 { 0.0 } else { error / allowed };
        let ratio = if ratio.is_nan() { f64::INFINITY } else { ratio };
        if worst.as_ref().is_none_or(|(most, _)| ratio > *most) {
            worst = Some((
                ratio,
                format!("off by {error:.2e} (allowed {allowed:.2e}) at {place:?}: {found}, expected {expected}"),
            ));
        }
    }
    match worst {
        None => Err("no element to compare".into()),
        Some((ratio, _)) if ratio <= 1.0 => Ok(ratio),
        Some((_, what)) => Err(what),
    }
}

/// Compares all tensors of a case: for each, by name, its error as a fraction of what is allowed, or what is wrong.
fn compare_all(found: &Tensors, expected: &Tensors, settings: &Settings) -> BTreeMap<String, Result<f64, String>> {
    let names = found.keys().chain(expected.keys());
    let verdict = |name: &String| match (found.get(name), expected.get(name)) {
        (Some(found), Some(values)) => compare(found, values, tolerance(name, expected, settings)),
        (None, _) => Err("not computed".into()),
        (_, None) => Err("missing in expected.safetensors".into()),
    };
    names.map(|name| (name.clone(), verdict(name))).collect()
}

/// Reads and runs one case; returns what is wrong, one line each, and prints the worst errors.
fn check(folder: &Path, (workers, sharding): (usize, Sharding)) -> Vec<String> {
    let run = || {
        let case = read_case(folder)?;
        let found = engine::run(&case, workers, sharding).map_err(|error| error.to_string())?;
        Ok::<_, String>(compare_all(&found, &case.expected, &case.settings))
    };
    // A panic is this case's failure, not the end of the others.
    let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(format!("panicked: {}", text.unwrap_or("without a message")))
    });
    let label = format!("{}, {workers} workers by {sharding:?}", folder.display());
    let verdicts = match outcome {
        Ok(verdicts) => verdicts,
        Err(problem) => return vec![format!("{label}: {problem}")],
    };
    println!("{label}: worst error as a fraction of what is allowed");
    for kind in ["logits", "loss", "losses", "grad", "param"] {
        let of_kind = verdicts.iter().filter(|(name, _)| name.split('.').next() == Some(kind));
        let worst = of_kind.filter_map(|(name, verdict)| Some((verdict.as_ref().ok()?, name)));
        if let Some((ratio, name)) = worst.max_by(|a, b| a.0.total_cmp(b.0)) {
            println!("    {ratio:.4} {name}");
        }
    }
    let wrong = verdicts.iter().filter_map(|(name, verdict)| Some((name, verdict.as_ref().err()?)));
    wrong.map(|(name, problem)| format!("{label}: {name}: {problem}")).collect()
}

/// The folder with the committed cases.
fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Numbers of workers, and how they share a batch.
const WAYS: [(usize, Sharding); 3] = [(1, Sharding::Auto), (2, Sharding::Sequences), (2, Sharding::Operations)];

#[test]
fn every_case_trains_as_pytorch_does() {
    let mut roots = vec![committed()];
    roots.extend(std::env::var_os("CLLM_GOLDEN_DIR").map(PathBuf::from));
    let mut failures = Vec::new();
    for root in roots {
        match case_folders(&root) {
            Ok(folders) => {
                failures.extend(folders.iter().flat_map(|folder| WAYS.into_iter().flat_map(|way| check(folder, way))))
            }
            Err(problem) => failures.push(problem),
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn a_wrong_value_in_any_tensor_is_found() {
    let case = read_case(&committed().join("one_head")).unwrap();
    let right = engine::run(&case, 1, Sharding::Auto).unwrap();
    assert_eq!(right.len(), case.expected.len());
    for name in right.keys() {
        let wrong_by = |factor: f64| {
            let mut found = right.clone();
            let tensor = found.get_mut(name).unwrap();
            let most = largest(tensor);
            tensor.iter_mut().filter(|value| value.abs() == most).for_each(|value| *value *= factor);
            let verdicts = compare_all(&found, &case.expected, &case.settings);
            verdicts.into_iter().filter(|(_, verdict)| verdict.is_err()).map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(wrong_by(1.0), [""; 0]);
        let too_much = if name.starts_with("loss") { 3e-5 } else { 3e-4 };
        assert_eq!(wrong_by(1.0 + too_much), [name.as_str()]);
        assert_eq!(wrong_by(f64::NAN), [name.as_str()]);

        let mut less = right.clone();
        less.remove(name);
        assert!(compare_all(&less, &case.expected, &case.settings)[name].is_err());
    }
}

#[test]
fn an_unreadable_case_is_a_failure() {
    let root = tempfile::tempdir().unwrap();
    assert!(case_folders(root.path()).is_err(), "a folder without cases");
    assert!(case_folders(&root.path().join("absent")).is_err(), "a folder that is not there");

    let folder = root.path().join("nested/case");
    fs::create_dir_all(&folder).unwrap();
    assert_eq!(case_folders(root.path()).unwrap(), std::slice::from_ref(&folder), "an empty case");
    assert!(!check(&folder, WAYS[0]).is_empty(), "an empty case");

    let copy = |file: &str| fs::copy(committed().join("one_position").join(file), folder.join(file)).unwrap();
    FILES.iter().for_each(|file| assert!(copy(file) > 0));
    assert_eq!(case_folders(root.path()).unwrap(), std::slice::from_ref(&folder));
    assert_eq!(check(&folder, WAYS[0]), [""; 0]);
    for file in FILES {
        let path = folder.join(file);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
        assert!(!check(&folder, WAYS[0]).is_empty(), "{file} cut short");
        fs::remove_file(&path).unwrap();
        assert!(!check(&folder, WAYS[0]).is_empty(), "{file} missing");
        assert_eq!(
            case_folders(root.path()).unwrap(),
            std::slice::from_ref(&folder),
            "a case without {file} is still a case"
        );
        copy(file);
    }
    // A run that computes other tensors than the case expects: batch and parameters of another case.
    fs::copy(committed().join("one_head/expected.safetensors"), folder.join("expected.safetensors")).unwrap();
    assert!(!check(&folder, WAYS[0]).is_empty(), "expectations of another case");
}

//! Runs the example `neighbors` as a user does.

use std::fs;
use std::path::Path;
use std::process::Output;

use example::example;
use serde_json::Value;

#[path = "support/example.rs"]
mod example;

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn neighbours_analogies_and_scores_are_those_of_the_cosines() {
    let folder = tempfile::tempdir().unwrap();
    let vectors = "5 2\nman 1 0\nwoman 1 1\nking 0.2 1\nqueen -1 3\nthe -1 -1\n";
    fs::write(folder.path().join("vectors"), vectors).unwrap();
    fs::write(folder.path().join("judged"), "man\twoman\t3\nman\tqueen\t2\nman\tthe\t1\nman\tno\t4\n").unwrap();
    fs::write(folder.path().join("questions"), ": all\nman woman king queen\nman woman king no\n").unwrap();
    let run = |flags: &str| {
        let mut command = example("neighbors");
        command.current_dir(folder.path()).arg("vectors").args(flags.split(' ')).output().unwrap()
    };
    let output =
        run("--words man --analogy man woman king --similarity man woman --evaluate judged questions --top 2 --json");
    assert!(output.status.success(), "{}", stderr(&output));
    let lines: Vec<Value> =
        std::str::from_utf8(&output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 6);
    let words = |line: &Value| -> Vec<String> {
        line["neighbours"].as_array().unwrap().iter().map(|found| found["word"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!((&lines[0]["word"], words(&lines[0])), (&"man".into(), vec!["woman".into(), "king".into()]));
    assert!((lines[0]["neighbours"][0]["cosine"].as_f64().unwrap() - 0.5f64.sqrt()).abs() < 1e-6);
    assert_eq!(words(&lines[1]), ["queen", "the"]);
    // Of (−0.097, 1.688) and (−1, 3); with "man" and "woman" exchanged it would be 0.19.
    assert!((lines[1]["neighbours"][0]["cosine"].as_f64().unwrap() - 0.965).abs() < 1e-3);
    assert!((lines[2]["cosine"].as_f64().unwrap() - 0.5f64.sqrt()).abs() < 1e-6);
    // Cosines with "man" are 0.71, −0.32 and −0.71, as the judges have them.
    assert!((lines[3]["spearman"].as_f64().unwrap() - 1.0).abs() < 1e-9);
    assert_eq!((&lines[3]["scored"], &lines[3]["missing"]), (&3.into(), &1.into()));
    assert_eq!((&lines[5]["accuracy"], &lines[5]["asked"], &lines[5]["missing"]), (&1.0.into(), &1.into(), &1.into()));
    let output = run("--words cheese");
    assert!(output.status.code() == Some(1) && stderr(&output).contains("cheese"), "{}", stderr(&output));
}

/// Runs `neighbors` on the file `vectors` in `folder`.
fn neighbors(folder: &Path, flags: &str) -> Output {
    example("neighbors").current_dir(folder).arg("vectors").args(flags.split(' ')).output().unwrap()
}

/// The lines of JSON of a successful run.
fn json_lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", stderr(output));
    std::str::from_utf8(&output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_analogy_and_every_similarity_that_is_asked_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let vectors = "5 2\nman 1 0\nwoman 1 1\nking 0.2 1\nqueen -1 3\nthe -1 -1\n";
    fs::write(folder.path().join("vectors"), vectors).unwrap();
    let flags = "--analogy man woman king --analogy woman man queen --similarity man woman --similarity king the";
    let both = json_lines(&neighbors(folder.path(), &format!("{flags} --json")));
    let alone = |flags: &str| json_lines(&neighbors(folder.path(), &format!("{flags} --json"))).remove(0);
    assert_eq!(
        both,
        [
            alone("--analogy man woman king"),
            alone("--analogy woman man queen"),
            alone("--similarity man woman"),
            alone("--similarity king the"),
        ]
    );
    assert_ne!(both[0]["neighbours"], both[1]["neighbours"]);
    assert_eq!(neighbors(folder.path(), flags).stdout.iter().filter(|&&byte| byte == b'\n').count(), 4);
}

#[test]
fn an_evaluation_counts_what_it_skips_and_fails_where_nothing_is_scored() {
    let folder = tempfile::tempdir().unwrap();
    let vectors = "4 2\nman 1 0\nwoman 1 1\nking 0.2 1\nqueen -1 3\n";
    fs::write(folder.path().join("vectors"), vectors).unwrap();
    let run = |text: &str, flags: &str| {
        fs::write(folder.path().join("file"), text).unwrap();
        neighbors(folder.path(), &format!("--evaluate file{flags}"))
    };
    let judged = "\u{feff}# judged\n\nman\twoman\t3\nman\tqueen\t2\nman,king,2\nman\tno\t1\n";
    let line = json_lines(&run(judged, " --json")).remove(0);
    assert_eq!(["scored", "missing", "skipped"].map(|key| line[key].as_u64()), [Some(2), Some(1), Some(2)]);
    let text = String::from_utf8(run(judged, "").stdout).unwrap();
    assert_eq!(text, "file: Spearman 1.0000 over 2 pairs, 1 more have a word without a vector, 2 lines skipped\n");
    for before in ["", "\u{feff}", "\n", "# a comment of five words\n"] {
        let questions = format!("{before}: all\nman woman king queen\nman woman\nman woman king no\n");
        let line = json_lines(&run(&questions, " --json")).pop().unwrap();
        let skipped = 1 + u64::from(before.contains('\n'));
        assert_eq!(["asked", "missing", "skipped"].map(|key| line[key].as_u64()), [Some(1), Some(1), Some(skipped)]);
        let text = String::from_utf8(run(&questions, "").stdout).unwrap();
        assert!(text.ends_with(&format!(", 1 more have a word without a vector, {skipped} lines skipped\n")), "{text}");
    }
    for (text, message) in [
        ("Word 1,Word 2,Human (mean)\nman,woman,3\n", "over 0 pairs; 0 more have a word without a vector, and 2 lines"),
        ("word1\tword2\tPOS\tSimLex999\nman\twoman\tN\t3\n", "over 0 pairs; 0 more"),
        ("no\tnone\t3\n", "over 0 pairs; 1 more"),
        ("man\twoman\t3\n", "over 1 pairs; 0 more"),
        ("", "over 0 pairs"),
        ("man woman king queen\n", "begins with the head of a section"),
        (": all\nman woman king no\nman woman\n", "1 have a word without a vector, and 1 lines are not four words"),
    ] {
        for flags in ["", " --json"] {
            let output = run(text, flags);
            assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{text:?}");
            let text = stderr(&output);
            let last = text.lines().last().unwrap();
            assert!(last.starts_with("error: file: ") && last.contains(message), "{text}");
        }
    }
}

#[cfg(feature = "lapack")]
#[test]
fn spectral_flags_do_what_the_functions_of_the_library_do() {
    use cllm::WordVectors;
    use cllm::export::VectorFormat;
    use cllm::linalg::threads::SingleThreadedBlas;
    use cllm::parallel::Parallelism;
    use cllm::similarity::UnitVectors;

    let folder = tempfile::tempdir().unwrap();
    // The tables of two seeds, by a rule that leaves no direction out.
    let table = |seed: usize| {
        let value =
            |row: usize, column: usize| (((row + seed) * 37 + column * column * 11 + row * column) % 101) as f32;
        let rows = ndarray::Array2::from_shape_fn((40, 5), |(row, column)| value(row, column) / 25.0 - 1.5);
        let words: Vec<String> = (0..40).map(|id| format!("w{id}")).collect();
        let vectors = WordVectors::new(words.iter().map(String::as_str), rows).unwrap();
        let path = folder.path().join(["vectors", "target"][seed]);
        cllm::export::write(path, VectorFormat::Word2vecText, vectors.words(), vectors.vectors()).unwrap();
        vectors
    };
    let (vectors, target) = (table(0), table(1));
    let _blas = SingleThreadedBlas::acquire();
    let follow = |flags: &str, expected: &WordVectors| {
        let lines = json_lines(&neighbors(folder.path(), &format!("{flags} --words w3 w8 --similarity w1 w2 --json")));
        let search = UnitVectors::new(expected.vectors(), Parallelism::SEQUENTIAL);
        let lines = &lines[lines.len() - 3..];
        for (line, id) in lines.iter().zip([3, 8]) {
            let found = search.similar(id, 10, None, Parallelism::SEQUENTIAL);
            assert_eq!(line["neighbours"].as_array().unwrap().len(), 10);
            for (found, line) in found.iter().zip(line["neighbours"].as_array().unwrap()) {
                assert_eq!(line["word"], expected.word(found.id), "{flags}");
                assert!((line["cosine"].as_f64().unwrap() - f64::from(found.cosine)).abs() < 1e-5, "{flags}: {line}");
            }
        }
        let cosine = f64::from(expected.similarity("w1", "w2").unwrap());
        assert!((lines[2]["cosine"].as_f64().unwrap() - cosine).abs() < 1e-5, "{flags}: {}", lines[2]);
    };
    follow("--top 10", &vectors);
    follow("--project 2", &vectors.projected(2).unwrap());
    follow("--remove-top 2", &vectors.without_top(2).unwrap());
    // Alignment is only printed: what is searched are the vectors themselves, or their projections.
    follow("--align target", &vectors);
    follow("--align target --project 2", &vectors.projected(2).unwrap());

    let explained = vectors.spectrum().unwrap().explained_variance();
    for flag in ["--project", "--remove-top"] {
        let output = neighbors(folder.path(), &format!("{flag} 2 --similarity w1 w2"));
        let share = 100.0 * (explained[0] + explained[1]);
        let line = format!("the first 2 directions have {share:.1} % of the variance");
        assert!(stderr(&output).lines().any(|found| found == line), "{line}: {}", stderr(&output));
    }
    let line = json_lines(&neighbors(folder.path(), "--align target --json")).remove(0);
    let before = vectors.mean_cosine(&target).unwrap();
    let after = vectors.aligned_to(&target).unwrap().mean_cosine(&target).unwrap();
    assert!(after > before + 0.1, "{before} {after}");
    let printed = ["before", "after"].map(|key| line[key].as_f64().unwrap());
    assert_eq!(line["align"], "target");
    assert!((printed[0] - before).abs() < 1e-5 && (printed[1] - after).abs() < 1e-5, "{line}: {before} {after}");
    let text = String::from_utf8(neighbors(folder.path(), "--align target").stdout).unwrap();
    assert_eq!(text, format!("mean cosine with target: {before:.4}, aligned {after:.4}\n"));
    // Of five directions.
    let output = neighbors(folder.path(), "--project 6");
    assert!(output.status.code() == Some(1) && stderr(&output).contains("directions wanted"), "{}", stderr(&output));
    let output = neighbors(folder.path(), "--project 1 --remove-top 1");
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}

//! Training of word embeddings, from text to vectors.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use cllm::config::{WordObjective, WordTrainingConfig, WorkerMode};
use cllm::data::{InvalidUtf8, TextFiles, TextOptions, WordSplit, WordVocabulary};
use cllm::export::word2vec;
use cllm::rng::{Purpose, Stream};
use cllm::train::{WordSummary, WordTrainer};
use cllm::{Error, Result};

struct Run {
    trainer: WordTrainer,
    summary: WordSummary,
}

fn collect(path: &Path, content: &[u8]) -> TextFiles {
    std::fs::write(path, content).unwrap();
    TextFiles::collect(&[path], &TextOptions::default()).unwrap()
}

fn train(content: &[u8], minimum_count: u64, config: WordTrainingConfig) -> Result<Run> {
    let folder = tempfile::tempdir().unwrap();
    let corpus = collect(&folder.path().join("text"), content);
    let vocabulary = WordVocabulary::build(&corpus, WordSplit::Blanks, minimum_count)?;
    let mut trainer = WordTrainer::new(vocabulary, config)?;
    let summary = trainer.run(&corpus, |_| ControlFlow::Continue(()))?;
    Ok(Run { trainer, summary })
}

/// Lines of words from one of four topics of ten words each.
fn topics(lines: u64) -> String {
    let stream = Stream::new(7, Purpose::Caller, 0);
    let mut text = String::new();
    for line in 0..lines {
        let topic = stream.below(20 * line, 4);
        for word in 1..16 {
            text += &format!("t{topic}w{} ", stream.below(20 * line + word, 10));
        }
        text += "\n";
    }
    text
}

fn config() -> WordTrainingConfig {
    WordTrainingConfig { dim: 20, sample: 0.0, epochs: 4, ..Default::default() }
}

/// The share of words whose nearest other word, by cosine, is of their topic.
fn purity(trainer: &WordTrainer) -> f64 {
    let (vocabulary, vectors) = (trainer.vocabulary(), trainer.model().vectors());
    let topic = |id: usize| vocabulary.word(id as u32).split('w').next().unwrap().to_owned();
    let cosine = |a: usize, b: usize| {
        let (a, b) = (vectors.row(a), vectors.row(b));
        a.dot(&b) / (a.dot(&a) * b.dot(&b)).sqrt()
    };
    let words = vocabulary.len();
    let nearest =
        |id: usize| (0..words).filter(|&other| other != id).max_by(|&a, &b| cosine(id, a).total_cmp(&cosine(id, b)));
    (0..words).filter(|&id| topic(id) == topic(nearest(id).unwrap())).count() as f64 / words as f64
}

#[test]
fn planted_clusters_are_recovered() {
    let text = topics(1500);
    for objective in [WordObjective::SkipGram, WordObjective::Cbow] {
        for (mode, workers) in [(WorkerMode::Deterministic, 1), (WorkerMode::Deterministic, 3), (WorkerMode::Async, 2)]
        {
            let run = train(
                text.as_bytes(),
                1,
                WordTrainingConfig { objective, mode, workers, learning_rate: 0.05, ..config() },
            )
            .unwrap();
            assert_eq!(run.trainer.vocabulary().len(), 40);
            assert_eq!(run.summary.words, 4 * 1500 * 15);
            let purity = purity(&run.trainer);
            assert!(purity > 0.95, "{objective:?}, {mode:?}, {workers} workers: {purity}");
            // Untrained vectors score ln 2 on the positive pair and on each of its five negatives.
            assert!(run.summary.loss < 0.8 * 6.0 * std::f64::consts::LN_2, "{:?}", run.summary);
        }
    }
}

#[test]
fn a_deterministic_run_has_the_same_bits_twice() {
    let text = topics(200);
    for workers in [1, 2, 3] {
        let vectors = |seed| {
            let run =
                train(text.as_bytes(), 1, WordTrainingConfig { workers, seed, sample: 1e-2, ..config() }).unwrap();
            assert!(run.trainer.model().output_vectors().iter().any(|&value| value != 0.0));
            run.trainer.model().vectors().to_owned()
        };
        assert_eq!(vectors(1), vectors(1), "{workers} workers");
        assert_ne!(vectors(1), vectors(2), "{workers} workers");
    }
}

#[test]
fn rare_words_are_left_out_and_a_corpus_of_them_is_refused() {
    let run = train(b"x x x y y z\n", 2, config()).unwrap();
    let vocabulary = run.trainer.vocabulary();
    assert_eq!((vocabulary.len(), vocabulary.word(0), vocabulary.counts()), (2, "x", &[3, 2][..]));
    assert_eq!((vocabulary.id("y"), vocabulary.id("z"), vocabulary.corpus_words()), (Some(1), None, 6));
    let error = train(b"x y z\n", 2, config()).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::NoWords { words: 3, minimum_count: 2, .. }), "{error}");
    let error = train(b"\n \r\n", 1, config()).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::NoWords { words: 0, .. }), "{error}");
}

#[test]
fn odd_texts_are_read_as_documented() {
    // A vocabulary of one word; one word in all, so that there is no pair.
    for text in ["one ".repeat(500), "one".to_owned()] {
        for workers in [1, 3] {
            let run = train(text.as_bytes(), 1, WordTrainingConfig { workers, ..config() }).unwrap();
            assert_eq!(run.trainer.vocabulary().len(), 1);
            assert!(run.trainer.model().vectors().iter().all(|value| value.is_finite()));
            assert_eq!(run.summary.loss.is_nan(), text == "one");
        }
    }
    // Empty lines, CRLF and NULs separate; the words are the same as those of a plain text, and so are the lines.
    let plain = train(b"a b c\nb c d\n", 1, config()).unwrap();
    let odd = train(b"\n\na b\0c\r\n\r\n\nb\t c d", 1, config()).unwrap();
    assert_eq!(odd.trainer.vocabulary().counts(), plain.trainer.vocabulary().counts());
    assert_eq!(odd.trainer.model().vectors(), plain.trainer.model().vectors());
    // A line of a megabyte is one line.
    let long = train("u v w ".repeat(170_000).as_bytes(), 1, WordTrainingConfig { epochs: 1, workers: 2, ..config() })
        .unwrap();
    assert_eq!(long.summary.words, 510_000);
}

/// What is updated together must not overshoot where a text repeats a word many times in a row.
#[test]
fn a_text_with_runs_of_one_word_does_not_diverge() {
    let mut text = String::new();
    for (index, line) in topics(600).lines().enumerate() {
        text += line;
        text += "\n";
        if index % 40 == 0 {
            text += &"run ".repeat(300);
            text += "\n";
        }
    }
    for objective in [WordObjective::SkipGram, WordObjective::Cbow] {
        for workers in [1, 2] {
            let config = WordTrainingConfig { objective, workers, learning_rate: 0.05, ..config() };
            let run = train(text.as_bytes(), 1, config).unwrap();
            let untrained = 6.0 * std::f64::consts::LN_2;
            assert!(run.summary.loss < untrained, "{objective:?}, {workers} workers: {:?}", run.summary);
            let largest =
                run.trainer.model().vectors().iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
            assert!(largest < 10.0, "{objective:?}, {workers} workers: {largest}");
            assert!(purity(&run.trainer) > 0.9, "{objective:?}, {workers} workers");
        }
    }
}

/// A line that is longer than any buffer by far: one line, read in bounded memory.
#[test]
fn a_line_of_100_megabytes_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("long");
    let mut file = std::fs::File::create(&path).unwrap();
    // Few words, so that it takes no time: almost all of the line is one endless word, which is counted and passed over.
    let part = vec![b'x'; 1 << 20];
    file.write_all(b"a b c a b ").unwrap();
    (0..100).for_each(|_| file.write_all(&part).unwrap());
    file.write_all(b" c a b c").unwrap();
    drop(file);
    let corpus = TextFiles::collect(&[&path], &TextOptions::default()).unwrap();
    let vocabulary = WordVocabulary::build(&corpus, WordSplit::Blanks, 1).unwrap();
    assert_eq!((vocabulary.len(), vocabulary.corpus_words(), vocabulary.counts()), (3, 10, &[3, 3, 3][..]));
    for workers in [1, 3] {
        let mut trainer =
            WordTrainer::new(vocabulary.clone(), WordTrainingConfig { workers, epochs: 1, ..config() }).unwrap();
        let summary = trainer.run(&corpus, |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(summary.words, 10, "{workers} workers");
        assert!(summary.loss.is_finite());
    }

    // The same length in words, of one line.
    let mut file = std::fs::File::create(&path).unwrap();
    let words = "alpha beta gamma delta ".repeat(1 << 14);
    (0..100 * (1 << 20) / words.len()).for_each(|_| file.write_all(words.as_bytes()).unwrap());
    drop(file);
    let corpus = TextFiles::collect(&[&path], &TextOptions::default()).unwrap();
    let vocabulary = WordVocabulary::build(&corpus, WordSplit::Blanks, 1).unwrap();
    assert!(corpus.total_bytes() > 99 << 20);
    assert_eq!((vocabulary.len() as u64, vocabulary.corpus_words() / 4), (4, vocabulary.counts()[0]));
    let mut trainer = WordTrainer::new(vocabulary, WordTrainingConfig { dim: 4, epochs: 1, ..config() }).unwrap();
    let summary = trainer.run(&corpus, |progress| {
        assert!(progress.words > 0);
        ControlFlow::Break(())
    });
    assert!(summary.unwrap().stopped);
}

#[test]
fn text_that_is_not_utf8_is_refused_or_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text");
    let corpus = collect(&path, b"good b\xff\xffd good\n");
    let error = WordVocabulary::build(&corpus, WordSplit::Blanks, 1).unwrap_err();
    assert!(matches!(error, Error::InvalidUtf8 { offset: 6, value: 0xff, .. }), "{error}");
    let options = TextOptions { invalid_utf8: InvalidUtf8::Replace, ..Default::default() };
    let vocabulary =
        WordVocabulary::build(&TextFiles::collect(&[path], &options).unwrap(), WordSplit::Blanks, 1).unwrap();
    assert_eq!((vocabulary.len(), vocabulary.word(0)), (1, "good"));
}

#[test]
fn the_callback_stops_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text");
    let corpus = collect(&path, topics(30_000).as_bytes());
    let vocabulary = WordVocabulary::build(&corpus, WordSplit::Blanks, 1).unwrap();
    for mode in [WorkerMode::Deterministic, WorkerMode::Async] {
        let mut trainer =
            WordTrainer::new(vocabulary.clone(), WordTrainingConfig { mode, workers: 2, ..config() }).unwrap();
        let mut reports = Vec::new();
        let summary = trainer.run(&corpus, |progress| {
            reports.push(*progress);
            if reports.len() == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let summary = summary.unwrap();
        assert!(summary.stopped && summary.words < 4 * 450_000, "{summary:?}");
        assert!(
            reports[0].done < reports[1].done && reports[0].learning_rate > reports[1].learning_rate,
            "{reports:?}"
        );
    }
}

#[test]
fn the_learning_rate_falls_linearly_to_its_minimum() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = collect(&folder.path().join("text"), topics(30_000).as_bytes());
    let vocabulary = WordVocabulary::build(&corpus, WordSplit::Blanks, 1).unwrap();
    let words = 3.0 * vocabulary.corpus_words() as f64;
    for workers in [1, 2] {
        let (learning_rate, minimum_learning_rate) = (0.04, 0.01);
        let config = WordTrainingConfig { learning_rate, minimum_learning_rate, workers, epochs: 3, ..config() };
        let mut reports = Vec::new();
        let mut trainer = WordTrainer::new(vocabulary.clone(), config).unwrap();
        trainer
            .run(&corpus, |progress| {
                reports.push(*progress);
                ControlFlow::Continue(())
            })
            .unwrap();
        let at_minimum = reports.iter().filter(|report| report.learning_rate == minimum_learning_rate).count();
        assert!((1..reports.len() - 1).contains(&at_minimum), "{reports:?}");
        for report in reports {
            let read = report.words as f64 / words;
            assert!((report.done - read).abs() < 0.002, "{workers} workers, {read}: {report:?}");
            let expected = (learning_rate * (1.0 - report.done)).max(minimum_learning_rate);
            assert!((report.learning_rate - expected).abs() < 1e-5, "{workers} workers, {expected}: {report:?}");
        }
    }
}

/// Of two workers' parts, the first has no word that is frequent enough.
#[test]
fn a_run_is_watched_when_its_first_worker_has_nothing_to_do() {
    const WORDS: u64 = 400_000;
    let folder = tempfile::tempdir().unwrap();
    let text =
        (0..WORDS).map(|at| if at < WORDS / 2 { format!("r{at:05} ") } else { format!("word{:02} ", at * at % 61) });
    let corpus = collect(&folder.path().join("text"), text.collect::<String>().as_bytes());
    let vocabulary = WordVocabulary::build(&corpus, WordSplit::Blanks, 2).unwrap();
    for mode in [WorkerMode::Deterministic, WorkerMode::Async] {
        let config = WordTrainingConfig { mode, workers: 2, ..config() };
        let mut trainer = WordTrainer::new(vocabulary.clone(), config).unwrap();
        let mut reports = Vec::new();
        let summary = trainer.run(&corpus, |progress| {
            reports.push(*progress);
            if reports.len() == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let summary = summary.unwrap();
        assert!(summary.stopped && summary.words < 4 * WORDS, "{mode:?}: {summary:?}");
        let [first, second] = reports[..] else { panic!("{reports:?}") };
        assert!(first.words < second.words && second.words <= summary.words, "{mode:?}: {reports:?}, {summary:?}");
        assert!(first.done < second.done && second.done < 1.0, "{mode:?}: {reports:?}");
        assert!(second.loss > 0.0, "{mode:?}: {reports:?}");
    }
}

/// The callback is asked every 2¹⁷ words, which are reached in sight of the first block of the second epoch.
#[test]
fn a_run_that_stops_between_two_epochs_has_the_loss_of_the_first() {
    const LINES: u64 = (1 << 17) / 15 - 2;
    let folder = tempfile::tempdir().unwrap();
    let corpus = collect(&folder.path().join("text"), topics(LINES).as_bytes());
    let vocabulary = WordVocabulary::build(&corpus, WordSplit::Blanks, 1).unwrap();
    let trainer = || WordTrainer::new(vocabulary.clone(), WordTrainingConfig { epochs: 2, ..config() }).unwrap();
    let mut stops = trainer();
    let stopped = stops.run(&corpus, |_| ControlFlow::Break(())).unwrap();
    assert!(stopped.stopped && (1 << 17..15 * LINES + 200).contains(&stopped.words), "{stopped:?}");
    let ended = stops.run(&corpus, |_| ControlFlow::Continue(())).unwrap();
    let whole = trainer().run(&corpus, |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((ended.stopped, ended.words, ended.loss), (false, 2 * 15 * LINES, whole.loss));
    assert!(whole.loss < 0.9 * stopped.loss, "{stopped:?}, {ended:?}");
}

/// The file is gone when a run begins, or when its second epoch does, and back when it is continued.
#[test]
fn a_missing_file_ends_a_run_that_can_be_continued_without_a_loss() {
    let folder = tempfile::tempdir().unwrap();
    let (path, elsewhere) = (folder.path().join("text"), folder.path().join("elsewhere"));
    // Of two workers' parts, the second begins in the midst of a word.
    let text = topics(30_000) + "ends";
    assert!(text.as_bytes()[text.len() / 2 - 1..=text.len() / 2].iter().all(u8::is_ascii_alphanumeric));
    let corpus = collect(&path, text.as_bytes());
    let vocabulary = WordVocabulary::build(&corpus, WordSplit::Blanks, 1).unwrap();
    for (mode, workers) in [(WorkerMode::Deterministic, 2), (WorkerMode::Async, 2), (WorkerMode::Deterministic, 1)] {
        let config = WordTrainingConfig { mode, workers, epochs: 2, ..config() };
        let mut whole = WordTrainer::new(vocabulary.clone(), config.clone()).unwrap();
        let words = whole.run(&corpus, |_| ControlFlow::Continue(())).unwrap().words;
        for is_gone_at_once in [true, false] {
            let mut trainer = WordTrainer::new(vocabulary.clone(), config.clone()).unwrap();
            let mut is_there = !is_gone_at_once;
            if is_gone_at_once {
                std::fs::rename(&path, &elsewhere).unwrap();
            }
            let run = trainer.run(&corpus, |_| {
                if std::mem::replace(&mut is_there, false) {
                    std::fs::rename(&path, &elsewhere).unwrap();
                }
                ControlFlow::Continue(())
            });
            let error = run.unwrap_err();
            assert!(matches!(&error, Error::Io { path: named, .. } if *named == path), "{error}");

            std::fs::rename(&elsewhere, &path).unwrap();
            let summary = trainer.run(&corpus, |_| ControlFlow::Continue(())).unwrap();
            assert_eq!(summary.words, words, "{mode:?}, {workers} workers, gone at once {is_gone_at_once}");
            if is_gone_at_once && mode == WorkerMode::Deterministic {
                assert!(trainer.model().parameters().values() == whole.model().parameters().values());
            }
        }
    }
}

#[test]
fn settings_outside_their_domain_are_refused() {
    let refused = |config: WordTrainingConfig| matches!(config.validate(), Err(Error::InvalidConfig { .. }));
    assert!(!refused(config()));
    for name in ["dim", "window", "block", "workers"] {
        let mut wrong = config();
        *match name {
            "dim" => &mut wrong.dim,
            "window" => &mut wrong.window,
            "block" => &mut wrong.block,
            _ => &mut wrong.workers,
        } = 0;
        assert!(refused(wrong), "{name} = 0");
    }
    assert!(refused(WordTrainingConfig { shared_negatives: 24, ..config() }));
    assert!(refused(WordTrainingConfig { learning_rate: f64::NAN, ..config() }));
    assert!(refused(WordTrainingConfig { learning_rate: 1e39, ..config() }));
    assert!(refused(WordTrainingConfig { negatives: 1e7, ..config() }));
    for (sample, is_valid) in [(0.0, true), (1e-30, true), (1e-31, false), (-1.0, false), (f64::NAN, false)] {
        assert_eq!(refused(WordTrainingConfig { sample, ..config() }), !is_valid, "sample = {sample}");
    }
    assert!(refused(WordTrainingConfig { epochs: 0, ..config() }));
}

#[test]
fn files_of_word2vec_hold_every_row() {
    let folder = tempfile::tempdir().unwrap();
    let run = train(b"x x x y y z\n", 1, WordTrainingConfig { dim: 3, ..config() }).unwrap();
    let (vocabulary, vectors) = (run.trainer.vocabulary(), run.trainer.model().vectors());
    let (text, binary) = (folder.path().join("text"), folder.path().join("binary"));
    word2vec::write_text(&text, vocabulary.words(), vectors.view()).unwrap();
    word2vec::write_binary(&binary, vocabulary.words(), vectors.view()).unwrap();
    let (mut expected_text, mut expected_binary) = ("3 3\n".to_owned(), b"3 3\n".to_vec());
    for (word, row) in ["x", "y", "z"].iter().zip(vectors.rows()) {
        expected_text += &format!("{word} {} {} {}\n", row[0], row[1], row[2]);
        expected_binary.extend(format!("{word} ").bytes());
        row.iter().for_each(|value| expected_binary.extend(value.to_le_bytes()));
        expected_binary.push(b'\n');
    }
    assert_eq!(std::fs::read_to_string(text).unwrap(), expected_text);
    assert_eq!(std::fs::read(binary).unwrap(), expected_binary);
    let error =
        word2vec::write_text(folder.path().join("short"), vocabulary.words(), vectors.slice(ndarray::s![..2, ..]));
    assert!(matches!(error, Err(Error::Shape { .. })));
}

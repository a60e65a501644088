//! Generation against the uncached forward pass.

use cllm::generate::{Generator, Sampling};
use cllm::{Error, Transformer, TransformerConfig};
use ndarray::ArrayView2;

const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: None, top_p: None, seed: 0 };

/// A model whose parameters are large enough that every part of it shows in the scores: biases and gains as well.
fn model(vocabulary_size: usize, context: usize, dim: usize, heads: usize, layers: usize) -> Transformer {
    let config = TransformerConfig {
        vocabulary_size,
        context,
        dim,
        heads,
        layers,
        feed_forward: 3 * dim + 1,
        initial_deviation: 0.3,
        ..TransformerConfig::default()
    };
    let mut model = Transformer::new(config, 7).unwrap();
    for (index, value) in model.parameters_mut().values_mut().iter_mut().enumerate() {
        *value += 0.1 * (index as f32).sin();
    }
    model
}

fn shapes() -> Vec<Transformer> {
    vec![
        model(11, 8, 8, 1, 1),
        model(1, 4, 3, 1, 2),
        model(29, 150, 15, 3, 2),
        model(64, 70, 32, 4, 3),
        model(7, 1, 5, 5, 1),
    ]
}

fn tokens(model: &Transformer, count: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * i * 31 + i * 7) % 10_007 % model.config().vocabulary_size) as u32).collect()
}

/// The generator's scores must be the last row of the uncached ones over its window.
#[track_caller]
fn check_scores(generator: &mut Generator<'_>, model: &Transformer) {
    let window = generator.window().to_vec();
    let expected = model.logits(ArrayView2::from_shape((1, window.len()), &window).unwrap()).unwrap();
    let expected = expected.slice(ndarray::s![0, window.len() - 1, ..]);
    let scale = expected.iter().fold(0.0f32, |a, x| a.max(x.abs()));
    let found = generator.logits().unwrap();
    assert_eq!(found.len(), expected.len());
    for (token, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() <= 1e-5 * scale,
            "{window:?}: token {token} has the score {found}, without a cache {expected}"
        );
    }
}

#[test]
fn scores_equal_the_uncached_ones_at_every_position() {
    for model in shapes() {
        let tokens = tokens(&model, model.config().context);
        let mut generator = Generator::new(&model);
        for end in 1..=tokens.len() {
            generator.prompt(&tokens[end - 1..end]).unwrap();
            assert_eq!(generator.window(), &tokens[..end]);
            check_scores(&mut generator, &model);
        }
    }
}

#[test]
fn a_prompt_may_come_in_any_pieces() {
    for model in shapes() {
        let tokens = tokens(&model, 3 * model.config().context + 2);
        let mut whole = Generator::new(&model);
        for pieces in [vec![tokens.len()], vec![1, 2, 3, 66], vec![70, 1, 80]] {
            whole.reset();
            let mut generator = Generator::new(&model);
            let mut rest = &tokens[..];
            for piece in pieces.into_iter().chain([tokens.len()]) {
                let (piece, after) = rest.split_at(piece.min(rest.len()));
                rest = after;
                generator.prompt(piece).unwrap();
                check_scores(&mut generator, &model);
                whole.reset();
                whole.prompt(&tokens[..tokens.len() - rest.len()]).unwrap();
                assert_eq!(whole.window(), generator.window());
                assert_eq!(whole.position(), generator.position());
                check_scores(&mut whole, &model);
            }
        }
    }
}

#[test]
fn a_full_context_keeps_its_last_half_and_runs_it_again() {
    for model in shapes() {
        let context = model.config().context;
        let all = tokens(&model, 4 * context);
        let mut generator = Generator::new(&model);
        let mut window: Vec<u32> = Vec::new();
        for &token in &all {
            if window.len() == context {
                window.drain(..context - context / 2);
            }
            window.push(token);
            generator.prompt(&[token]).unwrap();
            assert_eq!(generator.window(), window);
            check_scores(&mut generator, &model);
        }
    }
}

#[test]
fn greedy_generation_is_that_of_the_uncached_forward() {
    for model in shapes() {
        let mut window = tokens(&model, 1);
        let found = Generator::new(&model).generate(&window, 100, &GREEDY).unwrap();
        for (index, &found) in found.iter().enumerate() {
            let scores = model.logits(ArrayView2::from_shape((1, window.len()), &window).unwrap()).unwrap();
            let last = scores.slice(ndarray::s![0, window.len() - 1, ..]);
            let highest = last.iter().copied().fold(f32::MIN, f32::max);
            assert!(last[found as usize] >= highest - 1e-5 * highest.abs(), "token {index}: {found} of {last}");
            if window.len() == model.config().context {
                window.drain(..window.len() - window.len() / 2);
            }
            window.push(found);
        }
    }
}

#[test]
fn the_seed_decides_the_text() {
    let model = model(64, 70, 32, 4, 3);
    let sampling = Sampling { temperature: 0.9, top_k: Some(40), top_p: Some(0.95), seed: 1 };
    let mut generator = Generator::new(&model);
    let text = generator.generate(&[1, 2], 200, &sampling).unwrap();
    assert_eq!(generator.generate(&[1, 2], 200, &sampling).unwrap(), text);
    assert_ne!(generator.generate(&[1, 2], 200, &Sampling { seed: 2, ..sampling }).unwrap(), text);
    assert!(text.iter().all(|&token| token < 64));

    // Step by step, with a stop in between, it is the same text.
    generator.reset();
    generator.prompt(&[1, 2]).unwrap();
    let mut steps: Vec<u32> = generator.tokens(sampling).take(50).collect::<Result<_, _>>().unwrap();
    for _ in 50..200 {
        steps.push(generator.next_token(&sampling).unwrap());
    }
    assert_eq!(steps, text);
    assert_eq!(generator.position(), 202);
}

#[test]
fn what_cannot_be_done_is_an_error_and_changes_nothing() {
    let mut model = model(11, 8, 8, 1, 1);
    let mut generator = Generator::new(&model);
    assert!(matches!(generator.next_token(&GREEDY), Err(Error::EmptyPrompt)));
    assert!(matches!(generator.logits(), Err(Error::EmptyPrompt)));
    assert!(matches!(generator.generate(&[], 1, &GREEDY), Err(Error::EmptyPrompt)));
    assert!(generator.generate(&[], 0, &GREEDY).unwrap().is_empty());

    generator.prompt(&[3, 4]).unwrap();
    let before = generator.logits().unwrap().to_vec();
    let error = generator.prompt(&[5, 11, 6]).unwrap_err();
    assert!(matches!(error, Error::TokenOutOfRange { position: 1, id: 11, vocabulary: 11, .. }), "{error}");
    let error = generator.next_token(&Sampling { top_p: Some(2.0), ..GREEDY }).unwrap_err();
    assert!(matches!(error, Error::InvalidConfig { name: "top_p", .. }), "{error}");
    assert_eq!((generator.window(), generator.position()), (&[3, 4][..], 2));
    assert_eq!(generator.logits().unwrap(), before);

    model.parameters_mut().values_mut().fill(f32::NAN);
    let mut generator = Generator::new(&model);
    generator.prompt(&[3, 4]).unwrap();
    let error = generator.next_token(&GREEDY).unwrap_err();
    assert!(matches!(error, Error::NonFiniteScore { position: 2, token: 0, .. }), "{error}");
    assert_eq!(generator.position(), 2);
}

#!/usr/bin/env python3
"""Writes the golden cases: GPT-2 training steps as PyTorch computes them in f32 on one thread.

    python -m venv venv && venv/bin/pip install torch numpy safetensors
    venv/bin/python tests/golden/generate.py [--out DIR] [--check-transformers] [CASE ...]

The committed files come from torch 2.15.0, numpy 2.4.6, safetensors 0.8.0. The same run writes the same bytes; another
processor or torch version may differ in the last bits. `--check-transformers` (pip install transformers; written with
5.23.0) reads every case back from disk and compares it with Hugging Face's GPT2LMHeadModel and AdamW in f64.

A case folder holds config.json, params.safetensors, batch.safetensors and expected.safetensors; README.md says what is
in them.
"""

import argparse
import json
import math
import pathlib
import zlib

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

# What a case is when it does not say otherwise. ε = 1e-5 in AdamW because the key part of c_attn.bias has a true gradient
# of zero (softmax ignores a constant shift): with 1e-8 its rounding noise would become whole steps.
DEFAULTS = {
    "vocab_size": 24, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_inner": 64,
    "layer_norm_epsilon": 1e-5, "batch": 2, "sequence": 8, "micro_batches": 1, "ignore_index": 24,
    "learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.99, "eps": 1e-5, "weight_decay": 0.1, "steps": 10,
}  # fmt: skip

# Per case: what differs from DEFAULTS; `ignored`, for every micro-batch, how many of its targets are ignored; `tokens`,
# how many different ids the inputs and targets are drawn from.
CASES = {
    "two_layers": dict(n_layer=2, batch=3),
    "one_head": dict(n_head=1, n_embd=12, n_inner=48, sequence=6, beta2=0.999),
    # As many heads as dimensions.
    "one_dimension_per_head": dict(n_head=8, n_embd=8, n_inner=32),
    "sequence_one": dict(sequence=1, batch=5, n_layer=2),
    "batch_one": dict(batch=1, n_layer=2, weight_decay=0.0),
    # One target in all, of which nothing can be averaged away.
    "one_position": dict(batch=1, sequence=1, n_positions=1, vocab_size=3, ignore_index=3, n_embd=6, n_inner=24),
    "odd_vocabulary": dict(vocab_size=37, ignore_index=37, n_embd=10, n_inner=40, sequence=7),
    # Three ids in 36 positions: each of their embedding rows sums many gradients, the other rows get only the head's.
    "repeated_tokens": dict(tokens=3, sequence=12, n_positions=12, batch=3),
    # The largest id a u32 holds marks what is ignored, and two sequences are ignored whole.
    "ignored_targets": dict(batch=4, ignore_index=2**32 - 1, ignored=[17]),
    "accumulation": dict(micro_batches=3, batch=2, ignored=[0, 9, 4], n_layer=2),
    # Nothing counts in the second micro-batch, and a micro-batch holds an odd number of sequences.
    "accumulation_empty_part": dict(micro_batches=3, batch=3, sequence=5, ignored=[2, 15, 6]),
    "narrow_feed_forward": dict(n_inner=9, layer_norm_epsilon=1e-2),
    "wide_feed_forward": dict(n_inner=150, n_embd=8, weight_decay=0.5, beta1=0.8),
    "long_context": dict(n_positions=50, sequence=9, learning_rate=3e-3),
    # Crosses the tiles of any tiled attention, with a ragged last one.
    "long_sequence": dict(n_embd=8, n_inner=24, sequence=150, n_positions=160, vocab_size=19, ignore_index=19),
    # Wider than any vector register, with 17 dimensions to a head: every kernel has a tail.
    "wide": dict(n_embd=68, n_head=4, n_inner=77, vocab_size=101, ignore_index=101, sequence=11, n_positions=13),
}


def settings(name):
    """A case's config.json, its ignored counts per micro-batch, and how many different ids it draws from."""
    case = DEFAULTS | CASES[name]
    ignored = case.pop("ignored", [0] * case["micro_batches"])
    tokens = case.pop("tokens", case["vocab_size"])
    assert len(ignored) == case["micro_batches"] and case["ignore_index"] >= case["vocab_size"]
    return case, ignored, tokens


def draw_parameters(case, generator):
    """Every bias and gain random, every weight far above GPT-2's 0.02, so that no gradient is small by accident."""
    C, N = case["n_embd"], case["n_inner"]

    def normal(*shape, std, mean=0.0):
        return torch.randn(*shape, generator=generator) * std + mean

    def linear(prefix, inputs, outputs):
        return {
            f"{prefix}.weight": normal(inputs, outputs, std=1.2 / math.sqrt(inputs)),
            f"{prefix}.bias": normal(outputs, std=0.2),
        }

    def norm(prefix):
        return {f"{prefix}.weight": normal(C, std=0.2, mean=1.0), f"{prefix}.bias": normal(C, std=0.2)}

    parameters = {
        "wte.weight": normal(case["vocab_size"], C, std=1.5 / math.sqrt(C)),
        "wpe.weight": normal(case["n_positions"], C, std=0.5),
    }
    for layer in range(case["n_layer"]):
        h = f"h.{layer}"
        parameters |= norm(f"{h}.ln_1") | linear(f"{h}.attn.c_attn", C, 3 * C) | linear(f"{h}.attn.c_proj", C, C)
        parameters |= norm(f"{h}.ln_2") | linear(f"{h}.mlp.c_fc", C, N) | linear(f"{h}.mlp.c_proj", N, C)
    return parameters | norm("ln_f")


def draw_batch(case, ignored, tokens, generator):
    """Random inputs; targets shifted by one, of which each micro-batch ignores its count: as many whole sequences as fit
    into it, the rest at random places of the other sequences."""
    B, T = case["batch"], case["sequence"]
    ids = torch.randint(tokens, (case["micro_batches"] * B, T + 1), generator=generator)
    inputs, targets = ids[:, :-1].clone(), ids[:, 1:].clone()
    for micro, count in enumerate(ignored):
        rows = torch.randperm(B, generator=generator) + micro * B
        whole, rest = divmod(count, T)
        targets[rows[:whole]] = case["ignore_index"]
        if rest:
            free = targets[rows[whole:]].flatten()
            free[torch.randperm(len(free), generator=generator)[:rest]] = case["ignore_index"]
            targets[rows[whole:]] = free.view(-1, T)
    return inputs, targets


def logits_of(case, p, inputs):
    """GPT-2's forward pass, written out: `inputs` [B, T] → logits [B, T, V]."""
    B, T = inputs.shape
    C, H = case["n_embd"], case["n_head"]
    causal = torch.ones(T, T, dtype=torch.bool).tril()

    def norm(x, name):
        return F.layer_norm(x, (C,), p[f"{name}.weight"], p[f"{name}.bias"], case["layer_norm_epsilon"])

    def linear(x, name):
        return x @ p[f"{name}.weight"] + p[f"{name}.bias"]

    x = p["wte.weight"][inputs] + p["wpe.weight"][:T]
    for layer in range(case["n_layer"]):
        h = f"h.{layer}"
        qkv = linear(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn")
        q, k, v = (part.view(B, T, H, C // H).transpose(1, 2) for part in qkv.split(C, dim=2))
        scores = (q @ k.transpose(2, 3)) / math.sqrt(C // H)
        weights = scores.masked_fill(~causal, -math.inf).softmax(dim=3)
        x = x + linear((weights @ v).transpose(1, 2).reshape(B, T, C), f"{h}.attn.c_proj")
        hidden = F.gelu(linear(norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc"), approximate="tanh")
        x = x + linear(hidden, f"{h}.mlp.c_proj")
    return norm(x, "ln_f") @ p["wte.weight"].T


def train(case, parameters, batch, forward=logits_of):
    """What expected.safetensors holds, computed in the precision of `parameters` with the given forward pass."""
    p = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    inputs, targets = batch
    counted = (targets != case["ignore_index"]).sum()
    optimizer = torch.optim.AdamW(
        [
            {"params": [v for v in p.values() if v.dim() == 2], "weight_decay": case["weight_decay"]},
            {"params": [v for v in p.values() if v.dim() != 2], "weight_decay": 0.0},
        ],
        lr=case["learning_rate"], betas=(case["beta1"], case["beta2"]), eps=case["eps"], foreach=False,
    )  # fmt: skip

    losses = []
    for step in range(case["steps"]):
        optimizer.zero_grad()
        loss, logits = 0.0, []
        for x, y in zip(inputs.split(case["batch"]), targets.split(case["batch"])):
            scores = forward(case, p, x)
            flat = scores.reshape(-1, case["vocab_size"])
            part = F.cross_entropy(flat, y.flatten(), ignore_index=case["ignore_index"], reduction="sum") / counted
            part.backward()
            loss += part.detach()
            logits.append(scores.detach())
        losses.append(loss)
        if step == 0:
            expected = {"logits": torch.cat(logits), "loss": loss.reshape(1)}
            expected |= {f"grad.{name}": value.grad.clone() for name, value in p.items()}
        optimizer.step()
    expected["losses"] = torch.stack(losses)
    return expected | {f"param.{name}": value.detach().clone() for name, value in p.items()}


def double(tensors):
    return {name: value.double() for name, value in tensors.items()}


def report(name, expected, exact):
    """Prints the sizes of the gradients, and how far f32 is from f64: the noise that any tolerance must leave room for."""

    def noise(prefix):
        # Per tensor, the worst error as a fraction of the tensor's largest value; a tensor of zeros has no scale.
        errors = [
            (float((value - exact[key]).abs().max() / exact[key].abs().max()), key)
            for key, value in expected.items()
            if key.startswith(prefix) and exact[key].abs().max() > 0
        ]
        worst, key = max(errors)
        return f"{worst:.0e} ({key})"

    largest = {k[5:]: float(v.abs().max()) for k, v in exact.items() if k.startswith("grad.")}
    low, high = min(largest, key=largest.get), max(largest, key=largest.get)
    print(f"{name}: loss {expected['loss'].item():.4f} → {expected['losses'][-1].item():.4f}")
    print(f"  largest gradient of a tensor: {largest[low]:.1e} ({low}) to {largest[high]:.1e} ({high})")
    print(f"  f32 noise: logits {noise('logits')}, gradients {noise('grad.')}, parameters {noise('param.')}")


def check_transformers(folder):
    """Reads the case back and trains Hugging Face's model on it in f64: everything must agree to f32 rounding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    case = json.loads((folder / "config.json").read_text())
    parameters, batch, expected = (load_file(folder / f"{f}.safetensors") for f in ("params", "batch", "expected"))
    keys = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "layer_norm_epsilon")
    model = GPT2LMHeadModel(GPT2Config(**{key: case[key] for key in keys}, bos_token_id=None, eos_token_id=None)).double()
    model.eval()  # no dropout

    def forward(case, p, inputs):
        renamed = {f"transformer.{name}": value for name, value in p.items()} | {"lm_head.weight": p["wte.weight"]}
        return torch.func.functional_call(model, renamed, kwargs={"input_ids": inputs}, strict=False).logits

    names = {n.removeprefix("transformer.") for n, _ in model.named_parameters()}
    assert names == set(parameters), names ^ set(parameters)
    exact = train(case, double(parameters), (batch["inputs"], batch["targets"]), forward)
    assert set(exact) == set(expected)
    for key, value in exact.items():
        assert value.shape == expected[key].shape, key
        # What is noise in a gradient, above all in the key part of c_attn.bias, reaches a parameter as lr·noise/ε.
        allowed = (3e-5 if key.startswith("param.") else 3e-6) * float(value.abs().max())
        error = float((value - expected[key]).abs().max())
        assert error <= allowed, f"{folder.name}: {key} differs by {error:.1e}, allowed {allowed:.1e}"
    print(f"  transformers agrees on all {len(exact)} tensors")


def main():
    arguments = argparse.ArgumentParser(description="Writes the golden cases.")
    arguments.add_argument("cases", nargs="*", metavar="CASE", help="names of cases to write (default: all)")
    arguments.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    arguments.add_argument("--check-transformers", action="store_true")
    arguments = arguments.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    for name in arguments.cases or CASES:
        case, ignored, tokens = settings(name)
        # A seed of its own per case: adding one leaves the bytes of the others alone.
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        parameters = draw_parameters(case, generator)
        inputs, targets = batch = draw_batch(case, ignored, tokens, generator)
        parts = (targets == case["ignore_index"]).view(case["micro_batches"], -1)
        assert parts.sum(dim=1).tolist() == ignored
        expected = train(case, parameters, batch)
        report(name, double(expected), train(case, double(parameters), batch))

        folder = arguments.out / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(case, indent=2) + "\n")
        save_file(parameters, folder / "params.safetensors")
        save_file({"inputs": inputs, "targets": targets}, folder / "batch.safetensors")
        save_file(expected, folder / "expected.safetensors")
        if arguments.check_transformers:
            check_transformers(folder)


if __name__ == "__main__":
    main()

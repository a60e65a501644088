#!/usr/bin/env python3
"""Trains text encoders on the halves of a text's lines and prints how many held-out halves find each other.

    python3 benches/compare_recall.py PYTHON TEXT [--seeds 1 2 3]

PYTHON is an interpreter that has PyTorch, tokenizers and gensim; TEXT has a paragraph a line. The pairs are the two halves
of the lines of 24 words or more; the last tenth is held out. The contestants, each with every seed:

- `cllm`: `train_pairs` with its defaults, 400 steps of 512 pairs at width 256, and the vectors that it began with;
- `torch`: PyTorch's EmbeddingBag with dense AdamW, on the same tokens, with the same steps and learning rates;
- `words`: the mean of skip-gram vectors of the same width, of `train_embeddings` on the halves that are not held out.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile

WIDTH, BATCH, STEPS, WARMUP, MOST_TOKENS, TEMPERATURE = 256, 512, 400, 20, 128, 0.05
LEARNING_RATE, LEAST_LEARNING_RATE = 0.1, 0.001
root = pathlib.Path(__file__).resolve().parent.parent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python")
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--run", choices=["torch", "words"], help="one contestant, in this interpreter, on a folder's pairs")
    arguments = parser.parse_args()
    if arguments.run:
        contestant = torch_encoder if arguments.run == "torch" else mean_of_words
        return print(json.dumps(contestant(arguments.text, arguments.seeds[0])))

    build = ["cargo", "build", "--release", "--example", "train_pairs", "--example", "train_embeddings"]
    subprocess.run(build, cwd=root, check=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        pairs = [halves(line.split()) for line in arguments.text.open(encoding="utf8") if len(line.split()) >= 24]
        (folder / "pairs.tsv").write_text("".join(f"{query}\t{document}\n" for query, document in pairs))
        kept = pairs[: len(pairs) - round(len(pairs) / 10)]
        (folder / "kept.txt").write_text("".join(f"{query} {document}\n" for query, document in kept))
        rows = {name: [] for name in ("untrained", "cllm", "torch", "words")}
        for seed in map(str, arguments.seeds):
            encoder, vectors = folder / f"encoder{seed}", folder / f"words{seed}.txt"
            flags = ["--data", folder / "pairs.tsv", "--tokenizer", "words:30000", "--out", encoder]
            ours = run([example("train_pairs"), *flags, "--seed", seed, "--json"])
            assert ours["steps"] == STEPS and ours["pairs"] == STEPS * BATCH, ours
            rows["cllm"].append((ours["recall_at_1"], ours["recall_at_10"]))
            rows["untrained"].append((ours["untrained_recall_at_1"], ours["untrained_recall_at_10"]))
            flags = ["--data", folder / "kept.txt", "--dim", str(WIDTH), "--out", vectors]
            run([example("train_embeddings"), *flags, "--seed", seed, "--json"])
            for name in ("torch", "words"):
                peer = [arguments.python, __file__, arguments.python, folder, "--run", name, "--seeds", seed]
                rows[name].append(run(peer))
    print(f"{len(pairs)} pairs, {len(pairs) - len(kept)} held out, means of the seeds {arguments.seeds} (least, most)\n")
    print("| | recall@1 | recall@10 |\n|---|---|---|")
    for name, recalls in rows.items():
        cells = [f"{statistics.mean(of):.3f} ({min(of):.3f}, {max(of):.3f})" for of in zip(*recalls)]
        print(f"| {name} | {' | '.join(cells)} |")


def halves(words):
    middle = len(words) // 2
    return " ".join(words[:middle]), " ".join(words[middle:])


def example(name):
    return root / "target" / "release" / "examples" / name


def run(command):
    output = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def read_pairs(folder):
    return [line.rstrip("\n").split("\t") for line in (folder / "pairs.tsv").open(encoding="utf8")]


def recall(queries, documents):
    """The share of queries with fewer than 1, and fewer than 10, documents that are nearer than their own."""
    scores = queries @ documents.T
    nearer = (scores > scores.diagonal()[:, None]).sum(1)
    return [float((nearer < most).mean()) for most in (1, 10)]


def torch_encoder(folder, seed):
    import torch
    from tokenizers import Tokenizer

    torch.manual_seed(seed)
    torch.set_num_threads(2)
    pairs = read_pairs(folder)
    tokenizer = Tokenizer.from_file(str(folder / f"encoder{seed}" / "0_StaticEmbedding" / "tokenizer.json"))
    sides = [
        [torch.tensor(text.ids[:MOST_TOKENS]) for text in tokenizer.encode_batch(list(side), add_special_tokens=False)]
        for side in zip(*pairs)
    ]
    kept = len(pairs) - round(len(pairs) / 10)
    table = torch.nn.EmbeddingBag(tokenizer.get_vocab_size(), WIDTH, mode="mean")
    optimizer = torch.optim.AdamW(table.parameters(), betas=(0.9, 0.999), weight_decay=0.0, fused=True)

    def encode(texts):
        starts = torch.tensor([0] + [len(text) for text in texts[:-1]]).cumsum(0)
        return torch.nn.functional.normalize(table(torch.cat(texts), starts), dim=1)

    order, targets = [], torch.arange(BATCH)
    for step in range(STEPS):
        if len(order) < BATCH:
            order = torch.randperm(kept).tolist()
        batch, order = order[:BATCH], order[BATCH:]
        queries, documents = (encode([side[index] for index in batch]) for side in sides)
        left = 1 - (step - WARMUP) / (STEPS - WARMUP)
        falling = LEAST_LEARNING_RATE + (LEARNING_RATE - LEAST_LEARNING_RATE) * left
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (step + 1) / WARMUP if step < WARMUP else falling
        loss = torch.nn.functional.cross_entropy(queries @ documents.T / TEMPERATURE, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return recall(*(encode(side[kept:]).numpy() for side in sides))


def mean_of_words(folder, seed):
    import numpy
    from gensim.models import KeyedVectors

    vectors = KeyedVectors.load_word2vec_format(str(folder / f"words{seed}.txt"))
    pairs = read_pairs(folder)

    def encode(text):
        rows = [vectors[word] for word in text.split() if word in vectors]
        mean = numpy.sum(rows, 0) if rows else numpy.zeros(vectors.vector_size, "f4")
        return mean / max(numpy.linalg.norm(mean), 1e-12)

    held_out = pairs[len(pairs) - round(len(pairs) / 10) :]
    return recall(*(numpy.array([encode(text) for text in side]) for side in zip(*held_out)))


if __name__ == "__main__":
    main()

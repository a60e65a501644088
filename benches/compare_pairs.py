#!/usr/bin/env python3
"""Runs PyTorch, sentence-transformers and cllm in turn on text pairs, and prints the ratios of speed and peak memory.

    python3 benches/compare_pairs.py PYTHON [--dims 256 1024] [--rounds 5] [--peers ids text]

PYTHON is an interpreter that has PyTorch and sentence-transformers. A step is one of 2048 pairs of 16 words a side, of a
vocabulary of 30,000: forward, in-batch softmax at temperature 0.05, backward, AdamW.

- `ids`: PyTorch's EmbeddingBag with fused AdamW, on ready-made ids, against `throughput --workload pairs`;
- `text`: sentence-transformers' StaticEmbedding with MultipleNegativesRankingLoss and fused AdamW, from texts, against
  `throughput --workload pairs --text`. Both tokenize in every step.

In each round every contestant runs once at each width, each in a process of its own, so that a machine that is slower
for a while is slower for all; a ratio is the median of the rounds' ratios.
"""
import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import time

VOCABULARY, BATCH, WORDS, BATCHES, SECONDS = 30_000, 2048, 16, 4, 8


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python")
    parser.add_argument("--dims", nargs="+", type=int, default=[256, 1024])
    parser.add_argument("--peers", nargs="+", choices=["ids", "text"], default=["ids", "text"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--run", choices=["ids", "text"], help="times one peer in this interpreter, at the first width")
    arguments = parser.parse_args()
    if arguments.run:
        peer = from_ids if arguments.run == "ids" else from_text
        return print(json.dumps(peer(arguments.dims[0], arguments.workers)))

    throughput = build()
    workers = str(arguments.workers)
    results = {(peer, dim): [] for peer in arguments.peers for dim in arguments.dims}
    for _ in range(arguments.rounds):
        for (peer, dim), rounds in results.items():
            theirs = [arguments.python, __file__, arguments.python, "--run", peer, "--dims", str(dim), "--workers", workers]
            ours = [throughput, "--workload", "pairs", "--dim", str(dim), "--workers", workers, "--json"]
            rounds.append((run(theirs), run(ours + ["--text"] * (peer == "text"))))

    print(f"{workers} threads, medians of {arguments.rounds} rounds; ratios are cllm's over the peer's of the same round\n")
    print("| from | dim | peer pairs/s | cllm pairs/s | ratio (least, most) | peer MB | cllm MB | share |")
    print("|---|---|---|---|---|---|---|---|")
    for (peer, dim), rounds in results.items():
        ratios = [ours["pairs_per_s"] / theirs["pairs_per_s"] for theirs, ours in rounds]
        speeds, memories = (
            [statistics.median(side[what] for side in sides) for sides in zip(*rounds)]
            for what in ("pairs_per_s", "peak_rss_mb")
        )
        print(
            f"| {peer} | {dim} | {speeds[0]:,.0f} | {speeds[1]:,.0f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f}) "
            f"| {memories[0]:,.0f} | {memories[1]:,.0f} | {memories[1] / memories[0]:.0%} |"
        )


def build():
    """Builds the throughput example; returns its path."""
    command = ["cargo", "build", "--release", "--example", "throughput", "--message-format", "json"]
    repository = pathlib.Path(__file__).resolve().parent.parent
    output = subprocess.run(command, cwd=repository, check=True, stdout=subprocess.PIPE, text=True).stdout
    built = [json.loads(line) for line in output.splitlines()]
    return next(message["executable"] for message in built if message.get("executable"))


def run(command):
    """The JSON object of the last line that `command` prints."""
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def timed(step, batches):
    """Pairs a second and peak memory of `step(batch)`, after some steps that do not count."""
    for index in range(3):
        step(batches[index % len(batches)])
    times = []
    while sum(times) < SECONDS:
        start = time.perf_counter()
        step(batches[len(times) % len(batches)])
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"pairs_per_s": round(BATCH / statistics.median(times)), "peak_rss_mb": round(peak), "steps": len(times)}


def from_ids(dim, threads):
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    table = torch.nn.EmbeddingBag(VOCABULARY, dim, mode="mean")
    optimizer = torch.optim.AdamW(table.parameters(), lr=0.01, fused=True)
    target = torch.arange(BATCH)

    def step(batch):
        queries, documents = F.normalize(table(batch), dim=1).split(BATCH)
        loss = F.cross_entropy(queries @ documents.T / 0.05, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return timed(step, [torch.randint(VOCABULARY, (2 * BATCH, WORDS)) for _ in range(BATCHES)])


def from_text(dim, threads):
    import os
    import random

    os.environ["RAYON_NUM_THREADS"] = str(threads)
    import torch
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer, models, pre_tokenizers

    try:
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
        from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    except ImportError:
        # sentence-transformers 5 and before.
        from sentence_transformers.losses import MultipleNegativesRankingLoss
        from sentence_transformers.models import StaticEmbedding

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    random.seed(0)
    tokenizer = Tokenizer(models.WordLevel({word(id): id for id in range(VOCABULARY)}, unk_token=word(0)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=dim)], device="cpu")
    loss_of = MultipleNegativesRankingLoss(model, scale=20.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    # `tokenize` in sentence-transformers 5 and before.
    tokenize = getattr(model, "preprocess", None) or model.tokenize

    def step(batch):
        loss = loss_of([tokenize(texts) for texts in batch], None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def text():
        return " ".join(word(random.randrange(VOCABULARY)) for _ in range(WORDS))

    return timed(step, [[[text() for _ in range(BATCH)] for _ in range(2)] for _ in range(BATCHES)])


def word(id):
    """Six letters."""
    letters = ""
    for _ in range(6):
        id, letter = divmod(id, 26)
        letters = chr(ord("a") + letter) + letters
    return letters


if __name__ == "__main__":
    main()

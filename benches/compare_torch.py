#!/usr/bin/env python3
"""Runs PyTorch and cllm in turn on the same workloads, and prints the ratios of their speeds and peak memories.

    python3 benches/compare_torch.py PYTHON SCRIPT [--workloads W1 W2] [--rounds 5] [--modes eager compile]
        [--preload LIBRARY ...]

PYTHON is an interpreter that has PyTorch; SCRIPT takes a workload, `--threads N` and the flags below, and prints a JSON
object with `tokens_per_s` and `peak_rss_mb` as its last line. cllm's side is `examples/throughput.rs`, built here. In
each round every contestant runs once on each workload, each in a process of its own, so that a machine that is slower
for a while is slower for all; a ratio is the median of the rounds' ratios. `--preload` names libraries that PyTorch's
processes load first, such as another allocator; cllm's do not.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess

FLAGS = {"eager": [], "compile": ["--mode", "compile"], "amp": ["--amp"]}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("python")
parser.add_argument("script")
parser.add_argument("--workloads", nargs="+", default=["W1", "W2", "W3", "W4"])
parser.add_argument("--modes", nargs="+", choices=FLAGS, default=["eager"])
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--workers", type=int, default=2)
parser.add_argument("--preload", nargs="+", default=[], metavar="LIBRARY")
parser.add_argument("--steps", type=int, help="timed steps of each run; each side's own number without")
arguments = parser.parse_args()

repository = pathlib.Path(__file__).resolve().parent.parent
workers = str(arguments.workers)
steps = [] if arguments.steps is None else ["--steps", str(arguments.steps)]


def build():
    """Builds the throughput example; returns its path."""
    command = ["cargo", "build", "--release", "--example", "throughput", "--message-format", "json"]
    output = subprocess.run(command, cwd=repository, check=True, stdout=subprocess.PIPE, text=True).stdout
    built = [json.loads(line) for line in output.splitlines()]
    return next(message["executable"] for message in built if message.get("executable"))


def run(command, preload=()):
    """The JSON object of the last line that `command` prints, run with the libraries `preload` loaded first."""
    environment = os.environ | ({"LD_PRELOAD": " ".join(preload)} if preload else {})
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(output.splitlines()[-1])


def median(values):
    return statistics.median(values)


throughput = build()
contestants = {"cllm": lambda workload: [throughput, "--workload", workload, "--workers", workers, "--json", *steps]}
for mode in arguments.modes:
    contestants[f"PyTorch {mode}"] = lambda workload, flags=FLAGS[mode]: [
        arguments.python, arguments.script, workload, "--threads", workers, *flags, *steps,
    ]

results = {(name, workload): [] for workload in arguments.workloads for name in contestants}
for _ in range(arguments.rounds):
    for name, workload in results:
        preload = [] if name == "cllm" else arguments.preload
        results[name, workload].append(run(contestants[name](workload), preload))

print(f"{workers} threads, medians of {arguments.rounds} rounds; ratios are cllm's over PyTorch's of the same round\n")
print("| workload | peer | PyTorch tokens/s | cllm tokens/s | ratio (least, most) | PyTorch MB | cllm MB | share |")
print("|---|---|---|---|---|---|---|---|")
for workload in arguments.workloads:
    own = results["cllm", workload]
    for name in list(contestants)[1:]:
        peer = results[name, workload]
        ratios = [ours["tokens_per_s"] / theirs["tokens_per_s"] for ours, theirs in zip(own, peer)]
        speeds = [median([run["tokens_per_s"] for run in side]) for side in (peer, own)]
        memories = [median([run["peak_rss_mb"] for run in side]) for side in (peer, own)]
        print(
            f"| {workload} | {name} | {speeds[0]:,.0f} | {speeds[1]:,.0f} "
            f"| {median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f}) "
            f"| {memories[0]:,.0f} | {memories[1]:,.0f} | {memories[1] / memories[0]:.0%} |"
        )
